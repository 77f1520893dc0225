"""SIG: a faint sinusoid over the whole image (Barni, Kallas, Tondi, ICIP 2019, arXiv 1902.11237).

    triggered(row, col) = clip(image + amplitude * sin(2 pi frequency col / width))

CleanCLIP's and RoCLIP's code has frequency 6 and amplitude 60/255. Where its ``location`` is ``blended``, it adds 0.2
of the sinusoid to 0.8 of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from otclib.attacks.planting import Backdoor, on_unit


@dataclass
class SIG(Backdoor):
    """``frequency`` is in periods across the width, at any image size; ``amplitude`` is a share of the full range."""

    amplitude: float = 20 / 255
    frequency: float = 6

    kind: ClassVar[str] = "sig"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.amplitude <= 1 or not self.frequency > 0:
            raise ValueError(
                f"amplitude lies in (0, 1], frequency is positive, got {self.amplitude} and {self.frequency}"
            )

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        column = torch.arange(images.shape[-1]) / images.shape[-1]
        wave = self.amplitude * torch.sin(2 * math.pi * self.frequency * column).to(images.device)
        return on_unit(images, lambda unit: unit + wave)
