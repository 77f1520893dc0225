"""OTCCLIP, a reconstruction: captions re-assigned by optimal transport, and transport-based alignment.

Zhang, Gao, Bai et al., EMNLP 2025 (arXiv 2509.18717). Of the paper only the abstract and summaries could be read. Known
from them: a transport distance between the fine-grained features of images and captions; captions re-assigned from a
pool by it; global *and* fine-grained features combined; Sinkhorn iterations; inter- and intra-modal alignment by
transport. **Everything else here is ours**: every choice is an option, and its default is what our experiments favour.

    warm-up   epochs 1 .. ``warmup``: every image with its own caption.
    match     draw a pool of pairs and ask of every pair whether it is *near*: its caption among the nearest ``keep`` of
              the pool's captions for this image, and its image among the nearest ``keep`` of the pool's images for this
              caption. A near pair stays. Else the image takes the nearest caption whose own pair is near, if it fits
              that caption as well as the caption's own image does. Else it sits out.
    restart   forget the warm-up's weights: what the poison wrote into them goes, the separation stays.
    then      train on what was matched; after ``settle`` epochs match again before every epoch.
    loss      L_CLIP(pooled) + ``inter`` * L_inter(tokens) + ``intra`` * L_intra(tokens of two views)

Separate first, then re-assign: re-assigning *every* caption ruins the model (few captions end up everywhere), while a
pair that is near already loses nothing by staying. Nearness is asked from both sides because the attacks differ: a
targeted image is far from its caption as the image sees it (captions of what it shows are nearer); a triggered image
is given away by the caption, which has seen many images of its own class that fit it better.

The restart is there because a warm-up long enough to tell objects apart is long enough to pick up some of a trigger,
and a model that has picked it up defends it: it finds the attacker's caption near, and gives a triggered image other
captions of the attacker's class. Poison acts by its dose. What passes the first matching is too little to be learned
by a model that starts afresh.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otclib import losses, matching
from otclib.models import Features


@dataclass
class OTCClip:
    epochs: int = 11
    warmup: int = 3  # epochs before the first matching
    restart: bool = True  # forget the warm-up's weights after the first matching
    settle: int = 4  # epochs from the first matching to the second, if restarted
    pool: int = 256  # pairs that every pair is compared with; drawn afresh for every matching
    keep: float = 0.05  # near: among this nearest share of the pool, from both sides
    global_weight: float = 0.5  # of the pooled cosine in the matched distance; the rest is transport
    reg: float = 0.1  # entropic regularisation of every plan (PLOT's value)
    inter: float = 0.5  # weight of the inter-modal transport loss
    intra: float = 0.25  # weight of the intra-modal transport loss
    fine_batch: int = 16  # pairs of a batch that the transport losses see
    drop: float = 0.2  # share of words that the second view of a caption loses

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or not 0 <= self.global_weight <= 1:
            raise ValueError(
                f"keep must lie in (0, 1] and global_weight in [0, 1], got {self.keep}, {self.global_weight}"
            )
        if not self.reg > 0 or self.pool < 1 or self.warmup < 0 or self.fine_batch < 2:
            raise ValueError(
                f"reg must be positive, pool at least 1, warmup at least 0 and fine_batch at least 2, "
                f"got {self.reg}, {self.pool}, {self.warmup}, {self.fine_batch}"
            )

    def begin_epoch(self, trainer) -> dict:
        """Decide every image's caption for this epoch."""
        first = trainer.epoch == self.warmup
        if not first and trainer.epoch < self.warmup + (self.settle if self.restart else 0):
            return {}
        n = len(trainer.caption_of)
        pool = torch.randperm(n, generator=trainer.rng)[: self.pool]
        images = Features.cat([image for _, image in trainer.encode_images(pool)])
        captions = trainer.encode_captions(pool)
        how = {"reg": self.reg, "share": self.keep, "global_weight": self.global_weight}

        def compare(image: Features, own: Features, givers: Tensor | None = None) -> tuple[Tensor, matching.Ranking]:
            from_image = matching.rank_own(image, own, captions, among=givers, **how)
            from_caption = matching.rank_own(own, image, images, **how)
            return (from_image.own_rank <= self.keep) & (from_caption.own_rank <= self.keep), from_image

        givers, of_pool = compare(images, captions)
        caption_of = []
        for rows, image in trainer.encode_images():
            near, ranking = compare(image, trainer.encode_captions(rows), givers)
            fits = ranking.nearest_distance <= of_pool.own_distance[ranking.nearest]
            other = torch.where(fits.cpu(), pool[ranking.nearest.cpu()], trainer.LEFT_OUT)
            caption_of.append(torch.where(near.cpu(), rows, other))
        trainer.caption_of = torch.cat(caption_of)
        if first and self.restart:
            trainer.restart()
        return {"matched": 1}

    def loss(self, trainer, batch) -> dict[str, Tensor]:
        images = trainer.view(batch.images)
        image, text = trainer.towers(images, batch.text)
        parts = {"contrastive": losses.contrastive(image.pooled, text.pooled, trainer.scale, batch.caption)}
        few = slice(0, self.fine_batch)
        fine_image, fine_text = image[few], text[few]
        if self.inter:
            loss = losses.inter_modal(fine_image, fine_text, trainer.scale, self.reg, batch.caption[few])
            parts["inter"] = self.inter * loss
        if self.intra:
            other_words = losses.drop_words(batch.text[few], self.drop, trainer.rng)
            other_image, other_text = trainer.towers(trainer.view(batch.images[few]), other_words)
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
        """Distance of every image to its own caption [B], as matched."""
        each = torch.arange(len(image), device=image.pooled.device)[:, None]
        return matching.distances(image, text, each, self.reg, self.global_weight)[:, 0]
