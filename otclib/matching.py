"""Matching images to captions by transport.

The distance of an image to a caption combines what the towers say as a whole with what their tokens say one by one:

    d(i, j) = w (1 - <v_i, t_j>)  +  (1 - w) <P_ij, C_ij>,      C_nm = 1 - <v_in, t_jm>

with P_ij the entropic plan between the image's tokens and the caption's, both uniformly weighted, and w the
``global_weight`` (0: transport alone, 1: RoCLIP's global matching). Solving every plan of a pool would be the whole
cost of a defence; two facts avoid it. The plan's cost can not be below what the *mean* tokens allow,

    <P, C>  >=  1/2 |mean(v) - mean(t)|^2 + 1/2 (sigma_v - sigma_t)^2,      sigma^2 = 1 - |mean|^2

(Gelbrich's bound for unit vectors), which is one dot product per pair. And an entropic plan with exact marginals costs
at least as much as the exact one. So candidates are solved in the order of their bound, until no bound left is below
the best distance found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otclib.models import Features
from otclib.transport import sinkhorn

MATCH_TOL, MATCH_ITER = 1e-3, 500  # a plan's cost is then right to about tol * max C
COARSE = {"tol": 2e-2, "max_iter": 15}  # for ranking within a training set, which is done a million times


@dataclass
class Match:
    """Nearest captions. ``index`` [B], ``distance`` [B], ``solved``: how many transport problems it took."""

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
    """For every image, the nearest caption by the distance above.

    Parameters
    ----------
    image_tokens [B, N, D], text_tokens [P, M, D] : L2-normalised token features.
    image_mask [B, N], text_mask [P, M] : True for real tokens; every row needs one.
    reg : entropic regularisation of the plans.
    method : ``pruned`` solves few problems, ``brute`` all of them; both return the same.
    image_pooled [B, D], text_pooled [P, D], global_weight : the whole-image part of the distance, default none.
    """
    if method not in ("pruned", "brute"):
        raise ValueError(f"method is 'pruned' or 'brute', got {method!r}")
    if image_tokens.ndim != 3 or text_tokens.ndim != 3 or image_tokens.shape[-1] != text_tokens.shape[-1]:
        raise ValueError(
            f"tokens must be [B, N, D] and [P, M, D], got {tuple(image_tokens.shape)} and {tuple(text_tokens.shape)}"
        )
    if global_weight and (image_pooled is None or text_pooled is None):
        raise ValueError(f"global_weight {global_weight} needs image_pooled and text_pooled")
    images = _features(image_tokens, image_mask, image_pooled)
    captions = _features(text_tokens, text_mask, text_pooled)
    B, P = len(images), len(captions)
    bound = lower_bound(images, captions, global_weight)  # (B, P)
    bound, order = bound.sort(dim=1)
    best = torch.full((B,), torch.inf, device=bound.device)
    index = torch.zeros(B, dtype=torch.long, device=bound.device)
    width, start, solved = (P if method == "brute" else 4), 0, 0
    while start < P:
        stop = min(P, start + width)
        # a bound within the solver's own error of the best distance is still worth a look
        rows = torch.arange(B) if method == "brute" else (bound[:, start] <= best + 2 * MATCH_TOL).nonzero()[:, 0]
        if not len(rows):
            break
        candidates = order[rows, start:stop]
        d = distances(images[rows], captions, candidates, reg, global_weight)
        solved += d.numel()
        # ties go to the lower index, so that both methods and any order agree
        value, _ = d.min(1)
        winner = torch.where(d <= value[:, None], candidates, P).amin(1)
        better = (value < best[rows]) | ((value == best[rows]) & (winner < index[rows]))
        best[rows[better]], index[rows[better]] = value[better], winner[better]
        start, width = stop, width * 2
    return Match(index, best, solved)


def _features(tokens: Tensor, mask: Tensor | None, pooled: Tensor | None) -> Features:
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if not mask.any(1).all():
        raise ValueError(f"every image and caption needs at least one token, {int((~mask.any(1)).sum())} have none")
    return Features(pooled if pooled is not None else tokens[:, 0], tokens, mask)


def mean_token(features: Features) -> tuple[Tensor, Tensor]:
    """Mean of the real tokens [B, D] and their spread sigma [B]."""
    w = features.mask.to(features.tokens.dtype)
    mean = torch.einsum("bnd,bn->bd", features.tokens, w / w.sum(1, keepdim=True))
    return mean, (1 - mean.square().sum(-1)).clamp(min=0).sqrt()


def lower_bound(images: Features, captions: Features, global_weight: float = 0.0) -> Tensor:
    """A lower bound of the distance of every image to every caption [B, P]."""
    (v, sv), (t, st) = mean_token(images), mean_token(captions)
    bound = 0.5 * torch.cdist(v.float(), t.float(), compute_mode="use_mm_for_euclid_dist").square()
    bound = bound + 0.5 * (sv[:, None] - st[None]).square()
    return _combine(images.pooled @ captions.pooled.T, bound, global_weight)


def _combine(cosine: Tensor, transport: Tensor, global_weight: float) -> Tensor:
    if not global_weight:
        return transport
    return global_weight * (1 - cosine) + (1 - global_weight) * transport


def distances(
    images: Features,
    captions: Features,
    candidates: Tensor,
    reg: float,
    global_weight: float = 0.0,
    tol: float = MATCH_TOL,
    max_iter: int = MATCH_ITER,
) -> Tensor:
    """The distance of image i to each of its candidate captions ``candidates[i]`` [B, K] -> [B, K]."""
    out = []
    # a few MiB at a time: what the allocator hands out again stays in the cache
    chunk = max(1, 2**20 // max(1, candidates.shape[1] * images.tokens.shape[1] * captions.tokens.shape[1]))
    for k in range(0, len(images), chunk):
        v, some = images[slice(k, k + chunk)], candidates[k : k + chunk]
        t = captions[some.reshape(-1)]
        B, K = some.shape
        words = t.tokens.view(B, -1, t.tokens.shape[-1])  # (B, KM, D)
        C = (1 - words @ v.tokens.transpose(1, 2)).view(B * K, -1, v.tokens.shape[1])  # (BK, M, N): words by places
        a = v.mask[:, None].expand(B, K, -1).reshape(B * K, -1).float()
        plan = sinkhorn(C, t.mask.float(), a, reg=reg, tol=tol, max_iter=max_iter)
        cosine = torch.einsum("bd,bkd->bk", v.pooled, t.pooled.view(B, K, -1))
        out.append(_combine(cosine, plan.cost.view(B, K), global_weight))
    return torch.cat(out)


@dataclass
class Ranking:
    """Where one's own partner stands against a pool of others.

    ``own_distance`` [B]; ``own_rank`` [B]: the share of the pool that is nearer than the own partner, counted up to
    ``share`` and 1.0 beyond; ``nearest`` [B], ``nearest_distance`` [B]: the pool's nearest (infinite: none may be).
    """

    own_distance: Tensor
    own_rank: Tensor
    nearest: Tensor
    nearest_distance: Tensor


def rank_own(
    x: Features,
    own: Features,
    pool: Features,
    *,
    reg: float,
    share: float,
    global_weight: float = 0.0,
    among: Tensor | None = None,
) -> Ranking:
    """Rank the partner ``own[i]`` of every ``x[i]`` among ``pool``, whose nearest ``share`` (by bound) is solved.

    Distances are symmetric, so x may be images and the others captions, or the other way round. ``among`` [P] says
    which of the pool may be ``nearest``; all are counted in the rank.
    """
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
