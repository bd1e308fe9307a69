"""Work of an API teacher, whose answers are in a journal: the frame that the stages with a teacher share."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Protocol

from datasets import Dataset, load_from_disk

from ..data.errors import ConfigError
from ..generation.processes import process_state
from ..generation.server import ServerConfig
from ..teachers.anthropic_teacher import AnthropicTeacher
from ..teachers.api.budget import Estimate, describe_estimate
from ..teachers.api.config import TeacherConfig
from ..teachers.api.journal import Journal
from ..teachers.api.journaled_teacher import JournaledTeacher
from ..teachers.server_teacher import ServerTeacher
from .output import check_not_input, claim, publish, resolve, save_rows


class JournalSettings(Protocol):
    """The settings that the configurations of these stages share."""

    output_dir: str
    provider: str
    journal_dir: str | None
    dry_run: bool


def work_through_journal(
    config: JournalSettings,
    model: str,
    inputs: Sequence[Dataset],
    teacher_config: TeacherConfig,
    server_config: ServerConfig,
    estimate: Callable[[JournaledTeacher], Estimate],
    work: Callable[[JournaledTeacher], tuple[Dataset, Counter]],
    check: Callable[[Dataset, str], None],
    count_costs: Callable[[JournaledTeacher], dict[str, int]] | None = None,
) -> tuple[Dataset | None, Counter]:
    """
    Have an API teacher work on rows, and save the result. The result is made of the journal at each run.

    Args:
        config ([`JournalSettings`]):
            Where the result and the journal are, and where the teacher is.
        model (`str`):
            Name of the teacher.
        inputs (`Sequence[Dataset]`):
            The datasets that are read, which the result must not replace.
        teacher_config, server_config:
            Requests and cost limit of the teacher, and how it is reached.
        estimate (`Callable[[JournaledTeacher], Estimate]`):
            What the teacher will cost.
        work (`Callable[[JournaledTeacher], tuple[Dataset, Counter]]`):
            Asks the teacher, on all processes. Returns the rows and the number of rows by outcome, of which
            `"not asked"` counts those that `max_cost` has left out.
        check (`Callable[[Dataset, str], None]`):
            Refuses rows that are of no use. Gets them and what to say about the teacher.
        count_costs (`Callable[[JournaledTeacher], dict[str, int]]`, *optional*):
            What the work has cost, by the names of [`~rlmec_trl.stages.costs.COSTS`]. Nothing by default.

    Returns:
        `tuple`: The saved rows and the outcomes; `None` and no outcomes after a dry run.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If the journal is in the folder that is replaced.
        [`~rlmec_trl.stages.output.OutputError`]: If the output folder cannot be used.
        [`~rlmec_trl.teachers.api.errors.TeacherError`]: If the teacher cannot be used.
    """
    state = process_state()
    journal_dir = config.journal_dir or f"{config.output_dir.rstrip('/')}-journal"
    if resolve(journal_dir).is_relative_to(resolve(config.output_dir)):
        raise ConfigError(
            f"The journal {journal_dir!r} lies in `--output_dir`, which is replaced. Choose another folder."
        )
    for dataset in inputs:
        check_not_input(config.output_dir, dataset)
    # The output folder is checked before anything is paid for
    holds_output = state.is_main_process and not config.dry_run
    with claim(config.output_dir) if holds_output else nullcontext() as work_dir:
        with Journal(journal_dir, state.process_index, state.num_processes) as journal:
            # A process that finds the journal or the folder taken stops before any of them pays
            state.wait_for_everyone()
            teacher_class = AnthropicTeacher if config.provider == "anthropic" else ServerTeacher
            teacher = teacher_class(model, journal, teacher_config, server_config, 1 / state.num_processes)
            state.print(describe_estimate(estimate(teacher), teacher_config))
            if config.dry_run:
                return None, Counter()
            before = teacher.budget.spent
            rows, outcomes = work(teacher)
            state.wait_for_everyone()
            spent = sum(journal.costs())
            costs = {} if count_costs is None else count_costs(teacher)
        failures = list(teacher.failures.values())
        said = f" The last request without an answer: {failures[-1].rstrip('.')}." if failures else ""
        if teacher_config.max_cost is not None and outcomes["not asked"] > 0:
            said += " `max_cost` was reached."
        check(rows, f"{said} All answers are in {journal_dir!r}.")
        if state.is_main_process:
            # Rebuilt from the journal at each run, so it needs no key
            publish(partial(save_rows, rows), config.output_dir, "journal", work_dir, costs)
        state.wait_for_everyone()
    if teacher_config.max_cost is not None and outcomes["not asked"] > 0:
        state.print("`max_cost` was reached. With a higher one, the same command requests the others.")
    if teacher_config.input_price is not None:
        state.print(f"Spent {spent - before:.2f} dollars, {spent:.2f} with earlier runs of {journal_dir}.")
    return load_from_disk(str(resolve(config.output_dir))), outcomes


def check_local(config: JournalSettings, server_config: ServerConfig) -> None:
    """
    Refuse settings of an API where the teacher runs in this process.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there are any.
    """
    if server_config.base_url is not None or config.dry_run:
        raise ConfigError("`--base_url` and `--dry_run` need `--provider server`, or `--provider anthropic`.")


def describe_outcomes(outcomes: Counter) -> str:
    """Numbers of rows by kind of outcome, without the details that an API adds."""
    kinds = Counter()
    for outcome, count in outcomes.items():
        kinds[outcome.partition(":")[0]] += count
    return ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
