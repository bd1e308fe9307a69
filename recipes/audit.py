"""
Audit a generative reward model: its token probabilities and rewrites, compared with a task that checks every step.

```bash
python recipes/audit.py --task arithmetic --dataset_name runs/arithmetic/seed-0/scored \
    --seen_dataset_name runs/arithmetic/seed-0/edits --tokenizer runs/arithmetic/seed-0/warmup
```
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import AutoTokenizer
from trl import TrlParser

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages.audit import GRMAudit, audit_grm
from rlmec_trl.tasks.task import load_task


@dataclass
class AuditArguments:
    """What to audit."""

    dataset_name: str = field(metadata={"help": "Scored samples, as `score.py` writes them."})
    seen_dataset_name: str = field(metadata={"help": "Edited samples whose problems the reward model has seen."})
    tokenizer: str = field(metadata={"help": "Path or Hub name of the policy's tokenizer."})
    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the audit to."})


def make_parser() -> TrlParser:
    return TrlParser((AuditArguments,))


def main(args: AuditArguments) -> GRMAudit:
    seen = set(load_rows(args.seen_dataset_name)["prompt"])
    scored = load_rows(args.dataset_name)
    check_dataset(scored, "scores")
    unseen = scored.select([index for index, prompt in enumerate(scored["prompt"]) if prompt not in seen])
    task = load_task(args.task)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    audit = audit_grm(unseen, task, task.editor, tokenizer)
    if args.output_file is not None:
        path = Path(args.output_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(audit), indent=2) + "\n", encoding="utf-8")
    return audit


if __name__ == "__main__":
    print(main(*make_parser().parse_args_and_config()))
