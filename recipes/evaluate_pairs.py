"""
Accuracy of a reward model on pairs, with counts and a 95% confidence interval, separately for each kind of pair.

```bash
python recipes/evaluate_pairs.py --model_name_or_path runs/sst2/label_reward \
    --dataset_names runs/sst2/validation_pairs --output_file runs/sst2/label_reward_pairs.json
```
"""

from trl import ModelConfig, TrlParser

from rlmec_trl.stages import evaluate_pairs
from rlmec_trl.stages.command import run_command


def make_parser() -> TrlParser:
    return TrlParser((evaluate_pairs.EvaluatePairsConfig, ModelConfig))


def main(*configs) -> None:
    evaluate_pairs.run(*configs)


if __name__ == "__main__":
    run_command(make_parser, main)
