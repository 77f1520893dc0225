"""The search for the nearest caption, which computes few distances.

Three searches return the same captions: ``brute`` solves every distance; ``pruned`` is compiled for the CPU and goes
image by image; on other devices ``pruned`` searches for all images together, in rounds.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from otclib.matching.token_sets import BLOCK, Codebook, TokenSets
from otclib.models import Features
from otclib.transport import Transport, compiled, sinkhorn

MATCH_TOL, MATCH_ITER = 1e-4, 500
ROUNDING = 1e-5  # bounds and distances are float32
WORTH_CODING = 2**20  # a codebook pays when the first bound leaves more pairs than this


def lower_bound(images: Features | TokenSets, captions: Features | TokenSets, global_weight: float = 0.0) -> Tensor:
    """Return a lower bound of the distance of every image to every caption [B, P], by their summaries."""
    return 1 - TokenSets.of(images).queries(global_weight) @ TokenSets.of(captions).summary.T


def distances(
    images: Features | TokenSets,
    captions: Features | TokenSets,
    candidates: Tensor,
    reg: float,
    global_weight: float = 0.0,
    tol: float = MATCH_TOL,
    max_iter: int = MATCH_ITER,
) -> Tensor:
    """Return the distance [B, K] of image i to each of its candidate captions ``candidates[i]`` [B, K]."""
    images, captions = TokenSets.of(images), TokenSets.of(captions)
    if candidates.ndim != 2 or len(candidates) != len(images) or candidates.is_floating_point():
        raise ValueError(
            f"candidates must be [B, K] indices for the {len(images)} images, "
            f"got {candidates.dtype} of shape {tuple(candidates.shape)}"
        )
    candidates = candidates.long()
    if candidates.numel() and not 0 <= int(candidates.min()) <= int(candidates.max()) < len(captions):
        least, most = int(candidates.min()), int(candidates.max())
        raise ValueError(f"candidates must lie in 0 ... {len(captions) - 1}, got {least} ... {most}")
    B, K = candidates.shape
    how = {"reg": reg, "tol": tol, "max_iter": max_iter}
    if kernel := compiled_for(images):
        part, cols = captions.floats(candidates.reshape(-1))
        first = torch.arange(B + 1) * K
        out = kernel.costs(images, part, first.numpy(), cols.numpy(), weight=global_weight, **how)
        return torch.from_numpy(out).view(B, K)
    d = images.summary.new_zeros(B, K)
    if global_weight < 1:
        rows = torch.arange(B, device=candidates.device)[:, None].expand(B, K)
        cost = _costs(images, captions, rows.reshape(-1), candidates.reshape(-1), **how).view(B, K)
        d = (1 - global_weight) * cost
    if global_weight > 0:
        d = d + global_weight * (1 - torch.einsum("bd,bkd->bk", images.pooled, captions.pooled[candidates]))
    return d


def compiled_for(images: TokenSets) -> ModuleType | None:
    """Return the compiled kernels of the CPU, if these tokens are on the CPU and Numba is installed; else None."""
    if images.tokens.device.type == "cpu" and compiled():
        from otclib.matching import cpu

        return cpu
    return None


def _costs(images: TokenSets, captions: TokenSets, rows: Tensor, cols: Tensor, **how: Any) -> Tensor:
    """Return the transport costs of the pairs (rows, cols) [K], where the CPU's compiled kernel does not apply."""
    from otclib.matching import cuda

    captions, cols = captions.floats(cols)
    if cuda.available(images.tokens):
        sides = (images.tokens, images.length, captions.tokens, captions.length)
        return cuda.pair_costs(*sides, rows, cols, **how).cost
    size = max(1, 2**20 // (images.tokens.shape[1] * captions.tokens.shape[1]))  # a few MiB at a time
    out = []
    for some in torch.arange(len(rows), device=rows.device).split(size):
        v, t = images[rows[some]], captions[cols[some]]
        C = 1 - t.tokens @ v.tokens.transpose(1, 2)
        out.append(feasible_cost(sinkhorn(C, t.real.float(), v.real.float(), **how), C))
    return torch.cat(out) if out else images.summary.new_zeros(0)


def feasible_cost(solved: Transport, C: Tensor) -> Tensor:
    """Return <P, C> [B] of the plan rounded to exact marginals.

    Rounded by Algorithm 2 of Altschuler, Weed and Rigollet, NeurIPS 2017.
    """
    P, (a, b) = solved.plan, solved.weights
    P = P * (a / P.sum(-1).clamp(min=1e-38)).clamp(max=1)[..., :, None]
    P = P * (b / P.sum(-2).clamp(min=1e-38)).clamp(max=1)[..., None, :]
    short_a, short_b = (a - P.sum(-1)).clamp(min=0), (b - P.sum(-2)).clamp(min=0)
    moved = torch.einsum("...n,...nm,...m->...", short_a, C, short_b) / short_a.sum(-1).clamp(min=1e-38)
    return (P * C).sum((-2, -1)) + moved


def brute(images: TokenSets, captions: TokenSets, best: Tensor, index: Tensor, reg: float, weight: float) -> int:
    """Solve every problem, update best [B] and index [B], and return the number of problems solved."""
    size = BLOCK if captions.tokens.dtype == torch.float32 else captions.block
    for start in range(0, len(captions), size):
        some = torch.arange(start, min(len(captions), start + size), device=best.device).expand(len(images), -1)
        _keep_nearer(distances(images, captions, some, reg, weight), some, slice(None), best, index)
    return len(images) * len(captions)


def pruned(images: TokenSets, captions: TokenSets, best: Tensor, index: Tensor, reg: float, weight: float) -> int:
    """Do what ``brute`` does by the bounds of ``matching.pool``, compiled, block after block of captions."""
    kernel, solved = compiled_for(images), 0
    if kernel is None:
        return _pruned_in_rounds(images, captions, best, index, reg, weight)
    how = {"weight": weight, "reg": reg, "tol": MATCH_TOL, "max_iter": MATCH_ITER, "rounding": ROUNDING}
    queries = images.queries(weight)
    turned = kernel.turned(images, captions.prepare().basis)
    guessed: list[Tensor] = []
    cosines = None  # cosines with the codebook's centroids, once they are needed

    def solve(rows: Tensor, cols: Tensor) -> int:
        first = torch.searchsorted(rows, torch.arange(len(images) + 1))
        part, at = captions.floats(start + cols)
        pairs = (x.numpy() for x in (first, at, start + cols, bound[rows, cols]))
        return kernel.nearest(turned, images, part, *pairs, best=best.numpy(), index=index.numpy(), **how)

    def guess() -> int:
        """Solve the few captions of the lowest bounds first, so that ``best`` is small early."""
        few = bound.topk(min(4, bound.shape[1]), dim=1, largest=False).indices
        count = solve(torch.arange(len(few)).repeat_interleave(few.shape[1]), few.flatten())
        guessed.append(few)
        bound.scatter_(1, few, torch.inf)
        return count

    for z, start in enumerate(range(0, len(captions), BLOCK)):
        block = slice(start, start + BLOCK)
        if cosines is None:
            bound = torch.addmm(torch.tensor(1 - ROUNDING), queries, captions.summary[block].T, alpha=-1)
            solved += guess() if start == 0 else 0
            rows, cols = (bound <= best[:, None]).nonzero(as_tuple=True)
            if start == 0 and weight < 1 and len(rows) * -(-len(captions) // BLOCK) > WORTH_CODING:
                captions.codebook = captions.codebook or Codebook.of(captions)
                cosines = kernel.sorted_cosines(images, captions.codebook.centroids)
        if cosines is not None:
            bound = torch.addmm(torch.tensor(weight - ROUNDING), images.pooled, captions.pooled[block].T, alpha=-weight)
            kernel.raise_by_codes(bound, cosines, images, captions.codebook, z, weight)
            if start == 0:
                bound.scatter_(1, guessed[0], torch.inf)
                solved += guess()
            rows, cols = (bound <= best[:, None]).nonzero(as_tuple=True)
        solved += solve(rows, cols)
    return solved


def _pruned_in_rounds(
    images: TokenSets, captions: TokenSets, best: Tensor, index: Tensor, reg: float, weight: float
) -> int:
    """Do what ``pruned`` does on any device: all images together, in rounds that double the number of captions."""
    solved = 0
    for block in range(0, len(captions), BLOCK):
        bound, order = (lower_bound(images, captions[block : block + BLOCK], weight) - ROUNDING).sort(dim=1)
        width, start = 4, 0
        while start < bound.shape[1]:
            rows = (bound[:, start] <= best).nonzero()[:, 0]
            if not len(rows):
                break
            candidates = block + order[rows, start : start + width]
            d = distances(images[rows], captions, candidates, reg, weight)
            _keep_nearer(d, candidates, rows, best, index)
            solved += d.numel()
            start, width = start + width, 2 * width
    return solved


def _keep_nearer(d: Tensor, candidates: Tensor, rows: Tensor | slice, best: Tensor, index: Tensor) -> None:
    value = d.amin(1)
    winner = candidates.masked_fill(d > value[:, None], torch.iinfo(torch.long).max).amin(1)  # of equal ones the first
    better = (value < best[rows]) | ((value == best[rows]) & (winner < index[rows]))
    best[rows], index[rows] = torch.where(better, value, best[rows]), torch.where(better, winner, index[rows])
