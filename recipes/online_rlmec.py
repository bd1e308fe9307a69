"""
Stage 5, online: GRPO with credit for each token, and imitation of what the reward model rewrites.

```bash
accelerate launch --config_file recipes/accelerate_configs/fsdp2.yaml recipes/online_rlmec.py \
    --config recipes/configs/online_rlmec.yaml --model_name_or_path runs/gsm8k/policy --grm runs/gsm8k/grm \
    --task gsm8k --dataset_name data/gsm8k/train.jsonl --output_dir runs/gsm8k/online
```

The dataset has one row per problem, with `prompt`, `answer` and `reference`. Re-running the command resumes training.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.contents import named_model, rows_hash
from rlmec_trl.stages.keys import task_key
from rlmec_trl.stages.outcomes import outcome_reward, rewrite_verifier
from rlmec_trl.stages.refusals import check_generation_batch, check_training_settings, refused_settings
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run
from rlmec_trl.tasks.task import load_task


@dataclass
class OnlineRLMECArguments:
    """What to train on, and what gives credit."""

    dataset_name: str = field(metadata={"help": "Rows with `prompt`, `answer` and `reference`, one per problem."})
    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    grm: str | None = field(
        default=None, metadata={"help": "Path or Hub name of the generative reward model. Without one, it is GRPO."}
    )
    replay_dataset_name: str | None = field(
        default=None, metadata={"help": "Scored samples (`score.py`) whose rewrites are imitated beside new ones."}
    )
    outcome: bool = field(
        default=True, metadata={"help": "Whether correct answers are rewarded. If `False`, only tokens are."}
    )


def make_parser() -> TrlParser:
    return TrlParser((OnlineRLMECArguments, OnlineRLMECConfig, ModelConfig))


def main(args: OnlineRLMECArguments, training_args: OnlineRLMECConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args)
    with training_run(training_args):
        task = load_task(args.task)
        dataset = load_rows(args.dataset_name, args.dataset_split)
        check_dataset(dataset, "grpo")
        check_generation_batch(len(dataset), training_args)
        replay = load_rows(args.replay_dataset_name, args.dataset_split) if args.replay_dataset_name else None
        set_model_init_kwargs(training_args, model_args)
        with refused_settings():
            trainer = OnlineRLMECTrainer(
                model=model_args.model_name_or_path,
                reward_funcs=outcome_reward(task) if args.outcome else None,
                args=training_args,
                train_dataset=dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
                grm=args.grm,
                replay_dataset=replay,
                rewrite_verifier=rewrite_verifier(task),
            )
        depends_on = {
            "task": task_key(task, args.task),
            "outcome": args.outcome,
            "grm": None if args.grm is None else named_model(args.grm, training_args.grm_revision),
            "replay rows": None if replay is None else rows_hash(replay),
        }
        train_and_save(trainer, args.dataset_name, depends_on)


if __name__ == "__main__":
    run_command(make_parser, main)
