"""Numbers of tokens over a whole training, which checkpoints keep."""

from collections import Counter

import torch


class TokenCounts:
    """
    Mixin for a TRL trainer, before the trainer among the base classes, whose `num_tokens` is not what its policy is
    trained on, or that asks a generative reward model.

    The subclass calls `_count_tokens` while it trains. [`~rlmec_trl.stages.training.train_and_save`] saves
    `token_counts`, and restores it when a training is resumed.

    Attributes:
        token_counts (`Counter[str]`, *optional*):
            Sums over the steps and processes: `policy` (tokens, prompts included, of all sequences that the policy is
            trained on, each once for every forward and backward pass), `grm_scored` and `grm_generated` (tokens that a
            reward model scores and writes). `None` in a training that an earlier version began without counting.
    """

    token_counts: Counter[str] | None

    def _count_tokens(self, **counts: int | torch.Tensor) -> None:
        """Add numbers of tokens of this process. All processes have to call it together, with the same names."""
        if self.token_counts is None:
            return
        device = self.accelerator.device
        local = torch.stack([torch.as_tensor(count, dtype=torch.int64, device=device) for count in counts.values()])
        totals = self.accelerator.reduce(local, reduction="sum").tolist()
        self.token_counts.update(dict(zip(counts, totals, strict=True)))
