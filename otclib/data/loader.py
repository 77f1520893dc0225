"""``load`` returns an image-caption table by name, drawn or read from a local copy."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value, disable_progress_bars, load_from_disk
from tqdm.auto import tqdm

from otclib.data import readers, scenes
from otclib.data.cache import cache_dir
from otclib.data.origin import with_origin

disable_progress_bars()  # writing a table takes only a moment; longer work shows its own progress bar
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


def load(
    name: str,
    *,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """Load an image-caption table.

    Parameters
    ----------
    name : one of ``NAMES``. All but ``scenes`` read a copy that lies in ``root`` (``hub`` also takes a name, ``path``).
    split : ``train``, ``val`` or ``test``. Images of the scenes' ``test`` hold one object, so the label names all that
        they show; those of ``train`` and ``val`` hold one to three.
    root : the folder of the copy; for scenes, the folder of the cache.
    size : number of rows (a seeded sample for the real sets); default all of them, for scenes
        12,000 / 1,000 / 2,000.
    seed : draws the scenes, or the sample.
    options : ``image_size`` (scenes, pixels, default 64), and the options of the readers in ``otclib.data.readers``.
        All readers take ``on_error="raise" | "skip"``, for rows that cannot be used, and ``check``, which says how
        images are looked at when the table is loaded.

    Returns
    -------
    datasets.Dataset with ``id`` (str), ``image`` (PIL, lazy), ``caption`` (str), ``label`` (class name or None).

    Raises
    ------
    ValueError : an unknown name, split or option, or a size below 1; or a row that cannot be used.
    FileNotFoundError : the copy, a file of it, or an image is not there.
    """
    if name not in NAMES:
        raise ValueError(f"unknown dataset {name!r}: choose one of {', '.join(NAMES)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 row, got {size}")
    if name == "scenes":
        if unknown := set(options) - {"image_size"}:
            raise ValueError(f"scenes have no option {', '.join(sorted(unknown))}; they take image_size")
        table = _scenes(split, root, size, seed, **options)
    else:
        table = readers.read(name, split=split, root=root, size=size, seed=seed, **options)
    return with_origin(table, name=name, options=options)


def _scenes(split: str, root: str | Path | None, size: int | None, seed: int, *, image_size: int = 64) -> Dataset:
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
            except OSError:  # another process was faster, and its table is the same
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(drawn, ignore_errors=True)
    return load_from_disk(str(folder))
