"""What the real client pushes to a local server: it loads elsewhere, and has neither paths nor keys."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
from datasets import Dataset, Features, load_from_disk
from huggingface_hub import DatasetCard, HfApi, ModelCard
from peft import LoraConfig
from transformers.utils import hub as transformers_hub
from trl import DPOConfig, ModelConfig, SFTConfig, SFTTrainer

from rlmec_trl import (
    GenerativeRewardModel,
    GRMConfig,
    GRMTrainer,
    OnlineRLMECConfig,
    RLMECConfig,
    RLMECTrainer,
)
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.marks import list_files
from rlmec_trl.data.schema import column_features
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.reports.tables import AUDIT_LABELS
from rlmec_trl.stages import edit, merge, pairs, rationales, sample, score
from rlmec_trl.stages.dataset_cards import DatasetFacts
from rlmec_trl.stages.model_cards import About, ModelFacts
from rlmec_trl.stages.model_publishing import _public_content, push_model
from rlmec_trl.stages.output import OutputError, claim
from rlmec_trl.stages.publishing import DatasetPublisher, PublishConfig, PublishError, open_repo
from rlmec_trl.stages.refusals import check_training_settings
from rlmec_trl.stages.training import train_and_save, training_run
from rlmec_trl.tasks import verdicts
from rlmec_trl.tasks.arithmetic import WORDING
from rlmec_trl.tasks.problems import ProblemConfig
from tests.fake_hub import FakeHub, Repo


ROOT = Path(__file__).parents[2]
SAMPLE_COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]
PUBLISH = PublishConfig(push_to_hub=True)
WORDED = replace(WORDING, no_error="makes")  # not the default, so that one that is lost is noticed


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub, for the clients in this process too, which have read their settings when they were imported."""
    hub = FakeHub()
    with hub.running() as url:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def folder(tmp_path, make_policy, make_rows, tokenizer):
    """A policy, an untrained reward model, and samples, some with messages."""
    for name, sharpness in (("policy", 1.0), ("untrained_grm", 20.0)):
        make_policy(sharpness).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_wording(WORDED, str(tmp_path / "untrained_grm"))
    rows = [{name: row[name] for name in SAMPLE_COLUMNS} for row in make_rows(6)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "samples")
    return tmp_path


def config_of(kind, output_dir, **settings):
    defaults = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
    defaults |= {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "disable_tqdm": True}
    return kind(str(output_dir), **{**defaults, "push_to_hub": True, **settings})


def train_grm(folder, **settings):
    edits = edit.run(edit.EditConfig(str(folder / "samples"), str(folder / "edits"), "arithmetic", "task"))
    args = config_of(GRMConfig, folder / "grm", **settings)
    trainer = GRMTrainer(str(folder / "policy"), args, train_dataset=edits, wording=WORDED)
    train_and_save(trainer, str(folder / "edits"), about=About("arithmetic"))


def run_score(folder, **settings):
    samples = load_from_disk(str(folder / "samples"))
    grm = str(folder / ("grm" if (folder / "grm").exists() else "untrained_grm"))
    config = score.ScoreConfig(grm, task="arithmetic", rewrite_max_new_tokens=10, **settings)
    output = str(folder / "scored")
    return score.run(config, samples, output, ModelConfig(str(folder / "policy")), publish_config=PUBLISH)


def run_edit(folder, publish=PUBLISH, teacher="task"):
    config = edit.EditConfig(str(folder / "samples"), str(folder / "edits"), "arithmetic", teacher)
    return edit.run(config, publish_config=publish)


def check_clean(hub, folder):
    """Neither a path of this machine nor the token is in what was pushed."""
    pushed = hub.pushed()
    assert len(pushed) > len(hub.repos)
    for repo, path, content in pushed:
        for secret in (str(folder), str(ROOT), str(Path.home()) + "/", hub.token):
            assert secret.encode() not in content, (repo, path, secret)


# --- Elsewhere -------------------------------------------------------------------------------------------------------


