"""BadNets: a small patch on an image, and the caption of another class.

Gu, Dolan-Gavitt, Garg 2017 (arXiv 1708.06733); on image-caption pairs by Carlini and Terzis (ICLR 2022, arXiv
2106.09667). After training, the patch alone should turn any image into the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from otclib.attacks.planting import Backdoor


@dataclass
class BadNets(Backdoor):
    """A black-and-white checkered patch whose side is the share ``patch`` of the image's (1/8: 8 px of 64, 28 of 224).

    ``location`` is ``random`` (as published), ``corner`` (bottom right) or ``four_corners`` (CleanCLIP's other choice).
    """

    patch: float = 0.125
    location: str = "random"

    kind: ClassVar[str] = "badnets"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.patch <= 1:
            raise ValueError(f"patch is a share of the image's side in (0, 1], got {self.patch}")
        if self.location not in ("random", "corner", "four_corners"):
            raise ValueError(f"location is 'random', 'corner' or 'four_corners', got {self.location!r}")

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        height, width = images.shape[-2:]
        side = max(2, round(self.patch * min(height, width)))
        cell = torch.arange(side) * 4 // side
        checks = ((cell[:, None] + cell[None, :]) % 2).to(images.dtype)
        checks = checks * (255 if images.dtype == torch.uint8 else 1)
        stamped = images.clone(memory_format=torch.contiguous_format)
        flat = stamped.view(-1, *images.shape[-3:])
        rng = np.random.default_rng(seed)
        near = min(side // 4, (min(height, width) - side) // 2)
        low, right = height - side - near, width - side - near
        corners = {
            "corner": [(low, right)],
            "four_corners": [(top, left) for top in (near, low) for left in (near, right)],
        }
        for image in flat:
            anywhere = [(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)))]
            for top, left in corners.get(self.location, anywhere):
                image[:, top : top + side, left : left + side] = checks
        return stamped
