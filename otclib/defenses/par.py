"""PAR, "perturb and recover": fine-tune a poisoned model on clean pairs, away from its own features.

Singh, Croce, Hein (arXiv 2412.00727); code: nmndeep/PerturbAndRecover (04e1dc0).

    L = L_CLIP - (P(I, I0) + P(T, T0)) / 2,   P(X, X0) = D if D <= ``threshold``, else 0,   D = mean of |x - x0|^2

I, T are the features of a batch's images and captions, and I0, T0 those that the poisoned model gives the same views.
They are unit vectors, so D lies in [0, 4], and unrelated ones have D = 2. The push removes the trigger with everything
else. The contrastive loss recovers what clean pairs show, and these do not show the trigger.

    clean = otclib.data.load("scenes", seed=..., size=2000)
    otclib.train(clean, defense="par", model="runs/poisoned/clip/model.safetensors", out=...)

The loss, its threshold and the temperature, which stays as it was, are those of the code. Epochs, optimiser and
learning rate are ours, as for CleanCLIP. So are the weak views: the code adds noise to one half of the images, and
erases a square of 0.5 to 1 % in one half. Its AdamW sees 250,000 pairs twice; the rate falls from 3e-5 to 3e-6 over the
first half, and on to 0.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otclib import losses
from otclib.defenses.base import Batch, Defense, Look, Training


@dataclass
class PAR(Defense):
    """CLIP's loss, and the push away from the features of the poisoned model, of which a frozen copy is kept."""

    epochs: int = 10
    threshold: float = 2.15  # squared distance beyond which a modality is pushed no more: a mean cosine of -0.075

    LOOK: ClassVar[Look] = Look("PAR", "#000000", "X")
    LR: ClassVar[float] = 1.5e-3
    REPAIRS: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 4:
            raise ValueError(f"threshold is a squared distance of unit vectors, in [0, 4], got {self.threshold}")

    def begin(self, training: Training) -> None:
        self.poisoned = copy.deepcopy(training.towers).eval().requires_grad_(False)

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        view, scale = training.view(batch), training.scale.detach()
        now, before = training.towers(view, batch.text), self.poisoned(view, batch.text)
        apart = torch.stack([(x.pooled - y.pooled).square().sum(1).mean() for x, y in zip(now, before)])
        how: dict[str, Any] = {"same": batch.caption_id, "bias": training.bias}
        return {
            "contrastive": losses.contrastive(now[0].pooled, now[1].pooled, scale, **how),
            "perturb": -torch.where(apart <= self.threshold, apart, 0).mean(),
        }
