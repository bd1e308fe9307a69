"""Minimum edits between two token sequences: their number, and the target tokens that they change."""

from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


def edit_distance(source_ids: Sequence[int], target_ids: Sequence[int]) -> int:
    """
    Levenshtein distance: the minimum number of insertions, deletions and replacements that turn one sequence into the
    other.

    Args:
        source_ids (`Sequence[int]`):
            Token ids of the attempt.
        target_ids (`Sequence[int]`):
            Token ids of the rewrite.

    Returns:
        `int`: The number of edits.
    """
    return Levenshtein.distance(source_ids, target_ids)


def edit_mask(source_ids: Sequence[int], target_ids: Sequence[int]) -> list[bool]:
    """
    Mark the target tokens that the minimum edit script changes.

    A target token is marked if it is inserted, if it replaces another token, or if source tokens are deleted right
    before it, because it then stands in their place. Deletions at the very end have no such token and mark nothing.

    Args:
        source_ids (`Sequence[int]`):
            Token ids of the attempt.
        target_ids (`Sequence[int]`):
            Token ids of the rewrite.

    Returns:
        `list[bool]`: One entry for each token of `target_ids`.
    """
    mask = [False] * len(target_ids)
    for operation in Levenshtein.editops(source_ids, target_ids):
        if operation.dest_pos < len(mask):
            mask[operation.dest_pos] = True
    return mask


def edit_weights(
    source_ids: Sequence[int], target_ids: Sequence[int], edited: float = 1.0, unedited: float = 0.5
) -> list[float]:
    """
    Imitation weight of each target token, larger on those that the rewrite changes
    (https://huggingface.co/papers/2401.06081).

    Args:
        source_ids (`Sequence[int]`):
            Token ids of the attempt.
        target_ids (`Sequence[int]`):
            Token ids of the rewrite.
        edited (`float`, *optional*, defaults to `1.0`):
            Weight of a token marked by [`edit_mask`].
        unedited (`float`, *optional*, defaults to `0.5`):
            Weight of every other token.

    Returns:
        `list[float]`: One weight for each token of `target_ids`.
    """
    return [edited if is_edited else unedited for is_edited in edit_mask(source_ids, target_ids)]


class EditRun(NamedTuple):
    """
    Neighboring edits of one kind.

    Args:
        kind (`str`):
            `"insert"`, `"delete"` or `"replace"`.
        source_start (`int`):
            Number of source tokens before it.
        source_length (`int`):
            Number of source tokens that it deletes or replaces.
        target_length (`int`):
            Number of target tokens that it inserts, or that replace the others.
    """

    kind: str
    source_start: int
    source_length: int
    target_length: int


def edit_runs(source_ids: Sequence[int], target_ids: Sequence[int]) -> list[EditRun]:
    """
    The minimum edit script that [`edit_mask`] and [`edit_weights`] are made of, neighboring edits of a kind together.

    Args:
        source_ids (`Sequence[int]`):
            Token ids of the attempt.
        target_ids (`Sequence[int]`):
            Token ids of the rewrite.

    Returns:
        `list[EditRun]`: In the order of the tokens. What is between two of them is the same in both sequences.
    """
    return [
        EditRun(code.tag, code.src_start, code.src_end - code.src_start, code.dest_end - code.dest_start)
        for code in Levenshtein.opcodes(source_ids, target_ids)
        if code.tag != "equal"
    ]
