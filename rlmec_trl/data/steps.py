"""Splitting a solution into steps."""


def split_steps(text: str, separator: str) -> list[str]:
    """
    Split an attempt into its steps, without losing a character: `"".join(steps) == text`.

    Each step keeps the separator after it. A blank step (empty, or whitespace between two separators) belongs to the
    step before it, at the start to the step after it, so that indices count the steps that a reader sees.
    """
    pieces = text.split(separator)
    steps, lead = [], ""
    for index, piece in enumerate(pieces):
        step = piece + separator if index < len(pieces) - 1 else piece
        if piece.strip():
            steps.append(lead + step)
            lead = ""
        elif steps:
            steps[-1] += step
        else:
            lead += step
    return [*steps, lead] if lead else steps


def num_shared_steps(steps: list[str], rewritten_steps: list[str]) -> int:
    """Number of leading steps, as [`split_steps`] gives them, that are the same in an attempt and its rewrite."""
    num_shared = 0
    for step, rewritten_step in zip(steps, rewritten_steps, strict=False):
        if step != rewritten_step:
            break
        num_shared += 1
    return num_shared


def first_changed_step(completion: str, rewrite: str, step_separator: str) -> int:
    """Index of the first step of the completion that the rewrite changes, -1 where the two are the same."""
    if completion == rewrite:
        return -1
    # Compared without separators: the last step has none
    steps, rewritten = (
        [step.removesuffix(step_separator).strip() for step in split_steps(text, step_separator)]
        for text in (completion, rewrite)
    )
    same = [step == other for step, other in zip(steps, rewritten, strict=False)]
    return same.index(False) if False in same else max(min(len(same), len(steps) - 1), 0)
