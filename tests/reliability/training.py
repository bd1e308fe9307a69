"""The trainers, by their recipes."""

from functools import partial
from pathlib import Path

from tests.reliability.case import Case


SECTION = "Training the reward model and the policy"
MESSAGES = [{"role": "user", "content": "59 - 16"}]
# What TRL, or a library below it, says
LIBRARY = r"(?<=with these settings: ).*"


def rlmec(place, change=None, rows=4, **settings):
    data = [row | {"rewrite_ids": None} | (change or {}) for row in place.rows[:rows]]
    place.train("rlmec", place.saved("scored", data), **settings)
    assert Path(place.path("model/model.safetensors")).exists()
    return "one step"


def grm(place, change=None, rows=4, **settings):
    data = [row | (change or {}) for row in place.rows[:rows]]
    place.train("train_grm", place.saved("edits", data), **settings)
    assert Path(place.path("model/grm_wording.json")).exists()
    return "one step"


def imitate(place, change=None, only=None, columns=None, **settings):
    """SFT on the completions, with one row changed, or all."""
    data = [row | ((change or {}) if only in (None, index) else {}) for index, row in enumerate(place.rows[:4])]
    data = [{name: row[name] for name in columns or row} for row in data]
    place.train("sft", place.file("rows.jsonl", data), **settings)
    assert Path(place.path("model/model.safetensors")).exists()
    return "one step"


def grpo(place, change=None, only=None, columns=None):
    data = [row | ((change or {}) if only in (None, index) else {}) for index, row in enumerate(place.problems(4))]
    place.train("grpo", place.file("rows.jsonl", [{name: row[name] for name in columns or row} for row in data]))
    assert Path(place.path("model/model.safetensors")).exists()
    return "one step"


def one_row(place, change):
    """A row that is wrong among others, so that its number counts."""
    data = [dict(row) for row in place.rows[:3]]
    data[1] |= change
    place.train("rlmec", place.saved("scored", data))


def ids(place, token):
    row = place.rows[1]
    one_row(place, {"completion_ids": [*row["completion_ids"][:-1], token]})


