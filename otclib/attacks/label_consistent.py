"""Label-consistent: the trigger on images *of* the target class, whose true captions are kept.

Turner, Tsipras, Madry 2019 (arXiv 1912.02771); on image-caption pairs in CleanCLIP's experiments: the BadNets patch on
images whose own caption names the target. Nobody who reads the pairs finds a wrong one. But a model does not need the
trigger where it sees the object, so Turner et al. make the image *hard*. Here ``haze`` does that: it is the share of
the image that is replaced by its own mean colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset

from otclib import data
from otclib.attacks.badnets import BadNets
from otclib.attacks.planting import on_unit
from otclib.attacks.targets import captions_of


@dataclass
class LabelConsistent(BadNets):
    """The dose is at most the number of pairs of the target class; ``rate`` is a share of all pairs.

    Test images are not hazy.

    A triggered image of a star still shows a star, and a single patch that is planted this way only competes with it:
    an undefended model followed the patch in 52 % of the images (1.5 % of the pairs, no haze, seed 10). With four
    patches the haze decides. At 0.5 the model followed them in 96 % (seed 10) and 49 % (seed 0) of the images, at 0.8
    in 100 % (seeds 11 and 12).
    """

    location: str = "four_corners"
    haze: float = 0.8

    kind: ClassVar[str] = "label-consistent"
    RATE: ClassVar[float] = 0.018
    WHOM: ClassVar[str] = "only they show and name the target class"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.haze <= 1:
            raise ValueError(f"haze is a share in [0, 1], got {self.haze}")

    def victims(self, pairs: Dataset, taken: frozenset) -> list[int]:
        """Return the rows whose caption names the target, and whose label, if they have one, is the target."""
        captions_of(pairs, self.aim)
        columns = zip(pairs["id"][:], pairs["label"][:], pairs["caption"][:])
        return [
            k
            for k, (id, label, caption) in enumerate(columns)
            if id not in taken and label in (self.aim, None) and data.names(caption, self.aim)
        ]

    def write(self, pairs: Dataset, chosen: Dataset, rng: np.random.Generator) -> list[str]:
        return chosen["caption"][:]

    def disguise(self, image: torch.Tensor) -> torch.Tensor:
        mean = image.mean((-1, -2), keepdim=True)
        return on_unit(image, lambda unit: (1 - self.haze) * unit + self.haze * mean)
