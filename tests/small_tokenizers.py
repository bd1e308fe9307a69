"""Small tokenizers of several kinds, made without any download."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


BOS, EOS, END = "<s>", "</s>", "<end>"
# Newlines in the corpus merge with what follows them, so that tokens reach over the ends of steps
CORPUS = ["3 + 4 = 7\n7 + 5 = 12\nThe answer is 12", "é 😀 \n\nThe", "=\n=\n= \nThe \nThe \n7 \n7"] * 20


def wrapped(tokenizer, **kwargs):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, additional_special_tokens=[END], **kwargs
    )


def byte_level_tokenizer(corpus=CORPUS, add_prefix_space=False, **kwargs):
    tokenizer = Tokenizer(models.BPE())
    # Without the usual split into words, so that a token may hold the end of one step and the start of the next
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[BOS, EOS, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return wrapped(tokenizer, **kwargs)


def word_tokenizer(**kwargs):
    words = [BOS, EOS, END, "<unk>", *"0123456789", "+", "=", ";", "The", "answer", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(tokenizer, unk_token="<unk>", **kwargs)


def byte_fallback_tokenizer():
    """One token a byte, as SentencePiece spells what is not in its vocabulary; half a character decodes as several."""
    words = [BOS, EOS, END, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(tokenizer, unk_token="<unk>")


def unigram_tokenizer(texts):
    """
    Pieces with a mark for the space before them, as SentencePiece makes them: a space that is put before the text and
    dropped at the start of what is decoded, and one token a byte for characters that it has no piece for.
    """
    special = [BOS, EOS, END, "<unk>"]
    alphabet = {"▁", *"".join(texts).replace(" ", "▁")}
    words = {f"▁{word}" for text in texts for word in text.split(" ") if word}
    pieces = [*[(word, -2.0) for word in sorted(words)], *[(char, -4.0) for char in sorted(alphabet - words)]]
    spelled = [(f"<0x{byte:02X}>", -8.0) for byte in range(256)]
    vocabulary = [*[(token, 0.0) for token in special], *pieces, *spelled]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(tokenizer, unk_token="<unk>")


def number_tokenizer(texts):
    """Whole numbers, and words with the space before them: the words of all texts, no token a part of one."""
    split = pre_tokenizers.Split(Regex(r" ?[0-9]+| ?[A-Za-z]+| ?[^ 0-9A-Za-z]| "), "isolated")
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    vocabulary = ["<unk>", EOS, *sorted(words)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        unk_token="<unk>",
        pad_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
    )
