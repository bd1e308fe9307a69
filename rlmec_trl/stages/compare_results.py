"""The comparison of policies that were evaluated on the same problems."""

import json
from dataclasses import dataclass, field
from typing import Any

from ..data.checks import check_config
from ..data.errors import ConfigError
from ..reports.comparisons import compare, read_outcomes
from .output import claim_file, resolve, write_atomically


@dataclass
class CompareResultsConfig:
    r"""
    Settings of the comparison.

    Parameters:
        results (`list[str]`):
            Results of the evaluate stage (its `output_file`), two or more. The first is what the others are compared
            with.
        output_file (`str`, *optional*):
            JSON file to write the comparisons to.
    """

    results: list[str] = field(
        metadata={
            "help": "Results of `evaluate.py` (its `--output_file`), two or more. The first is what the others are "
            "compared with."
        }
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the comparisons to."})

    def __post_init__(self):
        check_config(self)
        if len(self.results) < 2:
            raise ConfigError(f"`results` needs two files or more to compare, got {self.results}.")
        paths = [resolve(file) for file in self.results]
        for place, (file, path) in enumerate(zip(self.results, paths, strict=True)):
            if path in paths[:place]:
                raise ConfigError(f"`results` names the file {file!r} twice. Leave one out.")


def run(config: CompareResultsConfig) -> list[dict[str, Any]]:
    """
    Compare policies with the first one, problem by problem.

    Args:
        config ([`CompareResultsConfig`]):
            The results.

    Returns:
        `list[dict]`: For each result but the first, what [`~rlmec_trl.reports.comparisons.compare`] returns, and the
        two files as `rows`.

    Raises:
        [`~rlmec_trl.reports.comparisons.ComparisonError`]: If a file is no result with outcomes, or the
            problems differ.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_file` is a file of something else.
    """
    # Reports of pipelines have `comparisons`, too
    with claim_file(config.output_file, ("results", "comparisons")):
        first, *others = map(read_outcomes, config.results)
        comparisons = [{"rows": [other.file, first.file], **compare([other], [first])} for other in others]
        if config.output_file is not None:
            content = {"results": config.results, "comparisons": comparisons}
            write_atomically(config.output_file, json.dumps(content, indent=2) + "\n")
    return comparisons
