"""
Stage 6: accuracy of a policy, with counts and a 95% confidence interval.

```bash
accelerate launch recipes/evaluate.py --config recipes/configs/evaluate.yaml --task gsm8k \
    --model_name_or_path runs/gsm8k/policy
```
"""

from trl import ModelConfig, TrlParser

from rlmec_trl.stages import evaluate
from rlmec_trl.stages.command import run_command
from rlmec_trl.tasks.problems import ProblemConfig


def make_parser() -> TrlParser:
    return TrlParser((evaluate.EvaluateConfig, ProblemConfig, ModelConfig))


def main(*configs) -> None:
    evaluate.run(*configs)


if __name__ == "__main__":
    run_command(make_parser, main)
