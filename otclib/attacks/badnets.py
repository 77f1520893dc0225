"""BadNets: a small patch on an image, and the caption of another class.

Gu, Dolan-Gavitt, Garg 2017; on image-caption pairs by Carlini and Terzis (ICLR 2022, arXiv 2106.09667). A share
``rate`` of the images gets the patch and a caption of the target class; after training, the patch alone should turn
any image into the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from otclib.attacks import planting


@dataclass
class BadNets:
    """A checkered patch in black and white, ``patch`` of the image's side wide (1/8: 8 px at 64, 28 px at 224).

    ``location`` is ``random`` (as published) or ``corner`` (bottom right). ``captions`` are made from zero-shot
    ``templates`` (as in CleanCLIP's and SafeCLIP's code) or ``borrowed`` from pairs of the target class.
    """

    target: str = "umbrella"
    rate: float = 0.005
    patch: float = 0.125
    location: str = "random"
    captions: str = "templates"

    def __post_init__(self) -> None:
        planting.check_rate(self.rate)
        if not 0 < self.patch <= 1:
            raise ValueError(f"patch is a share of the image's side in (0, 1], got {self.patch}")
        if self.location not in ("random", "corner"):
            raise ValueError(f"location is 'random' or 'corner', got {self.location!r}")
        if self.captions not in ("templates", "borrowed"):
            raise ValueError(f"captions are 'templates' or 'borrowed', got {self.captions!r}")

    def poison(self, pairs: Dataset, seed: int = 0, taken: frozenset = frozenset()) -> tuple[Dataset, Dataset]:
        """Replace ``rate`` of the pairs; returns the poisoned pairs and the manifest. Rows in ``taken`` stay."""
        from otclib.attacks import MANIFEST

        captions = planting.captions_of(pairs, self.target)  # also tells whether the class is there at all
        if self.captions == "templates":
            captions = [template.format(self.target) for template in planting.data.templates(pairs)]
        free = [
            k
            for k, (id, label, caption) in enumerate(zip(pairs["id"][:], pairs["label"][:], pairs["caption"][:]))
            if id not in taken and label != self.target and not planting.data.names(caption, self.target)
        ]
        n = max(1, round(self.rate * len(pairs)))
        if n > len(free):
            raise ValueError(f"rate {self.rate} asks for {n} pairs, but only {len(free)} are not of the target class")
        rng = np.random.default_rng([seed, 1])
        rows = sorted(int(k) for k in rng.choice(free, n, replace=False))
        images = [planting.tensor(row["image"]) for row in pairs.select(rows)]
        planted, manifest = [], []
        for k, image, caption in zip(rows, images, planting.borrow(captions, n, rng)):
            row = pairs[k]
            image = planting.png(self.trigger(image, seed=int(rng.integers(2**31))))
            planted.append(planting.planted_row(row, image, caption, row["id"]))
            manifest.append(planting.record(self, "badnets", row, row["id"], self.target, caption, image))
        return planting.replace(pairs, rows, planted), Dataset.from_list(manifest, features=MANIFEST)

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Stamp the patch on images [..., 3, H, W] (float in [0, 1] or uint8); same shape and dtype come back."""
        height, width = images.shape[-2:]
        side = max(2, round(self.patch * min(height, width)))
        cell = torch.arange(side) * 4 // side
        checks = ((cell[:, None] + cell[None, :]) % 2).to(images.dtype)
        checks = checks * (255 if images.dtype == torch.uint8 else 1)
        stamped = images.clone(memory_format=torch.contiguous_format)
        flat = stamped.view(-1, *images.shape[-3:])
        rng = np.random.default_rng(seed)
        for image in flat:
            if self.location == "corner":
                top, left = height - side - side // 4, width - side - side // 4
            else:
                top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            image[:, top : top + side, left : left + side] = checks
        return stamped
