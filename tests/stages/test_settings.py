"""Settings of a recipe: whatever stands in its YAML file or on its command line, one sentence says what is wrong."""

import importlib
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.stages.settings import make_configs, parse_settings, read_yaml


REQUIRED = {
    "sample": {"output_dir": "out", "task": "math"},
    "edit": {"output_dir": "out", "task": "math", "dataset_name": "data", "teacher": "model"},
    "train_grm": {"output_dir": "out", "task": "math", "dataset_name": "data"},
    "train_label_reward": {"output_dir": "out", "dataset_name": "data"},
    "score": {"output_dir": "out", "dataset_name": "data"},
    "rlmec": {"output_dir": "out", "dataset_name": "data"},
    "evaluate": {"task": "math"},
    "audit": {"task": "math", "dataset_name": "data", "seen_dataset_name": "data", "tokenizer": "model"},
    "report": {"output_file": "report.html", "tokenizer": "model", "dataset_name": "data"},
    "sft": {"output_dir": "out", "dataset_name": "data"},
    "grpo": {"output_dir": "out", "dataset_name": "data", "task": "math"},
    "task": {"output_dir": "out"},
    "rationales": {"output_dir": "out", "task": "sst2", "teacher": "model"},
    "pairs": {"output_dir": "out", "task": "sst2", "dataset_names": "data"},
    "merge": {"output_dir": "out"},
    "evaluate_pairs": {"dataset_names": "data"},
    **{
        name: {"output_dir": "out", "dataset_name": "data", "reward": "rllr", "label_reward_model": "model"}
        for name in ("rllr", "rllr_grpo")
    },
}
TRAINING = {"use_cpu": True, "bf16": False, "report_to": "none"}
TRAINS = ("train_grm", "train_label_reward", "rlmec", "sft", "grpo", "rllr", "rllr_grpo")


def parser_of(recipe):
    return importlib.import_module(f"recipes.{recipe}").make_parser()


def words_of(recipe):
    given_words = REQUIRED[recipe] | (TRAINING if recipe in TRAINS else {})
    return [word for name, value in given_words.items() for word in (f"--{name}", str(value))]


def parse(recipe, *more):
    return parse_settings(parser_of(recipe), [*words_of(recipe), *more])


def find(configs, name):
    return next(getattr(config, name) for config in configs if hasattr(config, name))


@pytest.fixture
def parse_text(tmp_path):
    """What a recipe makes of the text of a YAML file."""

    def parse_text(recipe, text):
        path = tmp_path / "settings.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return parse(recipe, "--config", str(path))

    return parse_text


