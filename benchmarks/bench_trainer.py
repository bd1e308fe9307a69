"""
Cost of RLMEC's loss compared with supervised fine-tuning: the time of a training step, as ratios within one run.

Both trainers process the same number of sequences of the same length per step, with the policy of the built-in task.

```bash
make bench
```
"""

import statistics
import tempfile
import time

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from rlmec_trl import RLMECConfig, RLMECTrainer
from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.tasks.arithmetic import make_arithmetic, make_policy, make_tokenizer


STEPS, WARMUP_STEPS, ROWS = 30, 5, 32


class StepTimer(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def make_rows(tokenizer, count: int = 512) -> Dataset:
    """Samples with an incorrect last step, so that every row has both rewards and a rewrite."""
    rows = []
    for problem in make_arithmetic(0, warmup=count, train=1, validation=1, test=1)["warmup"]:
        right = problem["completion"]
        wrong = right[:-1] + str((int(right[-1]) + 1) % 10)
        ids = encode_completion(tokenizer, wrong)
        probs = [0.9] * len(ids)
        probs[-2] = 0.1
        rows.append(
            {
                "prompt": problem["prompt"],
                "completion": wrong,
                "completion_ids": ids,
                "correct": False,
                "token_probs": probs,
                "old_logps": [-1.0] * len(ids),
                "rewrite": right,
                "rewrite_ids": encode_completion(tokenizer, right),
            }
        )
    return Dataset.from_list(rows)


def time_steps(trainer_class, config_class, dataset, tokenizer, rows_a_step, **settings) -> float:
    """Median seconds of a training step."""
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=rows_a_step,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        timer = StepTimer()
        trainer = trainer_class(
            make_policy(tokenizer), args, train_dataset=dataset, processing_class=tokenizer, callbacks=[timer]
        )
        trainer.train()
    return statistics.median(timer.seconds[WARMUP_STEPS:])


def main() -> None:
    tokenizer = make_tokenizer()
    dataset = make_rows(tokenizer)
    imitated = dataset.map(lambda row: {"prompt": row["prompt"], "completion": row["rewrite"]})
    imitated = imitated.select_columns(["prompt", "completion"])
    sft = time_steps(SFTTrainer, SFTConfig, imitated, tokenizer, 2 * ROWS)
    print(f"SFTTrainer, {2 * ROWS} sequences a step: {1000 * sft:.0f} ms")
    cases = {
        f"imitation only, {2 * ROWS} rewrites": (2 * ROWS, {"policy_coef": 0.0}),
        f"RLMEC, {ROWS} attempts and {ROWS} rewrites": (ROWS, {}),
        f"the same with soft targets (smoothing), {ROWS} rows": (ROWS, {"imitation_label_smoothing": 0.1}),
    }
    for name, (rows, settings) in cases.items():
        seconds = time_steps(RLMECTrainer, RLMECConfig, dataset, tokenizer, rows, **settings)
        print(f"{name}: {seconds / sft:.2f} times the SFT step")


if __name__ == "__main__":
    main()