def test_a_reward_model_a_policy_and_datasets_load_elsewhere(hub, folder, capfd):
    run_edit(folder)
    train_grm(folder)
    scored = run_score(folder)
    args = config_of(RLMECConfig, folder / "trained" / "policy")
    trainer = RLMECTrainer(str(folder / "policy"), args, train_dataset=scored)
    train_and_save(trainer, str(folder / "scored"), about=About("arithmetic", str(folder / "grm")))
    # Messages, columns of `None` alone, and arguments of the chat template
    message = [{"role": "user", "content": "Why?"}]
    row = {"prompt": message, "completion": None, "rewrite": None, "token_probs": [0.5, None], "old_logps": None}
    types = column_features(messages=True)
    chats = Dataset.from_list([row] * 3, features=Features({name: types[name] for name in row}))
    publisher = DatasetPublisher(PUBLISH, folder / "chats")
    publisher.publish(chats, DatasetFacts("samples", "Some."))

    assert f"Published the model: {hub.url}/me/grm\n" in capfd.readouterr().out
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "elsewhere"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "tests" / "stages" / "loads_elsewhere.py"), str(folder / "there")]
    process = subprocess.run(words, capture_output=True, text=True, env=environment, cwd="/", check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    answers = json.loads(process.stdout.splitlines()[-1])

    grm = GenerativeRewardModel.from_pretrained(str(folder / "grm"), max_new_tokens=20, show_progress=False)
    inputs = [scored[name][:] for name in ("prompt", "reference", "completion")]
    ids = scored["completion_ids"][:]
    assert answers["no_error"] == "makes"
    assert answers["locate"] == grm.locate(*inputs)
    assert answers["rewrite"] == grm.rewrite(*inputs, ids)
    assert answers["score"] == grm.score(*inputs, ids)
    assert answers["loss"] > 0
    assert answers["edits"] == load_from_disk(str(folder / "edits")).to_list()
    assert answers["chats"] == chats.to_list()
    assert answers["types"] == {name: str(feature) for name, feature in chats.features.items()}
    check_clean(hub, folder)


# --- Datasets --------------------------------------------------------------------------------------------------------


def sample_files(folder, monkeypatch, tokenizer):
    problems = load_from_disk(str(folder / "samples")).select_columns(["prompt", "reference", "answer"])
    problems.to_json(folder / "problems.jsonl")
    ids = [tokenizer("4 + 3 = 7")["input_ids"] + [tokenizer.eos_token_id]]
    monkeypatch.setattr(sample, "sample_completions", lambda model, tokenizer, prompts, **_: [ids] * len(prompts))
    config = sample.SampleConfig(str(folder / "sampled"), "arithmetic", num_samples=1)
    problem_config = ProblemConfig(str(folder / "problems.jsonl"))
    return sample.run(config, problem_config, ModelConfig(str(folder / "policy")), publish_config=PUBLISH)


def test_every_stage_publishes_its_rows_with_a_card(hub, folder, monkeypatch, tokenizer):
    results = {
        "sampled": sample_files(folder, monkeypatch, tokenizer),
        "edits": run_edit(folder),
        "scored": run_score(folder, rewrite_topk=2),
    }
    problems = verdicts.make_verdicts(0, 1, 4, 1, 1, 1)["train"]
    problems.save_to_disk(folder / "problems")
    config = rationales.RationalesConfig(str(folder / "rationales"), "verdicts", "task", labels="all")
    problem_config = ProblemConfig(str(folder / "problems"))
    results["rationales"] = rationales.run(config, problem_config, publish_config=PUBLISH)
    config = pairs.PairsConfig([str(folder / "rationales")], str(folder / "pairs"), "verdicts")
    results["pairs"] = pairs.run(config, publish_config=PUBLISH)
    for name, rows in results.items():
        files = hub.files("dataset", f"me/{name}")
        assert "data/train-00000-of-00001.parquet" in files and "rlmec_trl.json" not in files
        card = DatasetCard(files["README.md"].decode())
        assert "rlmec" in card.data["tags"] and card.data.get("license") is None and "## License" in card.text
        assert card.data["dataset_info"]["splits"][0]["num_examples"] == len(rows)  # what `datasets` wrote is kept
        for column in rows.column_names:
            assert f"| `{column}` | " in card.text
        assert f"| all |  | {len(rows):,} |" in card.text
        assert not any(path.name == "README.md" for path in (folder / name).iterdir())  # nor anything else
    edits, scored = (hub.files("dataset", f"me/{name}")["README.md"].decode() for name in ("edits", "scored"))
    assert "| edit outcome | `rewritten` | " in edits and "| teacher | `a program of the task` |" in edits
    assert "| generative reward model | `untrained_grm` |" in scored and "| `rewrite_topk` | `2` |" in scored
    assert WORDED.locate in scored and "2401.06081" in scored
    assert "2405.19763" in hub.files("dataset", "me/pairs")["README.md"].decode()
    check_clean(hub, folder)


def test_a_finished_stage_is_published_without_anything_being_computed(hub, folder, monkeypatch):
    run_edit(folder, publish=None)
    assert not hub.repos
    before = list_files(folder / "edits")
    monkeypatch.setattr(edit, "edit_dataset", None)
    run_edit(folder, PublishConfig(True, "me/other_name", hub_private_repo=True))
    assert hub.repos["dataset", "me/other_name"].private is True
    assert list_files(folder / "edits") == before


def test_an_upload_that_fails_leaves_the_result_and_the_same_command_publishes_it(hub, folder, monkeypatch):
    hub.failing.add("commit")
    with pytest.raises(PublishError, match="is complete, and could not be uploaded .*Run the same command again"):
        run_edit(folder)
    assert len(load_from_disk(str(folder / "edits"))) == 6
    hub.failing.clear()
    monkeypatch.setattr(edit, "edit_dataset", None)
    run_edit(folder)
    assert "README.md" in hub.files("dataset", "me/edits")


@pytest.mark.parametrize("reason", ["no token", "another token", "no right", "no connection", "no name"])
def test_a_hub_that_refuses_is_known_before_any_work(hub, folder, monkeypatch, reason):
    monkeypatch.setattr(edit, "edit_dataset", None)
    name = "edits"
    if reason == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif reason == "another token":
        monkeypatch.setenv("HF_TOKEN", "hf_another")
    elif reason == "no connection":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    else:
        name = "somebody/edits" if reason == "no right" else "not a name"
    with pytest.raises(PublishError, match="nothing was computed.*Log in with `hf auth login`") as error:
        run_edit(folder, PublishConfig(True, name))
    assert "hf_another" not in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "edits").exists()


