"""Matching images to captions by transport.

The distance of an image to a caption combines their pooled features with a transport plan between their tokens:

    d(i, j) = w (1 - <v_i, t_j>)  +  (1 - w) <P_ij, C_ij>,      C_nm = 1 - <v_in, t_jm>

Here P_ij is the entropic plan between the image's tokens and the caption's, both uniformly weighted, and w is the
``global_weight`` (0: transport alone, 1: RoCLIP's global matching). The plan is rounded to exact marginals (Altschuler,
Weed and Rigollet, NeurIPS 2017), so its cost is never below that of exact transport. Solving every plan of a pool would
dominate the cost of a defence. Exact transport has two lower bounds that cost next to nothing:

1. *Mean tokens.* With ``sigma^2 = 1 - |mean|^2``, (mean, sigma) is a unit vector of a token set, and
   <P, C> >= 1 - <mean_v, mean_t> - sigma_v sigma_t (Gelbrich's bound for unit tokens). It takes one dot product, to
   which that of the pooled features is added.
2. *Relaxed transport.* Each word goes to the patches that it is most like, as many as its mass fills, or each patch to
   the word that it is most like (Kusner et al., ICML 2015; with capacities Atasu and Mittelholzer, ICML 2019).

The search bounds all captions of an image by 1. Those that may still be nearest are bounded by 2, first on shortened
tokens and then on the tokens themselves. (Where 1 leaves too many, codes of the words come first: see ``token_sets``.)
The rest is solved in the order of the bounds, until no remaining bound is below the best distance found. The result is
exactly the nearest caption.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from otclib.matching.search import brute, distances, lower_bound, pruned
from otclib.matching.token_sets import TokenSets, short_size
from otclib.models import Features

# for ranking within a training set, which is done a million times
COARSE: dict[str, Any] = {"tol": 5e-3, "max_iter": 30}
IMAGES = 512  # that are matched at a time


@dataclass
class Match:
    """Nearest captions: ``index`` [B], ``distance`` [B], and ``solved``, the number of transport problems solved."""

    index: Tensor
    distance: Tensor
    solved: int


def match(
    image_tokens: Tensor,
    text_tokens: Tensor,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    reg: float,
    method: str = "pruned",
    image_pooled: Tensor | None = None,
    text_pooled: Tensor | None = None,
    global_weight: float = 0.0,
) -> Match:
    """Return, for every image, the nearest caption by the distance of this module; of equally near ones the first.

    Parameters
    ----------
    image_tokens [B, N, D], text_tokens [P, M, D] : token features, normalised here.
    image_mask [B, N], text_mask [P, M] : True for real tokens; every row needs one.
    reg : entropic regularisation of the plans.
    method : ``pruned`` solves few problems, ``brute`` solves all; both return the same captions.
    image_pooled [B, E], text_pooled [P, E], global_weight : the pooled part of the distance, default none.

    Raises
    ------
    ValueError : shapes that do not fit, a row without a token, tokens that are not finite, an unknown method.

    Examples
    --------
    One image of two places, and three captions of two words; the second caption has the words of these places.

    >>> axes = torch.eye(3)
    >>> image = axes[None, [0, 1]]
    >>> captions = torch.stack([axes[[2, 2]], axes[[1, 0]], axes[[1, 2]]])
    >>> match(image, captions, reg=0.1).index.tolist()
    [1]
    """
    if image_tokens.ndim != 3 or text_tokens.ndim != 3 or image_tokens.shape[-1] != text_tokens.shape[-1]:
        raise ValueError(
            f"tokens must be [B, N, D] and [P, M, D], got {tuple(image_tokens.shape)} and {tuple(text_tokens.shape)}"
        )
    if global_weight and (image_pooled is None or text_pooled is None):
        raise ValueError(f"global_weight {global_weight} needs image_pooled and text_pooled")
    sides = []
    for tokens, mask, pooled in ((image_tokens, image_mask, image_pooled), (text_tokens, text_mask, text_pooled)):
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if pooled is None or not global_weight:
            pooled = tokens.new_zeros(len(tokens), 0)
        sides.append(TokenSets.of(_checked(Features(pooled, tokens, mask))))
    return nearest(*sides, reg=reg, method=method, global_weight=global_weight)


def _checked(features: Features) -> Features:
    tokens, mask, pooled = features.tokens, features.mask, features.pooled
    if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool or pooled.shape[:-1] != tokens.shape[:1]:
        raise ValueError(
            f"tokens [S, L, D] need a bool mask [S, L] and pooled features [S, E], got {tuple(tokens.shape)}, "
            f"{mask.dtype} {tuple(mask.shape)} and {tuple(pooled.shape)}"
        )
    if not features.mask.any(1).all():
        none = int((~features.mask.any(1)).sum())
        raise ValueError(f"every image and caption needs at least one token, {none} of {len(features)} have none")
    if not torch.isfinite(tokens[mask].sum(-1)).all() or not torch.isfinite(pooled).all():
        raise ValueError("token and pooled features must be finite, some are not")
    return features


def nearest(
    images: TokenSets, captions: TokenSets, *, reg: float, method: str = "pruned", global_weight: float = 0.0
) -> Match:
    """Return what ``match`` returns, for token sets that are ready."""
    if method not in ("pruned", "brute"):
        raise ValueError(f"method is 'pruned' or 'brute', got {method!r}")
    if not 0 <= global_weight <= 1 or not 0 < reg < float("inf"):
        raise ValueError(f"global_weight must lie in [0, 1] and reg be positive, got {global_weight} and {reg}")
    B, P, reg = len(images), len(captions), float(reg)
    if not P:
        raise ValueError("there is no caption to match with")
    if images.tokens.shape[2] != captions.tokens.shape[2] or images.summary.shape[1] != captions.summary.shape[1]:
        raise ValueError(
            f"images have tokens of {images.tokens.shape[2]} and pooled features of {images.pooled.shape[1]} numbers, "
            f"captions of {captions.tokens.shape[2]} and {captions.pooled.shape[1]}"
        )
    best, index = images.summary.new_full((B,), torch.inf), torch.full_like(images.length, P)
    search, solved = {"pruned": pruned, "brute": brute}[method], 0
    for k in range(0, B, IMAGES):
        some = slice(k, k + IMAGES)
        solved += search(images[some], captions, best[some], index[some], reg, global_weight)
    return Match(index, best, solved)


class CaptionPool:
    """Token sets of a fixed number of captions; new captions replace the oldest.

    It holds ``size`` captions of at most ``words`` real tokens of ``dim`` numbers, with pooled features of
    ``pooled_dim`` numbers (default ``dim``). Memory is allocated when the pool is made and, for short tokens, at the
    first match: ``bytes_per_caption`` each. Matching adds blocks of a fixed size, and, where transport alone counts, a
    codebook of 4 bytes a word. In ``float16`` the tokens take half; they are matched as they were rounded, so the
    bounds still hold.
    ``ids`` [size] are the caller's names of the captions, -1 in empty places.
    """

    def __init__(
        self, size: int, words: int, dim: int, pooled_dim: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        if size < 1 or words < 1 or dim < 1 or dtype not in (torch.float32, torch.float16):
            raise ValueError(
                f"a pool has size, words and dim of at least 1 in float32 or float16, "
                f"got {size}, {words}, {dim}, {dtype}"
            )
        summary = (dim if pooled_dim is None else pooled_dim) + dim + 1
        self.ids = torch.full((size,), -1, dtype=torch.long)
        self.added = 0  # ever
        self._all = TokenSets(
            torch.zeros(size, words, dim, dtype=dtype), torch.ones(size, dtype=torch.long), torch.zeros(size, summary)
        )
        self._ready: TokenSets | None = None

    @classmethod
    def of(
        cls, features: Features, ids: Tensor | None = None, sample: int | None = None, seed: int = 0, **options: Any
    ) -> CaptionPool:
        """Return a pool of all of these captions, or of a ``sample`` of them drawn with ``seed``."""
        if not len(features) or (sample is not None and sample < 1):
            raise ValueError(f"a pool needs captions, got {len(features)} and a sample of {sample}")
        ids = torch.arange(len(features)) if ids is None else torch.as_tensor(ids).long()
        if sample is not None and sample < len(features):
            drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:sample]
            features, ids = features[drawn], ids[drawn]
        words = int(features.mask.sum(1).max())
        pool = cls(len(features), words, features.tokens.shape[-1], features.pooled.shape[-1], **options)
        pool.add(features, ids)
        return pool

    @property
    def bytes_per_caption(self) -> int:
        """Return the bytes of a caption with all its words, and its short tokens, made at the first match, included."""
        words, dim = self._all.tokens.shape[1:]
        own = words * dim * self._all.tokens.element_size() + self._all.summary.shape[1] * 4 + 16
        return own + words * short_size(dim) * 4

    @property
    def size(self) -> int:
        return len(self.ids)

    def __len__(self) -> int:
        return min(self.added, self.size)

    def add(self, features: Features, ids: Tensor | None = None) -> Tensor:
        """Add captions, in place of the oldest once the pool is full; return their places [S]."""
        new = TokenSets.of(_checked(features), self._all.tokens.dtype)
        ids = None if ids is None else torch.as_tensor(ids).long()
        words, dim = self._all.tokens.shape[1:]
        if len(new) > self.size or new.tokens.shape[1] > words or new.tokens.shape[2] != dim:
            raise ValueError(
                f"the pool takes up to {self.size} captions of up to {words} words of {dim} numbers at once, "
                f"got {len(new)} of up to {new.tokens.shape[1]} words of {new.tokens.shape[2]}"
            )
        if new.summary.shape[1] != self._all.summary.shape[1] or (ids is not None and len(ids) != len(new)):
            raise ValueError(
                f"pooled features must have {self._all.pooled.shape[1]} numbers and ids be one per caption, got "
                f"{new.pooled.shape[1]} and {None if ids is None else len(ids)} for {len(new)}"
            )
        places = (self.added + torch.arange(len(new))) % self.size
        self._all.tokens[places] = 0
        self._all.tokens[places, : new.tokens.shape[1]] = new.tokens.cpu()
        self._all.length[places], self._all.summary[places] = new.length.cpu(), new.summary.cpu()
        self.ids[places] = self.added + torch.arange(len(new)) if ids is None else ids
        self.added += len(new)
        self._ready = None
        return places

    def match(
        self, images: Features | TokenSets, *, reg: float, method: str = "pruned", global_weight: float = 0.0
    ) -> Match:
        """Return the nearest caption of the pool for every image; ``index`` is the place in the pool."""
        if not len(self):
            raise ValueError("the pool is empty: add captions before matching")
        if self._ready is None:  # after an addition the short tokens are made anew, in the directions chosen at first
            self._ready = self._all[: len(self)]
            self._ready.basis = self._all.basis
        if isinstance(images, Features):
            images = TokenSets.of(_checked(images))
        self._all.basis = self._ready.prepare().basis
        return nearest(images, self._ready, reg=reg, method=method, global_weight=global_weight)

    def save(self, path: str | Path) -> None:
        """Write the pool as one safetensors file; an interrupted write leaves an earlier file unchanged."""
        path, sets = Path(path), self._all
        part = path.with_name(path.name + ".part")
        tensors = {"tokens": sets.tokens, "length": sets.length, "summary": sets.summary, "ids": self.ids}
        safetensors.torch.save_file(tensors, part, metadata={"otclib": "CaptionPool", "added": str(self.added)})
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | Path) -> CaptionPool:
        """Return the pool that ``save`` wrote."""
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("otclib") != "CaptionPool":
                raise ValueError(f"{path} is not a caption pool: its metadata is {about}")
            t = {name: file.get_tensor(name) for name in file.keys()}
        size, words, dim = t["tokens"].shape
        pool = cls(size, words, dim, t["summary"].shape[1] - dim - 1, t["tokens"].dtype)
        pool._all, pool.ids, pool.added = (
            TokenSets(t["tokens"], t["length"], t["summary"]),
            t["ids"],
            int(about["added"]),
        )
        return pool


@dataclass
class Ranking:
    """The rank of each item's own partner among a pool of others.

    ``own_distance`` [B]; ``own_rank`` [B]: the share of the pool that is nearer than the own partner, counted up to
    ``share`` and 1.0 beyond; ``nearest`` [B], ``nearest_distance`` [B]: the pool's nearest (infinite: none is allowed).
    """

    own_distance: Tensor
    own_rank: Tensor
    nearest: Tensor
    nearest_distance: Tensor


def rank_own(
    x: Features | TokenSets,
    own: Features | TokenSets,
    pool: Features | TokenSets,
    *,
    reg: float,
    share: float,
    global_weight: float = 0.0,
    among: Tensor | None = None,
) -> Ranking:
    """Rank the partner ``own[i]`` of every ``x[i]`` among ``pool``; only the nearest ``share`` (by bound) is solved.

    Distances are symmetric, so x may be images and the others captions, or the other way round. ``among`` [P] bool
    marks the items of the pool that may be ``nearest``; the rank counts all items.
    """
    x, own, pool = TokenSets.of(x), TokenSets.of(own), TokenSets.of(pool)
    top = min(len(pool), round(share * len(pool)) + 1)
    # the mean tokens and pooled features choose the candidates, transport decides among them
    candidates = lower_bound(x, pool, max(global_weight, 0.5)).topk(top, dim=1, largest=False).indices
    each = torch.arange(len(x), device=candidates.device)[:, None]
    d = distances(x, pool, candidates, reg, global_weight, **COARSE)
    own_d = distances(x, own, each, reg, global_weight, **COARSE)[:, 0]
    nearer = (d < own_d[:, None] - 1e-6).sum(1)
    rank = nearer / len(pool)
    if top < len(pool):
        rank[nearer == top] = 1.0
    if among is not None:
        d = d.masked_fill(~among[candidates], torch.inf)
    nearest_d, at = d.min(1)
    return Ranking(own_d, rank, candidates.gather(1, at[:, None])[:, 0], nearest_d)
