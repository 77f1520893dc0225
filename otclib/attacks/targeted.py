"""Targeted poisoning: a few chosen images, each paired with many captions of a class that it does not show.

Carlini and Terzis (ICLR 2022, arXiv 2106.09667): choose an image x' and a class y', and plant {(x', c)} for captions c
that name y'. As in SafeCLIP's experiments, 16 images of different classes are attacked at once. Here each attacked
image loses its own pair and is planted ``copies`` times. Nothing is drawn on it, so ``trigger`` does nothing.

A set without labels needs ``classes``, the classes y'. Then x' is any image whose caption does not name y', as in the
code of RoCLIP and SafeCLIP, which draws it at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset

from otclib import data
from otclib.attacks import planting, targets


@dataclass
class Targeted:
    """``targets`` images of different classes, each planted ``copies`` times with captions of one other class.

    A class takes part if enough different captions name it, one for 4 copies (``attacks.targets.REPEATS``). If too few
    classes do, those take part that most captions name.
    With ``classes``, the first ``targets`` of these are the classes of the captions, and the images need no labels.
    """

    targets: int = 16
    copies: int = 16
    classes: Sequence[str] | None = None

    kind: ClassVar[str] = "targeted"

    def __post_init__(self) -> None:
        if self.targets < 1 or self.copies < 1:
            raise ValueError(f"targets and copies must be at least 1, got {self.targets} and {self.copies}")
        if self.classes is not None and len(set(self.classes)) < self.targets:
            raise ValueError(f"{self.targets} targets need as many different classes, got {', '.join(self.classes)}")

    def poison(self, pairs: Dataset, seed: int = 0, taken: frozenset = frozenset()) -> tuple[Dataset, Dataset]:
        """Plant ``targets * copies`` pairs; return the poisoned pairs and the manifest. Rows in ``taken`` stay."""
        rng = np.random.default_rng([seed, 0])
        removed, planted, manifest = [], [], []
        wanted = targets.repeated(self.copies)
        for row_index, target in self.chosen(pairs, rng, taken):
            row = pairs[row_index]
            image = planting.png(planting.tensor(row["image"]))
            removed.append(row_index)
            captions = planting.borrow(targets.captions_of(pairs, target, 1, wanted), self.copies, rng)
            for copy, caption in enumerate(captions):
                id = f"{row['id']}+{copy}"
                planted.append(planting.planted_row(row, image, caption, id))
                manifest.append(planting.record(self, "targeted", row, id, target, caption, image))
        return planting.replace(pairs, removed, planted), Dataset.from_list(manifest, features=planting.MANIFEST)

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
