"""Helpers of the readers: the columns of their tables, and a cache for data that takes long to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from otclib.data.cache import cache_dir

VERSION = 2  # part of the cache's name: raise it when the same shards begin to give another table


TEXTS = {"caption": Value("string"), "label": Value("string")}
PAIRS = Features({"id": Value("string"), "image": Image(), **TEXTS})
PATHS = Features({"id": Value("string"), "image": Value("string"), **TEXTS})  # or addresses inside tars


def cached(generator: Callable, features: Features, key: tuple, **inputs: Any) -> Dataset:
    """Return ``Dataset.from_generator`` from our cache, made anew only when ``key`` changes; errors are unwrapped."""
    folder, fingerprint = str(cache_dir() / "captions"), Hasher.hash((VERSION, *key))
    try:
        return Dataset.from_generator(generator, features, folder, gen_kwargs=inputs, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


def table_of_files(ids: Iterable, paths: Iterable, captions: Iterable, labels: Iterable | None = None) -> Dataset:
    captions = [caption.strip() for caption in captions]
    labels = [None] * len(captions) if labels is None else [label or None for label in labels]
    columns = {"id": list(map(str, ids)), "image": list(map(str, paths)), "caption": captions, "label": labels}
    return Dataset.from_dict(columns, features=PATHS)


def need(asked: str, *paths: Path) -> None:
    if lacking := [str(path) for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{asked} needs {' and '.join(lacking)}, not found")