def test_what_a_provider_said_of_an_error_is_not_published(hub, folder):
    outcomes = ["rewritten", "status 401: key sk-123 of account me@home is invalid", None]
    rows = Dataset.from_dict({"edit_outcome": outcomes, "prompt": ["a", "b", "c"]})
    DatasetPublisher(PUBLISH, folder / "edits").publish(rows, DatasetFacts("edits", "Some."))
    assert not any(b"sk-123" in content for *_, content in hub.pushed())
    assert b"| `status 401` | 1 |" in hub.files("dataset", "me/edits")["README.md"]


def test_a_license_stays_when_a_dataset_is_pushed_again(hub, folder):
    run_edit(folder)
    files = hub.files("dataset", "me/edits")
    files["README.md"] = files["README.md"].replace(b"---\n", b"---\nlicense: cc-by-4.0\n", 1)
    run_edit(folder)
    card = DatasetCard(hub.files("dataset", "me/edits")["README.md"].decode())
    assert card.data["license"] == "cc-by-4.0" and "edits" in card.data["tags"]


def test_a_dry_run_publishes_nothing(hub, folder):
    config = edit.EditConfig(
        str(folder / "samples"), str(folder / "edits"), "arithmetic", "gpt", provider="server", dry_run=True
    )
    edit.run(config, server_config=ServerConfig(base_url="http://127.0.0.1:1"), publish_config=PUBLISH)
    assert not hub.num_calls


CARD_OF_A_USER = b"---\nlicense: other\nlicense_name: mine\nextra_gated_prompt: Why?\n---\n"


@pytest.mark.parametrize("kind", ["dataset", "model"])
@pytest.mark.parametrize(
    "files",
    [
        {"README.md": CARD_OF_A_USER + b"# What I wrote"},
        {"README.md": CARD_OF_A_USER, "data/train-00000-of-00002.parquet": b"rows", "adapter_config.json": b"{}"},
        {"README.md": b"---\nlicense: [mit\n---\n"},
        {"README.md": b"---\n1: mit\n---\n", "notes.txt": b""},
        {"README.md": b"\xff\xfe"},
    ],
)
def test_what_is_not_ours_on_the_hub_is_not_replaced_and_known_before_any_work(hub, folder, monkeypatch, kind, files):
    repo = hub.repos[kind, "me/mine"] = Repo(False)
    repo.add("main", {".gitattributes": b"", **files}, "by its owner")
    with pytest.raises(PublishError, match=rf"me/mine holds something .* Choose another `--hub_{kind}_id`"):
        if kind == "dataset":
            monkeypatch.setattr(edit, "edit_dataset", None)
            run_edit(folder, PublishConfig(True, "me/mine"))
        else:
            args = config_of(SFTConfig, folder / "sft", hub_model_id="mine", hub_revision="a_new_branch")
            with training_run(args):
                raise AssertionError
    assert repo.messages == ["by its owner"]
    # It is the owner who says that all may be replaced
    repo.add("main", {**files, "README.md": b"---\ntags: rlmec-trl\n---\n"}, "by its owner")
    DatasetPublisher(PUBLISH, folder / "mine") if kind == "dataset" else open_repo("model", "me/mine", folder)


