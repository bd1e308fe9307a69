"""What every training recipe does around its trainer."""

import gc
import os

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig


def set_model_init_kwargs(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """Have the trainer load its model as `model_args` say, where `training_args.model_init_kwargs` do not differ."""
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def train_and_save(trainer: Trainer, dataset_name: str | None = None) -> None:
    """
    Train, from the last checkpoint in the output directory where there is one, save the model, evaluate it where an
    evaluation strategy is set, and push it to the Hub where asked.

    Args:
        trainer ([`~transformers.Trainer`]):
            A TRL trainer.
        dataset_name (`str`, *optional*):
            Name of the data set for the model card.
    """
    args = trainer.args
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None and os.path.isdir(args.output_dir):
        checkpoint = get_last_checkpoint(args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)

    trainer.save_model(args.output_dir)
    if args.eval_strategy != "no":
        trainer.save_metrics("eval", trainer.evaluate())
    trainer.accelerator.print(f"Model saved to {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    _end(trainer)


def _end(trainer: Trainer) -> None:
    """
    Call the trainer's `end()` once nothing of it holds the process group any more.

    DDP does, beyond `end()`. Gloo's group would then be freed with DDP, which keeps all other threads out of Python
    while it waits for the group's own, and these may have to get into Python to free a tensor: a deadlock.
    """
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    trainer.end()
