"""Conceptual Captions, in the three layouts that are in use."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from otclib.data.readers import csv
from otclib.data.readers.files import table_of
from otclib.data.readers.shards import SPLIT_WORDS, add_samples, captions_by_url, find_shards, index, rows_of


def read(root: Path, split: str, seed: int) -> Dataset:
    """Read Conceptual Captions 3M (Sharma et al. 2018, ai.google.com/research/ConceptualCaptions) in one of 3 layouts.

    ::

        root/train.csv  root/{val,valid,validation}.csv      image,caption; paths relative to the file: the layout of
                                                             the CleanCLIP family of training codes
        root/00000.tar                                       img2dataset --output_format webdataset
        root/00000/000000000.{jpg,txt,json}                  img2dataset --output_format files
        root/Train_GCC-training.tsv                          caption, tab, URL; no header: the official lists, read
        root/Validation_GCC-1.1.0-Validation.tsv             if img2dataset was not given the captions

    The first layout that is found is read. Each is looked for in ``root/{train,training}`` or
    ``root/{val,valid,validation}``, then in ``root``. Shards and numbered folders in ``root`` itself are ``train``,
    unless their names say otherwise or only the validation list lies there. Captions are joined to images by key
    (``.txt``, ``.json``) or by URL. They are never joined by row number, because a header line or another shard size
    would shift it.
    """
    lists = {"train": sorted(root.glob("*GCC-training.tsv")), "val": sorted(root.glob("*GCC*Validation.tsv"))}
    tsv, other = next(iter(lists[split]), None), lists["val" if split == "train" else "train"]
    whole = (bool(tsv), split == "train") > (bool(other), split != "train")  # is what lies in root itself this split's?
    places = [root / word for word in SPLIT_WORDS[split] if (root / word).is_dir()] + [root]
    for place in places:
        for file in (f"{word}.csv" for word in SPLIT_WORDS[split]):
            if (place / file).is_file():
                return csv.read(root, split, seed, csv=str((place / file).relative_to(root)))
    if shards := find_shards(root, split, whole):
        return index(root, shards, tsv)
    for place in places if whole else places[:-1]:
        if folders := [folder for folder in sorted(place.glob("[0-9]*")) if folder.is_dir()]:
            return table_of(_img2dataset_files(root, folders, tsv))
    found = f", but {tsv.name}, whose images must be downloaded first" if tsv else ""
    raise FileNotFoundError(f"'cc3m' {split!r} found no {split}.csv, 00000.tar or 00000/ in {root}{found}")


def _img2dataset_files(root: Path, folders: list[Path], tsv: Path | None) -> Iterator[dict]:
    urls = functools.cache(lambda: captions_by_url(tsv))
    for folder in folders:
        samples: dict[str, list[dict]] = {}
        files = [file for file in sorted(folder.iterdir()) if file.is_file()]
        name = str(folder.relative_to(root))
        add_samples(samples, ((file.name, f"{name}/{file.name}", file.read_bytes) for file in files))
        yield from rows_of(root, name, folder.name, samples, urls)
