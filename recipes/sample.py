"""
Stage 1: sample completions from the policy and check their answers.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/sample.py \
    --config recipes/configs/sample.yaml --task gsm8k --output_dir runs/gsm8k/samples
```

The policy runs in this process, or, with `--base_url`, behind a server, such as
`vllm serve Qwen/Qwen2.5-1.5B-Instruct --generation-config vllm`:

```bash
python recipes/sample.py --config recipes/configs/sample.yaml --task gsm8k --output_dir runs/gsm8k/samples \
    --base_url http://localhost:8000/v1
```

Each shard is saved as soon as it is done: a run that was cut off goes on, and several processes share the prompts.
"""

from collections import Counter
from dataclasses import dataclass, field

from accelerate import PartialState
from datasets import Dataset
from trl import ModelConfig, TrlParser

from rlmec_trl.generation.inference import eos_token_ids
from rlmec_trl.generation.loading import load_model, load_tokenizer, model_fingerprint
from rlmec_trl.generation.processes import end_processes, gather_counts
from rlmec_trl.generation.sampling import sample_completions, sample_from_server
from rlmec_trl.generation.server import ServerConfig, TokenServer
from rlmec_trl.stages.runner import map_shards
from rlmec_trl.stages.sample import to_sample_rows
from rlmec_trl.tasks.problems import ProblemConfig, load_problems
from rlmec_trl.tasks.task import load_task


@dataclass
class SampleArguments:
    """How to sample. The defaults are those of RLMEC (https://huggingface.co/papers/2401.06081)."""

    output_dir: str = field(metadata={"help": "Folder to write the samples to."})
    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    num_samples: int = field(default=5, metadata={"help": "Completions of each prompt."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=0.95, metadata={"help": "Probability mass to sample from."})
    max_new_tokens: int = field(default=512, metadata={"help": "Greatest length of a completion, in tokens."})
    batch_size: int = field(default=16, metadata={"help": "Completions generated at a time, in this process."})
    shard_size: int = field(default=500, metadata={"help": "Prompts between two saves."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that the model ships."})


def make_parser() -> TrlParser:
    return TrlParser((ProblemConfig, SampleArguments, ServerConfig, ModelConfig))


def main(
    problem_config: ProblemConfig, args: SampleArguments, server_config: ServerConfig, model_args: ModelConfig
) -> None:
    task = load_task(args.task)
    server = None
    if server_config.base_url is None:
        model, tokenizer = load_model(model_args, trust_remote_code=args.trust_remote_code)
        ends = eos_token_ids(model.generation_config, tokenizer)
    else:
        tokenizer, ends = load_tokenizer(model_args, args.trust_remote_code)
        server = TokenServer(server_config, tokenizer, ends)
    problems = load_problems(problem_config, task, tokenizer)

    def sample(shard: Dataset, index: int) -> Dataset:
        settings = {
            "num_samples": args.num_samples,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "max_new_tokens": args.max_new_tokens,
            "seed": args.seed + index,
            "desc": f"Sampling, shard {index + 1}",
        }
        if server is not None:
            completions = sample_from_server(server, shard["prompt"], **settings)
        else:
            completions = sample_completions(model, tokenizer, shard["prompt"], batch_size=args.batch_size, **settings)
        return to_sample_rows(shard, completions, ends, tokenizer, task)

    settings = {**vars(problem_config), **vars(args), "model": model_fingerprint(model_args.model_name_or_path)}
    if server is not None:
        settings["server"] = [server_config.served_model, server_config.extra_body]
    samples = map_shards(problems, sample, args.output_dir, settings, args.shard_size)
    # By reason, in this run: what a server's answer did not give exactly
    left_out = gather_counts(server.left_out if server else Counter())
    if len(samples) == 0:
        raise ValueError(
            f"No completion came to its end: all were cut off at {args.max_new_tokens} tokens, or empty"
            f"{_listed(left_out)}. Allow more with `--max_new_tokens`, and check that the policy ends its answers "
            "with EOS."
        )
    asked = len(problems) * args.num_samples
    PartialState().print(
        f"{len(samples)} samples, {sum(samples['correct'])} with the right answer; {asked - len(samples)} left out "
        f"(cut off at {args.max_new_tokens} tokens, or empty{_listed(left_out)}). Saved to {args.output_dir}"
    )


def _listed(left_out: Counter) -> str:
    return "".join(f"; {reason}: {count}" for reason, count in left_out.most_common())


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
    end_processes()
