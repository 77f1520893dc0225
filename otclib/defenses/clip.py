"""No defence: CLIP's contrastive loss on the pairs as they come (Radford et al., ICML 2021, arXiv 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from otclib import losses
from otclib.models import Features


@dataclass
class Clip:
    epochs: int = 12

    def begin_epoch(self, trainer) -> dict:
        """Nothing is matched: every image keeps its own caption."""
        return {}

    def loss(self, trainer, batch) -> dict[str, Tensor]:
        image, text = trainer.towers(trainer.view(batch.images), batch.text)
        return {"contrastive": losses.contrastive(image.pooled, text.pooled, trainer.scale, batch.caption)}

    def distance(self, image: Features, text: Features) -> Tensor:
        """Distance of every image to its own caption [B]: 1 - cosine of the pooled features."""
        return 1 - (image.pooled * text.pooled).sum(-1)
