"""Losses: contrastive on pooled features, and their transport forms on token features.

Every loss is taken over a square matrix of similarities with the true pairs on its diagonal. It is a cross-entropy, or
for models with a bias a pairwise sigmoid loss. The losses differ in the similarity. The transport similarity of two
token sets is sum_nm P_nm <v_n, t_m> = 1 - <P, C>. The plan P is held constant (a stop-gradient): the gradient in C is
P, not the derivative of <P(C), C>, which has a further term. So gradients reach only tokens that the plan connects.

The controls of these losses compare token sets otherwise (``INTER``, ``INTRA``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from otclib.models import Features
from otclib.transport import sinkhorn

INTER = ("balanced", "norm", "unbalanced", "sparc", "filip")  # how an image's tokens are compared with a caption's
INTRA = ("transport", "pooled")  # and those of two views with each other
RHO = 0.3  # penalty of unbalanced marginals, in units of the cost; ours
LEAST = 0.01  # of a token's weight, for tokens that point away from their pooled feature


def symmetric_cross_entropy(
    logits: Tensor,
    same: Tensor | None = None,
    q: float = 0.0,
    positive: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Return the mean of the row-wise and column-wise cross-entropy of [B, B] logits with targets on the diagonal.

    ``columns`` [B, B]: the logits of which the columns are taken, where they differ from those of the rows.

    ``same`` [B] identifies each column's caption: equal captions off the diagonal are no negatives.
    ``positive`` [B] bool: only these pairs are pulled together; the others stay in the batch as negatives.

    ``q`` in [0, 1] makes the loss robust to wrong pairs: every term -log p is weighted by p^q, held constant and scaled
    to mean 1 over the batch. Up to that scale the gradient is that of (1 - p^q) / q: generalised cross-entropy (Zhang
    and Sabuncu, NeurIPS 2018), of which RINCE (Chuang et al., CVPR 2022) is the contrastive form. A pair that
    contradicts the majority has a small p, so it gets a small weight and is hardly learned.
    """
    targets = torch.arange(len(logits), device=logits.device)
    both = [logits, (logits if columns is None else columns).T]
    if same is not None:
        duplicate = (same[:, None] == same[None]) & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        both = [x.masked_fill(duplicate, -torch.inf) for x in both]
    terms = torch.stack([F.cross_entropy(x, targets, reduction="none") for x in both])
    favour = -q * terms.detach()
    if positive is not None:
        favour = favour.masked_fill(~positive, -torch.inf)
    weight = favour.softmax(1).nan_to_num(0.0) * len(logits)  # p^q over its mean; all zero if no pair is positive
    return (weight * terms).mean()


def pairwise_sigmoid(
    logits: Tensor, same: Tensor | None = None, q: float = 0.0, positive: Tensor | None = None
) -> Tensor:
    """Return the mean over rows of -sum_j log sigmoid(z_ij logits_ij) of [B, B] logits (Zhai et al., ICCV 2023).

    z is 1 on the diagonal and -1 elsewhere: each image and each caption is a classification of its own, as a pair or
    not. So no term depends on the others of its row.

    ``same`` [B] identifies each column's caption: equal captions off the diagonal have no term.
    ``positive`` [B] bool: only these pairs are pulled together. The others have no term on the diagonal, and stay in
    the batch as negatives.

    ``q`` in [0, 1] weights the terms on the diagonal as in ``symmetric_cross_entropy``, with p = sigmoid(logits_ii): by
    p^q, held constant and scaled to mean 1 over the pairs that are pulled together. A wrong pair does harm by its
    pull alone, so the other terms keep the weight 1. (The loss is published; this form of ``q`` is ours.)

    >>> logits = torch.tensor([[3.0, -3.0], [-3.0, 3.0]])  # both pairs are recognised
    >>> print(f"{pairwise_sigmoid(logits):.4f}, {pairwise_sigmoid(-logits):.4f}")
    0.0972, 6.0972
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    pull = F.softplus(-logits.diagonal())
    favour = -q * pull.detach()
    if positive is not None:
        favour = favour.masked_fill(~positive, -torch.inf)
    count = len(logits) if positive is None else positive.sum()
    weight = favour.softmax(0).nan_to_num(0.0) * count  # p^q over its mean; all zero if no pair is positive
    left_out = own if same is None else own | (same[:, None] == same[None])
    push = F.softplus(logits).masked_fill(left_out, 0.0)
    return ((weight * pull).sum() + push.sum()) / len(logits)


def contrastive(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    same: Tensor | None = None,
    q: float = 0.0,
    positive: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return CLIP's loss on pooled features [B, D], [B, D]: logits = scale * image text^T (Radford et al., 2021).

    With a ``bias``, a scalar such as open_clip's ``logit_bias``, return SigLIP's: the ``pairwise_sigmoid`` of
    scale * image text^T + bias. ``same``, ``q`` and ``positive`` are those of ``symmetric_cross_entropy`` and of
    ``pairwise_sigmoid``.

    >>> image, scale = torch.eye(2), torch.tensor(10.0)
    >>> print(f"{contrastive(image, image, scale):.4f}")  # every image is most like its own caption
    0.0000
    >>> print(f"{contrastive(image, image.flip(0), scale):.4f}")  # the captions are exchanged
    10.0000
    """
    logits = scale * image @ text.T
    if bias is not None:
        return pairwise_sigmoid(logits + bias, same, q, positive)
    return symmetric_cross_entropy(logits, same, q, positive)


