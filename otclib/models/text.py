"""Text towers: the pooled and token features of open_clip's own towers and of those that it takes from Hugging Face.

Which places of a caption hold its words depends on the tokenizer. CLIP's own writes a start, the words, an end with the
largest id, and zeros. The other tokenizers name their special tokens, and ``load`` keeps these with the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from otclib.models.features import Features, Tokenizer

CLIP_VOCABULARY = 49408  # the size of the vocabulary of CLIP's own tokenizer


@dataclass(frozen=True)
class SpecialTokens:
    """The token ids of a tokenizer that stand for no part of a caption, and the one among them that pads."""

    ids: tuple[int, ...]
    pad: int

    @staticmethod
    def of(tokenizer: Tokenizer) -> SpecialTokens | None:
        """Return those of a Hugging Face tokenizer that open_clip wraps; None for CLIP's own tokenizer."""
        inner: Any = getattr(tokenizer, "tokenizer", None)
        if inner is None:
            return None
        named = {getattr(inner, f"{what}_token_id", None) for what in ("pad", "bos", "eos", "cls", "sep")}
        ids = {*inner.all_special_ids, *(id for id, token in inner.added_tokens_decoder.items() if token.special)}
        if inner.unk_token_id not in named:
            ids.discard(inner.unk_token_id)  # it stands for a word
        return SpecialTokens(tuple(sorted(ids)), inner.pad_token_id)


def attach_tokenizer(model: nn.Module, tokenizer: Tokenizer) -> None:
    """Keep a tokenizer's special tokens with a model, as ``load`` does, so that ``encode_text`` can leave them out."""
    told: Any = model
    told.special_tokens = SpecialTokens.of(tokenizer)


def encode_text(model: nn.Module, text: Tensor, length: int | None = None) -> Features:
    """Return the features of token ids [B, L], cut after the longest caption (or after ``length``).

    The pooled feature is that of the model's own ``encode_text``, for every way to pool at one place. The tokens are
    the projected last states. The mask leaves out padding and special tokens (start, end, separator). A caption without
    words keeps its end, so that every row has a token.

    Parameters
    ----------
    text : token ids [B, L] as the tokenizer returns them, padded to its context length.
    length : number of places to return, at least ``text_length``; captions of several calls then have equal shapes.

    Raises
    ------
    ValueError : a tower that is neither open_clip's nor of Hugging Face, or that does not pool; a tokenizer other than
        CLIP's own whose special tokens are unknown, see ``attach_tokenizer``.
    """
    tower = _tower(model)
    word, end = _words(model, text)
    length = length or _length(tower, text, end)
    encode = _hugging_face if isinstance(tower, HFTextEncoder) else _open_clip
    pooled, states = encode(tower, text, length)
    place = torch.arange(text.shape[1], device=text.device)
    mask = word | (~word.any(1, keepdim=True) & (place == end))
    return Features(F.normalize(pooled, dim=-1), F.normalize(states[:, :length], dim=-1), mask[:, :length])


def text_length(model: nn.Module, text: Tensor) -> int:
    """Return how many places of token ids [B, L] the longest caption takes, with its start and end.

    Raises
    ------
    ValueError : as in ``encode_text``.
    """
    return _length(_tower(model), text, _words(model, text)[1])


def word_places(model: nn.Module, text: Tensor) -> Tensor:
    """Return which places of token ids [B, L] hold words, and neither padding nor a special token: bool [B, L]."""
    return _words(model, text)[0]


def padding(model: nn.Module) -> int:
    """Return the token id that fills captions up: 0 of CLIP's own tokenizer."""
    special: SpecialTokens | None = getattr(model, "special_tokens", None)
    return 0 if special is None else special.pad


def _tower(model: Any) -> Any:
    """Return the text tower of a model; CLIP's is the model itself."""
    tower = model.text if hasattr(model, "text") else model
    if not isinstance(tower, HFTextEncoder) and not hasattr(tower, "token_embedding"):
        raise ValueError(
            f"token features need a text tower of open_clip or of Hugging Face, this model has {type(tower).__name__}"
        )
    return tower


