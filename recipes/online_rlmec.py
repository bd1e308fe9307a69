"""
Stage 5, online: GRPO with credit for each token, and imitation of what the reward model rewrites.

```bash
accelerate launch --config_file recipes/accelerate_configs/fsdp2.yaml recipes/online_rlmec.py \
    --config recipes/configs/online_rlmec.yaml --model_name_or_path runs/gsm8k/policy --grm runs/gsm8k/grm \
    --task gsm8k --dataset_name data/gsm8k/train.jsonl --output_dir runs/gsm8k/online
```

The dataset has one row per problem, with `prompt`, `answer` and `reference`. Re-running the command resumes training.
With `--base_url`, a server that has the reward model (such as `vllm serve runs/gsm8k/grm`) scores and rewrites.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl import GenerativeRewardModel, OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.generation.loading import load_tokenizer
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.contents import named_model, rows_hash
from rlmec_trl.stages.keys import config_key, task_key
from rlmec_trl.stages.model_cards import About
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
        default=None,
        metadata={
            "help": "Path or Hub name of the generative reward model. Without one, `token_credit: outcome` is GRPO."
        },
    )
    replay_dataset_name: str | None = field(
        default=None, metadata={"help": "Scored samples (`score.py`) whose rewrites are imitated beside new ones."}
    )
    outcome: bool = field(
        default=True, metadata={"help": "Whether correct answers are rewarded. If `False`, only tokens are."}
    )


def make_parser() -> TrlParser:
    return TrlParser((OnlineRLMECArguments, OnlineRLMECConfig, ModelConfig, ServerConfig))


def served_grm(
    args: OnlineRLMECArguments,
    training_args: OnlineRLMECConfig,
    model_args: ModelConfig,
    server_config: ServerConfig,
) -> GenerativeRewardModel:
    """The reward model of which a server has the weights."""
    if args.grm is None:
        raise ConfigError("`--base_url` is the address of a server with the reward model: name that with `--grm`.")
    return GenerativeRewardModel.from_server(
        args.grm,
        server_config,
        training_args.grm_revision,
        training_args.trust_remote_code,
        training_args.allow_untrained_grm,
        max_new_tokens=training_args.rewrite_max_new_tokens or training_args.max_completion_length,
        show_progress=False,
        policy_processing_class=load_tokenizer(model_args, training_args.trust_remote_code),
    )


def main(
    args: OnlineRLMECArguments,
    training_args: OnlineRLMECConfig,
    model_args: ModelConfig,
    server_config: ServerConfig,
) -> None:
    check_training_settings(training_args)
    with training_run(training_args):
        task = load_task(args.task)
        dataset = load_rows(args.dataset_name, args.dataset_split)
        check_dataset(dataset, "grpo")
        check_generation_batch(len(dataset), training_args)
        replay = load_rows(args.replay_dataset_name, args.dataset_split) if args.replay_dataset_name else None
        set_model_init_kwargs(training_args, model_args)
        has_server = server_config.base_url is not None
        grm = served_grm(args, training_args, model_args, server_config) if has_server else args.grm
        with refused_settings():
            trainer = OnlineRLMECTrainer(
                model=model_args.model_name_or_path,
                reward_funcs=outcome_reward(task) if args.outcome else None,
                args=training_args,
                train_dataset=dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
                grm=grm,
                replay_dataset=replay,
                rewrite_verifier=rewrite_verifier(task),
            )
        depends_on = {
            "task": task_key(task, args.task),
            "outcome": args.outcome,
            "grm": None if args.grm is None else named_model(args.grm, training_args.grm_revision),
            "server": config_key(server_config) if has_server else None,
            "replay rows": None if replay is None else rows_hash(replay),
        }
        train_and_save(trainer, args.dataset_name, depends_on, About(args.task, args.grm))


if __name__ == "__main__":
    run_command(make_parser, main)
