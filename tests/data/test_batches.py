"""Which rows of a batch are repetitions."""

from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from rlmec_trl.data.batches import num_repeated_rows


def shards(dataset, batch_size, num_processes, drop_last=False, **options):
    """The dataloader of each process, as Accelerate makes it."""
    dataloader = DataLoader(dataset, batch_size, drop_last=drop_last)
    return [
        prepare_data_loader(
            dataloader, num_processes=num_processes, process_index=index, put_on_device=False, **options
        )
        for index in range(num_processes)
    ]


def new_rows(dataloaders):
    rows = []
    for dataloader in dataloaders:
        for batch in dataloader:
            rows += batch[: len(batch) - num_repeated_rows(dataloader)].tolist()
    return sorted(rows)


@given(
    num_rows=st.integers(1, 40),
    size=st.integers(1, 5),
    num_processes=st.integers(1, 4),
    split_batches=st.booleans(),
)
def test_over_all_processes_each_row_is_new_once(num_rows, size, num_processes, split_batches):
    size = size * num_processes if split_batches else size
    dataloaders = shards(range(num_rows), size, num_processes, split_batches=split_batches)
    assert new_rows(dataloaders) == list(range(num_rows))


@given(num_rows=st.integers(1, 40), size=st.integers(1, 5), num_processes=st.integers(1, 4), skipped=st.integers(0, 3))
def test_a_run_resumed_within_an_epoch(num_rows, size, num_processes, skipped):
    dataloaders = shards(range(num_rows), size, num_processes)
    skipped = min(skipped, len(dataloaders[0]) - 1)
    resumed = [skip_first_batches(dataloader, skipped) for dataloader in dataloaders]
    assert new_rows(resumed) == list(range(skipped * size * num_processes, num_rows))


@given(num_rows=st.integers(1, 40), size=st.integers(1, 5), num_processes=st.integers(1, 4))
def test_nothing_is_filled_up_if_incomplete_batches_are_dropped_or_kept_uneven(num_rows, size, num_processes):
    complete = num_rows - num_rows % (size * num_processes)
    assert new_rows(shards(range(num_rows), size, num_processes, drop_last=True)) == list(range(complete))
    uneven = shards(range(num_rows), size, num_processes, even_batches=False)
    assert new_rows(uneven) == list(range(num_rows))


def test_a_stream_has_no_known_end():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(5))

    first, second = shards(Stream(), 2, 2, dispatch_batches=False)
    for dataloader in (first, second):
        assert [num_repeated_rows(dataloader) for _ in dataloader] == [0, 0]