def test_what_the_owner_says_in_the_metadata_of_a_card_stays(hub, folder):
    for kind, name in (("dataset", "edits"), ("model", "grm")):
        hub.repos[kind, f"me/{name}"] = Repo(False)
        hub.repos[kind, f"me/{name}"].add("main", {"README.md": CARD_OF_A_USER}, "created on the site")
    run_edit(folder)
    for _ in range(2):
        train_grm(folder)
    for kind, name, card_type in (("dataset", "edits", DatasetCard), ("model", "grm", ModelCard)):
        data = card_type(hub.files(kind, f"me/{name}")["README.md"].decode()).data
        assert (data["license"], data["license_name"], data["extra_gated_prompt"]) == ("other", "mine", "Why?")
        assert "rlmec-trl" in data["tags"]


@pytest.mark.parametrize("step", ["upload_file", "create_commit"])
def test_an_upload_that_broke_off_is_continued(hub, folder, monkeypatch, step):
    upload = getattr(HfApi, step)

    def break_off(*args, **kwargs):
        upload(*args, **kwargs)
        raise ConnectionResetError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, step, break_off)
        with pytest.raises(PublishError, match="broken off .*Run the same command again"):
            run_edit(folder)
    run_edit(folder)
    assert "data/train-00000-of-00001.parquet" in hub.files("dataset", "me/edits")


def test_whatever_columns_and_values_are_named_a_card_is_a_card(hub, folder):
    rows = Dataset.from_dict(
        {
            "---": ["x"] * 30,
            "a\n---\nlicense: mit": [1] * 30,
            "`|<b>": [None] * 30,
            "{{ x }}": [[1]] * 30,
            "kind": [f"kind {number}\n# No heading" for number in range(30)],
            "edit_outcome": [1] * 30,
        }
    )
    facts = DatasetFacts("edits", "Some.", {"teacher": "x\n---\nlicense: mit"}, {"a": "`b`\n\n# No heading"})
    for _ in range(2):
        DatasetPublisher(PUBLISH, folder / "edits").publish(rows, facts)
    card = DatasetCard(hub.files("dataset", "me/edits")["README.md"].decode())
    assert card.data.get("license") is None and "\n# No" not in card.text and "\nlicense" not in card.text
    assert "| `a --- license: mit` | int | " in card.text and "| `` `\\|<b> `` | " in card.text
    assert "| kind | `kind 19 # No heading` | 1 |\n| kind | others | 10 |" in card.text


# --- Models ----------------------------------------------------------------------------------------------------------


