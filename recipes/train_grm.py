"""
Stage 3: train a generative reward model on edited samples.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/train_grm.py \
    --config recipes/ecqa/train_grm.yaml --model_name_or_path Qwen/Qwen2.5-7B-Instruct
```
"""

import os
from dataclasses import dataclass, field

from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl import GRMConfig, GRMTrainer
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.tasks import load_task


@dataclass
class GRMArguments:
    """What to train the generative reward model on."""

    dataset_name: str = field(metadata={"help": "Edited samples, as `edit.py` writes them."})
    task: str = field(metadata={"help": "Whose wording to use: `arithmetic`, `math` or `choice`."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Edited samples to evaluate on."})


def make_parser() -> TrlParser:
    return TrlParser((GRMArguments, GRMConfig, ModelConfig))


def main(args: GRMArguments, training_args: GRMConfig, model_args: ModelConfig) -> None:
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = GRMTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=load_rows(args.dataset_name, args.dataset_split),
        eval_dataset=load_rows(args.eval_dataset_name, args.dataset_split) if args.eval_dataset_name else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        wording=load_task(args.task).wording,
    )
    checkpoint = training_args.resume_from_checkpoint
    if checkpoint is None and os.path.isdir(training_args.output_dir):
        checkpoint = get_last_checkpoint(training_args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)

    trainer.save_model(training_args.output_dir)
    if training_args.eval_strategy != "no":
        trainer.save_metrics("eval", trainer.evaluate())
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=args.dataset_name)
    trainer.end()


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
