"""Words: which tokens of a caption each of its words is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from open_clip.tokenizer import HFTokenizer

from otclib.models.features import Tokenizer


@dataclass
class WordSpan:
    """A word of a caption: its characters [start, end) and its token positions [first, last)."""

    text: str
    start: int
    end: int
    first: int
    last: int


def word_spans(tokenizer: Tokenizer, caption: str) -> list[WordSpan]:
    """Return the token positions of each whitespace-separated word of a caption (position 0 is often a start token).

    CLIP's own tokenizer splits into words first, so each word is encoded alone. A Hugging Face tokenizer returns the
    characters that each token stands for. Words that it drops, such as punctuation or what is cut off, have no span.

    Raises
    ------
    ValueError : a tokenizer of another kind, or one that does not return the characters of its tokens; a caption whose
        words change when it is cleaned as a whole.
    """
    words = list(re.finditer(r"\S+", caption))
    if isinstance(tokenizer, HFTokenizer):
        positions = _by_characters(tokenizer, caption, [word.group() for word in words])
        found = [(word, positions[k]) for k, word in enumerate(words) if k in positions]
        return [WordSpan(w.group(), w.start(), w.end(), min(at), max(at) + 1) for w, at in found]
    if not hasattr(tokenizer, "encode"):
        raise ValueError(
            f"words can be located with CLIP's own tokenizer and with those of Hugging Face, not with "
            f"{type(tokenizer).__name__}"
        )
    spans, position = [], 1
    for word in words:
        n = len(tokenizer.encode(word.group()))
        spans.append(WordSpan(word.group(), word.start(), word.end(), position, position + n))
        position += n
    return spans


def _by_characters(tokenizer: Any, caption: str, words: list[str]) -> dict[int, list[int]]:
    """Return the token positions of each word that has any, by the word's index.

    The tokenizer reads the caption after open_clip has cleaned it. A token belongs to the first word that ends behind
    the token's first character: a token that begins with a space belongs to the word after it.
    """
    inner = tokenizer.tokenizer
    if tokenizer.tokenizer_mode or not inner.is_fast:
        kind = f"mode {tokenizer.tokenizer_mode!r}" if tokenizer.tokenizer_mode else "a slow tokenizer"
        raise ValueError(f"words can be located with a fast Hugging Face tokenizer in its usual mode, this is {kind}")
    cleaned = [tokenizer.clean_fn(word) for word in words]
    read = tokenizer.clean_fn(caption)
    if read != " ".join(word for word in cleaned if word):
        raise ValueError(f"the words of {caption!r} cannot be located: the tokenizer reads it as {read!r}")
    ends, at = {}, 0
    for k, word in enumerate(cleaned):
        if word:
            ends[k] = at + len(word)
            at = ends[k] + 1  # a space is between two words
    encoded = inner(
        read,
        max_length=tokenizer.context_length,
        padding="max_length",
        truncation=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    out: dict[int, list[int]] = {}
    for position, ((start, _), special) in enumerate(zip(encoded["offset_mapping"], encoded["special_tokens_mask"])):
        word = None if special else next((k for k, end in ends.items() if end > start), None)
        if word is not None:
            out.setdefault(word, []).append(position)
    return out
