"""OTCCLIP, a reconstruction: captions re-assigned by optimal transport, and transport-based alignment.

Zhang, Gao, Bai et al., EMNLP 2025 (arXiv 2509.18717). Of the paper only the abstract and summaries could be read. Known
from them: a transport distance between the fine-grained features of images and captions; captions re-assigned from a
pool by it; global *and* fine-grained features combined; Sinkhorn iterations; inter- and intra-modal alignment by
transport. **Everything else here is ours**: every choice is an option, and its default is what our experiments favour.

    warm-up   epochs 1 .. ``warmup``: every image with its own caption.
    then      before every epoch, ask of every pair whether it is *near*: the caption among the nearest ``keep`` of a
              pool of captions for this image, and the image among the nearest ``keep`` of a pool of images for this
              caption. Near: the pair stays. Else the image takes the nearest caption of the pool, if that pair is
              near. Else it sits this epoch out.
    loss      L_CLIP(pooled) + ``inter`` * L_inter(tokens) + ``intra`` * L_intra(tokens of two views)

Separate first, then re-assign: re-assigning *every* caption ruins the model (few captions end up everywhere), while a
pair that is near already loses nothing by staying. Nearness is asked from both sides because the attacks differ: a
targeted image is far from its caption as the image sees it (captions of what it shows are nearer); a triggered image
is given away by the caption, which has seen many images of its own class that fit it better. There the transport
distance does better than the pooled one: every word must send its whole share of mass somewhere and every patch must
take its own, so a small trigger can carry only the few patches that it covers.
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
    warmup: int = 3  # epochs before the first matching
    pool: int = 512  # captions that an image may be given; drawn afresh for every matching
    image_pool: int = 256  # images that a caption is asked about
    keep: float = 0.05  # near: among this nearest share of the pool, from both sides
    global_weight: float = 0.5  # of the pooled cosine in the matched distance; the rest is transport
    reg: float = 0.1  # entropic regularisation of every plan (PLOT's value)
    inter: float = 0.5  # weight of the inter-modal transport loss
    intra: float = 0.25  # weight of the intra-modal transport loss
    fine_batch: int = 16  # pairs of a batch that the transport losses see
    drop: float = 0.2  # share of words that the second view of a caption loses

    def begin_epoch(self, trainer) -> dict:
        """Decide every image's caption for this epoch."""
        if trainer.epoch < self.warmup:
            return {}
        n = len(trainer.caption_of)
        how = {"reg": self.reg, "global_weight": self.global_weight}
        caption_rows = torch.randperm(n, generator=trainer.rng)[: self.pool]
        captions = trainer.encode_captions(caption_rows)
        image_rows = torch.randperm(n, generator=trainer.rng)[: self.image_pool]
        images = Features.cat([image for _, image in trainer.encode_images(image_rows)])
        everyone = torch.arange(len(images), device=images.pooled.device).expand(len(captions), -1)
        pool_distances = matching.distances(captions, images, everyone, **how, **matching.COARSE)

        caption_of = []
        for rows, image in trainer.encode_images():
            own = trainer.encode_captions(rows)
            from_image = matching.rank_own(image, own, captions, share=self.keep, **how)
            from_caption = matching.rank_own(own, image, images, share=self.keep, **how)
            own_is_near = (from_image.own_rank <= self.keep) & (from_caption.own_rank <= self.keep)
            better_images = pool_distances[from_image.nearest] < from_image.nearest_distance[:, None]
            other_is_near = better_images.float().mean(1) <= self.keep
            other = caption_rows[from_image.nearest.cpu()]
            chosen = torch.where(other_is_near.cpu(), other, trainer.LEFT_OUT)
            caption_of.append(torch.where(own_is_near.cpu(), rows, chosen))
        trainer.caption_of = torch.cat(caption_of)
        return {}

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