def test_the_files_of_a_model_are_pushed_and_no_others(hub, folder):
    (folder / "grm").mkdir()
    for name in ("train.log", "notes.md", "events.out.tfevents.1"):
        (folder / "grm" / name).write_text(f"in {folder}")
    train_grm(folder)
    files = hub.files("model", "me/grm")
    assert files.keys() == {
        *(".gitattributes", "README.md", "config.json", "generation_config.json", "grm_wording.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model is None and card.data.datasets is None  # of paths there is no page on the Hub
    assert "| base model | `policy` |" in card.text and "| data | `edits` |" in card.text
    assert "2401.06081" in card.text and "GenerativeRewardModel" in card.text and "| `steps` | `1` |" in card.text
    assert "| `locate_fraction` | " in card.text or "| `max_correct_ratio` | " in card.text
    check_clean(hub, folder)


def test_a_finished_training_is_published_and_not_loaded_again(hub, folder, monkeypatch):
    train_grm(folder, push_to_hub=False)
    before = list_files(folder / "grm")
    for name in ("train", "save_model", "_load_from_checkpoint"):
        monkeypatch.setattr(GRMTrainer, name, None)
    train_grm(folder)
    weights = (folder / "grm" / "model.safetensors").read_bytes()
    assert hub.files("model", "me/grm")["model.safetensors"] == weights  # not those that the trainer starts from
    assert weights != (folder / "policy" / "model.safetensors").read_bytes()
    assert list_files(folder / "grm") == before


def test_a_model_that_cannot_be_pushed_is_saved(hub, folder):
    hub.failing.add("preupload")
    with pytest.raises(PublishError, match="is complete, and could not be uploaded"):
        train_grm(folder)
    assert (folder / "grm" / "model.safetensors").exists()
    hub.failing.clear()
    train_grm(folder)
    assert "model.safetensors" in hub.files("model", "me/grm")


def test_a_training_that_may_not_push_ends_before_anything_is_loaded(hub, folder):
    args = config_of(SFTConfig, folder / "sft", hub_model_id="somebody/sft")
    with pytest.raises(PublishError, match="nothing was computed"), training_run(args):
        raise AssertionError


def test_a_training_into_a_link_has_one_repository(hub, folder):
    (folder / "sft-1").mkdir()
    (folder / "latest").symlink_to(folder / "sft-1")
    rows = Dataset.from_dict({"prompt": ["4 + 3"] * 4, "completion": [" = 7"] * 4})
    args = config_of(SFTConfig, folder / "latest")
    with training_run(args):
        train_and_save(SFTTrainer(str(folder / "policy"), args, train_dataset=rows))
    assert hub.repos.keys() == {("model", "me/latest")}


def test_a_token_among_the_settings_is_refused():
    for kind in (SFTConfig, DPOConfig):
        with pytest.raises(ConfigError, match="set HF_TOKEN"):
            check_training_settings(kind("out", hub_token="hf_1", bf16=False, use_cpu=True))


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_checkpoints_are_pushed_as_asked_without_paths(hub, folder, strategy):
    rows = Dataset.from_dict({"prompt": ["4 + 3"] * 4, "completion": [" = 7"] * 4})
    settings = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps", "hub_always_push": True}
    args = config_of(SFTConfig, folder / "sft", hub_strategy=strategy, hub_revision="v1", **settings)
    trainer = SFTTrainer(str(folder / "policy"), args, train_dataset=rows)
    train_and_save(trainer, "me/rows")
    repo = hub.repos["model", "me/sft"]
    assert [message for message in repo.messages if "progress" in message] == [
        "Training in progress, step 1",
        "Training in progress, step 2",
    ]
    assert "model.safetensors" not in hub.files("model", "me/sft")
    files = hub.files("model", "me/sft", "v1")
    resumable = {path.partition("/")[0] for path in files if path.endswith("/optimizer.pt")}
    expected = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    assert resumable == expected.get(strategy, set())
    assert {f"{name}/training_args.bin" for name in resumable} <= files.keys()
    assert not {"training_args.bin", "trainer_state.json", "optimizer.pt"} & files.keys()
    assert ModelCard(files["README.md"].decode()).data.datasets == ["me/rows"]
    check_clean(hub, folder)


def test_the_arguments_of_a_checkpoint_have_neither_token_nor_address(tmp_path):
    private = {"hub_token": "hf_1", "vllm_server_base_url": "http://me:secret@10.0.0.1"}
    args = config_of(OnlineRLMECConfig, tmp_path, num_generations=2, **private)
    torch.save(args, tmp_path / "training_args.bin")
    pushed = _public_content(tmp_path, "training_args.bin")
    assert b"hf_1" not in pushed and b"secret" not in pushed and str(tmp_path).encode() not in pushed


def test_a_merged_model_cannot_be_replaced_while_it_is_pushed(hub, folder, monkeypatch):
    rows = Dataset.from_dict({"prompt": ["4 + 3"] * 4, "completion": [" = 7"] * 4})
    args = config_of(SFTConfig, folder / "lora", push_to_hub=False)
    lora = LoraConfig(r=2, target_modules="all-linear")
    train_and_save(SFTTrainer(str(folder / "policy"), args, train_dataset=rows, peft_config=lora))

    def push(path, facts, repo):
        with pytest.raises(OutputError, match="Another run is writing"), claim(path):
            raise AssertionError
        pushed.append(path.name)

    pushed = []
    monkeypatch.setattr(merge, "push_model", push)
    config = merge.MergeConfig(str(folder / "merged"), push_to_hub=True)
    merge.run(config, ModelConfig(str(folder / "lora"), dtype="float32"))
    assert pushed == ["merged"]


def test_an_adapter_is_pushed_without_the_path_of_its_base_model_and_merged_without_its_files(hub, folder, capsys):
    rows = Dataset.from_dict({"prompt": ["4 + 3"] * 4, "completion": [" = 7"] * 4})
    trainer = SFTTrainer(
        str(folder / "policy"),
        config_of(SFTConfig, folder / "lora", hub_model_id="adapted"),
        train_dataset=rows,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    train_and_save(trainer)
    assert json.loads(hub.files("model", "me/adapted")["adapter_config.json"])["base_model_name_or_path"] == "policy"
    assert "is not on the Hub, so that nobody else can load it" in capsys.readouterr().out
    for _ in range(2):  # the second time, it is finished
        config = merge.MergeConfig(str(folder / "merged"), push_to_hub=True, hub_model_id="me/adapted")
        merge.run(config, ModelConfig(str(folder / "lora"), dtype="float32"))
    files = hub.files("model", "me/adapted")
    assert "model.safetensors" in files and "rlmec_trl.json" not in files
    assert not any(path.startswith("adapter_") for path in files)  # which would be loaded instead
    card = ModelCard(files["README.md"].decode())
    assert "| adapter | `lora` |" in card.text
    # How the adapter was trained
    of_adapter = (folder / "lora" / "README.md").read_text(encoding="utf-8")
    procedure = of_adapter[of_adapter.index("## Training procedure") : of_adapter.index("### Framework")]
    assert procedure.replace("## Training procedure", "## Training of the adapter").strip() in card.text
    assert set(ModelCard(of_adapter).data.tags) <= set(card.data.tags)
    assert card.text.count("### Framework versions") == card.text.count("## Citations") == 1
    check_clean(hub, folder)


def test_evaluations_and_audits_that_lie_by_a_model_are_in_its_card(hub, folder):
    (folder / "grm.json").write_text(json.dumps({"correct": 9, "total": 10, "mean": 0.9, "interval": [0.6, 0.98]}))
    counts = dict.fromkeys(
        ("first_wrong_flagged", "clean_kept", "wrong_rewritten", "verified_flawed", "flawed_flagged", "error_located"),
        {"correct": 3, "total": 4},
    )
    (folder / "audit.json").write_text(json.dumps({**counts, "auc": 0.98, "edits_made_over_needed": None}))
    train_grm(folder)
    card = hub.files("model", "me/grm")["README.md"].decode()
    assert "| grm | 0.900 | 9 of 10 | 0.596 to 0.982 |" in card
    assert "| first incorrect tokens that are flagged | 0.750 | 0.301 to 0.954 |" in card
    assert "| AUC, first incorrect against clean tokens | 0.980 |  |" in card


def test_json_files_of_others_beside_a_model_are_no_results(hub, folder):
    train_grm(folder, push_to_hub=False)
    figures = dict.fromkeys(AUDIT_LABELS)
    contents = {
        "vocab": {"correct": 3, "total": 5, "mean": 1, "interval": 4},  # ids of tokens
        "words": {"correct": "3", "total": None, "mean": 1, "interval": []},
        "pairs": {"pairs": {"a": 1, "b": {"correct": 3}}},
        "audit": {**figures, "auc": "high"},
    }
    for name, content in contents.items():
        (folder / "grm" / f"{name}.json").write_text(json.dumps(content))
    (folder / "audit.json").write_text(json.dumps({**figures, "auc": 0.5, "by": "me"}))
    train_grm(folder)
    card = hub.files("model", "me/grm")["README.md"].decode()
    assert "## Evaluation" not in card and card.count("## Audit") == 1 and "| 0.500 |" in card


def test_the_configurations_within_a_configuration_have_no_paths(hub, folder):
    train_grm(folder, push_to_hub=False)
    config = json.loads((folder / "grm" / "config.json").read_text())
    config["text_config"] = {"_name_or_path": str(folder / "policy"), "hidden_size": 4}
    (folder / "grm" / "config.json").write_text(json.dumps(config))
    facts = ModelFacts("SFT")
    push_model(folder / "grm", facts, open_repo("model", "grm", folder / "grm"))
    pushed = json.loads(hub.files("model", "me/grm")["config.json"])
    assert pushed["text_config"] == {"_name_or_path": "policy", "hidden_size": 4}
    check_clean(hub, folder)
