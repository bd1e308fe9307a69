"""Warnings of libraries that are hidden, because a user of ours can do nothing about them."""

import logging
import warnings


def hide_library_warnings() -> None:
    """
    Hide them, each by its message. A message of the import of a library is hidden only if this is called before it.
    """
    # Transformers 5.23 deprecates these names. The first is the one in TRL's configs, and older releases know no
    # other. The others are used by TRL.
    warnings.filterwarnings(
        "ignore", r"`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated", FutureWarning
    )
    # PEFT imports bitsandbytes wherever it is installed, which then recommends a package for models in 4 bits on a
    # CPU, whatever the model is.
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_about_kernels)


def _is_not_about_kernels(record: logging.LogRecord) -> bool:
    return not record.msg.startswith("Failed to load CPU gemm_4bit_forward from kernels-community")
