"""
Train and score with the models in a folder, on the rows beside them, once for every entry of `RUNS`, and save the
results. A test runs it in its own process; `accelerate launch` runs it in two, first with DDP and then with FSDP2.

python tests/invariance_worker.py FOLDER
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import load_from_disk
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from rlmec_trl import (
    GRMConfig,
    GRMTrainer,
    LabelRewardConfig,
    LabelRewardTrainer,
    RLMECConfig,
    RLMECTrainer,
)
from rlmec_trl.generation.processes import end_processes
from rlmec_trl.stages import score
from rlmec_trl.stages.score import ScoreConfig


# What a run trains: trainer, configuration, class of its model, and folders of model and rows
RLMEC = (RLMECTrainer, RLMECConfig, AutoModelForCausalLM, "policy", "rows")
GRM = (GRMTrainer, GRMConfig, AutoModelForCausalLM, "policy", "edits")
LABEL_REWARD = (LabelRewardTrainer, LabelRewardConfig, AutoModelForSequenceClassification, "reward_model", "pairs")
RUNS = {
    "rlmec": (RLMEC, {"correct_samples": "rewrite"}),
    # Rows without a reward are kept, and have no sequence: micro-batches and processes without an active token
    "policy_only": (RLMEC, {"loss_type": "ppo", "normalize_by": "completion_tokens", "imitation_coef": 0.0}),
    # The soft-target head, too
    "soft": (RLMEC, {"loss_type": "ppo", "correct_samples": "rewrite", "imitation_label_smoothing": 0.1}),
    # Some rows have no distribution
    "attempt": (RLMEC, {"attempt_coef": 0.5, "policy_coef": 0.0, "imitation_label_smoothing": 0.1}),
    "grm": (GRM, {"locate_fraction": 0.0}),
    "label_reward": (LABEL_REWARD, {"pair_temperature": 2.0}),
}

NUM_SCORED = 25


@contextmanager
def fsdp_on_cpu():
    """
    Let Accelerate shard on CPU, as it does on GPUs: it considers FSDP only if the processes are of the type
    `MULTI_GPU`, and otherwise ignores it without a word.
    """
    set_device = PartialState.set_device

    def set_device_and_type(self):
        set_device(self)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.set_device = set_device_and_type
    try:
        yield
    finally:
        PartialState.set_device = set_device


def make_trainer(folder, run, batch_size, accumulation_steps=1, **settings):
    settings = {
        "output_dir": f"{folder}/out",
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": max(batch_size, 3),
        "gradient_accumulation_steps": accumulation_steps,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        # Plain gradient descent: Adam would hide a gradient that is off by a factor
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e6,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }
    (trainer_class, config_class, model_class, model, rows), options = RUNS[run]
    rows = load_from_disk(f"{folder}/{rows}")
    return trainer_class(
        model=model_class.from_pretrained(f"{folder}/{model}"),
        args=config_class(**options, **settings),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(f"{folder}/policy"),
    )


def whole(weight):
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()


def train(folder, batch_size, accumulation_steps=1, **settings):
    """Weights, losses, gradient norms and metrics of every run."""
    results = {}
    for run in RUNS:
        trainer = make_trainer(folder, run, batch_size, accumulation_steps, **settings)
        trainer.train()
        # Before the evaluation: FSDP2 keeps the embeddings whole after a forward pass until the next backward pass
        num_sharded = sum(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        evaluation = trainer.evaluate()
        results[run] = {
            "distributed_type": trainer.accelerator.distributed_type.value,
            "num_processes": trainer.accelerator.num_processes,
            "num_sharded": num_sharded,
            "num_rows": len(trainer.train_dataset),
            "weights": {name: whole(value) for name, value in trainer.model.named_parameters()},
            "logs": [entry for entry in trainer.state.log_history if "grad_norm" in entry],
            "evaluation": evaluation,
        }
        if settings.get("fsdp"):
            trainer.save_model(f"{folder}/saved_{run}")
    return results


def score_rows(folder, name, batch_size):
    config = ScoreConfig(
        grm=f"{folder}/grm",
        task="arithmetic",
        locate_by="probability",
        rewrite_topk=3,
        rewrite_max_new_tokens=4,
        score_batch_size=batch_size,
        shard_size=8,
    )
    rows = load_from_disk(f"{folder}/rows").select(range(NUM_SCORED))
    scored = score.run(config, rows, f"{folder}/{name}", ModelConfig(f"{folder}/policy"))
    return scored.to_dict()


if __name__ == "__main__":
    folder = sys.argv[1]
    results = {"scored": score_rows(folder, "scored_on_two", 4), "ddp": train(folder, 4)}
    with fsdp_on_cpu():
        results["fsdp"] = train(folder, 4, fsdp=True)
    if PartialState().is_main_process:
        torch.save(results, Path(folder, "distributed.pt"))
    end_processes()
