"""
RLLR, stage 1: a teacher justifies labels; responses that fail verification are left out.

```bash
python recipes/rationales.py --config recipes/configs/rationales.yaml --task sst2 --labels all \
    --policy Qwen/Qwen2.5-1.5B-Instruct --output_dir runs/sst2/rationales
```

The teacher is a local causal language model, the task's own programmatic writer (`--teacher task`), one of your own
(`--teacher package.module:NAME` or `path/to/file.py:NAME`) or, with `--provider`, an API teacher. API teachers write
their answers to a journal, and nothing that was answered is requested again.
"""

from trl import ModelConfig, TrlParser

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import rationales
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.publishing import PublishConfig
from rlmec_trl.tasks.problems import ProblemConfig
from rlmec_trl.teachers.api.config import TeacherConfig


def make_parser() -> TrlParser:
    return TrlParser(
        (rationales.RationalesConfig, ProblemConfig, TeacherConfig, ServerConfig, ModelConfig, PublishConfig)
    )


def main(*configs) -> None:
    rationales.run(*configs)


if __name__ == "__main__":
    run_command(make_parser, main)
