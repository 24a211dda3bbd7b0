"""Other common parts of the miniatures of all families: tokenizer and norms."""

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast


def byte_level_tokenizer(
    word_pattern: str,
    added_tokens: Sequence[str],
    num_text_tokens: int | None,
    ignore_merges: bool = False,
) -> Tokenizer:
    """Return a byte-level BPE tokenizer without merges.

    Args:
        word_pattern: Regular expression of the words that text is cut into.
        added_tokens: Special tokens, whose ids follow those of text.
        num_text_tokens: Number of ids of text; entries that no text reaches fill them, so that the
            added tokens get their real ids. None: those of the bytes.
        ignore_merges: Setting of the BPE model.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    if num_text_tokens is not None:
        vocab |= {f"<unused_{i}>": i for i in range(len(vocab), num_text_tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word_pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in added_tokens]
    )
    return tokenizer


def for_transformers(
    tokenizer: Tokenizer, end: str, bos_token: str | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer as Transformers loads it; ``end`` ends a text and pads it."""
    begin = {} if bos_token is None else {"bos_token": bos_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **begin,
        eos_token=end,
        pad_token=end,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131_072,
        clean_up_tokenization_spaces=False,
    )


def vary_norms(model: nn.Module) -> None:
    """Make the weights of norms differ from each other, as trained ones do."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
