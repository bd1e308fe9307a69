"""
The permitted range of every numeric setting, in one table.

Of the settings that TRL's and Transformers' classes define, only those are here whose bad values end badly: in an
error deep inside a library, in memory that there is not, in a model that is broken, or in one that is not trained.
What the libraries refuse on their own, in time and in words, is left to them. `checks.py` applies the table.
"""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Range:
    """
    Permitted values of a number, or of each number of a list.

    Args:
        low, high (`float`):
            Bounds. Both are permitted unless `open_low` and `open_high` say otherwise.
        effect (`str`):
            What a value out of range would do.
        open_low, open_high (`bool`, *optional*, default to `False`):
            Whether the bound itself is out of range.
        also (`float`, *optional*):
            One more permitted value, which has a meaning of its own.
    """

    low: float
    high: float
    effect: str
    open_low: bool = False
    open_high: bool = False
    also: float | None = None

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return (above and below) or (self.also is not None and value == self.also)

    def __str__(self) -> str:
        if self.high == inf and self.also is None and self.low == 0:
            return "be positive" if self.open_low else "not be negative"
        bounds = []
        if self.low > -inf:
            bounds.append(f"{'over' if self.open_low else 'at least'} {self.low:,}")
        if self.high < inf:
            bounds.append(f"{'under' if self.open_high else 'at most'} {self.high:,}")
        also = [] if self.also is None else [f"{self.also:,}"]
        return f"be {' or '.join([*also, ' and '.join(bounds)])}"


def at_least(low: float, effect: str, also: float | None = None) -> Range:
    return Range(low, inf, effect, also=also)


def over(low: float, effect: str) -> Range:
    return Range(low, inf, effect, open_low=True)


def between(low: float, high: float, effect: str, open_low: bool = False, open_high: bool = False) -> Range:
    return Range(low, high, effect, open_low, open_high)


# What several settings have in common
_ROWS = at_least(1, "no row would be left")
_BATCH = at_least(1, "a batch would have no row")
_SHARD = at_least(1, "a shard would have no row, and the stage would never end")
_NEW_TOKENS = at_least(1, "every completion would be truncated before its first token")
_SEED = between(0, 2**32 - 1, "NumPy and PyTorch have no such seed")
_COEF = at_least(0, "training would do the opposite of what the term is for")
_DOLLARS = at_least(0, "costs would be computed incorrectly")
_TOP_P = between(0, 1, "it is a share of the probability mass", open_low=True)
# A temperature so close to 0 that the logits divided by it overflow is greedy decoding without saying so
_COLDEST = 0.001
_SMOOTHING = between(0, 1, "nothing would be left of the target", open_high=True)
_CLIP = over(0, "every ratio would be clipped")
_PORT = between(1, 65535, "there is no such port")
_WAIT_SECONDS = between(0, 604_800, "a request would fail at once, or wait for more than a week", open_low=True)
_STEPS = at_least(0, "it is a number of steps, or a fraction of all of them")
_LIMIT = at_least(1, "nothing would be left")
_PADDING = between(1, 65_536, "every batch would be padded to more tokens than memory holds")

