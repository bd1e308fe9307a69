"""Batches on several processes: which of their rows are repeated."""

from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import DataLoader


def num_repeated_rows(dataloader: DataLoader) -> int:
    """
    Number of rows at the end of the current batch that only fill it up.

    All processes must have the same number of batches of the same size, so Accelerate fills up the last ones with rows
    from the start of the dataset, which the epoch already contains.

    Args:
        dataloader ([`~torch.utils.data.DataLoader`]):
            The dataloader that gave the batch, as [`~accelerate.Accelerator`] prepares it.

    Returns:
        `int`: Number of rows, 0 if all are new, or if the dataset is a stream, whose length is unknown.
    """
    sampler = dataloader.batch_sampler
    if isinstance(sampler, SkipBatchSampler):  # of a run resumed within an epoch
        sampler = sampler.batch_sampler
    if not isinstance(sampler, BatchSamplerShard) or not sampler.even_batches or sampler.drop_last:
        return 0
    if not dataloader.end_of_dataloader:
        return 0
    # Process p has the rows p * size to (p + 1) * size - 1 of a batch of all processes
    size = sampler.batch_size // (sampler.num_processes if sampler.split_batches else 1)
    num_new = len(sampler.batch_sampler.sampler) % (size * sampler.num_processes)
    if num_new == 0:
        return 0
    return size - min(max(num_new - sampler.process_index * size, 0), size)
