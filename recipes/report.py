"""
Scored samples as one HTML file: tokens colored by their probability or reward, with the rewrites beside them. It opens
from disk in any browser.

```bash
python recipes/report.py --dataset_name runs/gsm8k/scored --tokenizer Qwen/Qwen2.5-1.5B-Instruct \
    --output_file runs/gsm8k/report.html
```
"""

from trl import TrlParser

from rlmec_trl.stages import report
from rlmec_trl.stages.command import run_command


def make_parser() -> TrlParser:
    return TrlParser((report.ReportConfig,))


def main(config: report.ReportConfig) -> None:
    report.run(config)


if __name__ == "__main__":
    run_command(make_parser, main)
