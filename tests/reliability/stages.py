"""Inputs of the stages, run as their recipes run them, on tiny models."""

from functools import partial

from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages.audit import AuditConfig
from rlmec_trl.stages.audit import run as run_audit
from tests.reliability.case import Case


SECTION = "Sample, edit, score, evaluate, audit"
ODD = "Tom \u05d0\u202e has\0 \U0001f600 59 nuts."


def sample(place, change=None, model=None, **settings):
    problems = place.problems()
    for problem in problems:
        problem.update(change or {})
    samples = place.sample(place.file("problems.jsonl", problems), model, **settings)
    check_dataset(samples, "samples", place.tokenizer.eos_token_id)
    return None


def edit(place, change=None, **settings):
    edited = place.edit(place.saved("samples", place.samples(**change or {}).to_list()), **settings)
    assert set(edited.column_names) >= {"rewrite", "error_step", "edit_outcome"}
    return f"the outcomes {sorted(set(edited['edit_outcome']))}"


def score(place, change=None, **settings):
    scored = place.score(place.samples(**change or {}), **settings)
    check_dataset(scored, "scores", place.tokenizer.eos_token_id)


def evaluate(place, change=None, **settings):
    problems = [problem | (change or {}) for problem in place.problems()]
    accuracy = place.evaluate(place.file("problems.jsonl", problems), **settings)
    assert accuracy.total == 2
    return f"{accuracy.correct} of {accuracy.total}"


def audit(place, task="arithmetic", seen=None, **changes):
    rows = [row | {"rewrite_ids": row["completion_ids"]} | changes for row in place.rows[:3]]
    dataset = place.saved("scored", rows)
    seen = place.saved("seen", rows) if seen is None else seen
    result = run_audit(AuditConfig(dataset, seen, place.policy, task))
    return f"{result.clean_kept.total} tokens"


def audit_other_problems(place):
    rows = place.saved("others", place.problems(6)[3:])
    return audit(place, seen=rows)


CASES = [
    Case("sample: problems with right-to-left text, NUL and emoji", partial(sample, change={"prompt": ODD}, seed=1)),
    Case("sample: more rows asked for than there are", partial(sample, seed=1)),
    Case("sample: all completions cut off", partial(sample, max_new_tokens=1, seed=3), "No completion reached EOS"),
    Case(
        "sample: problems without references", partial(sample, change={"reference": None}), "Row 0, column 'reference'"
    ),
    Case(
        "sample: messages, and a tokenizer without a chat template",
        partial(sample, change={"prompt": [{"role": "user", "content": "59"}]}),
        "no chat template",
    ),
    Case(
        "sample: a task whose columns are not there",
        partial(sample, task="svamp", change={"prompt": None}),
        "column 'prompt'",
    ),
    Case("sample: no problems", lambda place: place.sample(place.file("problems.jsonl", "")), "has no rows"),
    Case(
        "sample: problems where samples were written",
        lambda place: (sample(place, seed=1), place.sample(place.path("samples")))[0],
        "loaded from",
    ),
    Case("edit: samples with a wrong verdict", partial(edit, change={"correct": True})),
    Case(
        "edit: samples of another task, by the task's own teacher",
        partial(edit, change={"prompt": "1 + 1?"}),
        "Not a problem of the arithmetic task",
    ),
    Case(
        "edit: problems instead of samples",
        lambda place: place.edit(place.saved("problems", place.problems())),
        "Column 'completion' is missing",
    ),
    Case("edit: a completion with right-to-left text and NUL", partial(edit, change={"completion": "\u05d0\u202e\0"})),
    Case("edit: a completion that is empty", partial(edit, change={"completion": ""}), "Row 0, column 'completion'"),
    Case("edit: 10,000 characters in one step", partial(edit, change={"completion": "59 - 16 is 43 " * 700})),
    Case("edit: a task without a teacher", partial(edit, task="gsm8k"), "has no editor"),
    Case("edit: `--dry_run` with a local teacher", partial(edit, dry_run=True), "need `--provider"),
    Case(
        "edit: a teacher that is not there",
        partial(edit, teacher="teachers.py:edit"),
        "There is no file 'teachers.py'",
    ),
    Case(
        "edit: a teacher that cannot be called",
        partial(edit, teacher="rlmec_trl.tasks.math:SUBJECTS"),
        "not an editor",
    ),
    Case("score: samples as they are", score),
    Case("score: no reward model named", partial(score, grm=None), "`--grm`"),
    Case("score: no task named", partial(score, task=None), "`--task`"),
    Case("score: ids without EOS", partial(score, change={"completion_ids": [3, 4]}), "not with EOS"),
    Case("score: ids of another text", partial(score, change={"completion_ids": [3, 4, 1]}), "decode to"),
    Case(
        "score: ids outside the vocabulary",
        partial(score, change={"completion_ids": [3, 10**6, 1]}),
        "Row 0.*completion_ids",
    ),
    Case("score: `rewrite_topk` over the vocabulary", partial(score, rewrite_topk=1000), "rewrite_topk"),
    Case("score: `rewrite_topk` of the whole vocabulary", partial(score, rewrite_topk=60)),
    Case("score: `attempt_topk` over the vocabulary", partial(score, attempt_topk=1000), "attempt_topk"),
    Case("score: `attempt_topk` of the whole vocabulary", partial(score, attempt_topk=60)),
    Case("score: a task that cannot check the answers", partial(score, change={"answer": "no number"})),
    Case("score: no samples", lambda place: place.score(place.samples().select([])), "the dataset is empty"),
    Case(
        "score: problems instead of samples",
        lambda place: place.score(place.samples().select_columns(["prompt", "reference", "answer"])),
        "is missing",
    ),
    Case("evaluate: problems as they are", evaluate),
    Case("evaluate: problems with right-to-left text, NUL and emoji", partial(evaluate, change={"prompt": ODD})),
    Case(
        "evaluate: an `output_file` that is something else",
        lambda place: evaluate(place, output_file=place.file("thesis.json", "{}")),
        "not a result of this stage",
    ),
    Case(
        "evaluate: an `output_file` that is a folder",
        lambda place: evaluate(place, output_file=str(place.folder)),
        "not a result of this stage",
    ),
    Case("audit: rewrites that are copies", audit_other_problems),
    Case("audit: every problem was seen in training", audit, "There is nothing to audit"),
    Case("audit: a task without a teacher", partial(audit, task="gsm8k"), "needs a task with an editor"),
    Case(
        "audit: problems of another task",
        lambda place: audit(place, seen=place.saved("other", place.problems()), prompt="1 + 1?"),
        "Not a problem of the arithmetic task",
    ),
    Case(
        "audit: samples instead of scored rows",
        lambda place: run_audit(
            AuditConfig(place.saved("s", place.samples().to_list()), "s", place.policy, "arithmetic")
        ),
        "is missing",
    ),
]
