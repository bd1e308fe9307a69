"""
Train online with the models in a folder on the problems beside them, and save the weights and the log. A test runs it
in its own process and, by `accelerate launch`, in two.

python tests/online_worker.py FOLDER [URL]

With the address of a server, the reward model is wholly behind it.
"""

import sys

import torch
from datasets import load_from_disk

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.generation.processes import end_processes, process_state
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.grm.generative_reward_model import GenerativeRewardModel


def outcome(completion_ids, **kwargs):
    return [float(sum(ids) % 2) for ids in completion_ids]


def verify(completion_ids, **kwargs):
    return [len(ids) % 2 == 0 for ids in completion_ids]


class EndingGRM(GenerativeRewardModel):
    """Ends its rewrites, which random weights rarely do."""

    def rewrite_ids(self, *args):
        return [[*ids[:-1], self.processing_class.eos_token_id] for ids in super().rewrite_ids(*args)]


def main(folder, url=None):
    num_processes = process_state().num_processes
    config = OnlineRLMECConfig(
        output_dir=f"{folder}/out-{num_processes}",
        per_device_train_batch_size=8 // num_processes,
        num_generations=2,
        max_completion_length=12,
        # The same completions, whatever random numbers a process has, and the same groups in each half of the batch
        top_k=1,
        shuffle_dataset=False,
        max_steps=3,
        optim="sgd",
        learning_rate=0.5,
        max_grad_norm=1e6,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        token_credit="add",
        rewrite_samples="all",
        attempt_coef=0.5 if url is None else 0.0,
        reward_baseline=0.02,
    )
    settings = {"allow_untrained": True, "show_progress": False, "max_new_tokens": 8}
    if url is None:
        grm = EndingGRM.from_pretrained(f"{folder}/grm", **settings)
    else:
        grm = EndingGRM.from_server(f"{folder}/grm", ServerConfig(url), **settings)
    trainer = OnlineRLMECTrainer(
        f"{folder}/policy",
        outcome,
        config,
        load_from_disk(f"{folder}/problems"),
        grm=grm,
        rewrite_verifier=verify,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
        torch.save({"weights": weights, "history": trainer.state.log_history[:-1]}, f"{folder}/{num_processes}.pt")
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    end_processes()


if __name__ == "__main__":
    main(*sys.argv[1:])
