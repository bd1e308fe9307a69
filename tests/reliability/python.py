"""What Python code may pass where a dataset is not checked first."""

from functools import partial

import numpy as np

from rlmec_trl import RLMECConfig
from rlmec_trl.credit.alignment import edit_mask
from rlmec_trl.credit.preparation import RewardSettings, prepare_row
from rlmec_trl.data.tokens import encode_completion, encode_prompt
from tests.reliability.case import Case


SECTION = "Prompts and rows from Python"
MESSAGES = [{"role": "user", "content": "59 - 16"}]


def prompt(value, kwargs=None, chat=True):
    def run(place):
        ids = encode_prompt(place.chat_tokenizer if chat else place.tokenizer, value, kwargs)
        assert all(type(token) is int for token in ids)
        return f"{len(ids)} ids"

    return run


def completion(value):
    def run(place):
        ids = encode_completion(place.tokenizer, value)
        assert ids[-1] == place.tokenizer.eos_token_id
        return f"{len(ids)} ids"

    return run


def strict_template(place):
    tokenizer = place.tokenizer.__class__.from_pretrained(place.chat_policy)
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    encode_prompt(tokenizer, MESSAGES)


def prepare(place, **changes):
    settings = RewardSettings.from_config(RLMECConfig(place.path("out"), use_cpu=True, bf16=False, report_to="none"))
    row = place.rows[1] | {"rewrite_ids": None} | changes
    prepared = prepare_row(row, 0, place.tokenizer, settings)
    assert len(prepared["completion_ids"]) == len(prepared["token_rewards"])
    return f"{len(prepared['imitation_ids'])} ids to imitate"


def align(place):
    assert edit_mask(np.array([1, 2, 3]), np.array([1, 3])) == [False, True]


TEXT = "It must be a text, without lone surrogates, or a list of messages"
CASES = [
    *(
        Case(f"{name} as prompt", prompt(value), TEXT)
        for name, value in [
            ("`None`", None),
            ("a number", 5),
            ("a list of texts", ["59"]),
            ("no messages", []),
            ("a message without its content", [{"role": "user"}]),
            ("messages with `None` among them", [*MESSAGES, None]),
            ("a role that is `None`", [{"role": None, "content": "59"}]),
            ("an object", MESSAGES[0]),
            ("bytes", b"59"),
            ("half a surrogate pair", "59 \ud800"),
        ]
    ),
    Case("messages, and a tokenizer without a chat template", prompt(MESSAGES, chat=False), "has no chat template"),
    Case("a content that is `None`, in a template that adds texts", prompt([{"role": "user", "content": None}])),
    Case("messages that the chat template refuses", strict_template, "chat template refuses .*Roles must alternate"),
    Case(
        "`chat_template_kwargs` that are a text",
        prompt(MESSAGES, "enable_thinking"),
        "It must be a dictionary",
    ),
    Case(
        "`chat_template_kwargs` with the name of an argument",
        prompt(MESSAGES, {"tokenize": False}),
        "It cannot set .*'tokenize'",
    ),
    Case("`chat_template_kwargs` that no template knows", prompt(MESSAGES, {"unknown": [1]})),
    Case("an empty prompt as text", prompt("", chat=False)),
    Case("NUL, right-to-left text and all planes as prompt", prompt("\0\u202e\u05d0\U0010ffff", chat=False)),
    Case("100,000 characters as prompt", prompt("59 " * 33_333, chat=False)),
    Case("NumPy's string as prompt", prompt(np.str_("59 - 16"), chat=False)),
    Case("`None` as completion", completion(None), "It must be a text without lone surrogates"),
    Case("a list as completion", completion(["59"]), "It must be a text without lone surrogates"),
    Case("half a surrogate pair as completion", completion("\udfff"), "It must be a text without lone surrogates"),
    Case("an empty completion", completion("")),
    Case("100,000 characters as completion", completion("59 " * 33_333)),
    Case("ids as NumPy's arrays, aligned", align),
    Case("a row as a scored dataset has it", prepare),
    Case("a row without a rewrite", partial(prepare, rewrite=None)),
    Case("a row whose prompt is `None`", partial(prepare, prompt=None), TEXT),
    Case("a row whose prompt is empty", partial(prepare, prompt=""), "the tokenizer gives no tokens"),
    Case("a row whose rewrite is half a surrogate pair", partial(prepare, rewrite="\ud800"), "It must be a text"),
    Case("a row with right-to-left text as rewrite", partial(prepare, rewrite="\u05d0\u202e \0")),
]
