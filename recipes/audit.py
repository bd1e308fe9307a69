"""
How good is a generative reward model? Its judgement of scored samples, against a checker that judges every step.

```bash
python recipes/audit.py --task arithmetic --dataset_name runs/arithmetic/seed-0/scored \
    --seen_dataset_name runs/arithmetic/seed-0/edits --tokenizer runs/arithmetic/seed-0/warmup
```
"""

from rich.console import Console
from trl import TrlParser

from rlmec_trl.reports.tables import audit_table, pool_audits
from rlmec_trl.stages import audit
from rlmec_trl.stages.command import run_command


def make_parser() -> TrlParser:
    return TrlParser((audit.AuditConfig,))


def main(config: audit.AuditConfig) -> audit.GRMAudit:
    return audit.run(config)


def show(result: audit.GRMAudit) -> None:
    Console().print(audit_table(pool_audits([result.to_dict()]), "Generative reward model, on unseen problems"))


if __name__ == "__main__":
    show(run_command(make_parser, main))
