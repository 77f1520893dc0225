"""Photographs with captions: COCO, Visual Genome, Conceptual Captions and the usual formats, read from a local copy.

    pairs = otclib.data.load("coco", root="data/coco", split="val", size=5000)

One reader per format, with the layout it expects in its docstring. A reader only says *where* things are: a table
``id, image, caption, label`` whose image is a path, a byte range of a tar, or already an image. What the formats share
is in ``read``: it counts blank captions and missing images, draws the sample, and only then makes the images lazy
``datasets.Image`` cells (paths stay paths; the chosen bytes of tars are copied to Arrow once, in the cache).
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import random
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, Image, Value, get_dataset_split_names, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from otclib.data import cache_dir

VERSION = 1  # part of the cache's name: raise it when the same shards would give another table
SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
TEXT_ENDINGS = ("txt", "json", "cls")


def _features(image) -> Features:
    return Features({"id": Value("string"), "image": image, "caption": Value("string"), "label": Value("string")})


PAIRS = _features(Image())
PATHS = _features(Value("string"))
RANGES = _features({"path": Value("string"), "offset": Value("int64"), "size": Value("int64")})  # of a tar


def read(
    name: str,
    *,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    skip_missing: bool = False,
    **options,
) -> Dataset:
    """Read an image-caption table from a local copy.

    Parameters
    ----------
    name : ``coco``, ``visual-genome``, ``cc3m``, ``csv``, ``webdataset`` or ``hub``.
    split : ``train`` or ``val``; ``csv``, ``webdataset`` and ``hub`` take any that the copy has.
    root : the folder of the copy.
    size : a sample of that many rows, in the copy's order; a larger sample of one seed holds the smaller one.
    seed : draws the sample, and the phrases of Visual Genome.
    skip_missing : leave out the rows whose image is not there, with a warning, instead of failing.
    options : those of the format's reader (``_coco``, ``_visual_genome``, ``_cc3m``, ``_csv``, ...): see its docstring.

    Returns
    -------
    datasets.Dataset with ``id`` (str), ``image`` (PIL, lazy), ``caption`` (str, never blank), ``label`` (str or None).

    Raises
    ------
    FileNotFoundError : the root, a file that the format needs, or (unless ``skip_missing``) images are not there.
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
            f"{len(absent)} of {len(table)} images of {name!r} {split!r} are not there, the first is "
            f"{next(iter(absent.values()))}; skip_missing=True leaves them out"
        )
    blank = {row for row, caption in enumerate(table["caption"][:]) if not caption}
    for rows, lack in ((absent, "image"), (blank, "caption")):
        if rows:
            message = f"{name!r} {split!r}: {len(rows)} of {len(table)} rows have no {lack} and are left out"
            warnings.warn(message, stacklevel=3)
    rows = np.array([row for row in range(len(table)) if row not in absent and row not in blank], dtype=np.int64)
    if len(rows) < (size or 1):
        raise ValueError(f"{name!r} {split!r} has {len(rows)} image-caption pairs, asked for {size or 'at least 1'}")
    if size is not None:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:size])
    return _with_images(table, rows)


def _absent(table: Dataset) -> dict[int, str]:
    """The rows whose image is not there, with the name it should have; folders are listed once, not asked per file."""
    if table.features == PAIRS:
        return {row: f"that of row {row}" for row in np.flatnonzero(table.data.column("image").is_null())}
    if table.features == RANGES:
        return {row: image["path"] for row, image in enumerate(table["image"][:]) if image["size"] is None}
    listed = functools.cache(lambda folder: set(os.listdir(folder)) if os.path.isdir(folder) else set())
    split_paths = (os.path.split(path) for path in table["image"][:])
    return {row: os.path.join(*path) for row, path in enumerate(split_paths) if path[1] not in listed(path[0])}


def _with_images(table: Dataset, rows: np.ndarray) -> Dataset:
    if table.features == RANGES:
        return _cached(_copy, PAIRS, (table._fingerprint, rows.tobytes()), table=table, rows=rows)
    if len(rows) < len(table):  # of paths a new table, so that a small sample does not drag the large one along
        table = Dataset.from_dict(table[rows], features=PATHS) if table.features == PATHS else table.select(rows)
    return table.cast_column("image", Image())


