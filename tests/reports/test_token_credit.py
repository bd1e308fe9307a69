"""Completions of a training are shown as they are, and every text in them stays a text."""

import math
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from rlmec_trl.reports.token_credit import (
    CompletionReporter,
    CreditedCompletion,
    completions_frame,
    completions_html,
    print_completions,
    shades_of,
)
from rlmec_trl.reports.token_pieces import TokenPieces, token_texts
from rlmec_trl.reports.token_views import printable


ATTACK = "<script>alert(1)</script>\n\n**x** \x1b[2J\x00 [red] \ud800"


def completion(*tokens, shades=None, **kwargs):
    shades = shades or [0.9] * len(tokens)
    return CreditedCompletion("Why?", tokens, shades, {"token_probs": shades}, **kwargs)


def test_shades_keep_the_sign_of_rewards_of_any_size():
    shades = shades_of([[0.0, 4.0, -0.1], [2.0, None, -0.05], [math.nan]])
    assert shades == [[None, 1.0, 0.0], [0.75, None, 0.25], [None]]
    assert shades_of([[-1.0]]) == [[0.0]] and shades_of([]) == []


def test_low_tokens_are_listed_with_their_values(capsys):
    one = completion("5", " 9", " 7", shades=[0.9, 0.1, None], values={"correct": False}, details={"rewrite": "5 8"})
    print_completions([one], step=7)
    shown = capsys.readouterr().out
    assert "Step 7" in shown and "5 9 7" in shown and "correct False" in shown and "rewrite     5 8" in shown
    assert "9 (probs 0.1)" in shown and "5 (probs" not in shown


def test_control_characters_and_markup_reach_no_terminal(capsys):
    print_completions([completion(ATTACK.replace("\ud800", ""), shades=[0.1], details={"rewrite": "\x1b[1m"})], step=1)
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and "\x1b[1m" not in shown and "[red]" in shown
    assert printable("a\tb\n\x1b\x7f\x9b") == "a\tb\n␛␡�"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("colors", [True, False])
def test_texts_are_escaped_in_html(colors):
    one = completion(ATTACK, "b", shades=[0.1, None], details={ATTACK: ATTACK}, values={ATTACK: 1.0})
    one = CreditedCompletion(ATTACK, one.tokens, one.shades, one.token_values, one.values, one.details)
    page = completions_html([one], colors)
    parsed = Tags()
    parsed.feed(page)
    allowed = {"p", "em", "hr", "br"} | ({"div", "span"} if colors else {"strong"})  # what TensorBoard keeps
    assert set(parsed.tags) <= allowed
    assert parsed.text.count("<script>alert(1)</script>") >= 5
    assert "\x1b" not in page and "\x00" not in page
    page.encode("utf-8")
    assert colors or "\n\n" not in page, "an empty line ends an element of Markdown"
    assert colors == ("background:rgb(180,13,40);text-decoration:underline" in page)


def test_tables_for_trackers_have_no_lists():
    one = completion("5", "9", shades=[0.1, None], values={"correct": True}, columns={"ids": [1, 2], "kind": "x"})
    full, short = completions_frame([one], 3), completions_frame([one], 3, lists=False)
    assert full.loc[0, "tokens"] == ["5", "9"] and full.loc[0, "token_probs"] == [0.1, None]
    assert list(short.columns) == ["step", "prompt", "kind", "lowest", "correct"]
    assert short.loc[0, "lowest"] == "5 (probs 0.1)"


def test_a_token_within_a_character_has_no_text_of_its_own(tokenizer):
    from tests.small_tokenizers import byte_fallback_tokenizer

    spelled = byte_fallback_tokenizer()
    ids = [*(4 + byte for byte in "aé😀".encode()), spelled.eos_token_id]
    texts = token_texts(TokenPieces(spelled), ids)
    assert texts == ["a", "é", "", "😀", "", "", "", "</s>"]
    words = tokenizer("5 9 ; 7")["input_ids"]
    assert "".join(token_texts(TokenPieces(tokenizer), words)) == "5 9 ; 7"


# --- Trackers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trackers(monkeypatch):
    """Stand-ins that keep what is logged."""
    logged = []

    def tracker(name, **attributes):
        module = SimpleNamespace(
            log=lambda values: logged.append((name, values)),
            Html=lambda text: ("html", text),
            Table=lambda dataframe: ("table", dataframe),
            **attributes,
        )
        monkeypatch.setitem(sys.modules, name, module)
        return module

    class Writer:
        def __init__(self, log_dir):
            logged.append(("tensorboard", log_dir))

        def add_text(self, tag, text, step):
            logged.append(("tensorboard", (tag, text, step)))

        def flush(self):
            pass

        def close(self):
            logged.append(("tensorboard", "closed"))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return SimpleNamespace(logged=logged, wandb=tracker("wandb", run=object()), trackio=tracker("trackio"))


def test_each_tracker_gets_what_it_can_show(trackers):
    reporter = CompletionReporter(["wandb", "trackio", "tensorboard", "mlflow"], "out")
    for step in (1, 2):
        reporter.report([completion("5", shades=[0.1])], step)
    reporter.close()
    of = {name: [value for tracker, value in trackers.logged if tracker == name] for name, _ in trackers.logged}
    assert set(of) == {"wandb", "trackio", "tensorboard"}
    (kind, text), (_, table) = of["wandb"][0]["token_credit"], of["wandb"][0]["completions"]
    assert kind == "html" and "<span" in text and table.loc[0, "lowest"]
    assert of["trackio"][1]["completions"][1].loc[0, "step"] == 2
    folder, first, second, closed = of["tensorboard"]
    assert re.fullmatch(r"out.runs.completions", folder) and closed == "closed", "one file for all steps"
    assert first[0] == "token_credit" and "<strong>5</strong>" in first[1] and second[2] == 2


def test_the_table_of_trl_is_not_logged_twice(trackers):
    CompletionReporter(["wandb", "trackio"], "out").report([completion("5")], 1, table=False)
    assert [(name, list(values)) for name, values in trackers.logged] == [("wandb", ["token_credit"])]


def test_a_tracker_that_is_not_named_is_not_imported(monkeypatch):
    for name in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    CompletionReporter([], "out").report([completion("5")], 1)


def test_without_a_run_of_wandb_nothing_is_logged(trackers):
    trackers.wandb.run = None
    CompletionReporter(["wandb"], "out").report([completion("5")], 1)
    assert trackers.logged == []
