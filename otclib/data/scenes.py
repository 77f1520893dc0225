"""Scenes of glyphs: the embedded image-caption set, drawn instead of downloaded.

One to three objects (symbols of the DejaVu font that matplotlib ships) lie on a textured ground, and a small grammar
describes them. We drew the scene, so for every content word of every caption we know which part of the image it names.
No photograph set has this, and it makes it possible to *score* a transport plan.

A scene is first *sampled* (positions in units of the image side, so that one seed gives the same scene at any size),
then *described* and *rendered*. Captions name colour, size and ground only now and then. If they always did, these
words alone would distinguish the pairs of a batch, and the objects would never be learned.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture

from otclib.data.cache import cache_dir, kept
from otclib.data.drawing import render
from otclib.data.grammar import describe, sample
from otclib.data.parallel import in_order, shown

VERSION = 7  # part of the cache's name: raise it when the same seed begins to give other scenes
SPLITS = {"train": (12_000, 3), "val": (1_000, 3), "test": (2_000, 1)}  # default rows, most objects in a scene
CHUNK = 250  # rows that a worker draws at a time
OBJECT = {"name": Value("string"), "colour": Value("string"), "size": Value("string"), "box": [Value("float32")]}
WORD = {"text": Value("string"), "start": Value("int32"), "end": Value("int32"), "object": Value("int32")}
PAIR = {"id": Value("string"), "image": Image(), "caption": Value("string"), "label": Value("string")}
FEATURES = Features({**PAIR, "objects": [OBJECT], "ground": Value("string"), "words": [WORD]})


def load(split: str, *, size: int | None, seed: int, root: str | Path | None, image_size: int = 64) -> Dataset:
    """Return the table of a split, from the cache or drawn; ``root`` is the folder of the cache.

    Images of ``test`` hold one object, so the label names all that they show; others hold one to three.
    """
    check(split, image_size)
    n = size or SPLITS[split][0]
    folder = (Path(root) if root else cache_dir()) / f"scenes-v{VERSION}-{split}-{n}-{image_size}px-seed{seed}"
    rows = shown(generate(split, n, image_size, seed), n, f"drawing {split} scenes")
    return kept(folder, lambda: Dataset.from_list(list(rows), features=FEATURES))


def check(split: str, image_size: int) -> None:
    """Refuse a split or an image size that drawn sets do not have."""
    if split not in SPLITS:
        raise ValueError(f"drawn sets have the splits {', '.join(SPLITS)}, not {split!r}")
    if not 16 <= image_size <= 1024:
        raise ValueError(f"image_size must lie between 16 and 1024 pixels, got {image_size}")


def generate(split: str, n: int, size: int = 64, seed: int = 0, workers: int | None = None) -> Iterator[dict]:
    """Yield ``n`` rows of the split in order, drawn by ``workers`` processes (default: one per core)."""
    tasks = [(split, seed, size, SPLITS[split][1], a, min(a + CHUNK, n)) for a in range(0, n, CHUNK)]
    return in_order(_rows, tasks, workers)


def _rows(task: tuple[str, int, int, int, int, int]) -> list[dict]:
    split, seed, size, max_objects, start, stop = task
    rows = []
    for k in range(start, stop):
        rng = np.random.default_rng([seed, list(SPLITS).index(split), k])
        scene = sample(rng, max_objects)
        caption, words = describe(scene, rng)
        rows.append(
            {
                "id": f"{split}-{seed}-{k:06d}",
                "image": stored(render(scene, size)),
                "caption": caption,
                "label": scene.things[0].name if len(scene.things) == 1 else None,
                "objects": [{"name": t.name, "colour": t.colour, "size": t.size, "box": t.box} for t in scene.things],
                "ground": scene.ground,
                "words": words,
            }
        )
    return rows


def stored(image: np.ndarray) -> dict:
    """Return an image, uint8 [H, W, 3], as ``datasets`` stores it: a PNG, whose level 1 would triple the time."""
    png = io.BytesIO()
    Picture.fromarray(image).save(png, "PNG", compress_level=0)
    return {"bytes": png.getvalue(), "path": None}