def _words(model: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return which places hold words [B, L] bool, and the last place of each caption before its padding [B, 1]."""
    place = torch.arange(text.shape[1], device=text.device)
    special: SpecialTokens | None = getattr(model, "special_tokens", None)
    if special is not None:
        end = (place * (text != special.pad)).amax(1, keepdim=True)
        return ~torch.isin(text, torch.tensor(special.ids, device=text.device)), end
    tower = _tower(model)
    if isinstance(tower, HFTextEncoder) or (_pool(tower) != "argmax" and tower.vocab_size != CLIP_VOCABULARY):
        raise ValueError(
            "the special tokens of this text tower are unknown: load the model with otclib.models.load, or name its "
            "tokenizer with otclib.models.attach_tokenizer(model, tokenizer)"
        )
    end = text.argmax(dim=-1, keepdim=True)  # the end token has the largest id
    return (place > 0) & (place < end), end


def _pool(tower: Any) -> str:
    """Return how one of open_clip's own towers pools: 'first', 'last', 'argmax', 'eos' or 'none'."""
    how: str = tower.pool_type if hasattr(tower, "pool_type") else getattr(tower, "text_pool_type", "argmax")
    return how


def _pooled_place(tower: Any, text: Tensor) -> Tensor:
    """Return the place [B] whose state one of open_clip's own towers takes as the pooled feature.

    Without an end token, 'eos' takes the first place, as in open_clip.
    """
    how = _pool(tower)
    if how == "argmax":
        return text.argmax(-1)
    if how == "eos":
        eos = tower.eos_id if hasattr(tower, "eos_id") else tower.text_eos_id
        return (text == eos).int().argmax(-1)
    if how == "first":
        return torch.zeros_like(text[:, 0])
    if how == "last":
        return torch.full_like(text[:, 0], text.shape[1] - 1)
    raise ValueError(f"a pooled feature needs a text tower that pools at one place, this one has pool_type={how!r}")


def _appends_class_token(tower: Any) -> bool:
    """Return whether the tower pools at a class token that it appends, as CoCa does, whatever its pool type."""
    return getattr(tower, "cls_emb", None) is not None


def _ignores_padding(tower: Any) -> bool:
    """Return whether captions can be cut after their end: no state that counts depends on the padding behind it."""
    if isinstance(tower, HFTextEncoder):
        return True
    sees_none = tower.attn_mask is not None or getattr(tower, "use_pad_mask", False)
    return sees_none and _pool(tower) != "last" and not _appends_class_token(tower)


def _length(tower: Any, text: Tensor, end: Tensor) -> int:
    last = end
    if not isinstance(tower, HFTextEncoder) and _ignores_padding(tower):
        last = torch.maximum(end, _pooled_place(tower, text)[:, None])  # an end token that is also the padding
    return int(last.max()) + 1


def _open_clip(tower: Any, text: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the pooled features [B, D] and the projected token states [B, L, D] of open_clip's own text tower."""
    if _ignores_padding(tower):
        text = text[:, :length]
    if _appends_class_token(tower):
        states = _states(tower, text)
        return states[:, -1], states[:, :-1]
    place = _pooled_place(tower, text)
    states = _states(tower, text)
    return states[torch.arange(len(text), device=text.device), place], states


def _states(tower: Any, text: Tensor) -> Tensor:
    """Return the projected states of all places [B, L, D], with that of an appended class token at the end."""
    if _appends_class_token(tower) or getattr(tower, "use_pad_mask", False):
        x, mask = tower._embeds(text)  # open_clip builds their masks
    else:
        x = tower.token_embedding(text)
        x = x + tower.positional_embedding[: text.shape[1]].to(x.dtype)
        mask = tower.attn_mask
        mask = None if mask is None else mask[: text.shape[1], : text.shape[1]]
    x = tower.ln_final(tower.transformer(x, attn_mask=mask))
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        x = projection(x)
    elif projection is not None:
        x = x @ projection
    return x


def _hugging_face(tower: Any, text: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the pooled features [B, D] and the projected token states [B, length, D] of a Hugging Face tower."""
    text = text[:, :length]
    attended = (text != tower.config.pad_token_id).long()
    out = tower.transformer(input_ids=text, attention_mask=attended)
    return tower.proj(tower.pooler(out, attended)), tower.proj(out.last_hidden_state)
