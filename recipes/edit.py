"""
Stage 2: a teacher rewrites the samples with minimum edits; rewrites that fail verification are left out.

```bash
accelerate launch recipes/edit.py --config recipes/configs/edit.yaml --task gsm8k \
    --dataset_name runs/gsm8k/samples --output_dir runs/gsm8k/edits --teacher Qwen/Qwen2.5-72B-Instruct
```

The teacher is a local causal language model, the task's own programmatic editor (`--teacher task`), the values that
the references state (`--teacher reference`), an editor of your own (`--teacher package.module:NAME` or
`path/to/file.py:NAME`) or, with `--provider`, an API teacher. API teachers write their answers to a journal, and
nothing that was answered is requested again.

```bash
python recipes/edit.py --config recipes/configs/edit_anthropic.yaml --task gsm8k \
    --dataset_name runs/gsm8k/samples --output_dir runs/gsm8k/edits --dry_run true  # what will it cost?
```
"""

from trl import ModelConfig, TrlParser

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import edit
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.publishing import PublishConfig
from rlmec_trl.teachers.api.config import TeacherConfig


def make_parser() -> TrlParser:
    return TrlParser((edit.EditConfig, TeacherConfig, ServerConfig, ModelConfig, PublishConfig))


def main(*configs) -> None:
    edit.run(*configs)


if __name__ == "__main__":
    run_command(make_parser, main)