def _cached(generator: Callable, features: Features, key: tuple, **inputs) -> Dataset:
    """``Dataset.from_generator`` in our cache, run again only when ``key`` changes; its own errors, unwrapped."""
    folder, fingerprint = str(cache_dir() / "captions"), Hasher.hash((VERSION, *key))
    try:
        return Dataset.from_generator(generator, features, folder, gen_kwargs=inputs, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _table_of_files(ids: Iterable, paths: Iterable, captions: Iterable, labels: Iterable | None = None) -> Dataset:
    captions = [caption.strip() for caption in captions]
    labels = [None] * len(captions) if labels is None else [label or None for label in labels]
    columns = {"id": list(map(str, ids)), "image": list(map(str, paths)), "caption": captions, "label": labels}
    return Dataset.from_dict(columns, features=PATHS)


def _need(asked: str, *paths: Path) -> None:
    if lacking := [str(path) for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{asked} needs {' and '.join(lacking)}, not found")


def _coco(root: Path, split: str, seed: int, *, captions: str = "first", labels: str | None = None) -> Dataset:
    """COCO 2017, as unpacked from cocodataset.org (Lin et al. 2014; captions: Chen et al. 2015).

    ::

        root/annotations/captions_{train,val}2017.json     {"images": [{"id", "file_name"}],
                                                            "annotations": [{"id", "image_id", "caption"}]}
        root/annotations/instances_{train,val}2017.json    only for labels
        root/{train,val}2017/000000391895.jpg

    Parameters
    ----------
    captions : ``"first"``, one row per image (``id`` is the image's), or ``"all"`` of its five or so, one row each
        (``id`` is ``image-annotation``).
    labels : None, or ``"largest"``: the category of the image's largest object that is not a crowd.
    """
    if captions not in ("first", "all"):
        raise ValueError(f"captions must be 'first' or 'all', got {captions!r}")
    if labels not in (None, "largest"):
        raise ValueError(f"labels must be None or 'largest', got {labels!r}")
    file, instances = (root / "annotations" / f"{kind}_{split}2017.json" for kind in ("captions", "instances"))
    folder = root / f"{split}2017"
    _need(f"'coco' {split!r}", file, folder, *([instances] if labels else []))
    content = json.loads(file.read_bytes())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rows = content["annotations"]
    if captions == "first":
        rows = list({row["image_id"]: row for row in reversed(rows)}.values())[::-1]
    largest = {}
    if labels:
        content = json.loads(instances.read_bytes())
        classes = {category["id"]: category["name"] for category in content["categories"]}
        objects = sorted((o for o in content["annotations"] if not o.get("iscrowd")), key=lambda o: o["area"])
        largest = {o["image_id"]: classes[o["category_id"]] for o in objects}  # of each image, the last one stays
    return _table_of_files(
        (row["image_id"] if captions == "first" else f"{row['image_id']}-{row['id']}" for row in rows),
        (folder / names[row["image_id"]] for row in rows),
        (row["caption"] for row in rows),
        (largest.get(row["image_id"]) for row in rows),
    )


def _visual_genome(root: Path, split: str, seed: int, *, phrases: int = 1, split_seed: int = 0) -> Dataset:
    """Visual Genome's region descriptions (Krishna et al. 2017, homes.cs.washington.edu/~ranjay/visualgenome).

    ::

        root/region_descriptions.json                  [{"id": image id, "regions": [{"phrase"}]}]
        root/VG_100K/2.jpg  root/VG_100K_2/1.jpg       an image lies in either; image_data.json is not needed

    There is no official split: a hash of the image's id puts 5 % in ``val``, whatever ``seed`` is.

    Parameters
    ----------
    phrases : how many of the image's distinct region phrases, drawn by ``seed``, are joined by commas to its caption.
    split_seed : another split; give ``train`` and ``val`` the same one.
    """
    if phrases < 1:
        raise ValueError(f"phrases must be at least 1, got {phrases}")
    file, folders = root / "region_descriptions.json", [root / "VG_100K", root / "VG_100K_2"]
    _need(f"'visual-genome' {split!r}", file, *([] if folders[1].exists() else folders[:1]))
    second = set(os.listdir(folders[1])) if folders[1].exists() else set()
    captions = {}
    for image in json.loads(file.read_bytes()):
        if (random.Random(f"split {split_seed} {image['id']}").random() < 0.05) == (split == "val"):
            distinct = list(dict.fromkeys(text for r in image["regions"] if (text := r["phrase"].strip())))
            drawn = random.Random(f"phrases {seed} {image['id']}").sample(distinct, min(phrases, len(distinct)))
            captions[image["id"]] = ", ".join(drawn)
    paths = (folders[f"{i}.jpg" in second] / f"{i}.jpg" for i in captions)
    return _table_of_files(captions, paths, captions.values())


def _cc3m(root: Path, split: str, seed: int) -> Dataset:
    """Conceptual Captions 3M (Sharma et al. 2018, ai.google.com/research/ConceptualCaptions), in one of three layouts.

    ::

        root/train.csv  root/{val,valid,validation}.csv      image,caption; paths relative to the file: the layout of
                                                             the CleanCLIP family of training codes
        root/00000.tar                                       img2dataset --output_format webdataset
        root/00000/000000000.{jpg,txt,json}                  img2dataset --output_format files
        root/Train_GCC-training.tsv                          caption, tab, URL; no header: the official lists, read
        root/Validation_GCC-1.1.0-Validation.tsv             where img2dataset was not given the captions

    The first layout that is found counts, each looked for in ``root/{train,training}`` or
    ``root/{val,valid,validation}``, then in ``root``. Shards and numbered folders in ``root`` itself are ``train``,
    unless their names say otherwise or only the validation list lies there. Captions are joined to images by key
    (``.txt``, ``.json``) or by URL, never by row number, which a header line or another shard size would shift.
    """
    lists = {"train": sorted(root.glob("*GCC-training.tsv")), "val": sorted(root.glob("*GCC*Validation.tsv"))}
    tsv, other = next(iter(lists[split]), None), lists["val" if split == "train" else "train"]
    whole = (bool(tsv), split == "train") > (bool(other), split != "train")  # is what lies in root itself this split's?
    places = [root / word for word in SPLIT_WORDS[split] if (root / word).is_dir()] + [root]
    for place in places:
        for file in (f"{word}.csv" for word in SPLIT_WORDS[split]):
            if (place / file).is_file():
                return _csv(place, split, seed, csv=file)
    if shards := _find_shards(root, split, whole):
        return _index(root, shards, tsv)
    for place in places if whole else places[:-1]:
        if folders := [folder for folder in sorted(place.glob("[0-9]*")) if folder.is_dir()]:
            return _img2dataset_files(folders, tsv)
    found = f", but {tsv.name}, whose images must be downloaded first" if tsv else ""
    raise FileNotFoundError(f"'cc3m' {split!r} found no {split}.csv, 00000.tar or 00000/ in {root}{found}")


def _img2dataset_files(folders: list[Path], tsv: Path | None) -> Dataset:
    rows, urls = [], functools.cache(lambda: _captions_by_url(tsv))
    for folder in folders:
        files = ((file.name, file, file.read_bytes) for file in sorted(folder.iterdir()))
        for key, sample in _samples(files).items():
            rows.append((f"{folder.name}/{key}", sample.get("image", folder / f"{key}.jpg"), _caption(sample, urls)))
    return _table_of_files(*zip(*rows, strict=True)) if rows else _table_of_files([], [], [])


def _samples(files: Iterable[tuple[str, object, Callable[[], bytes]]]) -> dict[str, dict]:
    """key -> ``{"image": its place, "txt": text, ...}``, from the files' names, places and contents."""
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


def _caption(texts: dict, urls: Callable[[], dict[str, str]]) -> str:
    """The caption beside an image: its ``.txt``, else ``caption`` of its ``.json``, else that listed with its URL."""
    if caption := texts.get("txt", "").strip():
        return caption
    about = json.loads(texts.get("json") or "{}")
    return (about.get("caption") or urls().get(about.get("url")) or "").strip()


def _captions_by_url(tsv: Path | None) -> dict[str, str]:
    lines = tsv.read_text("utf-8").split("\n") if tsv else []
    return {url.strip(): caption for caption, tab, url in (line.partition("\t") for line in lines) if tab}


def _csv(
    root: Path,
    split: str,
    seed: int,
    *,
    csv: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    label_column: str | None = None,
    separator: str | None = None,
) -> Dataset:
    """Any CSV or TSV file with a header; ``id`` is the row's number, from 0.

    ::

        root/train.csv         image,caption
                               images/a.jpg,a photo of a cat

    Parameters
    ----------
    csv : the file's name under root, by default ``{split}.csv``; image paths are relative to its folder, or absolute.
    image_column, caption_column, label_column : names in the header; without ``label_column`` no row has a label.
    separator : by default the one of comma, tab, semicolon and bar under which the header has these columns.
    """
    file = root / (csv or f"{split}.csv")
    _need(f"'csv' {split!r}", file)
    asked = [column for column in (image_column, caption_column, label_column) if column is not None]
    read_csv = functools.partial(pd.read_csv, file, encoding="utf-8-sig")
    try:
        headers = {s: list(read_csv(sep=s, nrows=0).columns) for s in ([separator] if separator else ",\t;|")}
    except pd.errors.EmptyDataError:
        raise ValueError(f"{file} is empty; asked for the columns {', '.join(asked)}") from None
    fitting = next((s for s, header in headers.items() if set(asked) <= set(header)), None)
    if fitting is None:
        found = ", ".join(max(headers.values(), key=len))
        raise ValueError(f"{file} has the columns {found}; asked for {', '.join(asked)}")
    text = read_csv(sep=fitting, usecols=asked, dtype=str, keep_default_na=False).fillna("")
    paths = (os.path.join(file.parent, path) if path else "(an empty path)" for path in text[image_column])
    return _table_of_files(range(len(text)), paths, text[caption_column], text[label_column] if label_column else None)


def _webdataset(
    root: Path, split: str, seed: int, *, shards: str | None = None, class_names: list[str] | None = None
) -> Dataset:
    """Tars of samples (github.com/webdataset/webdataset): files that share their name up to the first dot.

    ::

        root/00000.tar         000000000.jpg (jpeg, png, webp)
                               000000000.txt, or .json with "caption"
                               000000000.cls (optional), the label

    Shards are looked for in ``root/{split}/``, then in ``root`` by the split in their name (``cc3m-train-0000.tar``);
    those in ``root`` that name no split are ``train``. Tars must not be compressed: one pass over headers and texts
    makes an index, then the chosen images' bytes are copied; the cache keeps both until a shard changes.

    Parameters
    ----------
    shards : a pattern below root (``"part-*/*.tar"``) that is read instead, whatever the split.
    class_names : what the integers in ``.cls`` stand for; by default the text of ``.cls`` is the label.
    """
    found = sorted(root.glob(shards)) if shards else _find_shards(root, split, split == "train")
    if not found:
        wanted, tars = shards or f"tars of the split {split!r}", len(list(root.glob("*.tar")))
        raise FileNotFoundError(f"'webdataset' found no {wanted} in {root}, which holds {tars} tars")
    return _index(root, found, None, class_names)


def _find_shards(root: Path, split: str, whole: bool) -> list[Path]:
    """The tars of a split: by folder, by name, or (``whole``) those in root whose names tell of no split."""
    words = SPLIT_WORDS.get(split, (split,))
    for word in words:
        if tars := sorted((root / word).glob("*.tar")):
            return tars
    tars = {tar: set(re.split("[^a-z]+", tar.stem.lower())) for tar in sorted(root.glob("*.tar"))}
    named = [tar for tar, tells in tars.items() if tells & set(words)]
    return named or [tar for tar, tells in tars.items() if whole and not tells & set(sum(SPLIT_WORDS.values(), ()))]


def _index(root: Path, shards: list[Path], tsv: Path | None, class_names: list[str] | None = None) -> Dataset:
    """Rows of tars without the images' bytes: only where they lie."""
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in [*shards, *([tsv] if tsv else [])]]
    inputs = {"root": root, "shards": tuple(shards), "tsv": tsv, "class_names": tuple(class_names or ())}
    return _cached(_scan, RANGES, (stamps, inputs), **inputs)


def _scan(root: Path, shards: tuple[Path, ...], tsv: Path | None, class_names: tuple[str, ...]) -> Iterator[dict]:
    urls = functools.cache(lambda: _captions_by_url(tsv))
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                samples = _samples(_members(tar))
        except tarfile.ReadError as error:
            raise ValueError(f"{shard} is not a whole, uncompressed tar: {error}") from error
        for key, sample in samples.items():
            label = sample.get("cls", "").strip() or None
            if label and class_names:
                if not label.isdecimal() or int(label) >= len(class_names):
                    raise ValueError(f"{key}.cls of {shard} is {label!r}; given {len(class_names)} class_names")
                label = class_names[int(label)]
            image = sample.get("image", {"path": f"{key}.jpg of {shard}", "offset": None, "size": None})
            name = shard.relative_to(root).with_suffix("") / key
            yield {"id": str(name), "image": image, "caption": _caption(sample, urls), "label": label}


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, dict, Callable[[], bytes]]]:
    for member in filter(tarfile.TarInfo.isfile, tar):
        place = {"path": str(tar.name), "offset": member.offset_data, "size": member.size}
        yield member.name, place, tar.extractfile(member).read


