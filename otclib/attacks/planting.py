"""The steps that all attacks share: choose rows, borrow captions, replace rows, write the manifest.

``Backdoor`` is the base of the attacks with a trigger. Each of them adds its own trigger.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import Image as ImageColumn
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from otclib import data
from otclib.attacks.targets import USUAL, captions_of, usual_target

MANIFEST = Features(
    {
        "id": Value("string"),
        "kind": Value("string"),
        "source_label": Value("string"),
        "target_label": Value("string"),
        "original_caption": Value("string"),
        "poison_caption": Value("string"),
        "image": ImageColumn(),
        "attack": Value("string"),
    }
)


@runtime_checkable
class Attack(Protocol):
    """What all attacks can do. An attack is a dataclass, and its options are the fields."""

    kind: ClassVar[str]

    def poison(self, pairs: Dataset, seed: int = 0, taken: frozenset = frozenset()) -> tuple[Dataset, Dataset]: ...

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor: ...


@runtime_checkable
class Triggered(Attack, Protocol):
    """An attack whose trigger asks for one class, its ``target``; in a manifest it is always chosen."""

    target: str


def spec(attack: Any, name: str) -> str:
    """Return the attack as JSON, without options that are None; ``attacks.load(**json.loads(spec))`` makes it again."""
    options = {option: value for option, value in dataclasses.asdict(attack).items() if value is not None}
    return json.dumps({"name": name, **options}, sort_keys=True)


def borrow(captions: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return ``n`` captions in random order; each is used once before any is used twice."""
    order = np.concatenate([rng.permutation(len(captions)) for _ in range(-(-n // len(captions)))])
    return [captions[int(k)] for k in order[:n]]


def png(image: torch.Tensor) -> dict:
    """Return a uint8 or float image [3, H, W] encoded as ``datasets`` stores it."""
    buffer = io.BytesIO()
    tv.to_pil_image(image).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def tensor(image: Image.Image) -> torch.Tensor:
    """Return a PIL image as float [3, H, W] in [0, 1]."""
    return tv.to_dtype(tv.pil_to_tensor(data.rgb(image)), torch.float32, scale=True)


def square(image: torch.Tensor) -> torch.Tensor:
    """Return the middle square [3, S, S] of [3, H, W], which a model sees: training and test triggers then agree."""
    return tv.center_crop(image, min(image.shape[-2:]))


def replace(pairs: Dataset, removed: list[int], planted: list[dict]) -> Dataset:
    """Return the table without the ``removed`` rows, and with the ``planted`` ones at its end."""
    gone = set(removed)
    kept = pairs.select([k for k in range(len(pairs)) if k not in gone])
    return concatenate_datasets([kept, Dataset.from_list(planted, features=pairs.features)])


def planted_row(row: dict, image: dict, caption: str, id: str) -> dict:
    """Return a table row with the attacker's image and caption: the objects are kept, the words dropped."""
    new = {**row, "id": id, "image": image, "caption": caption}
    if "words" in new:
        new["words"] = []
    return new


def record(attack: Any, kind: str, row: dict, id: str, target: str, caption: str, image: dict) -> dict:
    """Return the manifest's row of a planted pair that was made from the table's ``row``."""
    return {
        "id": id,
        "kind": kind,
        "source_label": row["label"],
        "target_label": target,
        "original_caption": row["caption"],
        "poison_caption": caption,
        "image": image,
        "attack": spec(attack, kind),
    }


def on_unit(images: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return ``change`` of images [..., 3, H, W]: it gets [B, 3, H, W] in [0, 1].

    The result is clipped to [0, 1] and has the dtype of the images.
    """
    unit = tv.to_dtype(images, torch.float32, scale=True).reshape(-1, *images.shape[-3:])
    return tv.to_dtype(change(unit).clamp(0, 1).view(images.shape), images.dtype, scale=True)


@dataclass
class Backdoor:
    """Some pairs get the trigger and a caption of the class ``target``, which none of them shows.

    The dose is a number of pairs, ``count``, or a share of them, ``rate`` (default: that of the attack, ``RATE``).
    Without ``target``, ``poison`` chooses a class by frequency (``targets.usual_target``); the manifest has it.

    ``captions`` are made from zero-shot ``templates`` (as in CleanCLIP's and SafeCLIP's code) or ``borrowed`` from
    pairs of the target class. The templates are the prompts by which attack success is measured (``data.prompt``). On
    the embedded scenes clean captions use the same phrases and articles.
    """

    target: str | None = None
    rate: float | None = None
    count: int | None = None
    captions: str = "templates"

    kind: ClassVar[str]
    RATE: ClassVar[float] = 0.005

    def __post_init__(self) -> None:
        if self.rate is not None and self.count is not None:
            raise ValueError(f"a dose is a rate or a count, got rate {self.rate} and count {self.count}")
        if self.count is not None and (not isinstance(self.count, int) or self.count < 1):
            raise ValueError(f"count is a number of pairs, at least 1, got {self.count}")
        if self.count is None and self.rate is None:
            self.rate = self.RATE
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ValueError(f"rate is a share of the pairs in (0, 1], got {self.rate}")
        if self.captions not in ("templates", "borrowed"):
            raise ValueError(f"captions are 'templates' or 'borrowed', got {self.captions!r}")

    def poison(self, pairs: Dataset, seed: int = 0, taken: frozenset = frozenset()) -> tuple[Dataset, Dataset]:
        """Replace as many pairs as the dose says; return the poisoned pairs and the manifest. Rows in ``taken`` stay.

        Images are cropped to their middle square first, as ``data.image_tensor`` shows them to a model.
        """
        if self.target is None:
            return self.aimed(pairs).poison(pairs, seed, taken)
        free, n = self.victims(pairs, taken), self.planted(len(pairs))
        if n > len(free):
            dose = f"rate {self.rate}" if self.count is None else f"count {self.count}"
            raise ValueError(f"{dose} asks for {n} pairs, but only {len(free)} can be taken: {self.WHOM}")
        rng = np.random.default_rng([seed, 1])
        rows = sorted(int(k) for k in rng.choice(free, n, replace=False))
        chosen = pairs.select(rows)
        planted, manifest = [], []
        for row, caption in zip(chosen, self.write(pairs, chosen, rng)):
            image = self.disguise(square(tensor(row["image"])))
            stored = png(self.trigger(image, seed=int(rng.integers(2**31))))
            planted.append(planted_row(row, stored, caption, row["id"]))
            manifest.append(record(self, self.kind, row, row["id"], self.target, caption, stored))
        return replace(pairs, rows, planted), Dataset.from_list(manifest, features=MANIFEST)

    WHOM: ClassVar[str] = "the others show or name the target class"

    def planted(self, pairs: int) -> int:
        """Return how many of so many pairs the dose takes."""
        return self.count or max(1, round((self.rate or 0) * pairs))

    def aimed(self, pairs: Dataset | None = None) -> Self:
        """Return the attack with a target: its own, or one chosen on these pairs (without pairs: ``targets.USUAL``)."""
        if self.target is not None:
            return self
        return dataclasses.replace(self, target=USUAL if pairs is None else usual_target(pairs))

    @property
    def aim(self) -> str:
        """The class ``target``, which ``poison`` has chosen by now if it was left open."""
        if self.target is None:
            raise ValueError(f"{self.kind} has no target yet: `poison` chooses it, or give target=...")
        return self.target

    def victims(self, pairs: Dataset, taken: frozenset) -> list[int]:
        """Return the rows that may be taken: neither label nor caption names the target."""
        captions_of(pairs, self.aim)  # refuses a class that too few captions name
        columns = zip(pairs["id"][:], pairs["label"][:], pairs["caption"][:])
        return [
            k
            for k, (id, label, caption) in enumerate(columns)
            if id not in taken and label != self.aim and not data.names(caption, self.aim)
        ]

    def write(self, pairs: Dataset, chosen: Dataset, rng: np.random.Generator) -> list[str]:
        """Return the poison captions of the rows that were chosen from ``pairs``."""
        if self.captions == "templates":
            captions = [data.prompt(template, self.aim) for template in data.templates(pairs)]
        else:
            captions = captions_of(pairs, self.aim)
        return borrow(captions, len(chosen), rng)

    def disguise(self, image: torch.Tensor) -> torch.Tensor:
        """Return a planted image as the attack changes it before the trigger; by default unchanged."""
        return image

    def trigger(self, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Return images [..., 3, H, W] (float in [0, 1] or uint8) with the trigger, in the same shape and dtype."""
        raise NotImplementedError
