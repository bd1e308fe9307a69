"""What an error about a dataset says, and what a program can read of it."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.errors import DatasetError
from rlmec_trl.data.row_checks import row_error


FOUND = "found 5. Give a text."


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (3, "prompt", f"Row 3, column 'prompt': {FOUND}"),
        (3, None, f"Row 3: {FOUND}"),
        (None, "prompt", f"Column 'prompt': {FOUND}"),
        (None, None, FOUND),
        (0, "it's", f"Row 0, column 'it's': {FOUND}"),
    ],
)
def test_the_message_begins_with_what_is_known_of_the_place(row, column, message):
    assert str(DatasetError(FOUND, row, column)) == message


@given(st.text(), st.none() | st.integers(0, 2**63), st.none() | st.text())
def test_an_error_keeps_its_fields_on_the_way_from_another_process(reason, row, column):
    """`Dataset.map` with `num_proc` pickles it."""
    error = DatasetError(reason, row, column)
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == str(error)
    assert (copied.reason, copied.row, copied.column) == (reason, row, column)


def test_the_number_of_a_row_is_a_number_of_python():
    """It is written as JSON, and the checks count with NumPy."""
    error = row_error(np.arange(4)[3], "prompt", 5, "Give a text.")
    assert type(error.row) is int
    assert str(error) == f"Row 3, column 'prompt': {FOUND}"
