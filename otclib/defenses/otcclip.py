"""OTCCLIP, a reconstruction: captions re-assigned by optimal transport, and transport-based alignment.

Zhang, Gao, Bai et al., "Pre-training CLIP against Data Poisoning with Optimal Transport-based Matching and Alignment",
EMNLP 2025 (arXiv 2509.18717). We could not obtain the paper's body, so this file is not checked against its method
section. It has what two sources say, and nothing more; what we add stands in ``otcclip_plus``.

- the abstract: a transport distance between the fine-grained features of images and captions; captions re-assigned by
  that distance; inter- and intra-modal alignment by transport
- a third party's summary, unverified: a pool of captions; global *and* fine-grained features combined; Sinkhorn
  iterations

The method, with what the sources leave open as options:

    warm-up   epochs 1 .. ``warmup``: every image is trained with its own caption
    match     then before every ``every``-th epoch: draw a pool of captions; every image is trained with the nearest of
              the pool's captions and its own (``reassigned``)
    loss      L = L_CLIP(pooled) + ``inter`` L_inter(tokens) + ``intra`` L_intra(tokens of two views)

The distance of image i and caption j combines pooled features and a transport plan (``otclib.matching``):

    d(i, j) = w (1 - <v_i, t_j>)  +  (1 - w) <P_ij, C_ij>,      w = ``global_weight``

Images are compared at the size that the training begins with, and their tokens are averaged 2 x 2 or so
(``losses.coarse``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otclib import losses, matching
from otclib.defenses.base import Augment, Batch, Defense, Look, Training
from otclib.matching import TokenSets
from otclib.models import Features


def reassigned(
    image: Features,
    text: Features,
    captions: TokenSets,
    rows: Tensor,
    pool: Tensor,
    *,
    reg: float,
    global_weight: float,
) -> Tensor:
    """Return the row whose caption each image is trained with from now on: the nearest of the pool and its own [B].

    Parameters
    ----------
    image, text : features of B images and of their own captions; ``rows`` [B] are their rows in the table.
    captions : of the pool's P pairs; ``pool`` [P] are their rows.
    reg, global_weight : of the distance, see ``matching.distances``.

    Examples
    --------
    Two images of two places each, which see what captions 0 and 1 say. The first has its own caption, the second one
    that says something else, and the pool has the caption that fits.

    >>> axes, mask = torch.eye(3), torch.ones(2, 2, dtype=torch.bool)
    >>> tokens = torch.stack([axes[[0, 1]], axes[[1, 1]]])
    >>> image = Features(tokens.mean(1), tokens, mask)
    >>> text = Features(axes[[0, 2]], torch.stack([axes[[0, 1]], axes[[2, 2]]]), mask)
    >>> rows, pool = torch.tensor([0, 1]), torch.tensor([7, 9])
    >>> reassigned(image, text, TokenSets.of(image), rows, pool, reg=0.1, global_weight=0.0).tolist()
    [0, 9]
    """
    found = matching.nearest(TokenSets.of(image), captions, reg=reg, global_weight=global_weight)
    each = torch.arange(len(image), device=image.pooled.device)[:, None]
    own = matching.distances(image, text, each, reg, global_weight)[:, 0]
    return torch.where((own <= found.distance).cpu(), rows, pool[found.index.cpu()])


@dataclass
class OTCClip(Defense):
    """The whole method; a comment beside each option says what it does."""

    epochs: int = 8
    warmup: int = 2  # epochs before the first matching; of a short run all but the last
    every: int = 2  # epochs from one matching to the next
    pool: int = 512  # captions among which every image's nearest is searched; drawn afresh for every matching
    global_weight: float = 0.5  # of the pooled cosine in the matched distance; the rest is transport
    reg: float = 0.1  # entropic regularisation of every plan (PLOT's value)
    inter: float = 0.5  # weight of the inter-modal transport loss
    intra: float = 0.25  # weight of the intra-modal transport loss
    fine_batch: int = 16  # pairs of a batch that the transport losses see
    drop: float = 0.2  # share of words that the second view of a caption loses

    LOOK: ClassVar[Look] = Look("OTCCLIP (reconstruction)", "#0072B2", "v")

    def __post_init__(self) -> None:
        if not 0 <= self.global_weight <= 1 or not self.reg > 0:
            raise ValueError(
                f"reg must be positive and global_weight lie in [0, 1], got {self.reg} and {self.global_weight}"
            )
        if self.pool < 1 or self.warmup < 0 or self.every < 1 or self.fine_batch < 2:
            raise ValueError(
                f"pool and every must be at least 1, warmup at least 0 and fine_batch at least 2, "
                f"got {self.pool}, {self.every}, {self.warmup}, {self.fine_batch}"
            )
        self.warmup = min(self.warmup, max(1, self.epochs - 1))

    # -- matching ----------------------------------------------------------------------------------------------------

    def begin_epoch(self, training: Training) -> dict:
        """Decide every image's caption for this epoch."""
        since = training.epoch - self.warmup
        if since < 0 or since % self.every:
            return {}
        pool = self.draw(training)
        captions = TokenSets.of(training.encode_captions(pool))
        caption_of = []
        for rows, image in self.coarse_images(training):
            own, how = training.encode_captions(rows), {"reg": self.reg, "global_weight": self.global_weight}
            caption_of.append(reassigned(image, own, captions, rows, pool, **how))
        training.caption_of = training.gather(caption_of, len(training.caption_of))
        return {"matched": 1}

    def draw(self, training: Training) -> Tensor:
        """Return the rows of a new pool [P]."""
        return torch.randperm(len(training.caption_of), generator=training.rng)[: self.pool]

    def coarse_images(
        self, training: Training, rows: Tensor | None = None, look: Augment | None = None
    ) -> Iterator[tuple[Tensor, Features]]:
        """Yield rows and coarse features of the images of ``rows`` (default all), at the size of the first epochs.

        ``look`` : the images as some views show them, default as they are.
        """
        for some, image in training.encode_images(rows, look, side=training.sides[0]):
            yield some, losses.coarse(image)

    # -- alignment ---------------------------------------------------------------------------------------------------

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        image, text = training.towers(training.view(batch), batch.text)
        who: dict[str, Any] = {"same": batch.caption_id, "positive": batch.positive}
        how = who | {"q": self.robustness(training), "bias": training.bias}
        parts = {"contrastive": losses.contrastive(image.pooled, text.pooled, training.scale, **how)}
        few = batch.few(self.fine_batch)
        fine_image, fine_text = image[: len(few)], text[: len(few)]
        if self.inter:
            who = {"same": few.caption_id, "positive": few.positive}
            parts["inter"] = self.inter * losses.inter_modal(fine_image, fine_text, training.scale, self.reg, **who)
        if self.intra:
            other_words = training.drop_words(few.text, self.drop)
            other_view = training.view(few, side=training.sides[0])
            other_image, other_text = training.towers(other_view, other_words)
            two = (losses.coarse(fine_image), losses.coarse(other_image)), (fine_text, other_text)
            each = [losses.intra_modal(x, y, training.scale, self.reg) for x, y in two]
            parts["intra"] = self.intra * (each[0] + each[1]) / 2
        return parts

    def robustness(self, training: Training) -> float:
        """Return q of the robust contrastive loss in this epoch; 0 is CLIP's own."""
        return 0.0

    def distance(self, image: Features, text: Features) -> Tensor:
        """Return every image's distance to its own caption [B]: as matched, but to all tokens and a finer tolerance."""
        each = torch.arange(len(image), device=image.pooled.device)[:, None]
        return matching.distances(image, text, each, self.reg, self.global_weight)[:, 0]
