"""
Stage 6: accuracy of a policy, with counts and a 95% confidence interval.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/evaluate.py \
    --config recipes/configs/evaluate.yaml --task gsm8k --model_name_or_path runs/gsm8k/policy
```
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from trl import ModelConfig, TrlParser

from rlmec_trl.generation.loading import load_model
from rlmec_trl.generation.processes import end_processes
from rlmec_trl.reports.accuracy import Accuracy
from rlmec_trl.stages.evaluate import solve
from rlmec_trl.tasks.problems import ProblemConfig, load_problems
from rlmec_trl.tasks.task import load_task


@dataclass
class EvaluateArguments:
    """How to evaluate."""

    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the result to."})
    max_new_tokens: int = field(default=512, metadata={"help": "Greatest length of a completion, in tokens."})
    batch_size: int = field(default=16, metadata={"help": "Completions generated at a time."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that the model ships."})


def make_parser() -> TrlParser:
    return TrlParser((ProblemConfig, EvaluateArguments, ModelConfig))


def main(problem_config: ProblemConfig, args: EvaluateArguments, model_args: ModelConfig) -> Accuracy:
    task = load_task(args.task)
    model, tokenizer = load_model(model_args, trust_remote_code=args.trust_remote_code)
    problems = load_problems(problem_config, task, tokenizer)
    accuracy = solve(model, tokenizer, problems, task, args.max_new_tokens, args.batch_size)
    low, high = accuracy.interval
    PartialState().print(
        f"{model_args.model_name_or_path}: {accuracy.mean:.3f} ({accuracy.correct} of {accuracy.total} right, 95% "
        f"interval {low:.3f} to {high:.3f})"
    )
    if args.output_file is not None and PartialState().is_main_process:
        result = {"correct": accuracy.correct, "total": accuracy.total, "mean": accuracy.mean, "interval": [low, high]}
        path = Path(args.output_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return accuracy


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
    end_processes()
