"""Models of the built-in tasks: a tokenizer of whole words, and a policy small enough for a CPU."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


# A digit, a word or a sign is one token, together with the space before it.
_TOKEN_PATTERN = r" ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]"


def make_word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """
    Make a word-level tokenizer. Each word, digit and sign is a token and includes the space before it, so that
    decoding returns exactly the text that was encoded.

    Args:
        texts (`Iterable[str]`):
            Texts with all tokens of the vocabulary, in the order of the first time that they occur.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special_tokens = ["<pad>", "<eos>", "<unk>"]
    tokens = [token for text in texts for token in re.findall(_TOKEN_PATTERN, text)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(special_tokens + tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN_PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_policy(
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    hidden_size: int = 128,
    num_hidden_layers: int = 3,
    initializer_range: float = 0.02,
) -> LlamaForCausalLM:
    """
    Make an untrained policy, of about 645,000 parameters with the default sizes.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer from [`make_word_tokenizer`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state is not changed.
        hidden_size (`int`, *optional*, defaults to `128`):
            Hidden size, a multiple of 8 (four heads of even size). The MLP is three times as wide.
        num_hidden_layers (`int`, *optional*, defaults to `3`):
            Number of layers.
        initializer_range (`float`, *optional*, defaults to `0.02`):
            Standard deviation of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
