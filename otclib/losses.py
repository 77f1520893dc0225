"""Losses: contrastive on pooled features, and their transport forms on token features.

Every loss is taken over a square matrix of similarities with the true pairs on its diagonal. It is a cross-entropy, or
for models with a bias a pairwise sigmoid loss. The losses differ in the similarity. The transport similarity of two
token sets is sum_nm P_nm <v_n, t_m> = 1 - <P, C>. The plan P is held constant (a stop-gradient): the gradient in C is
P, not the derivative of <P(C), C>, which has a further term. So gradients reach only tokens that the plan connects.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from otclib.models import Features
from otclib.transport import sinkhorn


def symmetric_cross_entropy(
    logits: Tensor, same: Tensor | None = None, q: float = 0.0, positive: Tensor | None = None
) -> Tensor:
    """Return the mean of the row-wise and column-wise cross-entropy of [B, B] logits with targets on the diagonal.

    ``same`` [B] identifies each column's caption: equal captions off the diagonal are no negatives.
    ``positive`` [B] bool: only these pairs are pulled together; the others stay in the batch as negatives.

    ``q`` in [0, 1] makes the loss robust to wrong pairs: every term -log p is weighted by p^q, held constant and scaled
    to mean 1 over the batch. Up to that scale the gradient is that of (1 - p^q) / q: generalised cross-entropy (Zhang
    and Sabuncu, NeurIPS 2018), of which RINCE (Chuang et al., CVPR 2022) is the contrastive form. A pair that
    contradicts the majority has a small p, so it gets a small weight and is hardly learned.
    """
    targets = torch.arange(len(logits), device=logits.device)
    if same is not None:
        duplicate = (same[:, None] == same[None]) & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(duplicate, -torch.inf)
    terms = torch.stack([F.cross_entropy(x, targets, reduction="none") for x in (logits, logits.T)])
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


def transport_similarity(x: Features, y: Features, reg: float, max_iter: int = 20) -> Tensor:
    """Return 1 - <P, C> of every token set in x [B] with every one in y [B'] as [B, B'], differentiable in both."""
    B, N, D = x.tokens.shape
    P, M, _ = y.tokens.shape
    C = x.tokens.reshape(B * N, D) @ -y.tokens.reshape(P * M, D).T  # one product for all pairs; a shift changes no plan
    C = C.view(B, N, P, M).transpose(1, 2)  # (B, P, N, M), not moved
    a, b = x.mask[:, None].float(), y.mask[None].float()
    return -sinkhorn(C, a, b, reg=reg, tol=1e-2, max_iter=max_iter).cost


def inter_modal(
    image: Features,
    text: Features,
    scale: Tensor,
    reg: float,
    same: Tensor | None = None,
    positive: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss on the transport similarity of images' tokens and captions' tokens."""
    return symmetric_cross_entropy(scale * transport_similarity(image, text, reg), same, positive=positive)


def intra_modal(view1: Features, view2: Features, scale: Tensor, reg: float) -> Tensor:
    """Return the contrastive loss on the transport similarity of the tokens of two views of one modality."""
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
