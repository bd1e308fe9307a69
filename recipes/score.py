"""
Stage 4: a generative reward model scores every token of the samples and rewrites them.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/score.py \
    --config recipes/configs/score.yaml --task gsm8k --grm runs/gsm8k/grm \
    --dataset_name runs/gsm8k/samples --output_dir runs/gsm8k/scored
```

`--model_name_or_path` is the policy that sampled the completions; its log-probabilities are stored too. With
`--base_url`, a server that has the reward model (such as `vllm serve runs/gsm8k/grm`) writes the rewrites, and with
`--grm_on_server true` also gives the probabilities.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser

from rlmec_trl.data.loading import load_rows
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import score
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.publishing import PublishConfig


@dataclass
class ScoreArguments:
    """What to score."""

    dataset_name: str = field(metadata={"help": "Samples, as `sample.py` writes them."})
    output_dir: str = field(metadata={"help": "Folder to save the scored samples to."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    max_rows: int | None = field(default=None, metadata={"help": "Number of samples to take from the start."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to run Python code that the repositories of policy and reward model ship."},
    )


def make_parser() -> TrlParser:
    return TrlParser((ScoreArguments, score.ScoreConfig, ModelConfig, ServerConfig, PublishConfig))


def main(
    args: ScoreArguments,
    score_config: score.ScoreConfig,
    model_args: ModelConfig,
    server_config: ServerConfig,
    publish_config: PublishConfig,
) -> None:
    samples = load_rows(args.dataset_name, args.dataset_split, args.max_rows)
    score.run(
        score_config, samples, args.output_dir, model_args, server_config, args.trust_remote_code, publish_config
    )


if __name__ == "__main__":
    run_command(make_parser, main)
