"""Helpers of the readers: the rows that they return, and a cache for data that takes long to read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from otclib.data.cache import cache_dir
from otclib.data.readers.checking import caption_problem, climbs
from otclib.data.readers.tarpart import SCHEME

VERSION = 3  # part of the cache's name: raise it when the same shards begin to give another table

TEXT = Value("string")
PAIRS = Features({"id": TEXT, "image": Image(), "caption": TEXT, "label": TEXT})
ABOUT = {"place": TEXT, "problem": TEXT}  # the file and line of a row, and why it cannot be used (None: it can)
ROWS = Features({"id": TEXT, "image": TEXT, "caption": TEXT, "label": TEXT, **ABOUT})  # image: a path or an address


def row(
    root: Path, id: object, image: str, caption: object, label: str | None = None, *, place: str, problem: str = ""
) -> dict[str, str | None]:
    """Return a row of ``ROWS``, and judge its path and its caption.

    ``image`` : a path, absolute or relative to ``root``, or the address of a part of a tar. ``place`` : the file and
    line where a person would look the row up. ``problem`` : why the reader cannot use the row, if it cannot.
    """
    if not image.startswith(SCHEME):
        if climbs(image) and not os.path.isabs(image):
            problem = problem or f"its path leaves the root: {os.path.normpath(image)}"
        image = os.path.normpath(os.path.join(root, image)) if image else ""
    problem = problem or caption_problem(caption)
    texts = {"image": image, "caption": str(caption or "").strip(), "label": label or None}
    if not all(_unicode(text or "") for text in texts.values()):
        texts, problem = {"image": "", "caption": "", "label": None}, problem or "its text is not Unicode"
    return {"id": _printable(str(id)), **texts, "place": _printable(place), "problem": _printable(problem) or None}


def table_of(rows: Iterable[dict[str, Any]]) -> Dataset:
    """Return the table of the rows."""
    columns: dict[str, list] = {name: [] for name in ROWS}
    for each in rows:
        for name, column in columns.items():
            column.append(each[name])
    return Dataset.from_dict(columns, features=ROWS)


def cached(generator: Callable, features: Features, key: tuple, **inputs: Any) -> Dataset:
    """Return ``Dataset.from_generator`` from our cache, made anew only when ``key`` changes; errors are unwrapped."""
    folder, fingerprint = str(cache_dir() / "captions"), Hasher.hash((VERSION, *key))
    try:
        return Dataset.from_generator(generator, features, folder, gen_kwargs=inputs, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


def need(asked: str, *paths: Path) -> None:
    if lacking := [str(path) for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{asked} needs {' and '.join(lacking)}, not found")


def json_of(file: Path, *keys: str) -> Any:
    """Return the content of a JSON file, which is an object that has a list under each of the ``keys``, or a list.

    Raises
    ------
    ValueError : it is not. Without the whole file no row is known, so there is none to leave out.
    """
    try:
        content: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    lists = [content.get(key) for key in keys] if isinstance(content, dict) else [] if keys else [content]
    if not lists or not all(isinstance(part, list) for part in lists):
        raise ValueError(f"{file} must hold {'an object with the lists ' + ' and '.join(keys) if keys else 'a list'}")
    return content


def broken(root: Path, id: str, error: Exception, place: str) -> dict[str, str | None]:
    """Return the row of a JSON entry that lacks a key, or whose values cannot be used."""
    why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return row(root, id, "", "", place=place, problem=f"its entry is malformed: {why}")


def _unicode(text: str) -> bool:
    """Return whether the text can be stored: JSON and names of files may hold halves of characters."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
