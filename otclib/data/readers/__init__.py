"""Photographs with captions: COCO, Visual Genome, Conceptual Captions and the usual formats, read from a local copy.

    pairs = otclib.data.load("coco", root="data/coco", split="val", size=5000)

There is one reader per format, and its docstring has the layout that it expects. A reader only says *where* things are:
it returns a table ``id, image, caption, label`` whose image is a path, an address in a tar (``tarpart``), or already an
image. The function ``read`` does what all formats share: it counts blank captions and missing images, draws the sample,
and then makes the images lazy ``datasets.Image`` cells. Nothing is copied; an image is read when it is asked for.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from otclib.data.readers import cc3m, coco, csv, hub, visual_genome, webdataset
from otclib.data.readers.files import PAIRS, PATHS
from otclib.data.readers.tarpart import SCHEME


def read(
    name: str,
    *,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    skip_missing: bool = False,
    **options: Any,
) -> Dataset:
    """Read an image-caption table from a local copy.

    Parameters
    ----------
    name : ``coco``, ``visual-genome``, ``cc3m``, ``csv``, ``webdataset`` or ``hub``.
    split : ``train`` or ``val``; ``csv``, ``webdataset`` and ``hub`` take any split that the copy has.
    root : the folder of the copy.
    size : a sample of this many rows, in the copy's order; a larger sample of the same seed contains the smaller one.
    seed : draws the sample, and the phrases of Visual Genome.
    skip_missing : leave out the rows whose image is missing, with a warning, instead of failing.
    options : the options of the format's reader, which is ``read`` in the file of its name: see its docstring.

    Returns
    -------
    datasets.Dataset with ``id`` (str), ``image`` (PIL, lazy), ``caption`` (str, never blank), ``label`` (str or None).

    Raises
    ------
    FileNotFoundError : the root, a file that the format needs, or (unless ``skip_missing``) an image is missing.
    ValueError : an unknown name, split, option or column, or a sample larger than the copy.
    """
    if name not in READERS:
        raise ValueError(f"unknown dataset {name!r}: choose one of {', '.join(READERS)}")
    reader, splits = READERS[name]
    known = [p.name for p in inspect.signature(reader).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        takes = ", ".join([*known, "skip_missing"])
        raise ValueError(f"unknown option {', '.join(unknown)} for {name!r}: it takes {takes}")
    if splits and split not in splits:
        raise ValueError(f"{name!r} has the splits {', '.join(splits)}, not {split!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 row, got {size}")
    if root is None and name != "hub":
        raise ValueError(f"{name!r} is read from a local copy: give its folder as root, got root=None")
    if root is not None and not (root := Path(root).expanduser().absolute()).is_dir():
        raise FileNotFoundError(f"{name!r} was to be read from root={str(root)!r}, which is not a folder")

    table = reader(root, split, seed, **options)
    absent = _absent(table)
    if absent and not skip_missing:
        raise FileNotFoundError(
            f"{len(absent)} of {len(table)} images of {name!r} {split!r} are missing, the first is "
            f"{next(iter(absent.values()))}; skip_missing=True leaves them out"
        )
    blank = {row for row, caption in enumerate(table["caption"][:]) if not caption}
    without: tuple[tuple[Collection[int], str], ...] = (absent, "image"), (blank, "caption")
    for some, lack in without:
        if some:
            message = f"{name!r} {split!r}: {len(some)} of {len(table)} rows have no {lack} and are left out"
            warnings.warn(message, stacklevel=3)
    rows = np.array([row for row in range(len(table)) if row not in absent and row not in blank], dtype=np.int64)
    if len(rows) < (size or 1):
        raise ValueError(f"{name!r} {split!r} has {len(rows)} image-caption pairs, asked for {size or 'at least 1'}")
    if size is not None:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:size])
    return _with_images(table, rows)


def _absent(table: Dataset) -> dict[int, str]:
    """Return the rows whose image is missing, with the name that it should have. Each folder is listed only once."""
    if table.features == PAIRS:
        return {int(row): f"that of row {row}" for row in np.flatnonzero(table.data.column("image").is_null())}
    listed = functools.cache(lambda folder: set(os.listdir(folder)) if os.path.isdir(folder) else set())
    paths = {row: os.path.split(path) for row, path in enumerate(table["image"][:]) if not path.startswith(SCHEME)}
    return {row: os.path.join(*path) for row, path in paths.items() if path[1] not in listed(path[0])}


def _with_images(table: Dataset, rows: np.ndarray) -> Dataset:
    if len(rows) < len(table):  # paths become a new table, so that a small sample does not keep the large one in memory
        table = Dataset.from_dict(table[rows], features=PATHS) if table.features == PATHS else table.select(rows)
    return table.cast_column("image", Image())


Splits = tuple[str, ...] | None  # None: any that the copy has
READERS: dict[str, tuple[Callable[..., Dataset], Splits]] = {
    "coco": (coco.read, ("train", "val")),
    "visual-genome": (visual_genome.read, ("train", "val")),
    "cc3m": (cc3m.read, ("train", "val")),
    "csv": (csv.read, None),
    "webdataset": (webdataset.read, None),
    "hub": (hub.read, None),
}
