"""The views of images that RoCLIP and SafeCLIP train on (utils/augment_image.py in both published codes)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.transforms import v2

from otclib import models


def published_view(trainer, legacy: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """Flips, crops, colour jitter in 80 %, grey in 20 %, and always a blur (21 px wide at 224, sigma up to 2 px there).

    As published, but for the crops: of 60 to 100 % of the image, as in our own strong views. ``legacy``: of 8 to 100 %,
    torchvision's default, which a glyph of an embedded scene seldom survives.
    """
    size = models.image_size(trainer.model)
    part = size / 224
    jitter = v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(size, scale=(0.08 if legacy else 0.6, 1.0), antialias=True),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.GaussianBlur(max(3, round(21 * part) // 2 * 2 + 1), sigma=(0.1 * part, 2.0 * part)),
        ]
    )
