"""Completions of a training with the credit of every token: in the terminal, as tables and HTML, as files."""

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from ..data.messages import problem_text
from .token_views import color_texts, printable


_MAX_LISTED = 8


@dataclass(frozen=True)
class CreditedCompletion:
    """
    A completion with the credit of its tokens.

    Args:
        prompt (`str` or `list[dict]`):
            Prompt.
        tokens (`Sequence[str]`):
            Texts of its tokens.
        shades (`Sequence[float | None]`):
            Color of each token, from 0 (red) to 1 (green). One under 0.5 is listed. `None` has no color.
        token_values (`dict[str, Sequence[float | None]]`):
            By name, a number for each token, such as its probability or its reward.
        values (`dict[str, Any]`):
            By name, what belongs to the whole completion, such as its reward.
        details (`dict[str, str]`):
            By name, texts to show beneath it, such as its rewrite.
        columns (`dict[str, Any]`):
            By name, what only tables and files have.
    """

    prompt: str | list[dict[str, Any]]
    tokens: Sequence[str]
    shades: Sequence[float | None]
    token_values: dict[str, Sequence[float | None]]
    values: dict[str, Any] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)


def shades_of(token_rewards: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """
    Colors of token rewards, which have no bounds: rewards from 0 to the largest one become 0.5 to 1, and those from
    the smallest one to 0 become 0 to 0.5. Without a color are a reward of 0, and no opinion (`None` or NaN).

    Args:
        token_rewards (`Sequence[Sequence[float | None]]`):
            Rewards of the tokens of several completions, which are shown together.
    """
    known = [reward for row in token_rewards for reward in row if reward is not None and math.isfinite(reward)]
    highest, lowest = max([0.0, *known]), min([0.0, *known])

    def shade(reward: float | None) -> float | None:
        if reward is None or not math.isfinite(reward) or reward == 0:
            return None
        return 0.5 + 0.5 * reward / (highest if reward > 0 else -lowest)

    return [list(map(shade, row)) for row in token_rewards]


# --- Terminal --------------------------------------------------------------------------------------------------------


def print_completions(completions: Sequence[CreditedCompletion], step: int) -> None:
    """Print completions with colored tokens, and the values of those that are red."""
    blocks = [_block(completion) for completion in completions]
    spaced = [part for block in blocks for part in (Text(), block)][1:]
    Console().print(Panel(Group(*spaced), title=f"Step {step}"))


def _block(completion: CreditedCompletion) -> Group:
    tokens = color_texts([_visible(token) for token in completion.tokens], completion.shades)
    lines = [
        Text(printable(problem_text(completion.prompt)), style="italic"),
        Text("completion  ").append_text(tokens),
        Text("lowest      ").append(printable(_lowest(completion)) or "none"),
    ]
    for name, text in completion.details.items():
        lines.append(Text(f"{name:<10}  ").append(printable(text)))
    if completion.values:
        lines.append(Text(_described(completion.values), style="bold"))
    return Group(*lines)


def _visible(token: str) -> str:
    return token or "·"  # a token within a character, which the one before it shows


def _lowest(completion: CreditedCompletion) -> str:
    """The tokens of the lowest values with all of their values, in the order of the text."""
    red = [index for index, shade in enumerate(completion.shades) if shade is not None and shade < 0.5]
    red = sorted(sorted(red, key=lambda index: completion.shades[index])[:_MAX_LISTED])
    listed = []
    for index in red:
        token = completion.tokens[index].strip() or repr(completion.tokens[index])
        listed.append(f"{token} ({_described(_values_at(completion, index))})")
    return ", ".join(listed)


def _values_at(completion: CreditedCompletion, index: int) -> dict[str, float | None]:
    return {name.removeprefix("token_"): values[index] for name, values in completion.token_values.items()}


def _described(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# --- HTML and tables -------------------------------------------------------------------------------------------------


def completions_html(completions: Sequence[CreditedCompletion], colors: bool = True) -> str:
    """
    Completions as HTML in which every text is escaped.

    Args:
        completions (`Sequence[CreditedCompletion]`):
            The completions.
        colors (`bool`, *optional*, defaults to `True`):
            Whether the tokens have colors, and their values on hover. Without them, red tokens are strong, and only
            elements are used that TensorBoard keeps.
    """
    return "\n".join(_html_block(completion, colors) for completion in completions)


def _html_block(completion: CreditedCompletion, colors: bool) -> str:
    parts = []
    for index, (token, shade) in enumerate(zip(completion.tokens, completion.shades, strict=True)):
        text = _escaped(_visible(token), keep_lines=colors)
        if not colors:
            parts.append(f"<strong>{text}</strong>" if shade is not None and shade < 0.5 else text)
            continue
        style = ""
        if shade is not None:
            # Not by the color alone
            line = ";text-decoration:underline" if shade < 0.5 else ""
            style = f' style="color:#fff;background:rgb({int(200 * (1 - shade))},{int(130 * shade)},40){line}"'
        values = _escaped(_described(_values_at(completion, index)))
        parts.append(f'<span title="{values}"{style}>{text}</span>')
    element = 'div style="white-space:pre-wrap;font-family:monospace"' if colors else "p"
    lines = [f"<p><em>{_escaped(problem_text(completion.prompt))}</em></p>"]
    lines.append(f"<{element}>{''.join(parts)}</{element.split()[0]}>")
    details = completion.details | {"lowest": _lowest(completion) or "none"}
    if completion.values:
        details |= {"completion": _described(completion.values)}
    lines += [f"<p>{_escaped(name)}: {_escaped(text)}</p>" for name, text in details.items()]
    return "\n".join([*lines, "<hr>"])


def _escaped(text: str, keep_lines: bool = False) -> str:
    # A lone surrogate cannot be written, and an empty line would end an element of Markdown
    escaped = html.escape(printable(text.encode("utf-8", "replace").decode("utf-8")))
    return escaped if keep_lines else escaped.replace("\n", "<br>")


def completions_frame(completions: Sequence[CreditedCompletion], step: int, lists: bool = True) -> pd.DataFrame:
    """
    A table with a row for each completion.

    Args:
        completions (`Sequence[CreditedCompletion]`):
            The completions.
        step (`int`):
            Training step.
        lists (`bool`, *optional*, defaults to `True`):
            Whether it has the lists of tokens and their values, which not every tracker can show.
    """
    rows = []
    for one in completions:
        row = {"step": step, "prompt": problem_text(one.prompt), **one.columns, "tokens": list(one.tokens)}
        row |= {name: list(values) for name, values in one.token_values.items()}
        row |= {"lowest": _lowest(one), **one.details, **one.values}
        rows.append({name: value for name, value in row.items() if lists or not isinstance(value, list)})
    return pd.DataFrame(rows)


# --- Trackers --------------------------------------------------------------------------------------------------------


class CompletionReporter:
    """
    Reports completions to the trackers that `report_to` names: HTML to Weights & Biases and TensorBoard, and a table
    to Weights & Biases and Trackio.

    Args:
        report_to (`Sequence[str]`):
            Names of the trackers. Others than these three get nothing.
        output_dir (`str`):
            Output folder of the training. TensorBoard's files go to its `runs/completions`, or to the folder of that
            name in the one that `TENSORBOARD_LOGGING_DIR` names.
    """

    def __init__(self, report_to: Sequence[str], output_dir: str):
        self.report_to = report_to
        self.output_dir = output_dir
        self._writer = None

    def report(self, completions: Sequence[CreditedCompletion], step: int, table: bool = True) -> None:
        """
        Report completions.

        Args:
            completions (`Sequence[CreditedCompletion]`):
                The completions.
            step (`int`):
                Training step.
            table (`bool`, *optional*, defaults to `True`):
                Whether to log the table too, which TRL's online trainers do themselves.
        """
        if "wandb" in self.report_to:
            import wandb

            if wandb.run is not None:
                logged = {"token_credit": wandb.Html(completions_html(completions))}
                if table:
                    logged["completions"] = wandb.Table(dataframe=completions_frame(completions, step, lists=False))
                wandb.log(logged)
        if "trackio" in self.report_to and table:
            import trackio

            trackio.log({"completions": trackio.Table(dataframe=completions_frame(completions, step, lists=False))})
        if "tensorboard" in self.report_to:
            if self._writer is None:
                self._writer = self._open_writer()
            self._writer.add_text("token_credit", completions_html(completions, colors=False), step)
            self._writer.flush()

    def _open_writer(self) -> Any:
        # The writer of Transformers belongs to its callback
        from torch.utils.tensorboard import SummaryWriter

        folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or os.path.join(self.output_dir, "runs")
        return SummaryWriter(log_dir=os.path.join(os.path.expanduser(folder), "completions"))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
