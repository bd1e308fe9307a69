"""
RLLR, stage 4, by GRPO instead of RLOO: the KL divergence is part of the loss, not of the reward.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/rllr_grpo.py \
    --config recipes/configs/rllr_grpo.yaml --task sst2 \
    --model_name_or_path runs/sst2/sft --dataset_name runs/sst2/gold \
    --label_reward_model runs/sst2/label_reward --quality_reward_model runs/sst2/quality_reward \
    --cap_dataset_name runs/sst2/validation_samples --output_dir runs/sst2/rllr_grpo
```

The dataset has one row per problem, with `prompt`. Set `--beta`: TRL's default, 0, is no KL divergence
at all. Re-running the command resumes training.
"""

from dataclasses import dataclass, field

from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl.data.adapters import refuse_adapter
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.refusals import check_generation_batch, check_training_settings, refused_settings
from rlmec_trl.stages.reward_settings import LabelSensitiveRewardConfig, about_reward, load_reward
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run


@dataclass
class RLLRArguments:
    """What to train on."""

    dataset_name: str = field(metadata={"help": "Rows with `prompt`, one per problem."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})


def make_parser() -> TrlParser:
    return TrlParser((RLLRArguments, LabelSensitiveRewardConfig, GRPOConfig, ModelConfig))


def main(
    args: RLLRArguments, reward_config: LabelSensitiveRewardConfig, training_args: GRPOConfig, model_args: ModelConfig
) -> None:
    check_training_settings(training_args)
    with training_run(training_args):
        dataset = load_rows(args.dataset_name, args.dataset_split)
        check_dataset(dataset, "prompts")
        check_generation_batch(len(dataset), training_args)
        set_model_init_kwargs(training_args, model_args)
        refuse_adapter(model_args.model_name_or_path, model_args.model_revision)
        reward_func, depends_on = load_reward(reward_config, model_args, training_args.trust_remote_code)
        with refused_settings():
            trainer = GRPOTrainer(
                model=model_args.model_name_or_path,
                reward_funcs=reward_func,
                args=training_args,
                train_dataset=dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
            )
        train_and_save(trainer, args.dataset_name, depends_on, about_reward(reward_config))


if __name__ == "__main__":
    run_command(make_parser, main)
