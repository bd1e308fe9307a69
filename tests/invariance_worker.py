"""
Train the policy in a folder on the rows beside it, once for every combination of `LOSSES`, and save the results.
A test runs it in its own process; `accelerate launch` runs it in two.

python tests/invariance_worker.py FOLDER BATCH_SIZE ACCUMULATION_STEPS OUTPUT_FILE
"""

import itertools
import sys

import torch
from accelerate import PartialState
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlmec_trl import RLMECConfig, RLMECTrainer
from rlmec_trl.generation.processes import end_processes


LOSSES = list(itertools.product(["rlmec", "ppo"], ["active_tokens", "completion_tokens"]))


def train(folder, batch_size, accumulation_steps):
    """Weights, losses, gradient norms and metrics of a run for every loss."""
    results = {}
    for loss_type, normalize_by in LOSSES:
        args = RLMECConfig(
            output_dir=f"{folder}/out",
            loss_type=loss_type,
            normalize_by=normalize_by,
            correct_samples="rewrite",
            imitation_label_smoothing=0.1 if loss_type == "ppo" else 0.0,  # the soft-target head, too
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            gradient_accumulation_steps=accumulation_steps,
            num_train_epochs=1,
            # Plain gradient descent: Adam would hide a gradient that is off by a factor
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=1e6,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = RLMECTrainer(
            model=AutoModelForCausalLM.from_pretrained(f"{folder}/policy"),
            args=args,
            train_dataset=load_from_disk(f"{folder}/rows"),
            eval_dataset=load_from_disk(f"{folder}/rows"),
            processing_class=AutoTokenizer.from_pretrained(f"{folder}/policy"),
        )
        trainer.train()
        evaluation = trainer.evaluate()
        results[loss_type, normalize_by] = {
            "num_processes": trainer.accelerator.num_processes,
            "num_rows": len(trainer.train_dataset),
            "weights": {name: value.detach().clone() for name, value in trainer.model.named_parameters()},
            "logs": [entry for entry in trainer.state.log_history if "grad_norm" in entry],
            "evaluation": evaluation,
        }
    return results


if __name__ == "__main__":
    folder, batch_size, accumulation_steps, output_file = sys.argv[1:]
    results = train(folder, int(batch_size), int(accumulation_steps))
    if PartialState().is_main_process:
        torch.save(results, output_file)
    end_processes()
