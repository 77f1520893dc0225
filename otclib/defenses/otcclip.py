"""OTCCLIP, a reconstruction: captions re-assigned by optimal transport, and transport-based alignment.

Zhang, Gao, Bai et al., "Pre-training CLIP against Data Poisoning with Optimal Transport-based Matching and Alignment",
EMNLP 2025 (arXiv 2509.18717). We could not obtain the paper's body, so this file is not checked against its method
section. It has what two sources say and, where they leave a choice open, options and rules of ours. What we add stands
in ``otcclip_plus``.

- the abstract: a transport distance between the fine-grained features of images and captions; captions re-assigned by
  that distance; inter- and intra-modal alignment by transport
- a third party's summary, unverified: a pool of captions; global *and* fine-grained features combined; Sinkhorn
  iterations

What the sources leave open is an option, or a rule of ours:

    warm-up   epochs 1 .. ``warmup``: every image is trained with its own caption
    match     after the warm-up and then before every ``every``-th epoch: draw a pool of pairs, and decide for every
              image whether it is kept, re-matched or left out (``nearness``, ``reassigned``)
    loss      L = L_CLIP(pooled) + ``inter`` L_inter(tokens) + ``intra`` L_intra(tokens of two views)

The distance of image i and caption j combines pooled features and a transport plan (``otclib.matching``):

    d(i, j) = w (1 - <v_i, t_j>)  +  (1 - w) <P_ij, C_ij>,      w = ``global_weight``

*Which captions are re-assigned* is our rule. Re-assigning every caption ruins the model, because a few captions end up
with most images. So a near pair keeps its caption. Nearness is asked from both sides, because the attacks differ: a
targeted image is far from its caption as the image sees it, a triggered one as the caption sees it. The first matching
only separates; later ones also re-match.

*A cheap matching.* Images are compared at the size that the training begins with, their tokens are averaged 2 x 2 or so
(``losses.coarse``), and only a shortlist of the pool, by pooled and mean tokens, is solved (``matching.rank_own``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otclib import losses, matching
from otclib.defenses.base import LEFT_OUT, Augment, Batch, Defense, Look, Training
from otclib.defenses.views import WEAK
from otclib.matching import Ranking
from otclib.models import Features


def nearness(
    image: Features,
    text: Features,
    pool_images: Features,
    pool_texts: Features,
    *,
    share: float,
    among: Tensor | None = None,
    **distance: Any,
) -> tuple[Tensor, Ranking]:
    """Return which pairs are near, and the rank of each image's own caption among the pool's.

    With r(i) the share of the pool's captions that are nearer to image i than its own, and s(i) the share of the pool's
    images that are nearer to the caption than its own image:

        near(i)  =  r(i) <= share  and  s(i) <= share

    Parameters
    ----------
    image, text : features of B images and of their own captions; pool_images, pool_texts : of the P pairs of the pool.
    share : in (0, 1].
    among : [P] bool, the captions that an image may be given; default all.
    distance : ``reg`` and ``global_weight`` of ``matching.distances``.

    Returns
    -------
    near : [B] bool. ranking : ``matching.Ranking`` of the captions, as the images see them.
    """
    captions = matching.rank_own(image, text, pool_texts, share=share, among=among, **distance)
    images = matching.rank_own(text, image, pool_images, share=share, **distance)
    return (captions.own_rank <= share) & (images.own_rank <= share), captions


def reassigned(near: Tensor, ranking: Ranking, own_distance: Tensor, rows: Tensor, pool: Tensor) -> Tensor:
    """Return the row whose caption each image is trained with from now on, or ``LEFT_OUT`` [B].

    A near pair keeps its caption. Another image is given the nearest caption j of the pool if it fits that caption as
    well as the caption's own image does, d(i, j) <= d(j, j). Otherwise it is left out: it stays in the batches, as a
    negative only.

    Parameters
    ----------
    near : [B] bool. ranking : of the B images. own_distance : d(j, j) of the pool's pairs [P].
    rows : of the B images in the table [B]. pool : of the pool's pairs in the table [P].

    Examples
    --------
    Three images (rows 0 to 2) and a pool of two pairs (rows 7 and 9). The first image is near. The other two are not,
    and their nearest caption is that of row 9, whose own image has distance 0.3.

    >>> near = torch.tensor([True, False, False])
    >>> ranking = Ranking(
    ...     own_rank=torch.tensor([0.0, 0.5, 0.5]),
    ...     nearest=torch.tensor([0, 1, 1]),
    ...     nearest_distance=torch.tensor([0.1, 0.2, 0.4]),
    ...     own_distance=torch.tensor([0.1, 0.8, 0.8]),
    ... )
    >>> reassigned(near, ranking, torch.tensor([0.1, 0.3]), torch.arange(3), torch.tensor([7, 9])).tolist()
    [0, 9, -1]
    """
    fits = ranking.nearest_distance <= own_distance[ranking.nearest]
    other = torch.where(fits.cpu(), pool[ranking.nearest.cpu()], LEFT_OUT)
    return torch.where(near.cpu(), rows, other)


@dataclass
class Alignment(Defense):
    """The losses and the distance of OTCCLIP; the two systems differ in what they do with the distance."""

    epochs: int = 8
    warmup: int = 2  # epochs before the first matching; of a short run all but the last
    every: int = 2  # epochs from one matching to the next
    global_weight: float = 0.5  # of the pooled cosine in the matched distance; the rest is transport
    reg: float = 0.1  # entropic regularisation of every plan (PLOT's value)
    inter: float = 0.5  # weight of the inter-modal transport loss
    inter_by: str = "balanced"  # how its token sets are compared, one of ``losses.INTER``
    intra: float = 0.25  # weight of the intra-modal transport loss
    intra_by: str = "transport"  # how its views are compared, one of ``losses.INTRA``
    fine_batch: int = 16  # pairs of a batch that the transport losses see
    drop: float = 0.2  # share of words that the second view of a caption loses

    def __post_init__(self) -> None:
        if not 0 <= self.global_weight <= 1 or not self.reg > 0:
            raise ValueError(
                f"reg must be positive and global_weight lie in [0, 1], got {self.reg} and {self.global_weight}"
            )
        if self.warmup < 0 or self.every < 1 or self.fine_batch < 2:
            raise ValueError(
                f"every must be at least 1, warmup at least 0 and fine_batch at least 2, "
                f"got {self.every}, {self.warmup} and {self.fine_batch}"
            )
        if self.inter_by not in losses.INTER or self.intra_by not in losses.INTRA:
            raise ValueError(
                f"inter_by is one of {', '.join(losses.INTER)} and intra_by one of {', '.join(losses.INTRA)}, "
                f"got {self.inter_by!r} and {self.intra_by!r}"
            )
        self.warmup = min(self.warmup, max(1, self.epochs - 1))

    def coarse_images(
        self, training: Training, rows: Tensor | None = None, look: Augment | None = None
    ) -> Iterator[tuple[Tensor, Features]]:
        """Yield rows and coarse features of the images of ``rows`` (default all), at the size of the first epochs.

        ``look`` : the images as some views show them, default as they are.
        """
        for some, image in training.encode_images(rows, look, side=training.sides[0]):
            yield some, losses.coarse(image)

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        image, text = training.towers(training.view(batch, self.views(batch)), batch.text)
        who: dict[str, Any] = {"same": batch.caption_id, "positive": batch.positive}
        how = who | {"q": self.robustness(training), "bias": training.bias}
        parts = {"contrastive": losses.contrastive(image.pooled, text.pooled, training.scale, **how)}
        few = batch.few(self.fine_batch)
        fine_image, fine_text = image[: len(few)], text[: len(few)]
        if self.inter:
            who = {"same": few.caption_id, "positive": few.positive, "by": self.inter_by}
            parts["inter"] = self.inter * losses.inter_modal(fine_image, fine_text, training.scale, self.reg, **who)
        if self.intra:
            other_words = training.drop_words(few.text, self.drop)
            other_view = training.view(few, side=training.sides[0])
            other_image, other_text = training.towers(other_view, other_words)
            two = (losses.coarse(fine_image), losses.coarse(other_image)), (fine_text, other_text)
            each = [losses.intra_modal(x, y, training.scale, self.reg, self.intra_by) for x, y in two]
            parts["intra"] = self.intra * (each[0] + each[1]) / 2
        return parts

    def views(self, batch: Batch) -> Augment:
        """Return the views of a batch's images."""
        return WEAK

    def robustness(self, training: Training) -> float:
        """Return q of the robust contrastive loss in this epoch; 0 is CLIP's own."""
        return 0.0

    def distance(self, image: Features, text: Features) -> Tensor:
        """Return every image's distance to its own caption [B]: as matched, but to all tokens and a finer tolerance."""
        each = torch.arange(len(image), device=image.pooled.device)[:, None]
        return matching.distances(image, text, each, self.reg, self.global_weight)[:, 0]