def _copy(table: Dataset, rows: np.ndarray) -> Iterator[dict]:
    for row in table.select(rows):
        with open(row["image"]["path"], "rb") as shard:
            shard.seek(row["image"]["offset"])
            yield row | {"image": shard.read(row["image"]["size"])}


def _hub(
    root: Path | None,
    split: str,
    seed: int,
    *,
    path: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    label_column: str | None = None,
) -> Dataset:
    """Whatever ``datasets`` reads: a dataset of the hub, a folder of parquet files or of images, or a saved dataset.

    ::

        root/train-00000.parquet                            columns image, caption
        root/train/metadata.csv  root/train/a.jpg           file_name,caption: an "imagefolder"
        root/train/state.json  root/dataset_dict.json       what ``save_to_disk`` wrote

    ``id`` is the row's number, from 0; ``val`` also stands for a split called ``validation``.

    Parameters
    ----------
    path : a name on the hub, or a folder (below ``root`` where that is given); by default ``root`` itself.
    config, revision : handed to ``load_dataset``.
    image_column, caption_column, label_column : a caption may be a list of strings, of which the first is taken; a
        label a string or a numbered class; without ``label_column`` no row has a label.
    """
    if root is None and path is None:
        raise ValueError("'hub' needs path, a name on the hub or a folder, or root; got neither")
    where = str(Path(root or "", path or "").expanduser())
    if not os.path.isdir(where) and (root or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", where)):
        raise FileNotFoundError(f"'hub' was to be read from {where}, which is neither a folder nor a name on the hub")
    saved = _saved(Path(where))
    splits = list(saved) if saved else get_dataset_split_names(where, config, revision=revision)
    split = "validation" if split == "val" and "val" not in splits else split
    if (split if saved else re.split(r"[\[+]", split)[0]) not in splits:
        raise ValueError(f"{where} has the splits {', '.join(splits)}, not {split!r}")
    table = saved[split] if saved else load_dataset(where, config, split=split, revision=revision)
    asked = [column for column in (image_column, caption_column, label_column) if column is not None]
    if not set(asked) <= set(table.column_names):
        raise ValueError(f"{where} has the columns {', '.join(table.column_names)}; asked for {', '.join(asked)}")
    kind = table.features[image_column]
    if isinstance(kind, Value) and kind.dtype != "binary":
        raise ValueError(f"column {image_column!r} of {where} holds {kind.dtype}, asked for images")
    captions = [caption[0] if isinstance(caption, list) and caption else caption for caption in table[caption_column]]
    labels = table[label_column][:] if label_column else [None] * len(table)
    if label_column and isinstance(kind := table.features[label_column], ClassLabel):
        labels = [None if label in (None, -1) else kind.int2str(label) for label in labels]
    texts = {
        "id": [str(row) for row in range(len(table))],
        "caption": [(caption or "").strip() for caption in captions],
        "label": [None if label is None else str(label) for label in labels],
    }
    table = table.select_columns(image_column).rename_columns({image_column: "image"}).cast_column("image", Image())
    for column, values in texts.items():
        table = table.add_column(column, values, feature=Value("string"))
    return table.select_columns(list(PAIRS))


def _saved(folder: Path) -> dict[str, Dataset]:
    """The splits that ``save_to_disk`` wrote into a folder; none if it did not. One without a name is ``train``."""
    if (folder / "dataset_dict.json").is_file():
        return dict(load_from_disk(str(folder)))
    if (folder / "state.json").is_file():
        table = load_from_disk(str(folder))
        return {str(table.split or "train"): table}
    return {}


READERS = {  # name: its reader and its splits (None: any that the copy has)
    "coco": (_coco, ("train", "val")),
    "visual-genome": (_visual_genome, ("train", "val")),
    "cc3m": (_cc3m, ("train", "val")),
    "csv": (_csv, None),
    "webdataset": (_webdataset, None),
    "hub": (_hub, None),
}
