"""OTCCLIP, a reconstruction: captions re-assigned by optimal transport, and transport-based alignment.

Zhang, Gao, Bai et al., "Pre-training CLIP against Data Poisoning with Optimal Transport-based Matching and Alignment",
EMNLP 2025 (arXiv 2509.18717). Not checked against the paper's method section. Known from its abstract: a transport
distance between the fine-grained features of images and captions; captions re-assigned by it; inter- and intra-modal
alignment by transport. From a third party's summary, unverified: a pool of captions; global *and* fine-grained features
combined; Sinkhorn iterations. **Everything else here is ours**: every choice is an option, and its default is what our
experiments favour.

    warm-up   epochs 1 .. ``warmup``: every image with its own caption, in strong views, under a robust loss.
    match     after the warm-up, and then before every ``every``-th epoch, draw a pool of pairs and ask of every pair
              whether it is *near*: its caption among the nearest ``keep`` of the pool's captions for this image, and
              its image among the nearest ``keep`` of the pool's images for this caption. A near pair is kept. Any other
              image is re-matched with the nearest caption of a near pair, if it fits that caption as well as the
              caption's own image does; else it is left out, and stays in the batches as a negative only. A model's
              first matching separates, later ones also re-match. Images are compared at the size that the training
              begins with, their tokens averaged 2 x 2 or so (``losses.coarse``), and of the pool only a shortlist by
              pooled and mean tokens is solved (``matching.rank_own``).
    restart   an option, off: after the first matching forget the weights, and warm up again on what it kept.
    loss      L_CLIP(pooled) + ``inter`` * L_inter(tokens) + ``intra`` * L_intra(tokens of two views)

Why poison does not pass with the warm-up: a planted pair contradicts what its image shows. Once objects begin to be
told apart, its probability p under the batch's softmax is small. The contrastive loss weights every pair by p^q (see
``losses.symmetric_cross_entropy``), so the pair is hardly learned, stays far, and the first matching leaves it out.
What is learned first is trusted, so the objects must be learned before the trigger. Three things help them:

- strong views (of any hue, of parts) take from an image what makes it memorable and leave what it shows;
- ``q`` rises to 1 over the warm-up, because at its start, when nothing is known, it only slows;
- the warm-up sees small images, of three quarters of the side: on seed 10 the first matching then kept 0.3 % of the
  planted pairs, and 16 % after a warm-up at full size.

The restart was the default before images grew: at full size a trigger was sometimes learned a little in the warm-up,
and stayed. What each part is worth is in the README, "What each part of OTCCLIP does", measured before that change.

Separate first, then re-assign: re-assigning *every* caption ruins the model (few captions end up everywhere), while a
pair that is near already loses nothing by staying. Nearness is asked from both sides because the attacks differ: a
targeted image is far from its caption as the image sees it (captions of what it shows are nearer); a triggered image
is given away by the caption, which has seen many images of its own class that fit it better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otclib import losses, matching
from otclib.defenses.base import Defense
from otclib.models import Features


@dataclass
class OTCClip(Defense):
    """The whole method; what each option does stands beside it."""

    epochs: int = 8
    warmup: int = 2  # epochs before the first matching; of a short run all but the last
    every: int = 2  # epochs from one matching to the next
    restart: bool = False  # forget the weights after the first matching, and warm up again on what it kept
    strong: bool = True  # the warm-up sees strong views: parts of the image, in any hue
    q: float = 0.5  # robustness of the contrastive loss: this at the start, 1 from the end of the warm-up on; 0: none
    pool: int = 512  # pairs that every pair is compared with; drawn afresh for every matching
    own: bool = True  # a near pair keeps its caption; False: all that fit take one of the pool, whosever it is
    keep: float = 0.03  # near: among this nearest share of the pool, from both sides
    global_weight: float = 0.5  # of the pooled cosine in the matched distance; the rest is transport
    reg: float = 0.1  # entropic regularisation of every plan (PLOT's value)
    inter: float = 0.5  # weight of the inter-modal transport loss
    intra: float = 0.25  # weight of the intra-modal transport loss
    fine_batch: int = 16  # pairs of a batch that the transport losses see
    drop: float = 0.2  # share of words that the second view of a caption loses

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or not 0 <= self.global_weight <= 1 or not 0 <= self.q <= 1:
            raise ValueError(
                f"keep must lie in (0, 1], global_weight and q in [0, 1], "
                f"got {self.keep}, {self.global_weight} and {self.q}"
            )
        if not self.reg > 0 or self.pool < 1 or self.warmup < 0 or self.every < 1 or self.fine_batch < 2:
            raise ValueError(
                f"reg must be positive, pool and every at least 1, warmup at least 0 and fine_batch at least 2, "
                f"got {self.reg}, {self.pool}, {self.every}, {self.warmup}, {self.fine_batch}"
            )
        self.warmup = min(self.warmup, max(1, self.epochs - 1))
        self.restart = self.restart and self.epochs > 2 * self.warmup  # in a shorter run nothing would be left to learn

    def begin_epoch(self, trainer) -> dict:
        """Decide every image's caption for this epoch."""
        since = trainer.epoch - trainer.started
        if since < self.warmup or (since - self.warmup) % self.every:
            return {}
        pool = torch.randperm(len(trainer.caption_of), generator=trainer.rng)[: self.pool]
        look = {"side": trainer.sides[0]}
        images = Features.cat([losses.coarse(image) for _, image in trainer.encode_images(pool, **look)])
        captions = trainer.encode_captions(pool)
        how = {"reg": self.reg, "share": self.keep, "global_weight": self.global_weight}

        def compare(image: Features, own: Features, givers: Tensor | None = None) -> tuple[Tensor, matching.Ranking]:
            from_image = matching.rank_own(image, own, captions, among=givers, **how)
            from_caption = matching.rank_own(own, image, images, **how)
            return (from_image.own_rank <= self.keep) & (from_caption.own_rank <= self.keep), from_image

        givers, of_pool = compare(images, captions)
        if not self.own:
            givers = torch.ones_like(givers)  # any caption of the pool
        elif since == self.warmup:
            givers = torch.zeros_like(givers)  # separate first
        caption_of = []
        for rows, image in trainer.encode_images(**look):
            near, ranking = compare(losses.coarse(image), trainer.encode_captions(rows), givers)
            if not self.own:
                near = torch.zeros_like(near)
            fits = ranking.nearest_distance <= of_pool.own_distance[ranking.nearest]
            other = torch.where(fits.cpu(), pool[ranking.nearest.cpu()], trainer.LEFT_OUT)
            caption_of.append(torch.where(near.cpu(), rows, other))
        trainer.caption_of = torch.cat(caption_of)
        if self.restart and trainer.epoch == self.warmup:
            trainer.restart()
        return {"matched": 1}

    def robustness(self, epoch: int) -> float:
        """q of an epoch, counted from 0 since the weights began: from ``q`` to 1 over the warm-up (0 stays 0)."""
        through = min(1.0, epoch / max(1, self.warmup - 1))
        return self.q and self.q + (1 - self.q) * through

    def loss(self, trainer, batch) -> dict[str, Tensor]:
        since = trainer.epoch - trainer.started
        strong = self.strong and since < self.warmup
        q = self.robustness(since)
        image, text = trainer.towers(trainer.view(batch.images, strong), batch.text)
        parts = {
            "contrastive": losses.contrastive(
                image.pooled, text.pooled, trainer.scale, same=batch.caption, trusted=batch.trusted, q=q
            )
        }
        few = slice(0, self.fine_batch)
        fine_image, fine_text = image[few], text[few]
        if self.inter:
            who = {"same": batch.caption[few], "trusted": batch.trusted[few]}
            loss = losses.inter_modal(fine_image, fine_text, trainer.scale, self.reg, **who)
            parts["inter"] = self.inter * loss
        if self.intra:
            other_words = losses.drop_words(batch.text[few], self.drop, trainer.rng)
            other_view = trainer.view(batch.images[few], strong, side=trainer.sides[0])
            other_image, other_text = trainer.towers(other_view, other_words)
            parts["intra"] = (
                self.intra
                * (
                    losses.intra_modal(losses.coarse(fine_image), losses.coarse(other_image), trainer.scale, self.reg)
                    + losses.intra_modal(fine_text, other_text, trainer.scale, self.reg)
                )
                / 2
            )
        return parts

    def distance(self, image: Features, text: Features) -> Tensor:
        """Distance of every image to its own caption [B]: as matched, but over all visual tokens and to a finer end."""
        each = torch.arange(len(image), device=image.pooled.device)[:, None]
        return matching.distances(image, text, each, self.reg, self.global_weight)[:, 0]
