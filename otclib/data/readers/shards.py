"""Tars of samples, and folders of them, as webdataset and img2dataset write them."""

from __future__ import annotations

import functools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from otclib.data.readers.checking import climbs
from otclib.data.readers.files import ROWS, cached, row
from otclib.data.readers.tarpart import address

SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
TEXT_ENDINGS = ("txt", "json", "cls")


def add_samples(samples: dict[str, list[dict[str, str]]], files: Iterable[tuple[str, str, Callable]]) -> None:
    """Add files, given as names, places and contents, to ``samples``: key -> [{ending: an image's place, or a text}].

    A name that comes a second time begins a second sample of its key.
    """
    for name, place, content in files:
        folder, base = os.path.split(name)
        stem, _, ending = base.partition(".")  # no stem: a hidden file
        ending = ending.lower() if stem else ""
        if ending in IMAGE_ENDINGS + TEXT_ENDINGS:
            of_key = samples.setdefault(os.path.join(folder, stem), [{}])
            if ending in of_key[-1]:
                of_key.append({})
            image = ending in IMAGE_ENDINGS
            of_key[-1][ending] = place if image else content().decode("utf-8", "surrogateescape")


def rows_of(
    root: Path,
    place: str,
    prefix: str,
    samples: dict[str, list[dict[str, str]]],
    urls: Callable[[], dict[str, str]],
    class_names: tuple[str, ...] = (),
) -> Iterator[dict]:
    """Yield the rows of the samples of one tar or folder.

    The image of a sample is the first of ``IMAGE_ENDINGS`` that it has. Its caption is its ``.txt``, else ``caption``
    in its ``.json``, else the one that is listed for its URL.
    """
    for key, sample in ((key, sample) for key, of_key in samples.items() for sample in of_key):
        caption, problem = _caption(sample, urls)
        image = next((sample[ending] for ending in IMAGE_ENDINGS if ending in sample), "")
        label = sample.get("cls", "").strip() or None
        if label and class_names:
            if label.isdecimal() and int(label) < len(class_names):
                label = class_names[int(label)]
            else:
                problem = f"its class is malformed: {key}.cls is {label!r}; given {len(class_names)} class_names"
        if not image:
            problem = f"its image is missing: {key}.jpg"
        if climbs(key):
            problem = f"its path leaves the root: {key}"
        id, at = f"{prefix}/{os.path.normpath(key)}", f"{place} sample {key}"
        yield row(root, id, image, caption, label, place=at, problem=problem)


def _caption(sample: dict[str, str], urls: Callable[[], dict[str, str]]) -> tuple[Any, str]:
    """Return the caption, and what is wrong with the sample's texts."""
    if caption := sample.get("txt", "").strip():
        return caption, ""
    try:
        about = json.loads(sample.get("json") or "{}")
        return about.get("caption") or urls().get(about.get("url")), ""
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return None, f"its .json is malformed: {error}"


def captions_by_url(tsv: Path | None) -> dict[str, str]:
    lines = tsv.read_text("utf-8", "surrogateescape").split("\n") if tsv else []
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
    return cached(_scan, ROWS, (stamps, inputs), **inputs)


def _scan(root: Path, shards: tuple[Path, ...], tsv: Path | None, class_names: tuple[str, ...]) -> Iterator[dict]:
    urls = functools.cache(lambda: captions_by_url(tsv))
    for shard in shards:
        samples: dict[str, list[dict[str, str]]] = {}
        name, lost = shard.relative_to(root), ""
        try:
            with tarfile.open(shard, "r:") as tar:
                add_samples(samples, _members(tar))
                _see_the_end(tar)
        except tarfile.TarError as error:
            lost = f"its tar is not whole and uncompressed: {error}; what follows in it is lost"
        yield from rows_of(root, str(name), str(name.with_suffix("")), samples, urls, class_names)
        if lost:
            yield row(root, name, "", "", place=str(name), problem=lost)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    for member in filter(tarfile.TarInfo.isfile, tar):
        if (file := tar.extractfile(member)) is not None:
            yield member.name, address(str(tar.name), member.offset_data, member.size), file.read


def _see_the_end(tar: tarfile.TarFile) -> None:
    """Raise a ``ReadError`` unless the tar ends where reading stopped; ``tarfile`` takes any broken header for that."""
    with open(str(tar.name), "rb") as file:
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
