"""WaNet: an image warped by one fixed, smooth field (Nguyen and Tran, ICLR 2021, arXiv 2102.10369).

    psi  = upsample(U / mean|U|),   U uniform in [-1, 1], [2, cells, cells]
    triggered(x) = image(clip(x + 2 * strength * psi(x), -1, 1)),   x in [-1, 1]^2, bilinear

``strength`` is the mean displacement along an axis as a share of the image's side. The paper's s on H pixels is a
strength of s / (2 H); its code has s = 0.5, cells = 4, H = 32. CleanCLIP's code has cells = 224, s = 1, H = 224, which
jitters every pixel by half a pixel on average; here that is ``cells=224, strength=1/448``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from otclib.attacks.planting import Backdoor, on_unit


@dataclass
class WaNet(Backdoor):
    """``field_seed`` draws the field, which is the same in training and test.

    The warp is stronger than published (0.8 % of the side; 0.2 % in CleanCLIP's code), easy to see, and planted more
    often, because a warp is hard to see in images of 64 px that training crops and bends. An undefended model had:

        strength  cells  rate    ASR, %
        0.02      16     0.5 %   16
        0.035     8      4 %     88
        0.05      8      3 %     87.5 to 91.1 (seeds 0 to 2)
        0.05      8      5 %     94 and 90 (seeds 10 and 11)
        0.05      8      8 %     96 and 94 (seeds 10 and 11)

    More cells at the same strength fold the image over itself and hide its object.
    """

    cells: int = 8
    strength: float = 0.05
    field_seed: int = 0

    kind: ClassVar[str] = "wanet"
    RATE: ClassVar[float] = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 2 or not 0 < self.strength <= 0.5:
            raise ValueError(f"cells is at least 2, strength lies in (0, 0.5], got {self.cells} and {self.strength}")

    def field(self, height: int, width: int) -> torch.Tensor:
        """Return the place from which every pixel is taken, in [-1, 1]: [H, W, 2], x first, for ``grid_sample``."""
        rng = np.random.default_rng([self.field_seed, 4])
        coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 2, self.cells, self.cells)).astype(np.float32))
        coarse = coarse / coarse.abs().mean()
        psi = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        return (torch.stack([x, y], -1) + 2 * self.strength * psi).clamp(-1, 1)

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        grid = self.field(*images.shape[-2:])[None].to(images.device)
        return on_unit(
            images, lambda unit: F.grid_sample(unit, grid.expand(len(unit), -1, -1, -1), "bilinear", align_corners=True)
        )
