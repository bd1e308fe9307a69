"""The wording that a reward model was trained with: found with the model, refused where it is missing or broken."""

import dataclasses
import json

import pytest
from trl import ModelConfig

from rlmec_trl import GenerativeRewardModel
from rlmec_trl.generation.loading import ModelError
from rlmec_trl.grm import prompts
from rlmec_trl.grm.prompts import WORDING_FILE, WordingError, load_wording, save_wording
from rlmec_trl.stages import score
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.tasks.arithmetic import WORDING
from rlmec_trl.tasks.wording import WORDING as DEFAULT_WORDING


FIELDS = dataclasses.asdict(WORDING)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "{}",
        json.dumps(FIELDS | {"unknown": 1}),
        json.dumps(FIELDS | {"rewrite": None}),
        json.dumps(FIELDS | {"numbered": "yes"}),
        json.dumps(FIELDS | {"step_separator": 5}),
        json.dumps(FIELDS)[:-20],
    ],
)
def test_a_broken_wording_is_named(tmp_path, text):
    (tmp_path / WORDING_FILE).write_text(text, encoding="utf-8")
    for allow_untrained in (False, True):
        with pytest.raises(WordingError, match="grm_wording.json', the wording that .* is damaged"):
            load_wording(str(tmp_path), allow_untrained=allow_untrained)


def test_a_wording_that_is_not_text_is_named(tmp_path):
    (tmp_path / WORDING_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WordingError, match="is damaged"):
        load_wording(str(tmp_path))


@pytest.mark.parametrize("name", ["{}/nowhere", ""])
def test_a_reward_model_that_is_nowhere_is_named(tmp_path, name):
    with pytest.raises(ModelError, match="There is no model|No model is named"):
        load_wording(name.format(tmp_path))
    with pytest.raises(ModelError, match="There is no model|No model is named"):
        GenerativeRewardModel.from_pretrained(name.format(tmp_path))


def test_the_wording_of_a_name_on_the_hub_is_that_of_its_revision(tmp_path, monkeypatch):
    calls = []

    def find(name, file, revision, **kwargs):
        calls.append((name, file, revision))
        return str(tmp_path / file) if revision == "v2" else None

    monkeypatch.setattr(prompts, "cached_file", find)
    save_wording(WORDING, tmp_path)
    assert load_wording("somebody/grm", "v2") == WORDING
    with pytest.raises(WordingError, match="'somebody/grm' was not trained .* at revision 'main'"):
        load_wording("somebody/grm")
    assert load_wording("somebody/grm", allow_untrained=True) == DEFAULT_WORDING
    assert calls[0] == ("somebody/grm", WORDING_FILE, "v2")


def test_scoring_with_an_untrained_model_is_refused_before_it_is_loaded(
    tmp_path, make_policy, make_rows, tokenizer, monkeypatch
):
    from datasets import Dataset

    make_policy().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    rows = Dataset.from_list(make_rows(3)).remove_columns(["token_probs", "old_logps", "rewrite", "error_step"])

    def run(**kwargs):
        config = ScoreConfig(grm=str(tmp_path / "policy"), task="arithmetic", rewrite_max_new_tokens=4, **kwargs)
        return score.run(config, rows, tmp_path / "scored", ModelConfig(str(tmp_path / "policy")))

    with monkeypatch.context() as patch:
        patch.setattr(score, "load_model", None)
        with pytest.raises(WordingError, match="was not trained as a generative reward model.*allow_untrained_grm"):
            run()
    assert len(run(allow_untrained_grm=True)) == 3
