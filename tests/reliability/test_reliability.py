"""
Bad and odd inputs over all stages and trainers: each works, or ends in one sentence for the user. The table of
docs/reliability.md is what they give.

    python -m pytest tests/reliability --write-docs
"""

from pathlib import Path

import pytest

from tests.reliability import (
    configs,
    folders,
    json_lines,
    models,
    pipelines,
    python,
    raw_rows,
    sampled_rows,
    servers,
    stages,
    tasks,
    training,
    training_settings,
)


PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SECTIONS = {
    module.SECTION: module.CASES
    for module in (
        json_lines,
        raw_rows,
        tasks,
        sampled_rows,
        python,
        stages,
        models,
        servers,
        folders,
        training,
        training_settings,
        configs,
        pipelines,
    )
}
CASES = [(section, case) for section, cases in SECTIONS.items() for case in cases]
START = "<!-- written by `python -m pytest tests/reliability --write-docs` -->\n"


@pytest.mark.parametrize(("section", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_case_gives_what_the_issue_of_it_demands(section, case, outcome_of):
    outcome = outcome_of(case)
    assert outcome.wrong is None, outcome.wrong


def test_no_case_is_there_twice_and_there_are_enough():
    names = [(section, case.name) for section, case in CASES]
    assert len(set(names)) == len(names) >= 200


def test_docs_reliability_is_what_the_cases_give(outcome_of, request):
    introduction, _, _ = PAGE.read_text(encoding="utf-8").partition(START)
    table = introduction + START + "".join(_section(title, cases, outcome_of) for title, cases in SECTIONS.items())
    if request.config.getoption("--write-docs", default=False):
        PAGE.write_text(table, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == table, "python -m pytest tests/reliability --write-docs"


def _section(title, cases, outcome_of):
    lines = [f"| {_cell(case.name)} | {_cell(outcome_of(case).text)} |" for case in cases]
    return "\n".join([f"\n## {title}\n", "| input | outcome |", "|---|---|", *lines, ""])


def _cell(text):
    return " ".join(text.replace("|", "\\|").split())
