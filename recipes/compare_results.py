"""
Is one policy better than another? Results of `evaluate.py` on the same problems, each compared with the first: the
difference of the accuracies with its 95% interval, and McNemar's test.

```bash
python recipes/compare_results.py --results runs/gsm8k/sft.json runs/gsm8k/rlmec.json
```
"""

from rich.console import Console
from trl import TrlParser

from rlmec_trl.reports.tables import comparison_table
from rlmec_trl.stages import compare_results
from rlmec_trl.stages.command import run_command


def make_parser() -> TrlParser:
    return TrlParser((compare_results.CompareResultsConfig,))


def main(config: compare_results.CompareResultsConfig) -> None:
    comparisons = compare_results.run(config)
    Console().print(comparison_table(comparisons, f"Accuracy on {comparisons[0]['total']} problems"))


if __name__ == "__main__":
    run_command(make_parser, main)
