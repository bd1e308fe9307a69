"""
Stage 4: a generative reward model judges every token of the samples and rewrites them.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/score.py \
    --config recipes/configs/score.yaml --task gsm8k --grm runs/gsm8k/grm --dataset_name runs/gsm8k/samples \
    --output_dir runs/gsm8k/scored
```

With `--base_url`, a server that has the reward model (such as `vllm serve runs/gsm8k/grm`) writes the rewrites.

`--model_name_or_path` is the policy that sampled the completions; its log-probabilities are stored beside.
"""

from dataclasses import dataclass, field

from accelerate import PartialState
from trl import ModelConfig, TrlParser

from rlmec_trl.data.loading import load_rows
from rlmec_trl.generation.processes import end_processes
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages.score import ScoreConfig, score_to_disk


@dataclass
class ScoreArguments:
    """What to score."""

    dataset_name: str = field(metadata={"help": "Samples, as `sample.py` writes them."})
    output_dir: str = field(metadata={"help": "Folder to write the scored samples to."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})
    max_rows: int | None = field(default=None, metadata={"help": "Number of samples to take from the start."})


def make_parser() -> TrlParser:
    return TrlParser((ScoreArguments, ScoreConfig, ServerConfig, ModelConfig))


def main(
    args: ScoreArguments, score_config: ScoreConfig, server_config: ServerConfig, model_args: ModelConfig
) -> None:
    samples = load_rows(args.dataset_name, args.dataset_split, args.max_rows)
    scored = score_to_disk(
        samples, args.output_dir, score_config, model_args, server_config if server_config.base_url else None
    )
    verified = len(scored) - scored["rewrite"].count(None)
    PartialState().print(f"{verified} of {len(scored)} samples have a verified rewrite. Saved to {args.output_dir}")


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
    end_processes()
