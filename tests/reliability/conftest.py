"""What the cases share: tiny models and scored rows, made once, and an outcome that is computed once."""

from pathlib import Path

import pytest

from tests.reliability.case import Place, try_case


def pytest_addoption(parser):
    parser.addoption("--write-docs", action="store_true", help="write docs/reliability.md of what the cases give")


@pytest.fixture(scope="session")
def shared(tmp_path_factory, tokenizer, chat_tokenizer):
    """A policy, the same one with a chat template, and a reward model, untrained."""
    from rlmec_trl.grm.prompts import save_wording
    from rlmec_trl.tasks import arithmetic

    shared = tmp_path_factory.mktemp("models")
    policy = arithmetic.make_policy(tokenizer, hidden_size=16, num_hidden_layers=1)
    for name, its_tokenizer in (("policy", tokenizer), ("chat", chat_tokenizer), ("grm", tokenizer)):
        for part in (policy, its_tokenizer):
            part.save_pretrained(shared / name)
    save_wording(arithmetic.WORDING, str(shared / "grm"))
    return shared


@pytest.fixture(scope="session")
def outcome_of(tmp_path_factory, shared, tokenizer, chat_tokenizer, make_rows):
    """What a case gives; run once, for its own test and for the table."""
    known = {}
    rows = make_rows(6)

    def outcome_of(case):
        if case not in known:
            place = Place(Path(tmp_path_factory.mktemp("runs")), shared, tokenizer, chat_tokenizer, rows)
            known[case] = try_case(case, place)
        return known[case]

    return outcome_of