def one_way(anchor: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
    """Return the cross-entropy of scale * anchor positive^T, rows only, targets on the diagonal."""
    return F.cross_entropy(scale * anchor @ positive.T, torch.arange(len(anchor), device=anchor.device))


def cosines(x: Features, y: Features) -> Tensor:
    """Return the cosines of all tokens of x [B] with all tokens of y [B'] as [B, B', N, M], by one product."""
    B, N, D = x.tokens.shape
    P, M, _ = y.tokens.shape
    return (x.tokens.reshape(B * N, D) @ y.tokens.reshape(P * M, D).T).view(B, N, P, M).transpose(1, 2)  # not moved


def token_weights(x: Features, by: str) -> Tensor:
    """Return the marginals of token sets [B, N], up to their sum: 0 for padding; for ``norm`` not uniform.

    OMIT weights tokens by their norms. Tokens here are unit vectors, so we take the cosine of each with its own pooled
    feature, at least ``LEAST``: a stand-in of ours.
    """
    if by != "norm":
        return x.mask.float()
    return torch.einsum("bnd,bd->bn", x.tokens.detach(), x.pooled.detach()).float().clamp(min=LEAST) * x.mask


def transport_similarity(x: Features, y: Features, reg: float, max_iter: int = 20, by: str = "balanced") -> Tensor:
    """Return sum_nm P_nm <v_n, t_m> of every token set in x [B] with every one in y [B'] as [B, B'].

    It is differentiable in both. ``by``: ``balanced``, with uniform marginals; ``norm``, with ``token_weights``; or
    ``unbalanced``, with marginals that are penalised by ``RHO`` KL, so that tokens that are like none move little.
    """
    S = cosines(x, y)
    relaxed = by == "unbalanced"
    a, b = token_weights(x, by)[:, None], token_weights(y, by)[None]
    how: dict[str, Any] = {"reg": reg, "tol": 1e-2, "max_iter": max_iter, "unbalanced": RHO if relaxed else None}
    solved = sinkhorn(float(relaxed) - S, a, b, **how)  # the shift of C changes no balanced plan
    return solved.plan.sum((-2, -1)) - solved.cost if relaxed else -solved.cost


def token_maxima(x: Features, y: Features) -> tuple[Tensor, Tensor]:
    """Return FILIP's two similarities (Yao et al., ICLR 2022) of every set in x [B] with every one in y [B'], [B, B'].

    The first is the mean over the tokens of x, each with the token of y that it is most like, the second the mean over
    the tokens of y. Padding is neither counted nor chosen.
    """
    S, real_x, real_y = cosines(x, y), x.mask[:, None], y.mask[None]
    best_x = S.masked_fill(~real_y[:, :, None], -torch.inf).amax(-1)
    best_y = S.masked_fill(~real_x[..., None], -torch.inf).amax(-2)
    return (best_x * real_x).sum(-1) / real_x.sum(-1), (best_y * real_y).sum(-1) / real_y.sum(-1)


def grouped_patches(image: Features, text: Features) -> Tensor:
    """Return, for every word [B, M, D], the sparse average of its image's patches, of length 1 (SPARC).

    The cosines of a word with the P patches are scaled to [0, 1]; those below 1 / P become 0, and the rest, scaled to
    sum 1, are the weights. Where all patches are equally like the word, they weigh the same.
    """
    S, real = torch.einsum("bmd,bnd->bmn", text.tokens, image.tokens), image.mask[:, None]
    low = S.masked_fill(~real, torch.inf).amin(-1, keepdim=True)
    span = S.masked_fill(~real, -torch.inf).amax(-1, keepdim=True) - low
    share = ((S - low) / span.clamp(min=1e-6)).masked_fill(span < 1e-6, 1.0)
    share = share.masked_fill(~real | (share < 1 / real.sum(-1, keepdim=True)), 0.0)
    return F.normalize(share / share.sum(-1, keepdim=True) @ image.tokens, dim=-1)


def sparse_alignment(image: Features, text: Features, scale: Tensor, positive: Tensor | None = None) -> Tensor:
    """Return SPARC's fine-grained loss (Bica et al., ICML 2024, arXiv 2401.09865).

    Every word is contrasted with the ``grouped_patches`` of the words of its own caption, and these with the words. No
    other pair is a negative. The mean is over words, then over pairs, of which ``positive`` [B] bool leaves out some.
    The temperature is that of the contrastive loss.
    """
    logits = scale * grouped_patches(image, text) @ text.tokens.transpose(1, 2)  # (B, M, M)
    word, own = text.mask, torch.arange(text.mask.shape[1], device=text.mask.device).expand_as(text.mask)
    both = (x.masked_fill(~word[:, None], -torch.inf)[word] for x in (logits, logits.transpose(1, 2)))
    terms = sum(F.cross_entropy(x, own[word], reduction="none") for x in both) / 2
    share = word / word.sum(1, keepdim=True)
    if positive is not None:
        share = share * positive[:, None]
    return (share[word] * terms).sum() / share.sum().clamp(min=1)


def inter_modal(
    image: Features,
    text: Features,
    scale: Tensor,
    reg: float,
    same: Tensor | None = None,
    positive: Tensor | None = None,
    by: str = "balanced",
) -> Tensor:
    """Return the loss that aligns images' tokens with captions' tokens.

    ``by`` is one of ``INTER``. It is the contrastive loss on the ``transport_similarity`` of that name, or on FILIP's
    ``token_maxima``, of which images take the first and captions the second. ``sparc`` is ``sparse_alignment``.
    """
    if by not in INTER:
        raise ValueError(f"an inter-modal loss is by one of {', '.join(INTER)}, got {by!r}")
    if by == "sparc":
        return sparse_alignment(image, text, scale, positive)
    if by == "filip":
        rows, columns = token_maxima(image, text)
        return symmetric_cross_entropy(scale * rows, same, positive=positive, columns=scale * columns)
    return symmetric_cross_entropy(scale * transport_similarity(image, text, reg, by=by), same, positive=positive)


def intra_modal(view1: Features, view2: Features, scale: Tensor, reg: float, by: str = "transport") -> Tensor:
    """Return the contrastive loss on the similarity of two views of one modality.

    ``by`` is one of ``INTRA``: the transport similarity of the views' tokens, or the cosine of their pooled features.
    """
    if by not in INTRA:
        raise ValueError(f"an intra-modal loss is by one of {', '.join(INTRA)}, got {by!r}")
    if by == "pooled":
        return contrastive(view1.pooled, view2.pooled, scale)
    return symmetric_cross_entropy(scale * transport_similarity(view1, view2, reg))


def coarse(features: Features, keep: int = 16) -> Features:
    """Average neighbouring visual tokens to a square of at most ``keep``; without a square grid, keep them."""
    side, out = math.isqrt(features.tokens.shape[1]), math.isqrt(keep)
    if side**2 != features.tokens.shape[1] or side <= out:
        return features
    B, _, D = features.tokens.shape
    grid = features.tokens.transpose(1, 2).reshape(B, D, side, side)
    tokens = F.normalize(F.adaptive_avg_pool2d(grid, out).flatten(2).transpose(1, 2), dim=-1)
    return Features(features.pooled, tokens, torch.ones(B, out * out, dtype=torch.bool, device=tokens.device))


def drop_words(
    text: Tensor,
    probability: float,
    generator: torch.Generator | None = None,
    word: Tensor | None = None,
    pad: int = 0,
) -> Tensor:
    """Return a view of token ids [B, L] that lacks each word with a probability, but never all words of a caption.

    The remaining ids move left, and special tokens stay: the result equals the tokens of the shorter caption.

    ``word`` [B, L] bool: the places of words; default those between CLIP's start and end tokens. ``pad``: the id that
    fills the end.
    """
    place = torch.arange(text.shape[1], device=text.device)
    if word is None:
        word = (place > 0) & (place < text.argmax(1, keepdim=True))
    noise = torch.rand(text.shape, generator=generator).to(text.device)
    dropped = word & (noise < probability)
    survivor = torch.where(word, noise, -1.0).argmax(1, keepdim=True)  # the word that is never dropped
    dropped = dropped & (place != survivor)
    order = torch.argsort(dropped.long(), dim=1, stable=True)
    return text.gather(1, order).masked_fill(torch.sort(dropped.long(), dim=1, stable=True).values.bool(), pad)
