"""
Scored samples as one HTML file, which opens from disk in any browser and loads nothing else.

`web/` has the page: `report.html` is its frame, in which this module puts the style sheets, the scripts and the data.
The page may run these scripts and no others, by a policy with their hashes, and writes text only as text. Texts of the
data are in a compressed block, so that nothing of them is HTML.

Probabilities and rewards are rounded to 1/65534 of their range, and log-probabilities to 1/1000. A token is flagged
after rounding where it is before.
"""

import base64
import hashlib
import html
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..credit.preparation import RewardSettings
from ..data.errors import errors_of_dataset
from ..data.schema import check_dataset
from .packing import pack
from .report_rows import report_columns


# What a file of ours begins with, so that it may be replaced
MARK = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="rlmec-trl">
"""
_STYLES = ("report.css", "charts.css")
_SCRIPTS = ("charts.js", "data.js", "tokens.js", "report.js")


def write_html(
    path: str | os.PathLike,
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    settings: RewardSettings | None = None,
    *,
    other: Dataset | None = None,
    names: Sequence[str] = ("GRM 1", "GRM 2"),
    title: str = "Token credit",
    charts: Sequence[dict[str, Any]] = (),
) -> None:
    """
    Write scored samples as one self-contained HTML file. An existing file is replaced in one step.

    ```python
    write_html("report.html", load_from_disk("runs/gsm8k/scored"), tokenizer)
    ```

    Args:
        path (`str` or `os.PathLike`):
            The file.
        dataset ([`~datasets.Dataset`]):
            Scored rows, as [`RLMECTrainer`] takes them. `reference`, `answer`, `edit_outcome` and `source` are shown
            too.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer, of which the ids are.
        settings (`RewardSettings`, *optional*):
            What makes rewards of probabilities, and the weights of the rewrites' tokens. The paper's by default.
            `RewardSettings.from_config` reads them from an [`RLMECConfig`].
        other ([`~datasets.Dataset`], *optional*):
            The same samples, or some of them, scored by another reward model, to be shown side by side.
        names (`Sequence[str]`, *optional*, defaults to `("GRM 1", "GRM 2")`):
            What the page calls the two reward models, and errors the two datasets.
        title (`str`, *optional*, defaults to `"Token credit"`):
            Title of the page.
        charts (`Sequence[dict]`, *optional*):
            Charts for `drawCharts` of `web/charts.js`: values of JSON, without NaN.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If a row breaks the contract of its columns, or `other` has none of
            the samples.
        `OSError`: If the file cannot be written.
    """
    names = list(names[: 1 if other is None else 2])
    for rows, name in zip((dataset, other), names, strict=False):
        with errors_of_dataset(name):
            check_dataset(rows, "policy")
    settings = paper_settings() if settings is None else settings
    header, arrays = report_columns(dataset, processing_class, settings, other)
    header |= {
        "title": title,
        "names": names,
        "settings": {
            "reward_baseline": settings.reward_baseline,
            "positive_reward_range": settings.positive_reward_range,
            "negative_reward_range": settings.negative_reward_range,
            "negative_credit": settings.negative_credit,
            "edited_weight": settings.edited_weight,
            "unedited_weight": settings.unedited_weight,
        },
        "own_rewards": "token_rewards" in dataset.column_names,
        "charts": list(charts),
    }
    path = Path(os.path.realpath(os.path.expanduser(path)))  # what a link leads to, not the link, is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(make_page(pack(header, arrays), title), encoding="utf-8")
    unfinished.replace(path)


def paper_settings(**changes: Any) -> RewardSettings:
    """The settings of the paper that rewards and weights depend on, with others for all rows as they are."""
    return RewardSettings(
        **{
            "max_length": None,
            "reward_baseline": 0.5,
            "positive_reward_range": (0.0, 0.5),
            "negative_reward_range": (-0.1, 0.0),
            "negative_credit": "all",
            "edited_weight": 1.0,
            "unedited_weight": 0.5,
            "correct_samples": "keep",
            "truncated_rewrites": "keep",
            "imitation_targets": "hard",
        }
        | changes
    )


def make_page(data: str, title: str) -> str:
    """
    The page with its data.

    Args:
        data (`str`):
            What [`~rlmec_trl.reports.packing.pack`] returns.
        title (`str`):
            The title, any text.
    """
    web = resources.files(__package__).joinpath("web")
    style, *scripts = (
        "".join(web.joinpath(name).read_text(encoding="utf-8") for name in names)
        for names in (_STYLES, _SCRIPTS[:1], _SCRIPTS[1:])
    )
    # What is not exported cannot clash with names of the charts
    charts, page = scripts[0], f'(() => {{\n"use strict";\n{scripts[1]}}})();\n'
    policy = {
        "default-src": "'none'",
        "script-src": f"{_hash(charts)} {_hash(page)}",
        "style-src": _hash(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        # Half of a surrogate pair is no UTF-8
        "title": html.escape(title.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")),
        "style": style,
        "charts": charts,
        "page": page,
        "data": data,
    }
    frame = web.joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], frame)


def is_report(path: str | os.PathLike) -> bool:
    """Whether a file is a report that [`write_html`] wrote."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(len(MARK)) == MARK
    except (OSError, ValueError):
        return False


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
