"""What people look at: figures are pooled rightly, and whatever a model writes is shown as it is."""

import statistics
from dataclasses import asdict

import pytest
from datasets import Dataset
from rich.console import Console

from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.reports.accuracy import Accuracy, wilson_interval
from rlmec_trl.reports.tables import (
    AUDIT_LABELS,
    accuracy_table,
    audit_table,
    colour_tokens,
    mark_edits,
    pick_samples,
    pool_audits,
    show_sample,
    summarize_accuracy,
)
from rlmec_trl.stages.audit import GRMAudit
from rlmec_trl.tasks.arithmetic import make_tokenizer


RIGHT = "59 - 16 is 43 ; 43 + 23 = 66"
WRONG = "59 - 16 is 43 ; 43 + 23 = 67"


def shown(renderable, styles=False):
    console = Console(
        record=True, width=120, force_terminal=True, color_system="truecolor", file=open("/dev/null", "w")
    )
    console.print(renderable)
    return console.export_text(styles=styles)


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_accuracy_of_one_seed():
    result = summarize_accuracy([{"correct": 8, "total": 10, "mean": 0.8}])
    assert result == {
        "mean": 0.8,
        "std": 0.0,
        "seeds": 1,
        "n": 10,
        "correct": 8,
        "total": 10,
        "interval": list(wilson_interval(8, 10)),
    }


def test_accuracy_over_seeds():
    result = summarize_accuracy([{"correct": correct, "total": 10} for correct in (8, 6, 10)])
    assert result["mean"] == pytest.approx(0.8)
    assert result["std"] == pytest.approx(0.2)  # of a sample: sqrt((0 + 0.04 + 0.04) / 2)
    assert (result["seeds"], result["n"], result["correct"], result["total"]) == (3, 10, 24, 30)
    assert result["interval"] == list(wilson_interval(24, 30))


def audit_of(correct, total, ratio):
    counts = Accuracy(correct, total)
    return asdict(GRMAudit(counts, counts, 0.9, counts, counts, counts, ratio))


