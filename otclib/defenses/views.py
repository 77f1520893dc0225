"""The views of RoCLIP's and SafeCLIP's published code (utils/augment_image.py in both)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.transforms import v2

from otclib import models


def legacy_view(trainer) -> Callable[[torch.Tensor], torch.Tensor]:
    """Crops of 8 to 100 %, flips, colour jitter in 80 %, grey in 20 %, and always a blur as wide as 21 px at 224.

    A glyph of an embedded scene seldom survives this. Ours, ``trainer.view(images, strong=True)``, shows 60 to 100 %.
    """
    size = models.image_size(trainer.model)
    blur = max(3, round(size * 21 / 224) // 2 * 2 + 1)
    jitter = v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.GaussianBlur(blur),
        ]
    )