# Class that defines a setting -> setting -> range. A subclass that changes only the default needs no entry of its own.
RANGES: dict[str, dict[str, Range]] = {
    # --- Stages ---
    "SampleConfig": {
        "num_samples": at_least(1, "no completion would be sampled"),
        "temperature": at_least(_COLDEST, "the logits divided by it would overflow; 0 decodes greedily", also=0),
        "top_p": _TOP_P,
        "max_new_tokens": _NEW_TOKENS,
        "seed": _SEED,
        "batch_size": _BATCH,
        "shard_size": _SHARD,
    },
    "EditConfig": {
        "max_rows": _ROWS,
        "max_problems": _ROWS,
        "max_new_tokens": _NEW_TOKENS,
        "batch_size": _BATCH,
        "shard_size": _SHARD,
    },
    "RationalesConfig": {
        "max_problems": _ROWS,
        "max_new_tokens": _NEW_TOKENS,
        "batch_size": _BATCH,
        "shard_size": _SHARD,
    },
    "PairsConfig": {
        "max_pairs": at_least(1, "no pair would be made"),
        "seed": _SEED,
        "max_problems": _ROWS,
        "shard_size": _SHARD,
    },
    "EvaluatePairsConfig": {"batch_size": _BATCH},
    "LabelSensitiveRewardConfig": {
        "label_cap": between(-1e9, 1e9, "no reward model scores that far from zero"),
        "reward_batch_size": _BATCH,
    },
    "ScoreConfig": {
        "num_rewrites": at_least(1, "no sample would be rewritten"),
        "rewrite_temperature": at_least(_COLDEST, "the logits divided by it would overflow"),
        "rewrite_seed": _SEED,
        "rewrite_topk": at_least(0, "it is a number of ids; 0 stores none"),
        "attempt_topk": at_least(0, "it is a number of ids; 0 stores none"),
        "rewrite_max_new_tokens": _NEW_TOKENS,
        "score_batch_size": _BATCH,
        "shard_size": _SHARD,
    },
    "AuditConfig": {"threshold": between(0, 1, "it is a probability", open_low=True, open_high=True)},
    "ReportConfig": {
        "max_rows": _ROWS,
        "reward_baseline": between(0, 1, "it is a probability, and all rewards would have one sign"),
        "positive_reward_range": between(-1, 1, "a reward is the difference of two probabilities"),
        "negative_reward_range": between(-1, 1, "a reward is the difference of two probabilities"),
        "edited_weight": _COEF,
        "unedited_weight": _COEF,
    },
    "EvaluateConfig": {"max_new_tokens": _NEW_TOKENS, "batch_size": _BATCH},
    "ProblemConfig": {"max_rows": _ROWS},
    "Pipeline": {"seeds": _SEED},
    # --- Servers and teachers ---
    "ServerConfig": {
        "concurrency": between(1, 10_000, "no request would be sent, or more threads be needed than can start"),
        "timeout": _WAIT_SECONDS,
        "max_retries": between(0, 100, "a request would not be sent, or a broken server would be retried for hours"),
    },
    "TeacherConfig": {
        "max_tokens": at_least(1, "every answer would be truncated before its first token"),
        "max_attempts": at_least(1, "no row would be requested"),
        "questions_per_batch": between(1, 100_000, "the API accepts 1 to 100,000 requests in a batch"),
        "poll_seconds": between(0, 86_400, "a batch would be checked without a pause, or too late", open_low=True),
        "max_cost": _DOLLARS,
        "input_price": _DOLLARS,
        "output_price": _DOLLARS,
        "cache_write_price": _DOLLARS,
        "cache_read_price": _DOLLARS,
    },
    # --- Trainers ---
    "RLMECConfig": {
        "reward_baseline": between(0, 1, "it is a probability, and all rewards would have one sign"),
        "positive_reward_range": between(-1, 1, "a reward is the difference of two probabilities"),
        "negative_reward_range": between(-1, 1, "a reward is the difference of two probabilities"),
        "policy_coef": _COEF,
        "epsilon": _CLIP,
        "imitation_coef": _COEF,
        "edited_weight": _COEF,
        "unedited_weight": _COEF,
        "imitation_temperature": at_least(_COLDEST, "the log-probabilities divided by it would overflow"),
        "imitation_label_smoothing": _SMOOTHING,
        "attempt_coef": _COEF,
    },
    "OnlineRLMECConfig": {
        "token_reward_weights": between(-1_000_000, 1_000_000, "nothing would be left of the outcome"),
        "reward_baseline": between(0, 1, "it is a probability, and all rewards would have one sign"),
        "positive_reward_range": between(-1, 1, "a reward is the difference of two probabilities"),
        "negative_reward_range": between(-1, 1, "a reward is the difference of two probabilities"),
        "correct_reward": between(-1e9, 1e9, "all completions would be correct, or none"),
        "imitation_coef": _COEF,
        "edited_weight": _COEF,
        "unedited_weight": _COEF,
        "rewrite_max_new_tokens": _NEW_TOKENS,
        "replay_fraction": between(0, 100, "it is a number of rows for each completion"),
        "attempt_coef": _COEF,
        "grm_batch_size": _BATCH,
    },
    "LabelRewardConfig": {"pair_temperature": at_least(_COLDEST, "the differences divided by it would overflow")},
    "GRMConfig": {
        "locate_fraction": between(0, 1, "it is a fraction of the attempts"),
        "max_correct_ratio": at_least(0, "it is a number of correct attempts per incorrect one"),
    },
    # --- Arguments of the recipes ---
    "ScoreArguments": {"max_rows": _ROWS},
    "TaskArguments": {
        "seed": _SEED,
        # There are some 30 million problems, of which no two splits share one
        "warmup_size": between(1, 1_000_000, "the split would have no problem, or more than there are"),
        "train_size": between(1, 1_000_000, "the split would have no problem, or more than there are"),
        "validation_size": between(1, 1_000_000, "the split would have no problem, or more than there are"),
        "test_size": between(1, 1_000_000, "the split would have no problem, or more than there are"),
        "pairs_size": between(1, 1_000_000, "the split would have no problem, or more than there are"),
        "hidden_size": between(8, 65_536, "such a policy cannot be built"),
        "num_hidden_layers": between(1, 1_000, "such a policy cannot be built"),
    },
    # --- Transformers and TRL ---
    "TrainingArguments": {
        "per_device_train_batch_size": _BATCH,
        "per_device_eval_batch_size": _BATCH,
        "gradient_accumulation_steps": at_least(1, "no step would be taken"),
        "eval_accumulation_steps": _LIMIT,
        "num_train_epochs": over(0, "nothing would be trained"),
        "max_steps": at_least(1, "nothing would be trained; -1 trains for `num_train_epochs`", also=-1),
        "learning_rate": at_least(0, "the loss would be maximized"),
        "warmup_steps": _STEPS,
        "warmup_ratio": between(0, 1, "it is a fraction of all steps"),
        "weight_decay": at_least(0, "the weights would grow without bound"),
        "adam_beta1": between(0, 1, "the moments of Adam would diverge", open_high=True),
        "adam_beta2": between(0, 1, "the moments of Adam would diverge", open_high=True),
        "adam_epsilon": at_least(0, "Adam would divide by numbers around 0"),
        "max_grad_norm": at_least(0, "gradients would be multiplied by a negative number; 0 does not clip them"),
        "label_smoothing_factor": _SMOOTHING,
        "neftune_noise_alpha": at_least(0, "it is the magnitude of a noise"),
        "torch_empty_cache_steps": _LIMIT,
        "logging_steps": _STEPS,
        "eval_steps": _STEPS,
        "save_steps": _STEPS,
        "eval_delay": at_least(0, "it is a number of steps or epochs"),
        "seed": _SEED,
        "data_seed": _SEED,
        "dataloader_num_workers": between(0, 10_000, "no machine can start as many processes"),
        "dataloader_prefetch_factor": between(1, 100_000, "no batch would be loaded, or more than memory holds"),
        "ddp_bucket_cap_mb": _LIMIT,
        "ddp_timeout": between(1, 1_000_000_000, "the processes would not wait for each other, or would wait forever"),
        "local_rank": at_least(-1, "there is no such process"),
    },
    "SFTConfig": {
        "max_length": at_least(2, "no token would be left to predict from another"),
        "dataset_num_proc": between(1, 10_000, "no machine can start as many processes"),
        "pad_to_multiple_of": _PADDING,
        "router_aux_loss_coef": _COEF,
    },
    "RewardConfig": {
        "max_length": at_least(2, "every pair would be dropped"),
        "dataset_num_proc": between(1, 10_000, "no machine can start as many processes"),
        "pad_to_multiple_of": _PADDING,
        "center_rewards_coefficient": _COEF,
    },
    "GRPOConfig": {
        "num_generations": at_least(2, "an advantage compares the completions of one prompt"),
        "num_generations_eval": at_least(1, "no completion would be sampled"),
        "max_completion_length": _NEW_TOKENS,
        "pad_to_multiple_of": _PADDING,
        "generation_batch_size": _BATCH,
        "steps_per_generation": at_least(1, "no step would be taken"),
        "temperature": at_least(_COLDEST, "the logits divided by it would overflow"),
        "top_p": _TOP_P,
        "top_k": at_least(0, "it is a number of ids; 0, and with vLLM -1, sample from all of them", also=-1),
        "min_p": between(0, 1, "it is a probability"),
        "repetition_penalty": over(0, "the logits would change their sign"),
        "vllm_server_port": _PORT,
        "vllm_server_timeout": _WAIT_SECONDS,
        "vllm_group_port": _PORT,
        "vllm_gpu_memory_utilization": between(0, 1, "it is a share of the memory", open_low=True),
        "vllm_max_model_length": _LIMIT,
        "vllm_tensor_parallel_size": at_least(1, "there is no GPU to use"),
        "beta": _COEF,
        "num_iterations": at_least(1, "no step would be taken"),
        "epsilon": _CLIP,
        "epsilon_high": _CLIP,
        "delta": _CLIP,
        "sapo_temperature_neg": over(0, "the loss would divide by it"),
        "sapo_temperature_pos": over(0, "the loss would divide by it"),
        "vespo_k_pos": at_least(0, "samples far from the policy would weigh most"),
        "vespo_lambda_pos": at_least(0, "samples far from the policy would weigh most"),
        "vespo_k_neg": at_least(0, "samples far from the policy would weigh most"),
        "vespo_lambda_neg": at_least(0, "samples far from the policy would weigh most"),
        "ref_model_mixup_alpha": between(0, 1, "it is the share of the current policy"),
        "ref_model_sync_steps": at_least(1, "it is a number of steps"),
        "top_entropy_quantile": between(0, 1, "it is a share of the tokens", open_low=True),
        "entropy_coef_delta": at_least(0, "the coefficient would move away from its target"),
        "entropy_target": at_least(0, "an entropy is not negative"),
        "max_tool_calling_iterations": at_least(0, "it is a number of turns; unset, there is no limit"),
        "vllm_importance_sampling_clip_max": _CLIP,
        "vllm_importance_sampling_clip_min": at_least(0, "a ratio is not negative"),
        "vllm_importance_sampling_cap": _CLIP,
        "off_policy_mask_threshold": at_least(0, "every sequence would be masked"),
        "num_completions_to_print": at_least(0, "it is a number of completions; unset, all are printed"),
    },
    "ModelConfig": {
        "lora_r": between(1, 65_536, "an adapter would have no weights, or more than the model"),
        "lora_alpha": at_least(1, "an adapter would have no effect, or the opposite of what it learns"),
        "lora_dropout": between(0, 1, "nothing would be left of the adapter's input", open_high=True),
    },
}


def find_range(kind: type, name: str) -> Range | None:
    """The range of a setting of a dataclass, which it may have inherited."""
    tables = (RANGES.get(parent.__name__, {}) for parent in kind.__mro__)
    return next((table[name] for table in tables if name in table), None)
