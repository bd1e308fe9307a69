"""
Run a script as one of several processes, and fail if its shutdown depends on timing: Python's threads would then
sometimes wait for each other, or abort.

accelerate launch tests/on_two.py SCRIPT ARGUMENTS
"""

import gc
import runpy
import sys
from pathlib import Path

import torch.distributed
from torch.nn.parallel import DistributedDataParallel


destroy_process_group = torch.distributed.destroy_process_group


def destroy_unheld(group=None):
    assert not any(isinstance(each, DistributedDataParallel) for each in gc.get_objects()), "DDP holds the group"
    destroy_process_group(group)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    torch.distributed.destroy_process_group = destroy_unheld
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert not torch.distributed.is_initialized(), "the process group was not ended"
