"""Settings of an API teacher, and the cost of its answers."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...data.errors import ConfigError
from .journal import Answer


@dataclass
class TeacherConfig:
    r"""
    Settings of an API teacher.

    Parameters:
        max_tokens (`int`, *optional*, defaults to `8192`):
            Maximum length of an answer, in tokens, including reasoning.
        max_attempts (`int`, *optional*, defaults to `3`):
            Maximum number of answers per row. A row is requested again if its answer was a refusal, truncated
            or malformed, or failed verification.
        structured_output (`bool`, *optional*, defaults to `True`):
            Whether the API constrains the answer to a JSON schema. Otherwise the teacher answers in a plain layout.
        effort (`str`, *optional*):
            How much effort the teacher puts into an answer: `"low"`, `"medium"`, `"high"`, `"xhigh"` or `"max"`. If
            unset, the API's default for the model. Anthropic only.
        use_batches (`bool`, *optional*, defaults to `False`):
            Whether to submit the requests as batches, at half the price, with answers within a day. Anthropic only.
        questions_per_batch (`int`, *optional*, defaults to `10000`):
            Maximum number of requests in a batch.
        poll_seconds (`float`, *optional*, defaults to `60.0`):
            Seconds between two checks of a batch.
        max_cost (`float`, *optional*):
            Dollars at which to stop. What earlier runs with the same journal spent is included. No limit if unset.
        input_price, output_price (`float`, *optional*):
            Dollars per million tokens, from the provider's price list. Without them, costs are unknown.
        cache_write_price, cache_read_price (`float`, *optional*):
            Dollars per million input tokens that are written to or read from the prompt cache. If unset, 1.25 times
            and 1 times `input_price`; for reading, that is more than providers charge.
    """

    max_tokens: int = field(
        default=8192,
        metadata={"help": "Maximum length of an answer, in tokens, including reasoning."},
    )
    max_attempts: int = field(
        default=3,
        metadata={
            "help": "Maximum number of answers per row. A row is requested again if its answer was a refusal, "
            "truncated or malformed, or failed verification."
        },
    )
    structured_output: bool = field(
        default=True,
        metadata={
            "help": "Whether the API constrains the answer to a JSON schema. Otherwise the teacher answers in a plain "
            "layout."
        },
    )
    effort: str | None = field(
        default=None,
        metadata={
            "help": "How much effort the teacher puts into an answer: `low`, `medium`, `high`, `xhigh` or `max`. If "
            "unset, the API's default for the model. Anthropic only.",
            "choices": ["low", "medium", "high", "xhigh", "max"],
        },
    )
    use_batches: bool = field(
        default=False,
        metadata={
            "help": "Whether to submit the requests as batches, at half the price, with answers within a day. "
            "Anthropic only."
        },
    )
    questions_per_batch: int = field(default=10_000, metadata={"help": "Maximum number of requests in a batch."})
    poll_seconds: float = field(default=60.0, metadata={"help": "Seconds between two checks of a batch."})
    max_cost: float | None = field(
        default=None,
        metadata={
            "help": "Dollars at which to stop. What earlier runs with the same journal spent is included. No limit if "
            "unset."
        },
    )
    input_price: float | None = field(
        default=None,
        metadata={"help": "Dollars per million input tokens. Without the prices, costs are unknown."},
    )
    output_price: float | None = field(default=None, metadata={"help": "Dollars per million output tokens."})
    cache_write_price: float | None = field(
        default=None,
        metadata={
            "help": "Dollars per million input tokens written to the prompt cache. If unset, 1.25 times `input_price`."
        },
    )
    cache_read_price: float | None = field(
        default=None,
        metadata={"help": "Dollars per million input tokens read from the prompt cache. If unset, `input_price`."},
    )

    # How each field enters the key of an answer in the journal. Effort does with the teacher's name
    key_parts: ClassVar[dict[str, str]] = {
        "max_tokens": "none",
        "max_attempts": "none",
        "structured_output": "value",
        "effort": "value",
        "use_batches": "none",
        "questions_per_batch": "none",
        "poll_seconds": "none",
        "max_cost": "none",
        "input_price": "none",
        "output_price": "none",
        "cache_write_price": "none",
        "cache_read_price": "none",
    }

    def __post_init__(self):
        if (self.input_price is None) != (self.output_price is None):
            raise ConfigError("Set both `--input_price` and `--output_price`, or neither.")
        if self.max_cost is not None and self.input_price is None:
            raise ConfigError(
                "`--max_cost` needs the teacher's prices: look them up and set `--input_price` and `--output_price` "
                "(dollars per million tokens)."
            )
        if self.max_attempts < 1:
            raise ConfigError(f"`max_attempts` is {self.max_attempts}; it must be at least 1.")
        if not 1 <= self.questions_per_batch <= 100_000:
            raise ConfigError(
                f"`questions_per_batch` is {self.questions_per_batch}; the API accepts 1 to 100,000 in a batch."
            )


# Discount of the Message Batches API
BATCH_DISCOUNT = 0.5


def answer_cost(config: TeacherConfig, answer: Answer) -> float | None:
    """Dollars that an answer costs, `None` if the prices are unknown."""
    if config.input_price is None:
        return None
    write_price = 1.25 * config.input_price if config.cache_write_price is None else config.cache_write_price
    read_price = config.input_price if config.cache_read_price is None else config.cache_read_price
    dollars = (
        answer.input_tokens * config.input_price
        + answer.cache_write_tokens * write_price
        + answer.cache_read_tokens * read_price
        + answer.output_tokens * config.output_price
    ) / 1e6
    return dollars if answer.batch is None else dollars * (1 - BATCH_DISCOUNT)
