"""
Train online with the models in a folder on the problems beside them, once for every entry of `RUNS` and of
`SHARDED_RUNS`, and save weights, logs and evaluations. A test runs it in its own process and, by `accelerate launch`,
in two, where `RUNS` use DDP and `SHARDED_RUNS` FSDP2.

python tests/online_worker.py FOLDER [URL]

With the address of a server, the reward model is wholly behind it, and `SERVED_RUNS` are the only ones.
"""

import sys
from contextlib import nullcontext

import torch
from datasets import load_from_disk
from torch.distributed.tensor import DTensor
from trl import GRPOConfig, GRPOTrainer

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.generation.processes import end_processes, process_state
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.grm.generative_reward_model import GenerativeRewardModel
from tests.invariance_worker import fsdp_on_cpu, whole


REWRITE_ALL = {"rewrite_samples": "all", "reward_baseline": 0.02}
SAVES = {"save_strategy": "steps", "save_steps": 1}
RUNS = {
    # In each step, one of two processes lacks something, as the columns of the problems say
    "lopsided": {"attempt_coef": 0.5, "beta": 0.1, "replay_fraction": 1.0, "log_completions": True},
    "lopsided_imitation": {"token_credit": "none"},
}
SERVED_RUNS = {"served": REWRITE_ALL}
SHARDED_RUNS = {
    "grpo": None,
    "place": {"token_credit": "place", "imitation_coef": 0.0},
    "imitation": {"token_credit": "none", **REWRITE_ALL},
    "distillation": {"token_credit": "none", "imitation_coef": 0.0, "attempt_coef": 1.0},
    "all_terms": {"attempt_coef": 0.5, "optim": "adamw_torch", "learning_rate": 1e-2, **SAVES, **REWRITE_ALL},
}


def outcome(prompts, correct, **kwargs):
    """Differs between the completions of a prompt, which are the same, unless all count as correct."""
    return [float(known or index % 2) for index, known in enumerate(correct)]


def verify(completion_ids, verified, **kwargs):
    return verified


class EndingGRM(GenerativeRewardModel):
    """Ends its rewrites, which random weights rarely do."""

    def rewrite_ids(self, *args):
        return [[*ids[:-1], self.processing_class.eos_token_id] for ids in super().rewrite_ids(*args)]


class DifferentCompletions:
    """Greedy completions of a prompt are the same, and GRPO's advantages cancel out: the second loses its end."""

    def _generate_single_turn(self, *args):
        completion_ids, logprobs = super()._generate_single_turn(*args)
        return [ids[: max(1, len(ids) - index % 2 * 2)] for index, ids in enumerate(completion_ids)], logprobs


class Baseline(DifferentCompletions, GRPOTrainer):
    pass


class Trainer(DifferentCompletions, OnlineRLMECTrainer):
    pass


def make_trainer(folder, name, url=None, **settings):
    num_processes = process_state().num_processes
    options = {**RUNS, **SERVED_RUNS, **SHARDED_RUNS}[name]
    settings = {
        "output_dir": f"{folder}/{name}-{num_processes}",
        "per_device_train_batch_size": 8 // num_processes,
        "per_device_eval_batch_size": 8 // num_processes,
        "num_generations": 2,
        "max_completion_length": 12,
        # The same completions, whatever random numbers a process has, and the same groups in each half of the batch
        "top_k": 1,
        "shuffle_dataset": False,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 1e6,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **settings,
        **(options or {}),
    }
    problems = load_from_disk(f"{folder}/problems")
    arguments = {"train_dataset": problems, "eval_dataset": problems.select(range(8))}
    if options is None:
        return Baseline(f"{folder}/policy", outcome, GRPOConfig(**settings), **arguments)
    grm_settings = {"allow_untrained": True, "show_progress": False, "max_new_tokens": 8}
    if url is None:
        grm = EndingGRM.from_pretrained(f"{folder}/grm", **grm_settings)
    else:
        grm = EndingGRM.from_server(f"{folder}/grm", ServerConfig(url), **grm_settings)
    return Trainer(
        f"{folder}/policy",
        outcome,
        OnlineRLMECConfig(**settings),
        **arguments,
        grm=grm,
        # Each process draws all of it, whatever its random numbers
        replay_dataset=load_from_disk(f"{folder}/replay") if "replay_fraction" in options else None,
        rewrite_verifier=verify,
    )


def train(folder, name, resume_from_checkpoint=None, **settings):
    trainer = make_trainer(folder, name, **settings)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    # Before the evaluation: FSDP2 keeps the embeddings whole after a forward pass until the next backward pass
    num_sharded = sum(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    evaluation = trainer.evaluate()
    result = {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "num_sharded": num_sharded,
        "weights": {name: whole(parameter) for name, parameter in trainer.model.named_parameters()},
        "history": [log for log in trainer.state.log_history if "grad_norm" in log],
        "evaluation": evaluation,
        "token_counts": dict(getattr(trainer, "token_counts", {})),  # GRPO itself has none
    }
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    return result


def main(folder, url=None):
    num_processes = process_state().num_processes
    if url is None:
        results = train_here(folder, num_processes)
    else:
        results = {name: train(folder, name, url=url) for name in SERVED_RUNS}
    if process_state().is_main_process:
        torch.save(results, f"{folder}/{num_processes}.pt")
    end_processes()


def train_here(folder, num_processes):
    results = {name: train(folder, name) for name in RUNS}
    with fsdp_on_cpu() if num_processes > 1 else nullcontext():
        sharded = {"max_steps": 2, "fsdp": num_processes > 1}
        results |= {name: train(folder, name, **sharded) for name in SHARDED_RUNS}
        if num_processes > 1:
            checkpoint = f"{folder}/all_terms-2/checkpoint-1"
            results["resumed"] = train(folder, "all_terms", checkpoint, **sharded)
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
