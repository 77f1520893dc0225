"""Tars of samples, and folders of them, as webdataset and img2dataset write them."""

from __future__ import annotations

import functools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from datasets import Dataset

from otclib.data.readers.files import PATHS, cached
from otclib.data.readers.tarpart import address

SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
TEXT_ENDINGS = ("txt", "json", "cls")


def samples_of(files: Iterable[tuple[str, object, Callable[[], bytes]]]) -> dict[str, dict]:
    """Return key -> ``{"image": its place, "txt": text, ...}`` of the files' names, places and contents."""
    samples: dict[str, dict] = {}
    for name, place, content in files:
        folder, base = os.path.split(name)
        stem, _, ending = base.partition(".")  # no stem: a hidden file
        key, ending = os.path.join(folder, stem), ending.lower() if stem else ""
        if ending in IMAGE_ENDINGS:
            samples.setdefault(key, {})["image"] = place
        elif ending in TEXT_ENDINGS:
            samples.setdefault(key, {})[ending] = content().decode("utf-8", "replace")
    return samples


def caption_of(texts: dict, urls: Callable[[], dict[str, str]]) -> str:
    """Return the caption of an image: its ``.txt``, else ``caption`` in its ``.json``, else the one listed by URL."""
    if caption := texts.get("txt", "").strip():
        return caption
    about = json.loads(texts.get("json") or "{}")
    return (about.get("caption") or urls().get(about.get("url")) or "").strip()


def captions_by_url(tsv: Path | None) -> dict[str, str]:
    lines = tsv.read_text("utf-8").split("\n") if tsv else []
    return {url.strip(): caption for caption, tab, url in (line.partition("\t") for line in lines) if tab}


def find_shards(root: Path, split: str, whole: bool) -> list[Path]:
    """Return the tars of a split: by folder, by name, or (``whole``) those in root whose names have no split."""
    words = SPLIT_WORDS.get(split, (split,))
    for word in words:
        if tars := sorted((root / word).glob("*.tar")):
            return tars
    tells_of = {tar: set(re.split("[^a-z]+", tar.stem.lower())) for tar in sorted(root.glob("*.tar"))}
    named = [tar for tar, tells in tells_of.items() if tells & set(words)]
    splits = {word for words in SPLIT_WORDS.values() for word in words}
    return named or [tar for tar, tells in tells_of.items() if whole and not tells & splits]


def index(root: Path, shards: list[Path], tsv: Path | None, class_names: list[str] | None = None) -> Dataset:
    """Return the rows of tars, with the addresses of their images (``tarpart``) and not their bytes."""
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in [*shards, *([tsv] if tsv else [])]]
    inputs = {"root": root, "shards": tuple(shards), "tsv": tsv, "class_names": tuple(class_names or ())}
    return cached(_scan, PATHS, (stamps, inputs), **inputs)


def _scan(root: Path, shards: tuple[Path, ...], tsv: Path | None, class_names: tuple[str, ...]) -> Iterator[dict]:
    urls = functools.cache(lambda: captions_by_url(tsv))
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                samples = samples_of(_members(tar))
        except tarfile.ReadError as error:
            raise ValueError(f"{shard} is not a whole, uncompressed tar: {error}") from error
        for key, sample in samples.items():
            label = sample.get("cls", "").strip() or None
            if label and class_names:
                if not label.isdecimal() or int(label) >= len(class_names):
                    raise ValueError(f"{key}.cls of {shard} is {label!r}; given {len(class_names)} class_names")
                label = class_names[int(label)]
            image = sample.get("image", f"{key}.jpg of {shard}")
            name = shard.relative_to(root).with_suffix("") / key
            yield {"id": str(name), "image": image, "caption": caption_of(sample, urls), "label": label}


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    for member in filter(tarfile.TarInfo.isfile, tar):
        if (file := tar.extractfile(member)) is not None:
            yield member.name, address(str(tar.name), member.offset_data, member.size), file.read
