"""Settings on the command line and in YAML files."""

import importlib
from functools import partial

from rlmec_trl.stages.settings import parse_settings
from tests.reliability.case import Case


SECTION = "Settings"
REQUIRED = {
    "rlmec": {"dataset_name": "x", "use_cpu": True, "bf16": False, "report_to": "none"},
    "train_grm": {"dataset_name": "x", "task": "arithmetic", "use_cpu": True, "bf16": False, "report_to": "none"},
    "sample": {"output_dir": "x", "task": "arithmetic"},
    "score": {"output_dir": "x", "dataset_name": "x"},
    "edit": {"output_dir": "x", "dataset_name": "x", "task": "arithmetic", "teacher": "task"},
    "evaluate": {"task": "arithmetic"},
    "audit": {"dataset_name": "x", "seen_dataset_name": "x", "tokenizer": "x", "task": "arithmetic"},
    "task": {"output_dir": "x"},
}


def parse(recipe, place, config=None, **settings):
    parser = importlib.import_module(f"recipes.{recipe}").make_parser()
    given = {**REQUIRED[recipe], **settings}
    if config is not None:
        given["config"] = place.file("config.yaml", config)
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    parse_settings(parser, words)


def flag(recipe, name, value):
    case = f"`{recipe}.py --{name} {value}`"
    return Case(case, partial(parse, recipe, **{name: value}), name, r"(?<=choose from ).*(?=\))")


def in_yaml(recipe, line, error=None):
    name = line.partition(":")[0]
    return Case(f"`{recipe}.py`, in YAML `{line}`", partial(parse, recipe, config=line + "\n"), error or name)


CASES = [
    *(
        flag("rlmec", name, value)
        for name, values in {
            "reward_baseline": ["nan", "inf", 7, -1],
            "policy_coef": ["nan", "inf", -1],
            "imitation_coef": ["nan", "inf", -1],
            "epsilon": ["nan", "inf", 0, -1],
            "edited_weight": ["nan", -1],
            "unedited_weight": ["inf"],
            "imitation_temperature": [0, "nan"],
            "imitation_label_smoothing": [1, -0.1, "nan"],
            "rewrite_topk": [-1, 2.5],
            "attempt_topk": [-1],
            "attempt_coef": ["nan", -1],
            "score_batch_size": [0],
            "shard_size": [0],
            "rewrite_max_new_tokens": [0],
            "loss_type": ["dpo"],
            "correct_samples": ["drop"],
        }.items()
        for value in values
    ),
    *(
        flag("train_grm", name, value)
        for name, values in {"locate_fraction": [-1, 2, "nan"], "max_correct_ratio": [-1, "nan", "inf"]}.items()
        for value in values
    ),
    *(
        flag("sample", name, value)
        for name, values in {
            "temperature": [-1, "nan", "inf"],
            "top_p": [0, 1.5, "nan"],
            "num_samples": [0, -1, 2.5, "two"],
            "max_new_tokens": [0, -1],
            "batch_size": [0],
            "shard_size": [0],
            "seed": ["one", -1],
            "max_rows": [0, -1],
            "concurrency": [0],
            "timeout": [0, "nan"],
            "max_retries": [-1],
        }.items()
        for value in values
    ),
    flag("edit", "max_rows", 0),
    flag("edit", "max_problems", 0),
    flag("edit", "batch_size", 0),
    flag("edit", "provider", "openai"),
    flag("evaluate", "max_new_tokens", 0),
    flag("evaluate", "batch_size", 0),
    flag("task", "train_size", -1),
    flag("task", "hidden_size", 0),
    flag("task", "hidden_size", 10),
    Case(
        "`score.py` without `--dataset_name`",
        lambda place: parse_settings(importlib.import_module("recipes.score").make_parser(), ["--output_dir", "x"]),
        "dataset_name",
    ),
    flag("sample", "num_sampel", 2),
    Case(
        "`sample.py --config no.yaml`",
        lambda place: parse_settings(importlib.import_module("recipes.sample").make_parser(), ["--config", "no.yaml"]),
        "There is no file 'no.yaml'",
    ),
    in_yaml("sample", "num_samples: null"),
    in_yaml("sample", "num_samples: [2]"),
    in_yaml("sample", "num_samples: two"),
    in_yaml("sample", "num_samples: 2.5"),
    in_yaml("sample", "temperature: hot"),
    in_yaml("sample", "top_p: .nan"),
    in_yaml("sample", "task: 5"),
    in_yaml("sample", "num_sampels: 2"),
    in_yaml("sample", "num_samples", "mapping|YAML|config.yaml"),
    in_yaml("sample", "num_samples: [", "YAML|config.yaml"),
    in_yaml("rlmec", "reward_baseline: null"),
    in_yaml("rlmec", "reward_baseline: text"),
    in_yaml("rlmec", "positive_reward_range: 0.5"),
    in_yaml("rlmec", "positive_reward_range: [0.5, 0.0]"),
    in_yaml("rlmec", "positive_reward_range: [0.0, .nan]"),
    in_yaml("rlmec", "negative_reward_range: [a, b]"),
    in_yaml("rlmec", "epsilon: [0.1]"),
    in_yaml("train_grm", "locate_fraction: all"),
    in_yaml("score", "rewrite_topk: many"),
    in_yaml("score", "rewrite_correct: maybe"),
    in_yaml("edit", "dry_run: maybe"),
    in_yaml("edit", "extra_body: [1]"),
    in_yaml("edit", "extra_body: '{'"),
]
