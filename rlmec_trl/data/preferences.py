"""Pairs for preference optimization: the verified rewrite of an incorrect sample over the sample."""

from collections import Counter
from os.path import commonprefix

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .errors import DatasetError
from .imitation import with_template_kwargs
from .messages import is_conversational, message_text
from .schema import check_dataset
from .steps import num_shared_steps, split_steps
from .tokens import encode_prompt


def preference_rows(dataset: Dataset, step_separator: str | None = None) -> tuple[Dataset, Counter[str]]:
    """
    Turn scored rows into the preference format of TRL. A row makes a pair if its sample is incorrect and has a
    verified rewrite: the rewrite is chosen, the sample rejected.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `completion`, `correct` and `rewrite`, as `recipes/score.py` and `recipes/edit.py`
            write them. After a prompt of messages, a response that is a text becomes a message of the assistant.
        step_separator (`str`, *optional*):
            What stands between two steps. If given, the rows get a column `shared_steps` for [`move_shared_steps`]:
            the text of the first steps, which sample and rewrite share.

    Returns:
        `tuple[Dataset, Counter]`: Rows with `prompt`, `chosen` and `rejected`, and with `chat_template_kwargs` and
        `tools` if `dataset` has them; and the numbers of the rows that are left out, by reason.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If a column is missing, a row has an invalid value, or no row makes a
            pair.
    """
    check_dataset(dataset, "dpo")
    numbers, left_out = [], Counter()
    columns = (dataset["completion"], dataset["correct"], dataset["rewrite"])
    for number, (completion, correct, rewrite) in enumerate(zip(*columns, strict=True)):
        if correct:
            left_out["correct sample"] += 1
        elif rewrite is None:
            left_out["no verified rewrite"] += 1
        elif message_text(rewrite) == message_text(completion):
            left_out["rewrite equal to the sample"] += 1
        else:
            numbers.append(number)
    if not numbers:
        found = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise DatasetError(
            f"No row makes a pair ({found}). A pair needs an incorrect sample with a verified rewrite: name scored "
            "rows that have some."
        )

    def convert(row: dict) -> dict:
        response = {name: message_text(row[name]) for name in ("rewrite", "completion")}
        pair = {"chosen": response["rewrite"], "rejected": response["completion"]}
        if is_conversational(row["prompt"]):
            pair = {name: [{"role": "assistant", "content": text}] for name, text in pair.items()}
        if step_separator is not None:
            steps, rewritten = (split_steps(response[name], step_separator) for name in ("completion", "rewrite"))
            pair["shared_steps"] = "".join(steps[: num_shared_steps(steps, rewritten)])
        return {"prompt": row["prompt"], **pair}

    dataset = dataset.select(numbers)
    removed = [name for name in dataset.column_names if name != "tools"]
    rows = dataset.map(convert, remove_columns=removed, desc="Pairing rewrites with samples")
    return with_template_kwargs(rows, dataset, numbers), left_out


def move_shared_steps(
    dataset: Dataset, processing_class: PreTrainedTokenizerBase, max_length: int | None = None
) -> Dataset:
    """
    Count the steps that the two responses of a pair share as part of the prompt, so that the preference begins with
    the first changed step.

    This is done on the token ids of [`~trl.DPOTrainer`], which renders prompts of messages up to where the assistant
    begins, and so cannot be given one that ends within a response. The sequences stay as they are, and only the
    boundary between prompt and response moves.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows of [`preference_rows`] with `shared_steps`, tokenized by the trainer: with `prompt_ids`, `chosen_ids`
            and `rejected_ids`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the trainer.
        max_length (`int`, *optional*):
            Number of tokens that sequences are truncated to. Pairs whose prompts now fill it are left out, as the
            trainer leaves out those whose prompts did before.

    Returns:
        [`~datasets.Dataset`]: The same rows with the new boundary.
    """

    def move(row: dict) -> dict:
        chosen, rejected = (row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids"))
        num_prompt = len(row["prompt_ids"])
        if row["shared_steps"]:
            written: str | list[dict] = row["shared_steps"]
            if is_conversational(row["prompt"]):
                written = [{"role": "assistant", "content": written}]
            template_kwargs = {**(row.get("chat_template_kwargs") or {}), "tools": row.get("tools")}
            written_ids = encode_prompt(processing_class, row["prompt"] + written, template_kwargs)
            # After the shared steps, the end of the turn follows in `written_ids`, or a token that spans the boundary
            num_prompt = max(num_prompt, len(commonprefix([written_ids, chosen, rejected])))
        return {
            "prompt_ids": chosen[:num_prompt],
            "chosen_ids": chosen[num_prompt:],
            "rejected_ids": rejected[num_prompt:],
        }

    dataset = dataset.map(move, desc="Moving shared steps into the prompts")
    if max_length is None:
        return dataset
    return dataset.filter(lambda ids: len(ids) < max_length, input_columns="prompt_ids", desc="Dropping long prompts")
