"""
RLLR, stage 2: responses to the same problem become pairs for a reward model, in TRL's preference format.

```bash
# Label-sensitive pairs: the correct label over a wrong one
python recipes/pairs.py --task sst2 --dataset_names runs/sst2/rationales --output_dir runs/sst2/label_pairs

# Rationale-sensitive pairs: of two responses with the same label, the one that the rater prefers
python recipes/pairs.py --task sst2 --dataset_names runs/sst2/rationales runs/sst2/samples --kind rationale \
    --rater Qwen/Qwen2.5-72B-Instruct --provider server --base_url http://localhost:8000/v1 \
    --output_dir runs/sst2/rationale_pairs
```

The rater is a function of your own (`--rater package.module:NAME` or `path/to/file.py:NAME`), the task's own check
(`--rater task`) or, with `--provider`, an API teacher as the judge.
"""

from trl import TrlParser

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import pairs
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.publishing import PublishConfig
from rlmec_trl.teachers.api.config import TeacherConfig


def make_parser() -> TrlParser:
    return TrlParser((pairs.PairsConfig, TeacherConfig, ServerConfig, PublishConfig))


def main(*configs) -> None:
    pairs.run(*configs)


if __name__ == "__main__":
    run_command(make_parser, main)
