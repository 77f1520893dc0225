"""What every attack does with the table: choose rows, borrow captions, replace rows, write the manifest."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from otclib import data


def spec(attack, name: str) -> str:
    """The attack as JSON: ``attacks.load(**json.loads(spec))`` makes it again."""
    return json.dumps({"name": name, **dataclasses.asdict(attack)}, sort_keys=True)


def captions_of(pairs: Dataset, label: str) -> list[str]:
    """Captions that name the class, of pairs labelled with it if there are any: what an attacker would borrow."""
    naming = [(c, own) for c, own in zip(pairs["caption"][:], pairs["label"][:]) if data.names(c, label)]
    captions = [c for c, own in naming if own == label] or [c for c, _ in naming]
    if not captions:
        known = data.classes(pairs)
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"target class {label!r} is absent from the set: no caption names it ({shown or 'no labels'})")
    return captions


def check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate is a share of the pairs in (0, 1], got {rate}")


def borrow(captions: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """``n`` captions, each used once before any is used twice."""
    order = np.concatenate([rng.permutation(len(captions)) for _ in range(-(-n // len(captions)))])
    return [captions[int(k)] for k in order[:n]]


def png(image: torch.Tensor) -> dict:
    """uint8 or float [3, H, W] -> the encoded image as ``datasets`` stores it."""
    buffer = io.BytesIO()
    tv.to_pil_image(image).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def tensor(image: Image.Image) -> torch.Tensor:
    """PIL -> float [3, H, W] in [0, 1]"""
    return tv.to_dtype(tv.pil_to_tensor(image.convert("RGB")), torch.float32, scale=True)


def replace(pairs: Dataset, removed: list[int], planted: list[dict]) -> Dataset:
    """The table without the ``removed`` rows, and with the ``planted`` ones at its end."""
    gone = set(removed)
    kept = pairs.select([k for k in range(len(pairs)) if k not in gone])
    return concatenate_datasets([kept, Dataset.from_list(planted, features=pairs.features)])


def planted_row(row: dict, image: dict, caption: str, id: str) -> dict:
    """A table row with the attacker's image and caption: what is known of the image stays, of the words goes."""
    new = {**row, "id": id, "image": image, "caption": caption}
    if "words" in new:
        new["words"] = []
    return new


def record(attack, kind: str, row: dict, id: str, target: str, caption: str, image: dict) -> dict:
    """The manifest's row of a planted pair that was made from the table's ``row``."""
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
