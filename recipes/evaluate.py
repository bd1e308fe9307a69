"""
Stage 6: accuracy of a policy, with counts and a 95% confidence interval.

```bash
accelerate launch recipes/evaluate.py --config recipes/ecqa/evaluate.yaml --model_name_or_path runs/ecqa/rlmec
```
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from trl import ModelConfig, TrlParser

from rlmec_trl.data.loading import load_rows, to_task_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.tasks import load_task
from rlmec_trl.evaluation.accuracy import Accuracy
from rlmec_trl.evaluation.solving import solve
from rlmec_trl.generation.loading import load_model


@dataclass
class EvaluateArguments:
    """What to evaluate on."""

    dataset_name: str = field(metadata={"help": "Folder, file of JSON lines or Hub name of the problems."})
    task: str = field(metadata={"help": "How answers are checked: `arithmetic`, `math` or `choice`."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the result to."})
    dataset_split: str = field(default="test", metadata={"help": "Split of a data set on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    max_rows: int | None = field(default=None, metadata={"help": "Number of problems to take from the start."})
    problem_column: str = field(default="problem", metadata={"help": "Column of the problem."})
    reference_column: str = field(default="solution", metadata={"help": "Column of the worked solution."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the final answer. If unset, it is read off the worked solution."}
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Greatest length of a completion, in tokens."})
    batch_size: int = field(default=16, metadata={"help": "Completions generated at a time."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that the model ships."})


def make_parser() -> TrlParser:
    return TrlParser((EvaluateArguments, ModelConfig))


def main(args: EvaluateArguments, model_args: ModelConfig) -> Accuracy:
    task = load_task(args.task)
    model, tokenizer = load_model(model_args, trust_remote_code=args.trust_remote_code)
    problems = to_task_rows(
        load_rows(args.dataset_name, args.dataset_split, args.max_rows, args.dataset_config),
        task.wording,
        tokenizer,
        args.problem_column,
        args.reference_column,
        args.answer_column,
    )
    check_dataset(problems, "task")
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
