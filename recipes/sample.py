"""
Stage 1: sample completions from the policy and check their answers.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/sample.py \
    --config recipes/ecqa/sample.yaml --model_name_or_path Qwen/Qwen2.5-7B-Instruct
```

Each shard is saved as soon as it is done: a run that was cut off goes on, and several processes share the prompts.
"""

from dataclasses import dataclass, field

from accelerate import PartialState
from datasets import Dataset
from trl import ModelConfig, TrlParser

from rlmec_trl.data.loading import ProblemConfig, load_problems
from rlmec_trl.data.shards import map_shards
from rlmec_trl.data.tasks import load_task
from rlmec_trl.generation.loading import load_model, model_fingerprint
from rlmec_trl.generation.sampling import sample_completions, to_sample_rows


@dataclass
class SampleArguments:
    """How to sample. The defaults are those of RLMEC (https://huggingface.co/papers/2401.06081)."""

    output_dir: str = field(metadata={"help": "Folder to write the samples to."})
    task: str = field(metadata={"help": "How answers are checked: `arithmetic`, `math` or `choice`."})
    num_samples: int = field(default=5, metadata={"help": "Completions of each prompt."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=0.95, metadata={"help": "Probability mass to sample from."})
    max_new_tokens: int = field(default=512, metadata={"help": "Greatest length of a completion, in tokens."})
    batch_size: int = field(default=16, metadata={"help": "Completions generated at a time."})
    shard_size: int = field(default=500, metadata={"help": "Prompts between two saves."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that the model ships."})


def make_parser() -> TrlParser:
    return TrlParser((ProblemConfig, SampleArguments, ModelConfig))


def main(problem_config: ProblemConfig, args: SampleArguments, model_args: ModelConfig) -> None:
    task = load_task(args.task)
    model, tokenizer = load_model(model_args, trust_remote_code=args.trust_remote_code)
    problems = load_problems(problem_config, task.wording, tokenizer)

    def sample(shard: Dataset, index: int) -> Dataset:
        completions = sample_completions(
            model,
            tokenizer,
            shard["prompt"],
            args.num_samples,
            args.temperature,
            args.top_p,
            args.max_new_tokens,
            args.batch_size,
            seed=args.seed + index,
            desc=f"Sampling, shard {index + 1}",
        )
        return to_sample_rows(shard, completions, model, tokenizer, task)

    settings = {**vars(problem_config), **vars(args), "model": model_fingerprint(model_args.model_name_or_path)}
    samples = map_shards(problems, sample, args.output_dir, settings, args.shard_size)
    if len(samples) == 0:
        raise ValueError(
            f"No completion came to its end: all were cut off at {args.max_new_tokens} tokens, or empty. Allow more "
            "with `--max_new_tokens`, and check that the policy ends its answers with EOS."
        )
    asked = len(problems) * args.num_samples
    PartialState().print(
        f"{len(samples)} samples, {sum(samples['correct'])} with the right answer; {asked - len(samples)} left out "
        f"(cut off at {args.max_new_tokens} tokens, or empty). Saved to {args.output_dir}"
    )


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
