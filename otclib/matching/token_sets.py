"""Token sets ready for matching, and the summaries of them by which most captions are ruled out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from otclib.models import Features

BLOCK = 2**14  # token sets that are handled at a time
CENTROIDS, RANGES = 512, 16  # of a codebook


def short_size(dim: int) -> int:
    """Return how many numbers a short token has, for tokens of ``dim`` numbers."""
    return dim if dim <= 24 else max(24, dim // 8)


@dataclass
class TokenSets:
    """Unit tokens, the real ones first.

    ``tokens`` [S, L, D] float32 or float16, ``length`` [S]: how many are real; ``summary`` [S, E + D + 1]: the pooled
    feature (E numbers), the mean token and sigma, ``sigma^2 = 1 - |mean|^2``. Three fields are made when first needed:
    ``basis``; ``flat``, the real tokens in short form [T, R] and where those of every set begin [S + 1]; ``codebook``.
    """

    tokens: Tensor
    length: Tensor
    summary: Tensor
    basis: Tensor | None = None
    flat: tuple[Tensor, Tensor] | None = None
    codebook: Codebook | None = None

    @staticmethod
    def of(features: Features | TokenSets, dtype: torch.dtype = torch.float32) -> TokenSets:
        """Return the token sets of features: tokens are normalised, and rounded to ``dtype`` before they are summed."""
        if isinstance(features, TokenSets):
            return features
        tokens, mask = features.tokens.detach().float(), features.mask
        length = mask.sum(1)
        if not (mask[:, :-1] >= mask[:, 1:]).all():
            order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
            tokens = tokens.gather(1, order[:, :, None].expand_as(tokens))
        tokens = tokens[:, : int(length.max())] if len(length) else tokens
        real = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
        tokens = F.normalize(tokens, dim=-1).masked_fill(~real[:, :, None], 0.0)  # padding may hold anything
        tokens = tokens.to(dtype).contiguous()
        mean = _unit(tokens).sum(1) / length[:, None]
        sigma = (1 - mean.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
        pooled = F.normalize(features.pooled.detach().float(), dim=-1)
        return TokenSets(tokens, length, torch.cat([pooled, mean, sigma], 1))

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: Tensor | slice) -> TokenSets:
        return TokenSets(self.tokens[rows], self.length[rows], self.summary[rows])

    @property
    def pooled(self) -> Tensor:
        return self.summary[:, : -self.tokens.shape[-1] - 1]

    @property
    def real(self) -> Tensor:
        """Return True for a real token and False for padding [S, L]."""
        return torch.arange(self.tokens.shape[1], device=self.length.device) < self.length[:, None]

    def queries(self, weight: float) -> Tensor:
        """Return q [S, E + D + 1]: 1 - <q, summary> is not above the distance to a token set of the other side."""
        E = self.pooled.shape[1]
        return torch.cat([self.summary[:, :E] * weight, self.summary[:, E:] * (1 - weight)], 1)

    def short(self, basis: Tensor) -> Tensor:
        """Return tokens of fewer numbers [S, L, R], whose products are never less than those of the tokens.

        A short token is the token's part in the span of ``basis`` [D, R - 1], and the length of the rest:
        ``<v, t> <= <v', t'> + |v''| |t''|``.
        """
        tokens = _unit(self.tokens)
        part = tokens @ basis
        rest = (tokens.square().sum(-1) - part.square().sum(-1)).clamp(min=0) + 5e-7  # rounding errs to the safe side
        return torch.cat([part, rest.sqrt()[..., None]], -1)

    def prepare(self) -> TokenSets:
        """Make ``flat``, and ``basis`` if it is not given: the leading principal directions of the tokens."""
        if self.flat is None:
            first, dim = F.pad(self.length.cumsum(0), (1, 0)), self.tokens.shape[-1]
            if self.basis is None:
                where = self.real.flatten().nonzero()[:, 0]
                some = _unit(self.tokens.view(-1, dim)[where[:: max(1, len(where) // 2**16)]]).double()
                axes = torch.linalg.eigh(some.T @ some)[1].flip(1)
                self.basis = axes[:, : short_size(dim) - 1].float().contiguous()
            words = torch.empty(int(first[-1]), short_size(dim))
            for k in range(0, len(self), self.block):
                part = self[k : k + self.block]
                words[first[k] : first[k + len(part)]] = part.short(self.basis)[part.real]
            self.flat = words, first
        return self

    @property
    def block(self) -> int:
        """Return the number of sets whose tokens take about 64 MiB in float32."""
        return max(1, 2**24 // (self.tokens.shape[1] * self.tokens.shape[2]))

    def floats(self, rows: Tensor) -> tuple[TokenSets, Tensor]:
        """Return the token sets of ``rows`` [K] in float32, and their places there [K]; all sets if float32 already."""
        if self.tokens.dtype == torch.float32:
            return self, rows
        some, at = rows.unique(return_inverse=True)
        out = TokenSets(_unit(self.tokens[some]), self.length[some], self.summary[some], self.basis)
        if self.flat is not None:
            words, first = self.flat
            out.flat = words[_ranges(first[some], out.length)], F.pad(out.length.cumsum(0), (1, 0))
        return out, at


def _unit(tokens: Tensor) -> Tensor:
    """Return tokens in float32, of length 1 again where a narrower dtype has rounded them."""
    return tokens if tokens.dtype == torch.float32 else F.normalize(tokens.float(), dim=-1)


def _ranges(first: Tensor, count: Tensor) -> Tensor:
    """Return first[0], first[0] + 1, ... (count[0] numbers), then count[1] numbers from first[1] on, and so on."""
    begin = count.cumsum(0) - count
    return torch.arange(int(count.sum())) + (first - begin).repeat_interleave(count)


@dataclass
class Codebook:
    """Every word of a pool as a code: its nearest centroid, and one of 16 ranges of the angle to it.

    ``centroids`` [K, D]; ``along``, ``across`` [16 K]: cosine and sine of the largest angle that a code stands for;
    ``blocks``: for each block of captions their order by length [b], the lengths [b] in that order, and their codes
    [1, words], which are laid out for every length as [length, captions of this length].
    """

    centroids: Tensor
    along: Tensor
    across: Tensor
    blocks: list[tuple[Tensor, Tensor, Tensor]]

    @staticmethod
    def of(sets: TokenSets, size: int = CENTROIDS, rounds: int = 2, seed: int = 0) -> Codebook:
        """Return the codebook of token sets: spherical k-means on a sample of the words, then codes for all of them."""
        real, flat = sets.real, sets.tokens.view(-1, sets.tokens.shape[-1])
        where = real.flatten().nonzero()[:, 0]
        sample = where[torch.randperm(len(where), generator=torch.Generator().manual_seed(seed))[: 16 * size]]
        words = _unit(flat[sample])
        centroids = words[:size].clone()
        for _ in range(rounds):
            own = (words @ centroids.T).argmax(1)
            sums = torch.zeros_like(centroids).index_add_(0, own, words)
            centroids = torch.where(sums.norm(dim=1, keepdim=True) < 1e-6, centroids, F.normalize(sums, dim=-1))
        code, cosine = torch.zeros(real.shape, dtype=torch.long), torch.ones(real.shape)
        for some in where.split(BLOCK):
            value, which = (_unit(flat[some]) @ centroids.T).max(1)
            code.view(-1)[some], cosine.view(-1)[some] = which, value.clamp(max=1.0)
        edges = cosine.flatten()[sample].sort().values[:: -(-len(sample) // RANGES)].contiguous()
        code = RANGES * code + torch.bucketize(cosine, edges, right=True).sub_(1).clamp_(0)
        along = torch.ones(RANGES * len(centroids)).scatter_reduce(0, code[real], cosine[real], "amin")
        along = along - 5e-7  # rounding errs to the safe side
        blocks = []
        for start in range(0, len(sets), BLOCK):
            order = torch.argsort(sets.length[start : start + BLOCK], stable=True)
            length, mine = sets.length[start + order], code[start + order]
            codes = [mine[length == m, :m].T.flatten() for m in length.unique()]
            blocks.append((order, length, torch.cat(codes).int()[None]))
        return Codebook(centroids, along, (1 - along.square()).clamp(min=0).sqrt(), blocks)
