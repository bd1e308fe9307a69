"""
Edit weights with rapidfuzz compared with the textbook dynamic program, as a ratio within one run.

```bash
make bench
```
"""

import random
import statistics
import time

from rlmec_trl.credit.alignment import edit_distance, edit_weights


def textbook_distance(source: list[int], target: list[int]) -> int:
    """Levenshtein distance, row by row."""
    row = list(range(len(target) + 1))
    for i, a in enumerate(source, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(target, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def make_pairs(count: int, length: int) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(0)
    pairs = []
    for _ in range(count):
        source = [rng.randrange(32000) for _ in range(length)]
        target = [token if rng.random() > 0.1 else rng.randrange(32000) for token in source if rng.random() > 0.05]
        pairs.append((source, target))
    return pairs


def median_seconds(function, pairs) -> float:
    seconds = []
    for pair in pairs:
        start = time.perf_counter()
        function(*pair)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    for length in (64, 512):
        pairs = make_pairs(20, length)
        assert all(textbook_distance(*pair) == edit_distance(*pair) for pair in pairs)
        slow, fast = median_seconds(textbook_distance, pairs), median_seconds(edit_weights, pairs)
        print(
            f"{length} tokens: {1e6 * fast:.0f} µs; the textbook distance alone takes {slow / fast:.0f} times as long"
        )


if __name__ == "__main__":
    main()
