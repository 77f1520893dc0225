"""OTCCLIP, a reconstruction: captions re-assigned by optimal transport, and transport-based alignment.

Zhang, Gao, Bai et al., EMNLP 2025 (arXiv 2509.18717). Of the paper only the abstract and summaries could be read. Known
from them: a transport distance between the fine-grained features of images and captions; captions re-assigned from a
pool by it; global *and* fine-grained features combined; Sinkhorn iterations; inter- and intra-modal alignment by
transport. **Everything else here is ours**: every choice is an option, and its default is what our experiments favour.

    warm-up   epochs 1 .. ``warmup``: every image with its own caption.
    then      before every epoch, ask of every image: is its own caption among the nearest ``keep`` of the pool?
              Yes: the pair stays. No: the image takes the nearest caption of the pool.
    loss      L_CLIP(pooled) + ``inter`` * L_inter(tokens) + ``intra`` * L_intra(tokens of two views)

Separate first, then re-assign: re-assigning *every* caption ruins the model (few captions end up everywhere), while a
pair whose own caption is already near loses nothing by staying. A poisoned pair does not pass. Its caption speaks of
something that covers no part of the image, and uniform marginals leave no way round: each word must send its whole
share of mass somewhere, each patch must take its own, so a small trigger can carry only the few patches that it covers.
What the image shows is then learned from the captions of *other* images, and the trigger comes to mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otclib import losses, matching
from otclib.models import Features


@dataclass
class OTCClip:
    epochs: int = 9
    warmup: int = 3  # epochs before the first re-assignment
    pool: int = 1024  # captions that an image may be given; drawn afresh for every matching
    keep: float = 0.05  # a pair stays when its own caption is among this nearest share of the pool
    global_weight: float = 0.5  # of the pooled cosine in the matched distance; the rest is transport
    reg: float = 0.1  # entropic regularisation of every plan (PLOT's value)
    inter: float = 0.5  # weight of the inter-modal transport loss
    intra: float = 0.5  # weight of the intra-modal transport loss
    fine_batch: int = 64  # pairs of a batch that the transport losses see
    drop: float = 0.2  # share of words that the second view of a caption loses

    def begin_epoch(self, trainer) -> dict:
        """Decide every image's caption for this epoch."""
        n = len(trainer.caption_of)
        if trainer.epoch < self.warmup:
            return {}
        pool_rows = torch.randperm(n, generator=trainer.rng)[: self.pool]
        pool = trainer.encode_captions(pool_rows)
        nearest, own_distance, own_rank = [], [], []
        for rows, image in trainer.encode_images():
            ranking = matching.rank_own(
                image, trainer.encode_captions(rows), pool, reg=self.reg, share=self.keep, global_weight=self.global_weight
            )
            nearest.append(pool_rows[ranking.nearest.cpu()])
            own_distance.append(ranking.own_distance.cpu())
            own_rank.append(ranking.own_rank.cpu())
        nearest, own_distance, own_rank = (torch.cat(x) for x in (nearest, own_distance, own_rank))
        kept = own_rank <= self.keep
        trainer.caption_of = torch.where(kept, torch.arange(n), nearest)
        trainer.own_distance = own_distance
        return {"kept": float(kept.float().mean())}

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
            parts["intra"] = self.intra * (
                losses.intra_modal(losses.coarse(fine_image), losses.coarse(other_image), trainer.scale, self.reg)
                + losses.intra_modal(fine_text, other_text, trainer.scale, self.reg)
            ) / 2
        return parts
