"""Settings that only TRL, Transformers, PEFT and Accelerate know, as far as they can be built or used."""

from functools import partial

from tests.reliability.case import Case


SECTION = "Settings that the libraries refuse"
# What they say differs from release to release
LIBRARY = r"(?<=with these settings: ).*"
PUBLISHING = r"(?<=nothing was computed: ).*(?=\. Log in)"


def train(recipe, place, **settings):
    rows = [row | {"rewrite_ids": None} for row in place.rows[:4]]
    place.train(recipe, place.saved("rows", rows), **settings)
    return "one step"


def refused(recipe, error, **settings):
    """A setting, and a part of what a library says of it."""
    return Case(_name(recipe, settings), partial(train, recipe, **settings), f"these settings: .*{error}", LIBRARY)


def ours(recipe, error, varies=None, **settings):
    """A setting that is refused before a library sees it."""
    return Case(_name(recipe, settings), partial(train, recipe, **settings), error, varies)


def _name(recipe, settings):
    return f"`{recipe}.py {' '.join(f'--{name} {value!r}' for name, value in settings.items())}`"


def evaluated(place):
    rows = place.saved("evaluated", [row | {"rewrite_ids": None} for row in place.rows[:2]])
    train(
        "rlmec", place, eval_dataset_name=rows, eval_strategy="steps", eval_steps=1, metric_for_best_model="accuracy"
    )


CASES = [
    *(
        ours(recipe, "`eval_strategy` is set", eval_strategy="epoch")
        for recipe in ("sft", "rlmec", "train_grm", "grpo")
    ),
    ours("sft", "`eval_on_start` is set", eval_on_start=True),
    Case(
        "`rlmec.py --metric_for_best_model accuracy`, which no evaluation gives",
        evaluated,
        "`metric_for_best_model` is 'accuracy'",
        r"(?<=does not give: ).*",
    ),
    ours("sft", "No model is named", model_name_or_path=""),
    ours("sft", "`chat_template_path` must be", chat_template_path="/nowhere"),
    ours("sft", "`activation_offloading` needs an accelerator", activation_offloading=True),
    ours("sft", "unexpected keyword argument 'foo'", ".+", accelerator_config='{"foo": 1}'),
    ours("sft", "Invalid task type", ".+", use_peft=True, lora_task_type="foo"),
    ours("sft", "`bnb_4bit_quant_storage` must be", ".+", load_in_4bit=True, bnb_4bit_quant_storage="foo"),
    ours("sft", "`lora_r` must be", use_peft=True, lora_r=10**9),
    ours("sft", "`dataloader_num_workers` must be", dataloader_num_workers=10**9),
    ours("sft", "`dataset_num_proc` must be", dataset_num_proc=10**9),
    ours("sft", "`pad_to_multiple_of` must be", pad_to_multiple_of=10**9),
    # Our trainers hand their settings on, so that a few show how they are refused
    *(
        refused(recipe, error, **settings)
        for recipe in ("sft", "rlmec", "train_grm")
        for error, settings in [
            ("argument 'foo'", {"lr_scheduler_kwargs": '{"foo": 1}'}),
            ("foo is not supported", {"report_to": "foo"}),
            ("foo", {"attn_implementation": "foo"}),
        ]
    ),
    refused("sft", "install", optim="galore_adamw", optim_target_modules="all-linear"),
    refused("sft", "argument 'foo'", model_init_kwargs='{"foo": 1}'),
    refused("sft", "<foo>", eos_token="<foo>"),
    refused("sft", "foo", use_peft=True, lora_target_modules="foo"),
    refused("sft", "num_decay_steps", lr_scheduler_type="warmup_stable_decay"),
    refused("sft", "install", optim="apollo_adamw", optim_target_modules="all-linear"),
    refused("sft", "install", optim="lomo"),
    refused("sft", "unpack", optim_args="foo"),
    refused("sft", "install", report_to="neptune"),
    refused("sft", "FOO|foo", torch_compile=True, torch_compile_backend="foo"),
    refused("sft", "mode", torch_compile_mode="foo"),
    refused("sft", "<foo>", pad_token="<foo>"),
    refused("sft", "num_workers", dataloader_persistent_workers=True),
    ours("sft", "Nothing can be pushed to the model 'model' .*offline", PUBLISHING, push_to_hub=True),
    ours("sft", "Nothing can be pushed .*'a/b/c'", PUBLISHING, push_to_hub=True, hub_model_id="a/b/c"),
    ours("sft", "`hub_token` would be saved", push_to_hub=True, hub_token="hf_foo"),
    refused("sft", "quantized", load_in_4bit=True),
    refused("sft", "not conversational", assistant_only_loss=True),
    refused("rlmec", "lengths", length_column_name="foo", train_sampling_strategy="group_by_length"),
    refused("grpo", "loss type", loss_type="foo"),
    refused("grpo", "scale_rewards", scale_rewards="foo"),
    refused("grpo", "sync_ref_model", sync_ref_model=True),
]
