"""Matching images to captions by transport.

The distance of an image to a caption combines what the towers say as a whole with what their tokens say one by one:

    d(i, j) = w (1 - <v_i, t_j>)  +  (1 - w) <P_ij, C_ij>,      C_nm = 1 - <v_in, t_jm>

with P_ij the entropic plan between the image's tokens and the caption's, both uniformly weighted, and w the
``global_weight`` (0: transport alone, 1: RoCLIP's global matching). The plan is rounded to exact marginals (Altschuler,
Weed and Rigollet, NeurIPS 2017), so that its cost is never below that of exact transport. Solving every plan of a pool
would be the whole cost of a defence; exact transport has bounds that are nearly free:

1. the *mean* tokens and what they leave over, sigma^2 = 1 - |mean|^2, which make a unit vector (mean, sigma) of a
   token set, and <P, C> >= 1 - <mean_v, mean_t> - sigma_v sigma_t (Gelbrich's bound for unit tokens): one dot product,
   to which the pooled features' own is added;
2. each word to the patches that it is most like, as many as its mass fills, and each patch to the word that it is most
   like (Kusner et al., ICML 2015, and with capacities Atasu and Mittelholzer, ICML 2019).

An image's captions are bounded by 1; those that may still be nearest by 2; and the rest is solved in the order of the
bounds, until no bound left is below the best distance found. What is returned is the nearest caption, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from otclib.models import Features
from otclib.transport import Transport, compiled, sinkhorn

MATCH_TOL, MATCH_ITER = 1e-4, 500
COARSE = {"tol": 2e-2, "max_iter": 15}  # for ranking within a training set, which is done a million times
BLOCK = 2**14  # captions that are bounded at a time ...
IMAGES = 512  # ... for this many images
ROUNDING = 1e-5  # bounds and distances are float32
CENTROIDS, RANGES = 512, 16  # of a codebook
WORTH_CODING = 2**20  # pairs that must be left for a codebook to be worth its making


@dataclass
class Match:
    """Nearest captions. ``index`` [B], ``distance`` [B], ``solved``: how many transport problems it took."""

    index: Tensor
    distance: Tensor
    solved: int


def short_size(dim: int) -> int:
    """Numbers of a short token, for tokens of ``dim``."""
    return dim if dim <= 32 else max(32, dim // 8)


@dataclass
class TokenSets:
    """Token sets made ready for matching: unit tokens, the real ones first.

    ``tokens`` [S, L, D], ``length`` [S]: how many are real; ``summary`` [S, E + D + 1]: pooled feature (E numbers),
    mean token, sigma.
    """

    tokens: Tensor
    length: Tensor
    summary: Tensor
    basis: Tensor | None = None
    flat: tuple[Tensor, Tensor] | None = None
    codebook: Codebook | None = None

    def short(self, basis: Tensor) -> Tensor:
        """Tokens of fewer numbers [S, L, R], of which the products are never less than the tokens'.

        A token is its part in the span of ``basis`` [D, R - 1], and the length of the rest:
        <v, t> <= <v', t'> + |v''| |t''|.
        """
        tokens = self.tokens.float()
        part = tokens @ basis
        rest = (tokens.square().sum(-1) - part.square().sum(-1)).clamp(min=0).sqrt()
        return torch.cat([part, rest[..., None]], -1)

    def prepare(self) -> None:
        """Choose a basis, the leading principal directions of the tokens, and keep the real short tokens [T, R]."""
        real, D = self.weights().bool(), self.tokens.shape[-1]
        some = self.tokens[real][:: max(1, int(self.length.sum()) // 2**16)].float()
        self.basis = torch.linalg.eigh(some.T @ some)[1].flip(1)[:, : short_size(D) - 1].contiguous()
        parts = [part.short(self.basis)[part.weights().bool()] for part in (self[k : k + BLOCK] for k in range(0, len(self), BLOCK))]
        self.flat = torch.cat(parts), F.pad(self.length.cumsum(0), (1, 0))

    @property
    def pooled(self) -> Tensor:
        return self.summary[:, : -self.tokens.shape[-1] - 1]

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows) -> TokenSets:
        return TokenSets(self.tokens[rows], self.length[rows], self.summary[rows])

    def weights(self) -> Tensor:
        """1 for a real token, 0 for padding [S, L]."""
        return (torch.arange(self.tokens.shape[1], device=self.length.device) < self.length[:, None]).float()

    def floats(self, rows: Tensor) -> tuple[TokenSets, Tensor]:
        """Token sets in float32 of which ``rows`` [K] of these are the returned [K]."""
        if self.tokens.dtype == torch.float32:
            return self, rows
        some, at = rows.unique(return_inverse=True)
        tokens = F.normalize(self.tokens[some].float(), dim=-1)
        flat = None
        if self.flat is not None:
            words, first = self.flat
            flat = torch.cat([words[a:b] for a, b in zip(first[some], first[some + 1])]), F.pad(self.length[some].cumsum(0), (1, 0))
        return TokenSets(tokens, self.length[some], self.summary[some], self.basis, flat), at

    @staticmethod
    def of(features: Features | TokenSets) -> TokenSets:
        if isinstance(features, TokenSets):
            return features
        tokens, mask = features.tokens.detach().float(), features.mask
        length = mask.sum(1)
        if not (mask[:, :-1] >= mask[:, 1:]).all():
            order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
            tokens = tokens.gather(1, order[:, :, None].expand_as(tokens))
        tokens = tokens[:, : int(length.max())] if len(length) else tokens
        real = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
        tokens = (F.normalize(tokens, dim=-1) * real[:, :, None]).contiguous()
        mean = tokens.sum(1) / length[:, None]
        sigma = (1 - mean.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
        pooled = F.normalize(features.pooled.detach().float(), dim=-1)
        return TokenSets(tokens, length, torch.cat([pooled, mean, sigma], 1))

    def queries(self, weight: float) -> Tensor:
        """q with d >= 1 - <q, summary> for the other side's summaries."""
        q = self.summary.clone()
        E = self.pooled.shape[1]
        q[:, :E] *= weight
        q[:, E:] *= 1 - weight
        return q


