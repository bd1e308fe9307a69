"""
Merge an adapter into its base model: training starts from whole models.

```bash
python recipes/merge.py --model_name_or_path runs/sst2/sft_adapter --dtype bfloat16 --output_dir runs/sst2/sft
```

The result is a model folder with its tokenizer. A reward model keeps the score head that was trained with its adapter.
"""

from trl import ModelConfig, TrlParser

from rlmec_trl.stages import merge
from rlmec_trl.stages.command import run_command


def make_parser() -> TrlParser:
    return TrlParser((merge.MergeConfig, ModelConfig))


def main(*configs) -> None:
    merge.run(*configs)


if __name__ == "__main__":
    run_command(make_parser, main)
