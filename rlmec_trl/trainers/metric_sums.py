"""Metrics as sums and counts, which add up exactly over micro-batches and processes."""

import torch

from .losses import Metrics


class MetricSums:
    """
    Mixin for a TRL trainer, before the trainer among the base classes.

    The subclass has `_metric_sums`, a `defaultdict(lambda: [0.0, 0.0])` for each of `"train"` and `"eval"`, and gives
    every batch's metrics to `_add_metrics`, `num_tokens` among them. `log` turns them into means.
    """

    def _add_metrics(self, mode: str, metrics: Metrics) -> None:
        # One reduction for all metrics. They stay on the device until they are logged.
        totals = self.accelerator.reduce(
            torch.stack([value.float() for pair in metrics.values() for value in pair]), reduction="sum"
        )
        for index, name in enumerate(metrics):
            sums = self._metric_sums[mode][name]
            sums[0] = sums[0] + totals[2 * index]
            sums[1] = sums[1] + totals[2 * index + 1]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        sums = self._metric_sums[mode]
        if sums:
            values = torch.stack([value for pair in sums.values() for value in pair]).tolist()
            totals = dict(zip(sums, zip(values[::2], values[1::2], strict=True), strict=True))
            num_tokens, _ = totals.pop("num_tokens")
            if mode == "train":
                self._total_train_tokens += int(num_tokens)
            for name, (total, count) in totals.items():
                self._metrics[mode][name] = [total / count if count else 0.0]
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
            sums.clear()
        super().log(logs, start_time)
