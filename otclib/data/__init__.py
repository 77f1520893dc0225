"""Image-caption tables, all of one shape: a Hugging Face ``datasets.Dataset`` with lazy images.

    pairs = otclib.data.load("scenes")
    pairs[0]  # {"id": ..., "image": PIL image, "caption": "a photo of ...", "label": class name or None, ...}

Every table has the columns ``id``, ``image``, ``caption`` and ``label``. Scenes add ``objects``, ``ground`` and
``words`` (the ground truth of every content word).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from datasets import Dataset, Features, Image, Value, disable_progress_bars, load_from_disk
from torchvision.transforms.v2 import functional as tv
from tqdm.auto import tqdm

from otclib.data import scenes

disable_progress_bars()  # of writing a table, which takes a moment: what takes longer shows itself

NAMES = ("scenes", "coco", "visual-genome", "cc3m", "csv", "webdataset", "hub")

SCENES_FEATURES = Features(
    {
        "id": Value("string"),
        "image": Image(),
        "caption": Value("string"),
        "label": Value("string"),
        "objects": [
            {"name": Value("string"), "colour": Value("string"), "size": Value("string"), "box": [Value("float32")]}
        ],
        "ground": Value("string"),
        "words": [{"text": Value("string"), "start": Value("int32"), "end": Value("int32"), "object": Value("int32")}],
    }
)


def cache_dir() -> Path:
    """Where drawn scenes are kept: ``$OTCLIB_CACHE``, else ``~/.cache/otclib``."""
    return Path(os.environ.get("OTCLIB_CACHE") or Path.home() / ".cache" / "otclib")


def load(
    name: str,
    *,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    **options,
) -> Dataset:
    """Load an image-caption table.

    Parameters
    ----------
    name : one of ``NAMES``; all but ``scenes`` read a copy that lies in ``root`` (``hub`` also takes a name, ``path``).
    split : ``train``, ``val`` or ``test`` (scenes: ``test`` holds one object per image, so that its label is the
        whole truth; ``train`` and ``val`` hold one to three).
    root : the folder of the copy; for scenes, the folder of the cache.
    size : how many rows (a seeded sample for the real sets); default all of them, for scenes
        12,000 / 1,000 / 2,000.
    seed : draws the scenes, or the sample.
    options : ``image_size`` (scenes, pixels, default 64), and what the readers in ``otclib.data.captions`` take.

    Returns
    -------
    datasets.Dataset with ``id`` (str), ``image`` (PIL, lazy), ``caption`` (str), ``label`` (class name or None).

    Raises
    ------
    ValueError : an unknown name, split or option, or a size below 1.
    FileNotFoundError : the copy, or a file of it, is not there.
    """
    if name not in NAMES:
        raise ValueError(f"unknown dataset {name!r}: choose one of {', '.join(NAMES)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 row, got {size}")
    if name == "scenes":
        if unknown := set(options) - {"image_size"}:
            raise ValueError(f"scenes have no option {', '.join(sorted(unknown))}; they take image_size")
        return _scenes(split, root, size, seed, **options)
    from otclib.data import captions

    return captions.read(name, split=split, root=root, size=size, seed=seed, **options)


def _scenes(split: str, root, size: int | None, seed: int, *, image_size: int = 64) -> Dataset:
    if split not in scenes.SPLITS:
        raise ValueError(f"scenes have the splits {', '.join(scenes.SPLITS)}, not {split!r}")
    if not 16 <= image_size <= 1024:
        raise ValueError(f"image_size must lie between 16 and 1024 pixels, got {image_size}")
    n = size or scenes.SPLITS[split][0]
    home = Path(root) if root else cache_dir()
    folder = home / f"scenes-v{scenes.VERSION}-{split}-{n}-{image_size}px-seed{seed}"
    if not folder.exists():
        home.mkdir(parents=True, exist_ok=True)
        drawn = Path(tempfile.mkdtemp(prefix=folder.name, dir=home))
        try:
            look = {"desc": f"drawing {split} scenes", "leave": False, "disable": not sys.stderr.isatty()}
            rows = list(tqdm(scenes.generate(split, n, image_size, seed), total=n, **look))
            Dataset.from_list(rows, features=SCENES_FEATURES).save_to_disk(drawn / "table")
            try:
                (drawn / "table").rename(folder)
            except OSError:  # another process was faster: its table is the same
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(drawn, ignore_errors=True)
    return load_from_disk(str(folder))


def words_for(label: str) -> tuple[str, ...]:
    """The words that name a class: the class name and, for the embedded objects, its synonyms."""
    return (label, *scenes.OBJECTS[label][1]) if label in scenes.OBJECTS else (label,)


def names(caption: str, label: str) -> bool:
    """Does the caption name the class? Whole words, any case, synonyms of the embedded objects included."""
    return re.search(rf"\b({'|'.join(map(re.escape, words_for(label)))})\b", caption, re.IGNORECASE) is not None


def with_article(word: str) -> str:
    """A noun with its article: "an umbrella", "a star", and "scissors", which the scenes' captions give none."""
    return word if word in scenes.NO_ARTICLE else f"{scenes.article(word)} {word}"


