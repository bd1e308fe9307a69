"""Loading, training and saving, as every training recipe does them around its trainer."""

import gc
import os

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig


def set_model_init_kwargs(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """Let the trainer load its model with `model_args`. `training_args.model_init_kwargs` take precedence."""
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def train_and_save(trainer: Trainer, dataset_name: str | None = None) -> None:
    """
    Train and save the model. Training resumes from the last checkpoint in the output directory, if there is one. The
    model is evaluated if an evaluation strategy is set, and pushed to the Hub if `push_to_hub` is.

    Args:
        trainer ([`~transformers.Trainer`]):
            A TRL trainer.
        dataset_name (`str`, *optional*):
            Name of the dataset for the model card.
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
    End the trackers and the process group, once DDP no longer holds it.

    Otherwise, gloo's process group is freed together with DDP, which holds the GIL while it waits for the group's
    threads. These may need the GIL to free a tensor, which is a deadlock.
    """
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    trainer.accelerator.end_training()  # `Trainer.end()`, which Transformers has from 5.18 on