def test_audits_are_pooled_by_their_counts():
    pooled = pool_audits([audit_of(9, 10, 1.0), audit_of(30, 90, 2.0)])
    assert list(pooled) == list(AUDIT_LABELS), "every figure has its label, in the same order"
    assert pooled["clean_kept"] == {"mean": 0.39, "correct": 39, "total": 100}
    assert pooled["edits_made_over_needed"] == statistics.fmean([1.0, 2.0])
    assert pool_audits([audit_of(0, 0, 1.0)])["flawed_flagged"] == {"mean": None, "correct": 0, "total": 0}


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_the_accuracy_table_shows_counts_and_interval_and_the_best_in_bold():
    accuracy = {
        "rft": summarize_accuracy([{"correct": 6, "total": 10}]),
        "rlmec": summarize_accuracy([{"correct": 8, "total": 10}]),
    }
    text = shown(accuracy_table(accuracy, "Arithmetic"))
    assert "Arithmetic" in text and "±" not in text
    row = next(line for line in text.splitlines() if "rlmec" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["rlmec", "0.800", "8 of 10", "0.490 to 0.943"]
    styled = shown(accuracy_table(accuracy, "Arithmetic"), styles=True)
    assert "\x1b[1mrlmec" in styled and "\x1b[1mrft" not in styled


def test_several_seeds_show_their_spread():
    accuracy = {"rlmec": summarize_accuracy([{"correct": 8, "total": 10}, {"correct": 6, "total": 10}])}
    text = shown(accuracy_table(accuracy, "Arithmetic"))
    assert "± std over seeds" in text and "0.700 ± 0.141" in text and "14 of 20" in text


def test_names_with_brackets_are_shown_as_they_are():
    accuracy = {"[red]sft[/red]": summarize_accuracy([{"correct": 1, "total": 2}])}
    text = shown(accuracy_table(accuracy, "[bold]Task[/bold] [1]"))
    assert "[red]sft[/red]" in text and "[bold]Task[/bold] [1]" in text


def test_the_audit_table_has_every_figure():
    text = shown(audit_table(pool_audits([audit_of(9, 10, 1.25), audit_of(0, 0, 1.25)]), "Reward model"))
    assert all(label in text for label in AUDIT_LABELS.values())
    assert text.count("9 of 10") == 5 and "1.250" in text
    empty = shown(audit_table(pool_audits([audit_of(0, 0, float("nan"))]), "Reward model"))
    assert empty.count("0 of 0") == 5 and "nan" in empty


# --- Samples ---------------------------------------------------------------------------------------------------------


def sample(tokenizer, completion=WRONG, rewrite=RIGHT, probs=None, **columns):
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


def test_tokens_are_the_redder_the_less_they_belong_there(tokenizer):
    ids = tokenizer("5 9")["input_ids"]
    text = colour_tokens(tokenizer, ids, [1.0, 0.0])
    assert text.plain == "5 9"
    assert [str(span.style) for span in text.spans] == ["bold white on rgb(0,130,40)", "bold white on rgb(200,0,40)"]
    with pytest.raises(ValueError, match="zip"):
        colour_tokens(tokenizer, ids, [1.0])


def test_edited_tokens_are_underlined(tokenizer):
    ids = [tokenizer(text)["input_ids"] for text in (WRONG, RIGHT)]
    text = mark_edits(tokenizer, *ids)
    assert text.plain == RIGHT
    assert [text.plain[span.start : span.end] for span in text.spans if "underline" in str(span.style)] == ["6"]


def test_a_sample_shows_verdict_and_rewrite(tokenizer):
    probs = [0.9] * 16 + [0.123, 0.5]
    row = sample(tokenizer, probs=probs)
    text = shown(show_sample(row, tokenizer))
    assert "sample with a wrong answer" in text
    assert all(part in text for part in (row["prompt"], row["reference"], WRONG, RIGHT))
    assert (
        next(line for line in text.splitlines() if "flagged" in line).split("flagged")[1].strip(" │") == "7: p = 0.12"
    )
    text = shown(show_sample(sample(tokenizer, rewrite=None, correct=True), tokenizer))
    assert "sample with a right answer" in text and "nothing" in text and "rewrite" not in text


def test_markup_in_a_sample_is_shown_literally():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[red]", "[/red]", "[link=x]"])
    wrong, right = "[red]59[/red] - 16[link=x]", "[/red]59[red] - 16[link=x]"
    probs = [0.1] * len(encode_completion(tokenizer, wrong))
    row = sample(tokenizer, wrong, right, probs, prompt="[bold]What?[/bold]", reference="[/x] [red]")
    text = shown(show_sample(row, tokenizer))
    for part in ("[bold]What?[/bold]", "[/x] [red]", wrong, right, "[red]: p = 0.10", "[/red]: p = 0.10"):
        assert part in text
    assert "[red]" in shown(colour_tokens(tokenizer, row["completion_ids"], probs))
    assert "[/red]" in shown(mark_edits(tokenizer, row["completion_ids"], row["rewrite_ids"]))


def test_messages_are_shown_by_their_text(tokenizer):
    row = sample(tokenizer, prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    text = shown(show_sample(row, tokenizer))
    assert "Why?" in text and "brief" not in text


def test_samples_that_teach_something_are_picked(tokenizer):
    def rows(*kinds):
        made = {
            "copied": sample(tokenizer, RIGHT, RIGHT, correct=True),
            "unmended": sample(tokenizer, rewrite=None),
            "wrong": sample(tokenizer),
            "flawed": sample(tokenizer, correct=True),
        }
        return Dataset.from_list([made[kind] | {"kind": kind, "place": place} for place, kind in enumerate(kinds)])

    def picked(dataset, **kwargs):
        return [(row["kind"], row["place"]) for row in pick_samples(dataset, **kwargs)]

    everything = rows("copied", "unmended", "flawed", "wrong", "wrong", "flawed", "wrong")
    assert picked(everything) == [("wrong", 3), ("flawed", 2)]
    assert picked(everything, count=1) == [("wrong", 3)]
    assert picked(rows("wrong", "unmended", "wrong", "wrong")) == [("wrong", 0), ("wrong", 2)]
    assert picked(rows("copied", "flawed")) == [("flawed", 1)]
    assert picked(rows("copied", "unmended")) == []
