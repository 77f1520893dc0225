"""A table of pairs: its classes, their names and prompts, and its images as a model sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets import Dataset, Image
from torchvision.transforms.v2 import functional as tv

from otclib.data import grammar


def words_for(label: str) -> tuple[str, ...]:
    """Return the words that name a class: the class name and, for the embedded objects, its synonyms."""
    return (label, *grammar.OBJECTS[label][1]) if label in grammar.OBJECTS else (label,)


def names(caption: str, label: str) -> bool:
    """Return whether the caption names the class: as a whole word, in any case, or by a synonym of an embedded object.

    >>> names("A parasol on the beach", "umbrella"), names("two umbrellas", "umbrella")
    (True, False)
    """
    return mention(caption, label) is not None


def mention(caption: str, label: str) -> re.Match | None:
    """Return where the caption first names the class, as ``names`` understands it; None if it does not."""
    return re.search(rf"\b({'|'.join(map(re.escape, words_for(label)))})\b", caption, re.IGNORECASE)


def with_article(word: str) -> str:
    """Return a noun with its article: "an umbrella", "a star"; "scissors" has none, as in the scenes' captions."""
    return f"{grammar.article(word)} {word}" if grammar.takes_article(word) else word


def prompt(template: str, label: str) -> str:
    """Return the zero-shot prompt of a class: its name in place of ``{}``, with the article that fits it.

    Only an article directly before ``{}`` is changed.

    >>> prompt("a photo of a {}", "umbrella")
    'a photo of an umbrella'
    >>> prompt("a photo of a {}", "scissors")
    'a photo of scissors'
    >>> prompt("a photo of a large {}", "umbrella")
    'a photo of a large umbrella'
    """
    return re.sub(r"\b[Aa]n? \{\}", lambda _: with_article(label), template).replace("{}", label)


def classes(pairs: Dataset) -> list[str]:
    """Return the class names that occur as labels, sorted."""
    return sorted({label for label in pairs["label"][:] if label is not None})


def templates(pairs: Dataset) -> Sequence[str]:
    """Return the zero-shot templates for ``prompt``: forms of a drawn set's captions, or the 80 for ImageNet."""
    if "objects" in pairs.column_names:
        return grammar.TEMPLATES
    if "artist" in pairs.column_names:
        return grammar.TEMPLATES_OF_DRAWINGS
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [t("{}") for t in OPENAI_IMAGENET_TEMPLATES]


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return an image of any mode in 8-bit RGB, turned as its EXIF says, with white behind what is transparent.

    Grey of 16 bits is scaled to 8. Grey of 32 bits or of floats is scaled by the smallest of 1, 255, 65,535 and its own
    maximum that holds all its values; negative values become black.
    """
    if image.getexif().get(PIL.Image.ExifTags.Base.Orientation, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        grey = np.nan_to_num(np.asarray(image))
        most = grey.max()
        white = 65535 if image.mode.startswith("I;16") else next((w for w in (1, 255, 65535) if most <= w), most)
        image = PIL.Image.fromarray(((grey / white).clip(0, 1) * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        ground = PIL.Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image if image.mode == "RGB" else image.convert("RGB")


def stored(pairs: Dataset) -> Dataset:
    """Return the images of a table as they are stored, ``{"bytes", "path"}``, with their ids if there are any."""
    columns = [column for column in ("id", "image") if column in pairs.column_names]
    return pairs.select_columns(columns).cast_column("image", Image(decode=False))


def decoded(image: dict[str, Any], row: int, id: str | None = None) -> PIL.Image.Image:
    """Return a stored image in RGB.

    Raises
    ------
    ValueError : it cannot be decoded. The message names its file, row and id.
    """
    try:
        return rgb(Image().decode_example(image))
    except Exception as error:  # decoders raise errors of many kinds
        file = (image or {}).get("path") or "kept in the table"
        raise ValueError(f"the image of row {row} (id {id}), {file}, cannot be decoded: {error}") from error


ELONGATED = 8  # an image whose sides differ more is cropped before it is resized: what is cut off is seen by no model


@dataclass(frozen=True)
class Resize:
    """Turn an image into the square that a model sees: PIL or tensor [..., 3, H, W] -> [..., 3, size, size].

    PIL images of any mode become RGB, uint8 (``rgb``), and tensors keep their dtype. An image of the right size stays
    as it is. The defaults are CLIP's; ``models.resize`` gives a model's own.
    """

    size: int  # pixels
    interpolation: str = "bicubic"  # or "bilinear"
    mode: str = "shortest"  # side is resized, then the centre cropped; "longest": the rest is padded; "squash": both
    fill: int = 0  # of the padding, 0 to 255

    def __post_init__(self) -> None:
        if self.mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"mode is 'shortest', 'longest' or 'squash', got {self.mode!r}")
        if self.interpolation not in ("bicubic", "bilinear", "random"):  # open_clip uses "random" in training only
            raise ValueError(f"interpolation is 'bicubic' or 'bilinear', got {self.interpolation!r}")

    def __call__(self, image: PIL.Image.Image | torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = tv.pil_to_tensor(rgb(image)) if isinstance(image, PIL.Image.Image) else image
        height, width = x.shape[-2:]
        if (height, width) == (self.size, self.size):
            return x
        sides = [self.size, self.size] if self.mode == "squash" else [self.size]
        if self.mode == "longest":
            sides = [max(1, round(side * self.size / max(height, width))) for side in (height, width)]
        if self.mode == "shortest" and max(height, width) > ELONGATED * min(height, width):
            x = tv.center_crop(x, [min(side, ELONGATED * min(height, width)) for side in (height, width)])
        how = tv.InterpolationMode.BILINEAR if self.interpolation == "bilinear" else tv.InterpolationMode.BICUBIC
        x = tv.resize(x, sides, interpolation=how, antialias=True)
        if self.mode == "longest":
            down, right = (self.size - side for side in x.shape[-2:])
            fill = self.fill / 255 if x.is_floating_point() else self.fill
            x = tv.pad(x, [right // 2, down // 2, right - right // 2, down - down // 2], fill=fill)
        return tv.center_crop(x, self.size)


def image_tensor(pairs: Dataset, resize: int | Resize) -> torch.Tensor:
    """Return all images as a model sees them, uint8 [N, 3, S, S]; ``resize``: ``models.resize(model)``, or S pixels.

    Raises
    ------
    ValueError : an image cannot be decoded. The message names its file, row and id.
    """
    resize = Resize(resize) if isinstance(resize, int) else resize
    out = torch.empty(len(pairs), 3, resize.size, resize.size, dtype=torch.uint8)
    for k, row in enumerate(stored(pairs)):
        out[k] = resize(decoded(row["image"], k, row.get("id")))
    return out
