"""How a teacher behind an API is asked, and what its answers cost."""

from dataclasses import dataclass, field

from .journal import Answer


@dataclass
class TeacherConfig:
    r"""
    Settings of a teacher behind an API.

    Parameters:
        max_tokens (`int`, *optional*, defaults to `8192`):
            Greatest length of an answer, in tokens, with what the teacher thinks before it.
        max_attempts (`int`, *optional*, defaults to `3`):
            How often a row is asked at most: again where the answer was refused, cut off, malformed, or failed
            verification.
        structured_output (`bool`, *optional*, defaults to `True`):
            Whether the API holds the answer to a JSON schema. Without, the teacher is asked for a plain layout.
        effort (`str`, *optional*):
            How much effort the teacher puts into an answer: `"low"`, `"medium"`, `"high"`, `"xhigh"` or `"max"`. The
            API's default for the model if unset. Anthropic only.
        use_batches (`bool`, *optional*, defaults to `False`):
            Whether to hand the questions in as batches, at half the price, with answers within a day. Anthropic only.
        questions_per_batch (`int`, *optional*, defaults to `10000`):
            Greatest number of questions in a batch.
        poll_seconds (`float`, *optional*, defaults to `60.0`):
            Time between two looks at a batch.
        max_cost (`float`, *optional*):
            Dollars at which to stop. What was spent before, by the same journal, counts. No limit if unset.
        input_price, output_price (`float`, *optional*):
            Dollars for a million tokens, from the provider's price list. Without them costs are not known.
        cache_write_price, cache_read_price (`float`, *optional*):
            Dollars for a million input tokens that are written to or read from the prompt cache. If unset, they are
            counted at 1.25 times and once `input_price`: for reading, that is more than providers ask.
    """

    max_tokens: int = field(
        default=8192,
        metadata={"help": "Greatest length of an answer, in tokens, with what the teacher thinks before it."},
    )
    max_attempts: int = field(
        default=3,
        metadata={
            "help": "How often a row is asked at most: again where the answer was refused, cut off, malformed, or "
            "failed verification."
        },
    )
    structured_output: bool = field(
        default=True,
        metadata={
            "help": "Whether the API holds the answer to a JSON schema. Without, the teacher is asked for a plain "
            "layout."
        },
    )
    effort: str | None = field(
        default=None,
        metadata={
            "help": "How much effort the teacher puts into an answer: `low`, `medium`, `high`, `xhigh` or `max`. The "
            "API's default for the model if unset. Anthropic only.",
            "choices": ["low", "medium", "high", "xhigh", "max"],
        },
    )
    use_batches: bool = field(
        default=False,
        metadata={
            "help": "Whether to hand the questions in as batches, at half the price, with answers within a day. "
            "Anthropic only."
        },
    )
    questions_per_batch: int = field(default=10_000, metadata={"help": "Greatest number of questions in a batch."})
    poll_seconds: float = field(default=60.0, metadata={"help": "Time between two looks at a batch."})
    max_cost: float | None = field(
        default=None,
        metadata={
            "help": "Dollars at which to stop. What was spent before, by the same journal, counts. No limit if unset."
        },
    )
    input_price: float | None = field(
        default=None,
        metadata={"help": "Dollars for a million input tokens. Without the prices costs are not known."},
    )
    output_price: float | None = field(default=None, metadata={"help": "Dollars for a million output tokens."})
    cache_write_price: float | None = field(
        default=None,
        metadata={
            "help": "Dollars for a million input tokens written to the prompt cache. If unset, 1.25 times "
            "`input_price`."
        },
    )
    cache_read_price: float | None = field(
        default=None,
        metadata={"help": "Dollars for a million input tokens read from the prompt cache. If unset, `input_price`."},
    )

    def __post_init__(self):
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("Give both `--input_price` and `--output_price`, or neither.")
        if self.max_cost is not None and self.input_price is None:
            raise ValueError(
                "`--max_cost` needs the teacher's prices: look them up and give `--input_price` and `--output_price` "
                "(dollars for a million tokens)."
            )
        if self.max_attempts < 1:
            raise ValueError(f"`max_attempts` is {self.max_attempts}; a row has to be asked at least once.")
        if not 1 <= self.questions_per_batch <= 100_000:
            raise ValueError(
                f"`questions_per_batch` is {self.questions_per_batch}; the API takes 1 to 100,000 in a batch."
            )


# What the Message Batches API takes off every price
BATCH_DISCOUNT = 0.5


def answer_cost(config: TeacherConfig, answer: Answer) -> float | None:
    """Dollars that an answer costs, `None` where the prices are not known."""
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
