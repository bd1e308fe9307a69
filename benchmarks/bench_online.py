"""
Cost of a generative reward model in the loop: the time of a step of `OnlineRLMECTrainer`, as ratios to that of
`GRPOTrainer` within one run.

By default, policy and reward model have random weights and rarely end what they write, so each rewrite is as long as a
completion: the most that rewriting can cost. Trained models keep the steps before the first flagged one, and end.

```bash
make bench
python benchmarks/bench_online.py runs/arithmetic/seed-0/warmup runs/arithmetic/seed-0/grm
```
"""

import statistics
import sys
import tempfile
import time

from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlmec_trl import GenerativeRewardModel, OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.stages.outcomes import outcome_reward, rewrite_verifier
from rlmec_trl.tasks.arithmetic import make_arithmetic, make_policy, make_tokenizer
from rlmec_trl.tasks.task import load_task


STEPS, WARMUP_STEPS, COMPLETIONS = 20, 4, 64
CASES = {
    "scoring, advantages placed by it": {"token_credit": "place", "imitation_coef": 0.0},
    "scoring, and distillation on the completions": {
        "token_credit": "none",
        "imitation_coef": 0.0,
        "attempt_coef": 1.0,
    },
    "scoring, rewriting of incorrect completions": {"token_credit": "place"},
    "scoring, rewriting of all, no policy term": {"token_credit": "none", "rewrite_samples": "all"},
}


class StepTimer(TrainerCallback):
    """Seconds of every optimizer step, generation included."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def load(tokenizer, path):
    return make_policy(tokenizer) if path is None else AutoModelForCausalLM.from_pretrained(path)


def time_steps(trainer_class, config_class, dataset, tokenizer, policy_path, settings, **kwargs) -> float:
    """Median seconds of a training step. The learning rate is 0, so that all cases see the same policy."""
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=COMPLETIONS,
            num_generations=2,
            max_completion_length=48,
            learning_rate=0.0,
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
        trainer_class(
            load(tokenizer, policy_path),
            outcome_reward(load_task("arithmetic")),
            args,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[timer],
            **kwargs,
        ).train()
    return statistics.median(timer.seconds[WARMUP_STEPS:])


def main() -> None:
    policy_path, grm_path = sys.argv[1:] if len(sys.argv) > 1 else (None, None)
    tokenizer, task = make_tokenizer(), load_task("arithmetic")
    dataset = make_arithmetic(0, warmup=1, train=1000, validation=1, test=1)["train"]
    grpo = time_steps(GRPOTrainer, GRPOConfig, dataset, tokenizer, policy_path, {})
    print(f"GRPOTrainer, {COMPLETIONS} completions a step: {1000 * grpo:.0f} ms")
    for name, settings in CASES.items():
        grm = GenerativeRewardModel(
            load(tokenizer, grm_path), tokenizer, task.wording, COMPLETIONS, max_new_tokens=48, show_progress=False
        )
        seconds = time_steps(
            OnlineRLMECTrainer,
            OnlineRLMECConfig,
            dataset,
            tokenizer,
            policy_path,
            settings,
            grm=grm,
            rewrite_verifier=rewrite_verifier(task),
        )
        print(f"{name}: {seconds / grpo:.2f} times the GRPO step")


if __name__ == "__main__":
    main()
