"""No defence: CLIP's contrastive loss on the pairs as they come (Radford et al., ICML 2021, arXiv 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from otclib import losses
from otclib.defenses.base import Defense


@dataclass
class Clip(Defense):
    epochs: int = 8

    def loss(self, trainer, batch) -> dict[str, Tensor]:
        image, text = trainer.towers(trainer.view(batch.images), batch.text)
        return {"contrastive": losses.contrastive(image.pooled, text.pooled, trainer.scale, batch.caption)}
