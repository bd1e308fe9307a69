"""
Stage 1: sample completions from the policy and check their answers.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/sample.py \
    --config recipes/configs/sample.yaml --task gsm8k --output_dir runs/gsm8k/samples
```

The policy runs in this process, or, with `--base_url`, behind a server such as
`vllm serve Qwen/Qwen2.5-7B-Instruct --generation-config vllm`:

```bash
python recipes/sample.py --config recipes/configs/sample.yaml --task gsm8k --output_dir runs/gsm8k/samples \
    --model_name_or_path Qwen/Qwen2.5-7B-Instruct --base_url http://localhost:8000/v1
```

Each shard is saved as soon as it is done: re-running the command resumes it, and several processes share the prompts.
"""

from trl import ModelConfig, TrlParser

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import sample
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.publishing import PublishConfig
from rlmec_trl.tasks.problems import ProblemConfig


def make_parser() -> TrlParser:
    return TrlParser((sample.SampleConfig, ProblemConfig, ModelConfig, ServerConfig, PublishConfig))


def main(*configs) -> None:
    sample.run(*configs)


if __name__ == "__main__":
    run_command(make_parser, main)
