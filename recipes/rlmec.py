"""
Stage 5: train the policy with RLMEC.

```bash
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml recipes/rlmec.py \
    --config recipes/configs/rlmec.yaml --dataset_name runs/gsm8k/scored --output_dir runs/gsm8k/policy
```

If the dataset has neither `token_probs` nor `token_rewards`, and `--grm` names a generative reward model, the samples
are scored first, into `<output_dir>-scored`. Re-running the command resumes training from its last checkpoint.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl import RLMECConfig, RLMECTrainer, TokenCreditCallback
from rlmec_trl.data.adapters import refuse_adapter
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.stages import score
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.model_cards import About
from rlmec_trl.stages.refusals import check_training_settings, refused_settings
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run


@dataclass
class RLMECArguments:
    """What to train on."""

    dataset_name: str = field(metadata={"help": "Scored samples (`score.py`), or samples (`sample.py`) with `--grm`."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Scored samples to evaluate on."})
    log_completions: bool = field(
        default=False, metadata={"help": "Whether to show samples with the credit of their tokens at each log."}
    )


def make_parser() -> TrlParser:
    return TrlParser((RLMECArguments, RLMECConfig, ScoreConfig, ModelConfig))


def main(args: RLMECArguments, training_args: RLMECConfig, score_config: ScoreConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args, args.eval_dataset_name)
    with training_run(training_args):
        dataset = load_rows(args.dataset_name, args.dataset_split)
        eval_dataset = load_rows(args.eval_dataset_name, args.dataset_split) if args.eval_dataset_name else None
        set_model_init_kwargs(training_args, model_args)
        # Before the scoring, which may take hours
        RLMECTrainer.refuse_unsupported(model_args.model_name_or_path, training_args)
        refuse_adapter(model_args.model_name_or_path, model_args.model_revision)
        if score_config.grm is not None and not {"token_probs", "token_rewards"} & set(dataset.column_names):
            if training_args.imitation_targets == "soft" and score_config.rewrite_topk == 0:
                raise ConfigError(
                    "`imitation_targets='soft'` needs the reward model's candidates: set `rewrite_topk`."
                )
            # Next to the output folder, whose contents may be pushed to the Hub
            scored_dir = training_args.output_dir.rstrip("/") + "-scored"
            trust_remote_code = training_args.trust_remote_code
            dataset = score.run(score_config, dataset, scored_dir, model_args, trust_remote_code=trust_remote_code)
        with refused_settings():
            trainer = RLMECTrainer(
                model=model_args.model_name_or_path,
                args=training_args,
                train_dataset=dataset,
                eval_dataset=eval_dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
                callbacks=[TokenCreditCallback(dataset)] if args.log_completions else None,
            )
        train_and_save(trainer, args.dataset_name, about=About(task=score_config.task, grm=score_config.grm))


if __name__ == "__main__":
    run_command(make_parser, main)