@dataclass
class Codebook:
    """Every word of a pool as a code: the centroid that is nearest, and one of 16 ranges of the angle to it.

    ``centroids`` [K, D]; ``along``, ``across`` [16 K] cosine and sine of the largest angle that a code stands for;
    ``blocks``: per block of captions their order by length [b], the lengths [b] in that order, and their codes [1, words],
    for every length as [m, captions of this length].
    """

    centroids: Tensor
    along: Tensor
    across: Tensor
    blocks: list[tuple[Tensor, Tensor, Tensor]]

    @staticmethod
    def of(sets: TokenSets, size: int = CENTROIDS, rounds: int = 2, seed: int = 0) -> Codebook:
        """Spherical k-means on a sample of the words; every word then goes to its nearest centroid."""
        real = sets.weights().bool()
        where = real.flatten().nonzero()[:, 0]
        flat = sets.tokens.view(-1, sets.tokens.shape[-1])
        sample = where[torch.randperm(len(where), generator=torch.Generator().manual_seed(seed))[: 16 * size]]
        words = F.normalize(flat[sample].float(), dim=-1)
        centroids = words[:size].clone()
        for _ in range(rounds):
            own = (words @ centroids.T).argmax(1)
            sums = torch.zeros_like(centroids).index_add_(0, own, words)
            centroids = torch.where(sums.norm(dim=1, keepdim=True) < 1e-6, centroids, F.normalize(sums, dim=-1))
        code, cosine = torch.zeros(real.shape, dtype=torch.long), torch.ones(real.shape)
        for some in where.split(8192):
            value, which = (F.normalize(flat[some].float(), dim=-1) @ centroids.T).max(1)
            code.view(-1)[some], cosine.view(-1)[some] = which, value.clamp(max=1.0)
        edges = cosine.flatten()[sample].sort().values[:: -(-len(sample) // RANGES)]
        code = RANGES * code + torch.bucketize(cosine, edges, right=True).sub_(1).clamp_(0)
        along = torch.ones(RANGES * len(centroids)).scatter_reduce(0, code[real], cosine[real], "amin")
        blocks = []
        for start in range(0, len(sets), BLOCK):
            length = sets.length[start : start + BLOCK]
            order = torch.argsort(length, stable=True)
            codes = [code[start + order[length[order] == m], : int(m)].T.flatten() for m in length.unique()]
            blocks.append((order, length[order], torch.cat(codes).int()[None]))
        return Codebook(centroids, along, (1 - along.square()).clamp(min=0).sqrt(), blocks)


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
    """For every image, the nearest caption by the distance above; of equally near ones the first.

    Parameters
    ----------
    image_tokens [B, N, D], text_tokens [P, M, D] : token features, normalised here.
    image_mask [B, N], text_mask [P, M] : True for real tokens; every row needs one.
    reg : entropic regularisation of the plans.
    method : ``pruned`` solves few problems, ``brute`` all of them; both return the same.
    image_pooled [B, E], text_pooled [P, E], global_weight : the whole-image part of the distance, default none.

    Raises
    ------
    ValueError : shapes that do not fit, a row without a token, tokens that are not finite, an unknown method.
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
        if pooled is None:
            pooled = tokens.new_zeros(len(tokens), 0)
        sides.append(TokenSets.of(_checked(Features(pooled, tokens, mask))))
    return nearest(*sides, reg=reg, method=method, global_weight=global_weight)


def _checked(features: Features) -> Features:
    if not features.mask.any(1).all():
        none = int((~features.mask.any(1)).sum())
        raise ValueError(f"every image and caption needs at least one token, {none} of {len(features)} have none")
    if not torch.isfinite(features.tokens[features.mask]).all() or not torch.isfinite(features.pooled).all():
        raise ValueError("token and pooled features must be finite, some are not")
    return features


def nearest(
    images: TokenSets, captions: TokenSets, *, reg: float, method: str = "pruned", global_weight: float = 0.0
) -> Match:
    """``match`` on what is made ready already."""
    if method not in ("pruned", "brute"):
        raise ValueError(f"method is 'pruned' or 'brute', got {method!r}")
    if not 0 <= global_weight <= 1 or not 0 < reg < float("inf"):
        raise ValueError(f"global_weight must lie in [0, 1] and reg be positive, got {global_weight} and {reg}")
    B, P = len(images), len(captions)
    if not P:
        raise ValueError("there is no caption to match with")
    best, index = images.summary.new_full((B,), torch.inf), torch.full_like(images.length, P)
    if method == "brute":
        search = _brute
    else:
        search = _search if _kernel(images) else _search_in_rounds
    solved = 0
    for k in range(0, B, IMAGES):
        some = slice(k, k + IMAGES)
        solved += search(images[some], captions, best[some], index[some], reg, global_weight)
    return Match(index, best, solved)


def _kernel(images: TokenSets):
    """The compiled kernels of the CPU, if these features lie there and Numba does too."""
    if images.tokens.device.type == "cpu" and compiled():
        from otclib.kernels import match as kernel

        return kernel
    return None


def _search(images, captions, best, index, reg, weight) -> int:
    """Update best [B] and index [B] by the captions, in blocks. Returns how many problems that took."""
    kernel, queries, solved = _kernel(images), images.queries(weight), 0
    one = torch.tensor(1 - ROUNDING)
    if captions.flat is None:
        captions.prepare()
    how = {"weight": weight, "reg": reg, "tol": MATCH_TOL, "max_iter": MATCH_ITER, "rounding": ROUNDING}

    def solve(rows: Tensor, cols: Tensor) -> int:
        first = torch.searchsorted(rows, torch.arange(len(images) + 1))
        part, at = captions.floats(some[cols])
        pairs = (x.numpy() for x in (first, at, some[cols], bound[rows, cols]))
        return kernel.nearest(images, part, *pairs, best=best.numpy(), index=index.numpy(), **how)

    def guess() -> int:
        few = bound.topk(min(4, len(some)), dim=1, largest=False).indices
        count = solve(torch.arange(len(few)).repeat_interleave(few.shape[1]), few.flatten())
        bound.scatter_(1, few, torch.inf)
        return count

    codebook, cosines = captions.codebook, None
    for z, start in enumerate(range(0, len(captions), BLOCK)):
        some = torch.arange(start, min(len(captions), start + BLOCK))
        if codebook is None:
            bound = torch.addmm(one, queries, captions.summary[start : start + BLOCK].T, alpha=-1)
            solved += guess() if start == 0 else 0
            rows, cols = (bound <= best[:, None]).nonzero(as_tuple=True)
            if weight < 1 and len(rows) * -(-len(captions) // BLOCK) > WORTH_CODING:
                codebook = captions.codebook = Codebook.of(captions)
        if codebook is not None:
            if cosines is None:
                cosines = kernel.sorted_cosines(images, codebook.centroids)
            bound = torch.addmm(one * weight, images.pooled, captions.pooled[start : start + BLOCK].T, alpha=-weight)
            kernel.coded(cosines, images, codebook.blocks[z], codebook.along, codebook.across, bound, weight)
            solved += guess() if start == 0 else 0
            rows, cols = (bound <= best[:, None]).nonzero(as_tuple=True)
        solved += solve(rows, cols)
    return solved


def _brute(images, captions, best, index, reg, weight) -> int:
    """The same by solving every problem."""
    for start in range(0, len(captions), BLOCK):
        some = torch.arange(start, min(len(captions), start + BLOCK), device=best.device)
        d = distances(images, captions, some.expand(len(images), -1), reg, weight)
        _keep_nearer(d, some.expand(len(images), -1), slice(None), best, index)
    return len(images) * len(captions)


def _search_in_rounds(images, captions, best, index, reg, weight) -> int:
    """The same for every device: all images together, in rounds of twice as many captions each."""
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


def _keep_nearer(d: Tensor, candidates: Tensor, rows, best: Tensor, index: Tensor) -> None:
    value = d.amin(1)
    winner = candidates.masked_fill(d > value[:, None], torch.iinfo(torch.long).max).amin(1)  # of equal ones the first
    better = (value < best[rows]) | ((value == best[rows]) & (winner < index[rows]))
    best[rows], index[rows] = torch.where(better, value, best[rows]), torch.where(better, winner, index[rows])


def lower_bound(images: Features | TokenSets, captions: Features | TokenSets, global_weight: float = 0.0) -> Tensor:
    """A lower bound of the distance of every image to every caption [B, P], by their summaries."""
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
    """The distance of image i to each of its candidate captions ``candidates[i]`` [B, K] -> [B, K]."""
    images, captions = TokenSets.of(images), TokenSets.of(captions)
    B, K = candidates.shape
    if kernel := _kernel(images):
        part, cols = captions.floats(candidates.reshape(-1))
        how = {"weight": global_weight, "reg": reg, "tol": tol, "max_iter": max_iter}
        return torch.from_numpy(kernel.costs(images, part, (torch.arange(B + 1) * K).numpy(), cols.numpy(), **how)).view(B, K)
    out = []
    # a few MiB at a time: what the allocator hands out again stays in the cache
    chunk = max(1, 2**20 // max(1, K * images.tokens.shape[1] * captions.tokens.shape[1]))
    for k in range(0, B, chunk):
        v, cols = images[slice(k, k + chunk)], candidates[k : k + chunk].reshape(-1)
        t, at = captions.floats(cols)
        t = t[at]
        words = t.tokens.view(len(v), -1, t.tokens.shape[-1])  # (b, K M, D)
        C = (1 - words @ v.tokens.transpose(1, 2)).view(len(cols), -1, v.tokens.shape[1])  # (b K, M, N)
        a = v.weights()[:, None].expand(-1, K, -1).reshape(len(cols), -1)
        cost = feasible_cost(sinkhorn(C, t.weights(), a, reg=reg, tol=tol, max_iter=max_iter), C).view(-1, K)
        cosine = torch.einsum("bd,bkd->bk", v.pooled, t.pooled.view(len(v), K, -1))
        out.append(global_weight * (1 - cosine) + (1 - global_weight) * cost if global_weight else cost)
    return torch.cat(out)


def feasible_cost(solved: Transport, C: Tensor) -> Tensor:
    """<P, C> of the plan rounded to exact marginals (Altschuler, Weed and Rigollet, NeurIPS 2017, Algorithm 2) [B]."""
    P, (a, b) = solved.plan, solved.weights
    P = P * (a / P.sum(-1).clamp(min=1e-38)).clamp(max=1)[..., :, None]
    P = P * (b / P.sum(-2).clamp(min=1e-38)).clamp(max=1)[..., None, :]
    short_a, short_b = (a - P.sum(-1)).clamp(min=0), (b - P.sum(-2)).clamp(min=0)
    moved = torch.einsum("...n,...nm,...m->...", short_a, C, short_b) / short_a.sum(-1).clamp(min=1e-38)
    return (P * C).sum((-2, -1)) + moved


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
    x: Features | TokenSets,
    own: Features | TokenSets,
    pool: Features | TokenSets,
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
