"""Targeted poisoning: a few chosen images, each paired with many captions of a class that it does not show.

Carlini and Terzis (ICLR 2022, arXiv 2106.09667): choose an image x' and a class y', and plant {(x', c)} for captions c
that name y'. As in SafeCLIP's experiments, 16 images of different classes are attacked at once. Here each attacked
image loses its own pair and is planted ``copies`` times. Nothing is drawn on it, so ``trigger`` does nothing.

The copies of an image have the same pixels, which a search for duplicates finds. With ``jitter``, which is ours, the
first copy is the image x' itself, and every further one a slightly different crop and brightness of it.

A set without labels needs ``classes``, the classes y'. Then x' is any image whose caption does not name y', as in the
code of RoCLIP and SafeCLIP, which draws it at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from torchvision.transforms.v2 import functional as tv

from otclib import data
from otclib.attacks import planting, targets


@dataclass
class Targeted:
    """``targets`` images of different classes, each planted ``copies`` times with captions of one other class.

    A class takes part if enough different captions name it, one for 4 copies (``attacks.targets.REPEATS``). If too few
    classes do, those take part that most captions name.
    With ``classes``, the first ``targets`` of these are the classes of the captions, and the images need no labels.
    ``jitter`` is the share of a side that a crop loses at most, and of the brightness that it gains or loses at most;
    None or 0: the copies are equal.
    """

    targets: int = 16
    copies: int = 16
    classes: Sequence[str] | None = None
    jitter: float | None = None

    kind: ClassVar[str] = "targeted"

    def __post_init__(self) -> None:
        if self.targets < 1 or self.copies < 1:
            raise ValueError(f"targets and copies must be at least 1, got {self.targets} and {self.copies}")
        if self.classes is not None and len(set(self.classes)) < self.targets:
            raise ValueError(f"{self.targets} targets need as many different classes, got {', '.join(self.classes)}")
        if self.jitter is not None and not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is a share in [0, 1), got {self.jitter}")
        self.jitter = self.jitter or None  # recorded only where it is used

    def poison(self, pairs: Dataset, seed: int = 0, taken: frozenset = frozenset()) -> tuple[Dataset, Dataset]:
        """Plant ``targets * copies`` pairs; return the poisoned pairs and the manifest. Rows in ``taken`` stay."""
        rng, of_crops = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 5])
        removed, planted, manifest = [], [], []
        write = self.writer(pairs, rng)
        for row_index, target in self.chosen(pairs, rng, taken):
            row = pairs[row_index]
            image = planting.tensor(row["image"])
            stored = planting.png(image)
            removed.append(row_index)
            for copy, caption in enumerate(write(row, target)):
                if copy and self.jitter:
                    stored = planting.png(jittered(image, self.jitter, of_crops))
                id = f"{row['id']}+{copy}"
                planted.append(planting.planted_row(row, stored, caption, id))
                manifest.append(planting.record(self, self.kind, row, id, target, caption, stored))
        return planting.replace(pairs, removed, planted), Dataset.from_list(manifest, features=planting.MANIFEST)

    def writer(self, pairs: Dataset, rng: np.random.Generator) -> Callable[[dict, str], list[str]]:
        """Return what gives the ``copies`` captions for a row of the table and a target class: here borrowed ones."""
        wanted = targets.repeated(self.copies)
        return lambda row, target: planting.borrow(targets.captions_of(pairs, target, 1, wanted), self.copies, rng)

    def chosen(self, pairs: Dataset, rng: np.random.Generator, taken: frozenset) -> Iterator[tuple[int, str]]:
        """Yield the row of every attacked image, and the class that is planted for it."""
        if self.classes is not None:
            yield from self._without_labels(pairs, self.classes, rng, taken)
            return
        rows_of: dict[str, list[int]] = {}
        for k, (id, label) in enumerate(zip(pairs["id"][:], pairs["label"][:])):
            if label is not None and id not in taken:
                rows_of.setdefault(label, []).append(k)
        if len(rows_of) < max(2, self.targets):
            raise ValueError(
                f"{self.targets} images of different classes need as many labelled classes, the set has {len(rows_of)} "
                f"(at least 2 are needed: an image's own and the attacker's); `classes` needs no labels"
            )
        labels = [str(label) for label in rng.permutation(sorted(rows_of))]
        labels = targets.most_named(pairs, labels, max(2, self.targets), targets.repeated(self.copies))
        for k, source in enumerate(labels[: self.targets]):
            yield int(rng.choice(rows_of[source])), labels[(k + 1) % len(labels)]  # a different class for every image

    def _without_labels(
        self, pairs: Dataset, classes: Sequence[str], rng: np.random.Generator, taken: frozenset
    ) -> Iterator[tuple[int, str]]:
        ids, captions, labels = pairs["id"][:], pairs["caption"][:], pairs["label"][:]
        free = [k for k in rng.permutation(len(ids)).tolist() if ids[k] not in taken]
        for target in classes[: self.targets]:
            row = next((k for k in free if labels[k] != target and not data.names(captions[k], target)), None)
            if row is None:
                raise ValueError(f"no image is left for the class {target!r}: all that are free show or name it")
            free.remove(row)
            yield row, target

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Return the images unchanged."""
        return images


def jittered(image: torch.Tensor, jitter: float, rng: np.random.Generator) -> torch.Tensor:
    """Return a random crop of an image [3, H, W] in [0, 1], at its own size again, darker or brighter.

    Both sides of the crop keep the same share of theirs, at least 1 - ``jitter``. The brightness is times a number in
    [1 - ``jitter``, 1 + ``jitter``].
    """
    full = np.array(image.shape[-2:])
    height, width = sides = np.maximum(1, np.round(full * (1 - jitter * rng.random()))).astype(int)
    top, left = rng.integers(full - sides + 1)
    crop = tv.resized_crop(image, int(top), int(left), int(height), int(width), full.tolist(), antialias=True)
    return tv.adjust_brightness(crop, 1 + jitter * rng.uniform(-1, 1))
