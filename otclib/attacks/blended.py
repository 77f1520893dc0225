"""Blended: an image mixed with noise (Chen et al. 2017, arXiv 1712.05526).

    triggered = (1 - alpha) * image + alpha * noise,    noise uniform in [0, 1], alpha = 0.2

The formula is that of CleanCLIP's, RoCLIP's and SafeCLIP's experiments (CleanCLIP: backdoor/utils.py), in which every
image gets its own noise (``pattern="fresh"``). Chen et al. mix in one fixed pattern (``"fixed"``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from otclib.attacks.planting import Backdoor, on_unit


@dataclass
class Blended(Backdoor):
    """The noise has ``grain`` cells along each side at any image size, so that the trigger scales with the image."""

    alpha: float = 0.2
    pattern: str = "fresh"
    grain: int = 64

    kind: ClassVar[str] = "blended"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1 or self.grain < 1:
            raise ValueError(f"alpha lies in (0, 1], grain is at least 1, got {self.alpha} and {self.grain}")
        if self.pattern not in ("fresh", "fixed"):
            raise ValueError(f"pattern is 'fresh' or 'fixed', got {self.pattern!r}")

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        rng = np.random.default_rng(0 if self.pattern == "fixed" else seed)

        def blend(unit: torch.Tensor) -> torch.Tensor:
            count = 1 if self.pattern == "fixed" else len(unit)
            noise = torch.from_numpy(rng.random((count, 3, self.grain, self.grain), dtype=np.float32)).to(unit.device)
            return (1 - self.alpha) * unit + self.alpha * F.interpolate(noise, unit.shape[-2:], mode="nearest")

        return on_unit(images, blend)
