"""Photographs with captions: COCO, Visual Genome, Conceptual Captions and the usual formats, read from a local copy.

    pairs = otclib.data.load("coco", root="data/coco", split="val", size=5000)

There is one reader per format, and its docstring has the layout that it expects. A reader only says *where* things are:
it returns a table ``id, image, caption, label, place, problem`` whose image is a path, an address in a tar
(``tarpart``), or already an image; ``place`` is the file and line of a row, and ``problem`` what is malformed there.
``checking`` holds the one policy for rows that cannot be used. The function ``read`` does what all formats share: it
draws the sample, applies the policy, and makes the images lazy ``datasets.Image`` cells. Nothing is copied; an image is
decoded once to check it, and then when it is asked for.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from otclib.data.origin import with_origin
from otclib.data.readers import cc3m, checking, coco, csv, hub, visual_genome, webdataset
from otclib.data.readers.files import PAIRS, ROWS


def read(
    name: str,
    *,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    on_error: str = "raise",
    check: str = "decode",
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
    on_error : what becomes of rows that cannot be used, see ``checking``: ``raise`` an error that names the first and
        counts them, or ``skip`` them with one warning. ``origin(table)["left_out"]`` then lists them with place and
        reason. With ``size`` only rows that are drawn are looked at, and ``skip`` draws others in their place.
    check : ``decode`` every image that is drawn, once; read its ``header`` only; or ``none``: is its file there?
    options : the options of the format's reader, which is ``read`` in the file of its name: see its docstring.

    Returns
    -------
    datasets.Dataset with ``id`` (str), ``image`` (PIL, lazy), ``caption`` (str, never blank), ``label`` (str or None).

    Raises
    ------
    FileNotFoundError : the root or a file that the format needs is missing; or, with ``raise``, an image.
    ValueError : an unknown name, split, option or column, or a sample larger than the copy; or, with ``raise``, another
        row that cannot be used.
    """
    folder = _checked(name, split, root, size, options)
    table = READERS[name][0](folder, split, seed, **options)
    order = range(len(table)) if size is None else np.random.default_rng(seed).permutation(len(table))
    where = "/".join(str(part) for part in (folder, options.get("path")) if part)
    good, bad = checking.sort_out(table, order, size, check=check, on_error=on_error, home=f"{name} {where}")
    left_out = checking.report(table, bad, len(good) + len(bad))
    said = f"{len(bad)} of {left_out['of']} rows of {name!r} {split!r} in {where} cannot be used"
    said += f", the first is {left_out['rows'][0]['place']}: {left_out['rows'][0]['reason']}" if bad else ""
    if bad and on_error == "raise":
        missing = bad[min(bad)].startswith(checking.MISSING)
        raise (FileNotFoundError if missing else ValueError)(f'{said}; on_error="skip" leaves them out and lists them')
    if len(good) < (size or 1):
        found = f"{name!r} {split!r} has {len(good)} image-caption pairs, asked for {size or 'at least 1'}"
        raise ValueError(f"{found}; {said}" if bad else found)
    if bad:
        warnings.warn(f'{said}; they are left out, and origin(table)["left_out"] lists them', stacklevel=3)
    return with_origin(_with_images(table, np.sort(np.array(good, dtype=np.int64))), left_out=left_out)


def splits(name: str, root: str | Path | None, **options: Any) -> dict[str, int]:
    """Return the rows of every split that a copy has, of ``train``, ``val`` and ``test``; images are not checked."""
    found = {}
    for split in ("train", "val", "test"):
        try:
            found[split] = len(READERS[name][0](_checked(name, split, root, None, options), split, 0, **options))
        except (FileNotFoundError, ValueError):
            continue
    return found


def _checked(name: str, split: str, root: str | Path | None, size: int | None, options: dict[str, Any]) -> Path | None:
    """Return the folder of the copy, unless what was asked cannot be."""
    if name not in READERS:
        raise ValueError(f"unknown dataset {name!r}: choose one of {', '.join(READERS)}")
    reader, known_splits = READERS[name]
    known = [p.name for p in inspect.signature(reader).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        takes = ", ".join([*known, "on_error", "check"])
        raise ValueError(f"unknown option {', '.join(unknown)} for {name!r}: it takes {takes}")
    if known_splits and split not in known_splits:
        raise ValueError(f"{name!r} has the splits {', '.join(known_splits)}, not {split!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 row, got {size}")
    if root is None and name != "hub":
        raise ValueError(f"{name!r} is read from a local copy: give its folder as root, got root=None")
    folder = None if root is None else Path(root).expanduser().absolute()
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{name!r} was to be read from root={str(folder)!r}, which is not a folder")
    return folder


def _with_images(table: Dataset, rows: np.ndarray) -> Dataset:
    if len(rows) < len(table):
        if table.features["image"] == ROWS["image"]:  # a new table, so that a small sample does not keep the large one
            table = Dataset.from_dict(table[rows], features=ROWS)
        else:
            table = table.select(rows)
    return table.select_columns(list(PAIRS)).cast_column("image", Image())


Splits = tuple[str, ...] | None  # None: any that the copy has
READERS: dict[str, tuple[Callable[..., Dataset], Splits]] = {
    "coco": (coco.read, ("train", "val")),
    "visual-genome": (visual_genome.read, ("train", "val")),
    "cc3m": (cc3m.read, ("train", "val")),
    "csv": (csv.read, None),
    "webdataset": (webdataset.read, None),
    "hub": (hub.read, None),
}