def refusal(call, *args):
    """The one sentence or two that a mistake is answered with."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# --- Good files ------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_trls_parser_reads_it(parse_text):
    text = "learning_rate: 1e-3\nmax_steps: 5\nnegative_reward_range: [-1, 0]\nlora_target_modules: all-linear\n"
    text += "lr_scheduler_type: cosine\nwarmup_steps: 0.1\nbf16: null\nmax_length: null\nmodel_init_kwargs: {a: 1}\n"
    configs = parse_text("rlmec", text)
    assert find(configs, "learning_rate") == 1e-3 and find(configs, "max_steps") == 5  # YAML takes 1e-3 for a text
    assert find(configs, "negative_reward_range") == [-1, 0] and find(configs, "max_length") is None
    assert find(configs, "lora_target_modules") == "all-linear" and find(configs, "lr_scheduler_type") == "cosine"


def test_the_command_line_replaces_the_file(tmp_path):
    (tmp_path / "settings.yaml").write_text("shard_size: 7\nbatch_size: 3\n")
    configs = parse("sample", "--config", str(tmp_path / "settings.yaml"), "--shard_size", "9")
    assert (configs[0].shard_size, configs[0].batch_size) == (9, 3)


@pytest.mark.parametrize("recipe", TRAINS)
@pytest.mark.parametrize("value", [True, False, "true", "out/checkpoint-5", None])
def test_resuming_may_be_demanded_or_ruled_out_in_a_file(recipe, value):
    settings = REQUIRED[recipe] | TRAINING | {"resume_from_checkpoint": value}
    assert find(make_configs(parser_of(recipe), settings), "resume_from_checkpoint") == value


def test_resuming_is_nothing_else(parse_text):
    message = refusal(parse_text, "sft", "resume_from_checkpoint: 5")
    assert "`resume_from_checkpoint` must be a text or true or false or unset, got 5" in message


def test_env_sets_environment_variables(parse_text, monkeypatch):
    monkeypatch.setenv("RLMEC_TRL_TEST", "before")
    parse_text("sample", "env: {RLMEC_TRL_TEST: 3}")
    assert os.environ["RLMEC_TRL_TEST"] == "3"
    assert "`env` must be a mapping" in refusal(parse_text, "sample", "env: [a]")


def test_keys_that_are_merged_may_repeat_those_of_the_mapping(tmp_path):
    (tmp_path / "a.yaml").write_text("x: &shared {a: 1, b: 2}\ny:\n  <<: *shared\n  a: 3\n")
    assert read_yaml(tmp_path / "a.yaml")["y"] == {"a": 3, "b": 2}


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["null", "[1]", "2.5", "abc", "true", "{a: 1}", ".nan", ".inf", "''", "1e3"])
def test_a_value_of_another_type_names_the_key_and_the_file(parse_text, value):
    message = refusal(parse_text, "sample", f"shard_size: {value}")
    assert "settings.yaml: `shard_size` must be an integer, got " in message


@pytest.mark.parametrize(
    ("recipe", "text", "message"),
    [
        ("sample", "shard_size: 0", "`shard_size` must be at least 1, got 0: a shard would have no row"),
        ("sample", "temperature: -1", "`temperature` must be 0 or at least 0.001, got -1"),
        ("sample", "temperature: .nan", "`temperature` must be finite"),
        ("sample", "top_p: 0", "`top_p` must be over 0 and at most 1"),
        ("sample", "max_new_tokens: 100000000000000000000", "`max_new_tokens` must be an int64"),
        ("sample", "concurrency: 0", "`concurrency` must be at least 1"),
        ("score", "rewrite_topk: -1", "`rewrite_topk` must not be negative"),
        ("score", "max_rows: 0", "`max_rows` must be at least 1"),
        ("score", "grm: 5", "`grm` must be a text or unset, got 5"),
        ("edit", "effort: huge", "`effort` must be one of 'low', 'medium'"),
        ("edit", "extra_body: '[1]'", "`extra_body` must be a JSON object"),
        ("edit", "max_cost: 3", "`--max_cost` needs the teacher's prices"),
        ("rlmec", "reward_baseline: 7", "`reward_baseline` must be at least 0 and at most 1, got 7"),
        ("rlmec", "policy_coef: .inf", "`policy_coef` must be finite"),
        ("rlmec", "negative_reward_range: [0, .nan]", "every number of `negative_reward_range` must be finite"),
        ("rlmec", "negative_reward_range: [a, b]", "`negative_reward_range` must be a list of numbers"),
        ("rlmec", "negative_reward_range: 0", "`negative_reward_range` must be a list of numbers"),
        ("rlmec", "negative_reward_range: [0]", "must be two numbers, the lower bound first"),
        ("rlmec", "loss_type: nll", "`loss_type` must be one of 'rlmec', 'ppo', got 'nll'"),
        ("rlmec", "policy_coef: 0\nimitation_coef: 0", "are all 0, so there is nothing to train on"),
        ("train_grm", "locate_fraction: 2", "`locate_fraction` must be at least 0 and at most 1"),
        ("train_label_reward", "kind: labels", "`kind` must be one of 'label', 'rationale', got 'labels'"),
        ("train_label_reward", "pair_temperature: 0", "`pair_temperature` must be at least 0.001"),
        ("rllr", "reward: rhlf", "`reward` must be one of 'rlhf', 'rllr', 'rllr_mixed', got 'rhlf'"),
        ("rllr_grpo", "label_cap: .nan", "`label_cap` must be finite"),
        ("evaluate_pairs", "batch_size: 0", "`batch_size` must be at least 1"),
        ("sft", "per_device_train_batch_size: 0", "`per_device_train_batch_size` must be at least 1"),
        ("sft", "learning_rate: null", "`learning_rate` must be a number, got None. Leave it out"),
        ("sft", "max_steps: 0", "`max_steps` must be -1 or at least 1, got 0"),
        ("sft", "lora_r: 0", "`lora_r` must be at least 1"),
        ("sft", "lora_dropout: 1.5", "`lora_dropout` must be at least 0 and under 1"),
        ("sft", "dtype: banana", "`dtype` must be one of 'auto', 'bfloat16'"),
        ("sft", "eval_strategy: no", "`eval_strategy` must be a text, got False. In YAML, yes, no, on and off"),
        ("sft", "eval_strategy: never", "`eval_strategy` must be one of 'no', 'steps', 'epoch', got 'never'"),
        ("sft", "bf16: maybe", "`bf16` must be true or false or unset, got 'maybe'"),
        ("sft", "output_dir: 5", "`output_dir` must be a text or unset, got 5"),
        ("sft", "logging_steps: 2.5", "logging_steps must be an integer if bigger than 1"),
        ("sft", "load_in_4bit: true\nload_in_8bit: true", "can't use 8 bit and 4 bit precision at the same time"),
        ("sft", "accelerator_config: none.json", "'none.json' cannot be read (No such file or directory)"),
        ("grpo", "num_generations: 0", "`num_generations` must be at least 2"),
        ("grpo", "temperature: 0", "`temperature` must be at least 0.001"),
        ("grpo", "reward_weights: [1, .inf]", "every number of `reward_weights` must be finite"),
        ("grpo", "generation_batch_size: 3", "generation_batch_size (3) must be divisible"),
        ("task", "test_size: 0", "`test_size` must be at least 1"),
        ("task", "seed: -1", "`seed` must be at least 0"),
        ("task", "hidden_size: 30", "`hidden_size` must be a multiple of 8"),
        ("evaluate", "batch_size: '0'", "`batch_size` must be at least 1, got 0"),
        ("audit", "task: null", "`task` must be a text, got None"),
    ],
)
def test_a_value_that_cannot_work_is_refused_when_it_is_parsed(parse_text, recipe, text, message):
    found = refusal(parse_text, recipe, text)
    assert message in found and "settings.yaml: " in found


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("sample", ["--shard_size", "0"], "`shard_size` must be at least 1, got 0"),
        ("sample", ["--temperature", "nan"], "`temperature` must be finite"),
        ("grpo", ["--num_generations", "0"], "`num_generations` must be at least 2"),  # TRL divides by it
        ("grpo", ["--per_device_train_batch_size", "0", "--generation_batch_size", "8"], "must be at least 1, got 0"),
        ("sft", ["--learning_rate", "inf"], "`learning_rate` must be finite"),
        ("sft", ["--learning_rate", "fast"], "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        ("sft", ["--loss_type", "dpo"], "argument --loss_type/--loss-type: invalid choice: 'dpo'"),
        # A number or a text ("auto"), which the parser leaves a text
        ("sft", ["--pad_to_multiple_of", "1000000000"], "`pad_to_multiple_of` must be at least 1 and at most 65,536"),
        ("sft", ["--pad_to_multiple_of", "2.5"], "`pad_to_multiple_of` must be an integer"),
        ("sft", ["--accelerator_config", '{"foo": 1}'], "unexpected keyword argument 'foo' (in transformers."),
        ("rlmec", ["--accelerator_config", '{"foo": 1}'], "unexpected keyword argument 'foo' (in transformers."),
        ("sample", ["--use_peft", "--lora_task_type", "foo"], "Invalid task type"),
        ("evaluate", ["--load_in_4bit", "--bnb_4bit_quant_storage", "foo"], "`bnb_4bit_quant_storage` must be"),
        ("sft", ["--learning_rat", "1", "--nothing", "3"], "There is no argument '--nothing'."),
        ("sft", ["--max_stepz", "3"], "There is no argument '--max_stepz'. Did you mean 'max_steps'"),
        ("sft", ["--config"], "`--config` needs a YAML file"),
        ("sft", ["--config=missing.yaml"], "There is no file 'missing.yaml'."),
    ],
)
def test_the_command_line_is_checked_too(recipe, words, message):
    assert message in refusal(parse, recipe, *words)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("sft", ["--save_total_limit", "-1"]),  # Transformers takes 0 and less for no limit
        ("sft", ["--save_total_limit", "0"]),
        ("grpo", ["--top_k", "-1"]),  # vLLM's name for all ids
        ("grpo", ["--top_k", "0"]),
        ("sft", ["--pad_to_multiple_of", "auto"]),
        ("sft", ["--pad_to_multiple_of", "8"]),
        ("sft", ["--use_peft", "--lora_r", "4096"]),
    ],
)
def test_what_a_library_takes_is_not_refused(recipe, words):
    parse(recipe, *words)


def test_a_mistake_in_the_type_of_our_own_code_keeps_its_traceback(monkeypatch):
    from rlmec_trl.trainers.rlmec_config import RLMECConfig

    def broken(self):
        raise TypeError("ours")

    monkeypatch.setattr(RLMECConfig, "__post_init__", broken)
    with pytest.raises(TypeError, match="ours"):
        parse("rlmec")


# Values of every kind that YAML has
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("recipe", REQUIRED)
def test_any_value_of_any_setting_is_accepted_or_answered_in_one_sentence(recipe):
    base = REQUIRED[recipe] | (TRAINING if recipe in TRAINS else {})
    # What these name is looked for on disk, or changes this process
    left_out = {"help", "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "debug"}
    left_out |= {"torch_compile", "torch_compile_mode", "torch_compile_backend", "tf32", "full_determinism", *base}
    names = sorted({action.dest for action in parser_of(recipe)._actions} - left_out)

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from(names), VALUES)
    def check(name, value):
        parser = parser_of(recipe)
        try:
            make_configs(parser, base | {name: value})
        except ConfigError as error:
            assert str(error) and "\n" not in str(error)

    check()


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard_siz: 3", "settings.yaml: there is no setting 'shard_siz'. Did you mean 'shard_size'"),
        ("nonsense: 3", "there is no setting 'nonsense'."),
        ("help: 3", "there is no setting 'help'"),
        ("3: 4", "there is no setting 3"),
        ("? [1]\n: 4", "not a YAML file"),
        ("", "settings.yaml: expected a mapping of settings, found nothing"),
        ("# all commented out\n", "found nothing"),
        ("- shard_size: 3", "expected a mapping of settings, found [{'shard_size': 3}]"),
        ("shard_size", "expected a mapping of settings, found 'shard_size'"),
        ("shard_size: [", "not a YAML file"),
        ("shard_size: 3\nshard_size: 4", "the key 'shard_size' is there twice"),
        ("shard_size: 3\n\tbatch_size: 4", "not a YAML file"),
        ("a: 1\n---\nb: 2", "not a YAML file"),
        ("task: 2024-01-01", "`task`: found datetime.date(2024, 1, 1) (date). Quote it"),
        ("task: 2024-13-45", "not a YAML file (month must be in 1..12)"),
        ("task: !!binary aGVsbG8=", "`task`: found b'hello'"),
        ("extra_body: &a {a: *a}", "`extra_body`: a value contains itself"),
        ('task: "a\\0b"', "`task`: found 'a\\x00b', which has a character that no name or path may have"),
        ("task: !!python/object:os.system x", "not a YAML file"),
        ("[" * 900, "not a YAML file"),
        (b"\xff\xfe", "not a YAML file"),
        (b"task: \x01", "not a YAML file"),
    ],
)
def test_a_file_that_is_none_of_settings_is_named(parse_text, text, message):
    found = refusal(parse_text, "sample", text)
    assert message in found and "settings.yaml" in found


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path):
    missing, folder = tmp_path / "missing.yaml", tmp_path
    assert refusal(parse, "sample", "--config", str(missing)) == f"There is no file {str(missing)!r}."
    assert "Is a directory" in refusal(parse, "sample", "--config", str(folder))


@pytest.mark.parametrize("path", sorted(Path("recipes/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_have_no_key_twice(path):
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))