@dataclass
class OTCClip(Alignment):
    """The whole method; a comment beside each option says what it does."""

    pool: int = 512  # pairs that every pair is compared with; drawn afresh for every matching
    keep_near: bool = True  # a near pair keeps its caption; False: every image may be given any caption of the pool
    near_share: float = 0.03  # near: among this nearest share of the pool, from both sides

    LOOK: ClassVar[Look] = Look("OTCCLIP (reconstruction)", "#0072B2", "v")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.near_share <= 1 or self.pool < 1:
            raise ValueError(
                f"near_share must lie in (0, 1] and pool be at least 1, got {self.near_share} and {self.pool}"
            )

    def begin_epoch(self, training: Training) -> dict:
        """Decide every image's caption for this epoch."""
        since = training.epoch - self.warmup
        if since < 0 or since % self.every:
            return {}
        pool = torch.randperm(len(training.caption_of), generator=training.rng)[: self.pool]
        images = training.gather([image for _, image in self.coarse_images(training, pool)], len(pool))
        captions = training.encode_captions(pool)
        how: dict[str, Any] = {"share": self.near_share, "reg": self.reg, "global_weight": self.global_weight}
        near, of_pool = nearness(images, captions, images, captions, **how)
        givers = self.givers(near, first=since == 0)
        caption_of = []
        for rows, image in self.coarse_images(training):
            near, ranking = nearness(image, training.encode_captions(rows), images, captions, among=givers, **how)
            caption_of.append(reassigned(near & self.keep_near, ranking, of_pool.own_distance, rows, pool))
        training.caption_of = training.gather(caption_of, len(training.caption_of))
        return {"matched": 1}

    def givers(self, near: Tensor, first: bool) -> Tensor:
        """Return which pairs of the pool give captions to other images [P] bool: near ones, and at first none."""
        if not self.keep_near:
            return torch.ones_like(near)
        return torch.zeros_like(near) if first else near
