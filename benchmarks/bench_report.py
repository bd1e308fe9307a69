"""
Seconds to write the HTML report of 10,000 samples of 300 tokens, and the size of the file, with and without a second
reward model.

```bash
make bench
```
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlmec_trl.reports import write_html
from rlmec_trl.tasks.arithmetic import make_tokenizer


ROWS, TOKENS = 10_000, 300


def make_rows(processing_class: PreTrainedTokenizerBase, num_rows: int, num_tokens: int, seed: int = 0) -> Dataset:
    """Scored samples of which half are wrong, with a few tokens of low probability, and rewrites with a few edits."""
    rng = np.random.default_rng(seed)
    words = np.array([id for id in range(len(processing_class)) if id not in processing_class.all_special_ids])
    ids = rng.choice(words, (num_rows, num_tokens))
    rewrites = np.where(rng.random(ids.shape) < 0.02, rng.choice(words, ids.shape), ids)
    probs = rng.beta(8, 0.2, ids.shape)
    probs[rewrites != ids] = rng.beta(0.2, 8, (rewrites != ids).sum())
    return Dataset.from_dict(
        {
            "prompt": [f"Problem {row}: how many are there?" for row in range(num_rows)],
            "reference": [f"{row} + {row} = {2 * row}" for row in range(num_rows)],
            "completion_ids": list(ids),
            "correct": rng.random(num_rows) < 0.5,
            "token_probs": list(probs),
            "old_logps": list(np.log(rng.beta(5, 0.5, ids.shape).clip(1e-6))),
            "rewrite_ids": list(rewrites),
        }
    )


def main() -> None:
    processing_class = make_tokenizer()
    dataset = make_rows(processing_class, ROWS, TOKENS)
    again = dataset.map(lambda row: {"token_probs": row["token_probs"][::-1]}, desc="Scores of the second model")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        for name, other in (("one reward model", None), ("two reward models", again)):
            start = time.perf_counter()
            write_html(path, dataset, processing_class, other=other)
            seconds = time.perf_counter() - start
            print(f"{ROWS:,} rows of {TOKENS} tokens, {name}: {seconds:.1f} s, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