def prompt(template: str, label: str) -> str:
    """The zero-shot prompt of a class: its name in place of ``{}``, with the article that fits it.

    Only an article directly before ``{}`` is changed: "a photo of a {}" becomes "a photo of an umbrella" and "a photo
    of scissors", "a photo of a large {}" becomes "a photo of a large umbrella".
    """
    return re.sub(r"\b[Aa]n? \{\}", lambda _: with_article(label), template).replace("{}", label)


def classes(pairs: Dataset) -> list[str]:
    """The class names that occur as labels, sorted."""
    return sorted({label for label in pairs["label"][:] if label is not None})


def templates(pairs: Dataset) -> Sequence[str]:
    """Zero-shot prompt templates, for ``prompt``: the scenes' own forms, or open_clip's 80 ImageNet ones."""
    if "objects" in pairs.column_names:
        return scenes.TEMPLATES
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [t("{}") for t in OPENAI_IMAGENET_TEMPLATES]


@dataclass(frozen=True)
class Resize:
    """The way from an image to the square that a model sees: PIL or tensor [..., 3, H, W] -> [..., 3, size, size].

    PIL images give uint8, tensors keep their dtype; an image of the right size stays as it is. The defaults are CLIP's;
    ``models.resize`` gives a model's own.
    """

    size: int  # pixels
    interpolation: str = "bicubic"  # or "bilinear"
    mode: str = "shortest"  # side is resized, then the centre cropped; "longest": the rest is padded; "squash": both
    fill: int = 0  # of the padding, 0 to 255

    def __post_init__(self) -> None:
        if self.mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"mode is 'shortest', 'longest' or 'squash', got {self.mode!r}")
        if self.interpolation not in ("bicubic", "bilinear", "random"):  # open_clip: "random" is of training alone
            raise ValueError(f"interpolation is 'bicubic' or 'bilinear', got {self.interpolation!r}")

    def __call__(self, image: PIL.Image.Image | torch.Tensor) -> torch.Tensor:
        if isinstance(image, PIL.Image.Image):
            image = tv.pil_to_tensor(image.convert("RGB"))
        height, width = image.shape[-2:]
        if (height, width) == (self.size, self.size):
            return image
        sides = [self.size, self.size] if self.mode == "squash" else [self.size]
        if self.mode == "longest":
            sides = [max(1, round(side * self.size / max(height, width))) for side in (height, width)]
        how = tv.InterpolationMode.BILINEAR if self.interpolation == "bilinear" else tv.InterpolationMode.BICUBIC
        image = tv.resize(image, sides, interpolation=how, antialias=True)
        if self.mode == "longest":
            down, right = (self.size - side for side in image.shape[-2:])
            fill = self.fill / 255 if image.is_floating_point() else self.fill
            image = tv.pad(image, [right // 2, down // 2, right - right // 2, down - down // 2], fill=fill)
        return tv.center_crop(image, self.size)


def image_tensor(pairs: Dataset, resize: int | Resize) -> torch.Tensor:
    """All images as a model sees them, uint8 [N, 3, S, S]; ``resize``: ``models.resize(model)``, or S in pixels."""
    resize = Resize(resize) if isinstance(resize, int) else resize
    out = torch.empty(len(pairs), 3, resize.size, resize.size, dtype=torch.uint8)
    for k, image in enumerate(pairs["image"]):
        out[k] = resize(image)
    return out
