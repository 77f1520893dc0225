"""No defence: CLIP's contrastive loss on the pairs as they are (Radford et al., ICML 2021, arXiv 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from otclib import losses
from otclib.defenses.base import Batch, Defense, Look, Training


@dataclass
class Clip(Defense):
    """The contrastive loss of CLIP, without a defence."""

    epochs: int = 8

    LOOK: ClassVar[Look] = Look("CLIP, undefended", "#D55E00", "o")

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        image, text = training.towers(training.view(batch), batch.text)
        how: dict[str, Any] = {"same": batch.caption_id, "bias": training.bias}
        return {"contrastive": losses.contrastive(image.pooled, text.pooled, training.scale, **how)}
