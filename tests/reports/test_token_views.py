"""Scored samples are shown as they are, whatever a model wrote."""

import pytest
from datasets import Dataset
from rich.console import Console

from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.reports.token_views import color_tokens, mark_edits, pick_samples, show_sample
from rlmec_trl.tasks.arithmetic import make_tokenizer


CORRECT = "59 - 16 is 43 ; 43 + 23 = 66"
INCORRECT = "59 - 16 is 43 ; 43 + 23 = 67"


def shown(renderable):
    console = Console(record=True, width=120, file=open("/dev/null", "w"))
    console.print(renderable)
    return console.export_text()


def sample(tokenizer, completion=INCORRECT, rewrite=CORRECT, probs=None, **columns):
    ids = encode_completion(tokenizer, completion)
    row = {
        "prompt": "Tom has 59 nuts.",
        "reference": "59 - 16 + 23 = 66",
        "completion": completion,
        "completion_ids": ids,
        "correct": False,
        "token_probs": probs or [0.9] * len(ids),
        "rewrite": rewrite,
        "rewrite_ids": None if rewrite is None else encode_completion(tokenizer, rewrite),
    }
    return row | columns


def test_a_token_is_red_where_its_probability_is_low(tokenizer):
    ids = tokenizer("5 9")["input_ids"]
    text = color_tokens(tokenizer, ids, [1.0, 0.0])
    assert text.plain == "5 9"
    assert [str(span.style) for span in text.spans] == ["bold white on rgb(0,130,40)", "bold white on rgb(200,0,40)"]
    with pytest.raises(ValueError, match="zip"):
        color_tokens(tokenizer, ids, [1.0])


def test_a_token_without_a_probability_has_no_color_and_is_not_flagged(tokenizer):
    ids = tokenizer("5 9")["input_ids"]
    text = color_tokens(tokenizer, ids, [None, 0.0])
    assert text.plain == "5 9"
    assert [(span.start, str(span.style)) for span in text.spans] == [(1, "bold white on rgb(200,0,40)")]
    row = sample(tokenizer, probs=[None] * 18)
    assert "nothing" in shown(show_sample(row, tokenizer))


def test_edited_tokens_are_underlined(tokenizer):
    ids = [tokenizer(text)["input_ids"] for text in (INCORRECT, CORRECT)]
    text = mark_edits(tokenizer, *ids)
    assert text.plain == CORRECT
    assert [text.plain[span.start : span.end] for span in text.spans if "underline" in str(span.style)] == ["6"]


def test_a_sample_shows_flagged_tokens_and_rewrite(tokenizer):
    probs = [0.9] * 16 + [0.123, 0.5]
    row = sample(tokenizer, probs=probs)
    text = shown(show_sample(row, tokenizer))
    assert "sample with an incorrect answer" in text
    assert all(part in text for part in (row["prompt"], row["reference"], INCORRECT, CORRECT))
    assert (
        next(line for line in text.splitlines() if "flagged" in line).split("flagged")[1].strip(" │") == "7: p = 0.12"
    )
    text = shown(show_sample(sample(tokenizer, rewrite=None, correct=True), tokenizer))
    assert "sample with a correct answer" in text and "nothing" in text and "rewrite" not in text


def test_markup_in_a_sample_is_shown_literally():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[red]", "[/red]", "[link=x]"])
    incorrect, correct = "[red]59[/red] - 16[link=x]", "[/red]59[red] - 16[link=x]"
    probs = [0.1] * len(encode_completion(tokenizer, incorrect))
    row = sample(tokenizer, incorrect, correct, probs, prompt="[bold]What?[/bold]", reference="[/x] [red]")
    text = shown(show_sample(row, tokenizer))
    for part in ("[bold]What?[/bold]", "[/x] [red]", incorrect, correct, "[red]: p = 0.10", "[/red]: p = 0.10"):
        assert part in text
    assert "[red]" in shown(color_tokens(tokenizer, row["completion_ids"], probs))
    assert "[/red]" in shown(mark_edits(tokenizer, row["completion_ids"], row["rewrite_ids"]))


def test_messages_are_shown_by_their_text(tokenizer):
    row = sample(tokenizer, prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    text = shown(show_sample(row, tokenizer))
    assert "Why?" in text and "brief" not in text


def test_rewritten_samples_of_both_kinds_are_picked(tokenizer):
    def rows(*kinds):
        made = {
            "copied": sample(tokenizer, CORRECT, CORRECT, correct=True),
            "failed": sample(tokenizer, rewrite=None),
            "incorrect": sample(tokenizer),
            "flawed": sample(tokenizer, correct=True),
        }
        return Dataset.from_list([made[kind] | {"kind": kind, "place": place} for place, kind in enumerate(kinds)])

    def picked(dataset, **kwargs):
        return [(row["kind"], row["place"]) for row in pick_samples(dataset, **kwargs)]

    everything = rows("copied", "failed", "flawed", "incorrect", "incorrect", "flawed", "incorrect")
    assert picked(everything) == [("incorrect", 3), ("flawed", 2)]
    assert picked(everything, count=1) == [("incorrect", 3)]
    assert picked(rows("incorrect", "failed", "incorrect", "incorrect")) == [("incorrect", 0), ("incorrect", 2)]
    assert picked(rows("copied", "flawed")) == [("flawed", 1)]
    assert picked(rows("copied", "failed")) == []