CASES = [
    Case("policy: scored rows", rlmec),
    Case(
        "policy: samples instead of scored rows",
        lambda place: place.train("rlmec", place.saved("s", place.samples().to_list())),
        "is missing",
    ),
    Case("policy: an id over the vocabulary", partial(ids, token=10**6), "completion_ids.*1000000"),
    Case("policy: a negative id", partial(ids, token=-5), "completion_ids.*-5"),
    Case(
        "policy: an id of a rewrite over the vocabulary",
        partial(rlmec, change={"rewrite_ids": [5, 10**6, 1]}),
        "rewrite_ids.*1000000",
    ),
    Case(
        "policy: NaN in `token_probs`",
        lambda place: one_row(place, {"token_probs": [float("nan")] * len(place.rows[1]["token_probs"])}),
        "Row 1, column 'token_probs'",
    ),
    Case(
        "policy: probabilities of another length",
        partial(one_row, change={"token_probs": [0.5]}),
        "Row 1, column 'token_probs'",
    ),
    Case(
        "policy: no row with a token to train on",
        partial(rlmec, change={"token_probs": None, "rewrite": None}),
        "token_probs",
    ),
    Case(
        "policy: everything longer than `max_length`",
        partial(rlmec, max_length=2),
        "No row of the train dataset has a token",
    ),
    Case(
        "policy: `correct_samples=cut` without probabilities",
        lambda place: place.train(
            "rlmec",
            place.saved(
                "s",
                [
                    {name: value for name, value in row.items() if name != "token_probs"}
                    | {"token_rewards": row["token_probs"]}
                    for row in place.rows
                ],
            ),
            correct_samples="cut",
        ),
        "needs the column `token_probs`",
    ),
    Case("policy: soft targets without them", partial(rlmec, imitation_targets="soft"), "rewrite_topk"),
    Case("policy: distillation without distributions", partial(rlmec, attempt_coef=1.0), "attempt_topk"),
    Case("policy: `packing`", partial(rlmec, packing=True), "does not support `packing`"),
    Case(
        "policy: messages, and a tokenizer without a chat template",
        partial(rlmec, change={"prompt": [{"role": "user", "content": "59"}]}),
        "no chat template",
    ),
    Case(
        "policy: fewer rows than the batch with `dataloader_drop_last`",
        partial(rlmec, rows=1, dataloader_drop_last=True),
        "`dataloader_drop_last` drops incomplete batches",
    ),
    Case("policy: `max_steps` of 0", partial(rlmec, max_steps=0), "max_steps"),
    Case(
        "policy: `output_dir` is a file",
        lambda place: rlmec(place, output_dir=place.file("model", "mine")),
        "is a file",
    ),
    Case(
        "policy: prompts of right-to-left text, NUL and emoji",
        partial(rlmec, change={"prompt": "\u05d0\u202e\0\U0001f600"}),
    ),
    Case("reward model: edits", grm),
    Case("reward model: no rewrite at all", partial(grm, change={"rewrite": None}), "no row to train"),
    Case(
        "reward model: a correct sample whose rewrite is no copy",
        partial(grm, change={"correct": True, "error_step": -1, "rewrite": "no"}),
        "word for word",
    ),
    Case(
        "reward model: samples instead of edits",
        lambda place: place.train("train_grm", place.saved("s", place.samples().to_list())),
        "is missing",
    ),
    Case(
        "reward model: fewer rows than the batch with `dataloader_drop_last`",
        partial(grm, rows=1, per_device_train_batch_size=8, dataloader_drop_last=True),
        "`dataloader_drop_last` drops incomplete batches",
    ),
    Case(
        "reward model: messages, and a tokenizer without a chat template",
        partial(grm, change={"prompt": [{"role": "user", "content": "59"}]}),
    ),
    Case(
        "reward model: references of right-to-left text, NUL and emoji",
        partial(grm, change={"reference": "\u05d0\u202e\0\U0001f600"}),
    ),
    Case("reward model: a task that is not there", partial(grm, task="mine.py:TASK"), "There is no file 'mine.py'"),
    Case("reward model: `packing`", partial(grm, packing=True)),
    Case("SFT: samples", imitate),
    Case("SFT: another column", partial(imitate, completion_column="reference")),
    Case("SFT: a column that is not there", partial(imitate, completion_column="solution"), "'solution' is missing"),
    Case("SFT: a column of lists", partial(imitate, completion_column="token_probs"), "Row 0, column 'token_probs'"),
    Case(
        "SFT: a prompt that is null",
        partial(imitate, change={"prompt": None}, only=2),
        "Row 2, column 'prompt': found None",
    ),
    Case(
        "SFT: a completion that is null",
        partial(imitate, change={"completion": None}, only=1),
        "Row 1, column 'completion'",
    ),
    Case(
        "SFT: an empty completion", partial(imitate, change={"completion": " "}, only=1), "Row 1, column 'completion'"
    ),
    Case(
        "SFT: completions that are numbers", partial(imitate, change={"completion": 5}), "Row 0, column 'completion'"
    ),
    Case(
        "SFT: a completion that is a number",
        partial(imitate, change={"completion": 5}, only=3),
        "Row 3, column 'completion'",
    ),
    Case(
        "SFT: texts, and messages in one row",
        partial(imitate, change={"prompt": MESSAGES}, only=2),
        "Row 2, column 'prompt'",
    ),
    Case(
        "SFT: texts, and one completion that is messages",
        partial(imitate, change={"completion": MESSAGES}, only=2),
        "Row 2, column 'completion'",
    ),
    Case(
        "SFT: messages, and a tokenizer without a chat template",
        partial(imitate, change={"prompt": MESSAGES}),
        "chat_template",
        LIBRARY,
    ),
    Case("SFT: only correct rows", partial(imitate, only_correct=True)),
    Case(
        "SFT: only correct rows, without `correct`",
        partial(imitate, columns=("prompt", "completion"), only_correct=True),
        "'correct' is missing",
    ),
    Case(
        "SFT: only correct rows, of which there are none",
        partial(imitate, change={"correct": False}, only_correct=True),
        "no row",
    ),
    Case(
        "SFT: only correct rows, one with a verdict of null",
        partial(imitate, change={"correct": None}, only=2, only_correct=True),
        "Row 2, column 'correct'",
    ),
    Case("SFT: everything longer than `max_length`", partial(imitate, max_length=2), "Raise `max_length`"),
    Case(
        "SFT: fewer rows than the batch with `dataloader_drop_last`",
        partial(imitate, per_device_train_batch_size=8, dataloader_drop_last=True),
        "`dataloader_drop_last` drops incomplete batches",
    ),
    Case("SFT: a file of 0 bytes", lambda place: place.train("sft", place.file("rows.jsonl", b"")), "has no rows"),
    Case("GRPO: problems", grpo),
    Case("GRPO: no answers", partial(grpo, columns=("prompt", "reference")), "'answer' is missing"),
    Case("GRPO: an answer that is null", partial(grpo, change={"answer": None}, only=1), "Row 1, column 'answer'"),
    Case("GRPO: an answer that is a number", partial(grpo, change={"answer": 5}, only=1), "Row 1, column 'answer'"),
    Case(
        "GRPO: texts, and messages in one row",
        partial(grpo, change={"prompt": MESSAGES}, only=2),
        "Row 2, column 'prompt'",
    ),
    Case(
        "GRPO: messages, and a tokenizer without a chat template",
        partial(grpo, change={"prompt": MESSAGES}),
        "chat_template",
        LIBRARY,
    ),
    Case("GRPO: a file of 0 bytes", lambda place: place.train("grpo", place.file("rows.jsonl", b"")), "has no rows"),
]
