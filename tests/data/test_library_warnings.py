"""Warnings of libraries that are hidden, and those that are not."""

import logging
import warnings

import pytest

from rlmec_trl.data.library_warnings import hide_library_warnings


@pytest.mark.parametrize(
    "name",
    [
        "gradient_checkpointing",
        "is_gradient_checkpointing",
        "gradient_checkpointing_enable",
        "gradient_checkpointing_disable",
    ],
)
def test_a_deprecated_name_that_is_not_the_users_choice_is_hidden(name):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        hide_library_warnings()
        warnings.warn(f"`{name}` is deprecated and will be removed in v6. Use `other`.", FutureWarning, stacklevel=1)
        warnings.warn("`learning_rate` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1)
        warnings.warn(f"`{name}` is on.", UserWarning, stacklevel=1)
    assert [str(warning.message)[:16] for warning in shown] == ["`learning_rate` ", f"`{name}`"[:16]]


def test_a_package_that_only_models_in_4_bits_need_is_not_recommended_to_all(caplog):
    hide_library_warnings()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please ...", "No module")
    logger.warning("Something else: %s", "no library")
    assert [record.getMessage() for record in caplog.records] == ["Something else: no library"]
