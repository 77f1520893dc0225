"""``load`` returns an image-caption table by name, drawn or read from a local copy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars

from otclib.data import readers, scenes
from otclib.data.emoji import scenes as emoji_scenes
from otclib.data.emoji import table as emoji
from otclib.data.origin import origin, with_origin

disable_progress_bars()  # writing a table takes only a moment; longer work shows its own progress bar
DRAWN: dict[str, Callable[..., Dataset]] = {
    "scenes": scenes.load,
    "emoji": emoji.load,
    "emoji-scenes": emoji_scenes.load,
}
NAMES = (*DRAWN, *readers.READERS)


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
    name : one of ``NAMES``. Those of ``DRAWN`` are drawn; others read a copy that lies in ``root`` (``hub`` also takes
        a name, ``path``).
    split : ``train``, ``val`` or ``test``. Images of the scenes' ``test`` hold one object, so the label names all that
        they show; those of ``train`` and ``val`` hold one to three.
    root : the folder of the copy; for ``scenes``, the folder of the cache; for ``emoji`` and ``emoji-scenes``, a folder
        with their packages (``data.emoji.sources``), which npm fetches otherwise.
    size : number of rows (a seeded sample of ``emoji`` and of what is read); default all of them. Scenes can have any
        number: the default is in the modules ``data.scenes`` and ``data.emoji.scenes``.
    seed : draws scenes and captions, or the sample.
    options : ``image_size`` of a drawn set (pixels, default 64), and more: see the ``load`` of the set's module, and
        the readers in ``otclib.data.readers``.
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
    if name in DRAWN:
        common = {"split", "size", "seed", "root"}
        known = [option for option in inspect.signature(DRAWN[name]).parameters if option not in common]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
        table = DRAWN[name](split, size=size, seed=seed, root=root, **options)
    else:
        table = readers.read(name, split=split, root=root, size=size, seed=seed, **options)
    return with_origin(table, name=name, options=options)


def world(pairs: Dataset) -> dict[str, Any] | None:
    """Return name and options of the drawn set that a table is of, ``{"name", "options"}``; None for other tables."""
    found = origin(pairs)
    if found.get("name") in DRAWN:
        return {"name": found["name"], "options": found["options"]}
    return {"name": "scenes", "options": {}} if "objects" in pairs.column_names and not found else None


def world_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return ``world`` of the pairs of a run by its configuration; older ones say only whether they are scenes."""
    older: dict[str, Any] | None = {"name": "scenes", "options": {}} if config.get("scenes") else None
    found: dict[str, Any] | None = config.get("world", older)
    return found
