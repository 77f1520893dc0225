"""Write a poisoned set for other training codes, above all open_clip's. Clean images stay where they are.

    poisoned, manifest = otclib.attacks.plant(pairs, [otclib.attacks.load("badnets")])
    print(otclib.attacks.export(poisoned, manifest, "data/poisoned", form="csv"))

open_clip's training takes both forms unchanged:

    python -m open_clip_train.main --train-data data/poisoned/train.csv ...
    python -m open_clip_train.main --dataset-type webdataset --train-num-samples 12000 \\
        --train-data 'pipe:otclib shard data/poisoned {00000..00011}' ...
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import fsspec
import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets import Image as ImageColumn

from otclib.data.origin import left_out
from otclib.data.readers.tarpart import SCHEME, address
from otclib.runs import write_json, write_table
from otclib.shard import FOLDER

FORMS = ("datasets", "csv", "webdataset")
PER_SHARD, LEAST_SHARDS = 1000, 8
# a title that pandas, which reads the file for open_clip, would take for a missing one and turn into "nan"
MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)


def check_export(out: str | Path, form: str = "datasets", shards: int | None = None) -> None:
    """Raise the ValueError of ``export`` that needs no pairs, so that nothing is poisoned in vain."""
    if Path(out).exists():
        raise ValueError(f"out must be a new folder, {out} exists already")
    if form not in FORMS:
        raise ValueError(f"unknown format {form!r}: choose one of {', '.join(FORMS)}")
    if shards is not None and (form != "webdataset" or shards < 1):
        raise ValueError(f"shards is at least 1 and for the format webdataset, got {shards} for {form!r}")


@dataclass
class Exported:
    """What ``export`` wrote; as text, what a user wants to know of it."""

    folder: Path
    pairs: int
    planted: int
    copied: int = 0  # clean images that have no file of their own
    command: list[str] = field(default_factory=list)  # how open_clip reads the set

    def __str__(self) -> str:
        share = 100 * self.planted / self.pairs
        lines = [f"{self.pairs:,} pairs, {self.planted} of them planted ({share:.2f} %): {self.folder}"]
        if self.copied:
            lines.append(
                f"{self.copied:,} clean images have no file of their own and were copied to {self.folder}/images"
            )
        return "\n".join([*lines, *([shlex.join(self.command)] if self.command else [])])


def export(
    pairs: Dataset,
    manifest: Dataset,
    out: str | Path,
    *,
    form: str = "datasets",
    shards: int | None = None,
    seed: int = 0,
) -> Exported:
    """Write poisoned pairs and ``OUT/manifest.parquet`` into the new folder ``out``.

    Parameters
    ----------
    pairs, manifest : what ``plant`` or ``Attack.poison`` returned.
    form : how the pairs are written.

        ``datasets`` : ``OUT/pairs``, saved by Hugging Face ``datasets``, images included.

        ``csv`` : ``OUT/train.csv`` as open_clip reads it by default: separated by tabs, with the columns ``filepath``
        (absolute) and ``title``. Planted images are ``OUT/planted/ID.png``, with the manifest's ids. A clean image that
        has no file of its own, because it is part of a tar or of an Arrow file as in ``scenes``, cannot be named by a
        path and is copied to ``OUT/images``.

        ``webdataset`` : ``OUT/shards/00000.jsonl`` and so on. Their lines name the place of every image, also inside
        tars and Arrow files, so that none is copied; ``otclib shard OUT 00000`` streams the tar, see ``otclib.shard``.
        Samples are in random order and numbered: the manifest tells which are planted, a tar does not. (But planted
        images are PNG, which shows in a set of JPEG images.) Images that lie in memory alone are copied to
        ``OUT/images``.

        In both of these the originals must stay where they are: of ``scenes`` and ``hub``, the cache.
    shards : number of shards; default one for 1,000 pairs, and at least 8. open_clip needs one for every worker of
        every process.
    seed : draws the order of the samples in the shards.

    Raises
    ------
    ValueError : ``out`` exists, an unknown format, a number of shards that does not fit, or a manifest of another set.
    """
    check_export(out, form, shards)
    out = Path(out).absolute()
    shards = shards or min(len(pairs), max(LEAST_SHARDS, -(-len(pairs) // PER_SHARD)))
    if shards > len(pairs):
        raise ValueError(f"{len(pairs)} pairs fill at most as many shards, got shards={shards}")
    planted = set(manifest["id"][:])
    if lost := planted - set(pairs["id"][:]):
        raise ValueError(f"{len(lost)} of {len(planted)} planted pairs are not in the set, such as {min(lost)!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".part", dir=out.parent))
    done = Exported(out, len(pairs), len(planted))
    try:
        if form == "datasets":
            pairs.save_to_disk(part / "pairs")
        elif form == "csv":
            _write_csv(part, _placed(pairs, planted, part, done, _file), done)
        else:
            in_arrow = _in_arrow(pairs)
            placed = list(_placed(pairs, planted, part, done, lambda image: _part(image, in_arrow)))
            _write_shards(part, placed, shards, seed)
            url = f"pipe:otclib shard {shlex.quote(str(out))} {{00000..{shards - 1:05d}}}"
            done.command = [*_OPEN_CLIP, "--dataset-type", "webdataset", "--train-num-samples", str(len(pairs))]
            done.command += ["--train-data", url]
        write_table(part / "manifest.parquet", manifest)
        if without := left_out(pairs):
            write_json(part / "left_out.json", without)
        part.chmod(0o777 & ~_umask())  # a temporary folder is the owner's alone
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return done


_OPEN_CLIP = ("python", "-m", "open_clip_train.main")


def _placed(
    pairs: Dataset, planted: set[str], part: Path, done: Exported, place_of: Callable[[dict], str | None]
) -> Iterator[tuple[str, str, str]]:
    """Yield id, caption and the place of the image of every pair; write the images that have no place yet."""
    stored = pairs.select_columns(["id", "caption", "image"]).cast_column("image", ImageColumn(decode=False))
    for start in range(0, len(stored), PER_SHARD):
        some = stored[start : start + PER_SHARD]
        for row, (id, caption, image) in enumerate(zip(some["id"], some["caption"], some["image"]), start):
            place = None if id in planted else place_of(image)
            if place is None:
                name = f"planted/{quote(id, safe='+ ')}.png" if id in planted else f"images/{row:08d}{_suffix(image)}"
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_bytes(_bytes(image))
                done.copied += id not in planted
                place = str(done.folder / name)
            yield id, caption, place


def _write_csv(part: Path, placed: Iterator[tuple[str, str, str]], done: Exported) -> None:
    with (part / "train.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["filepath", "title"])
        for _, caption, place in placed:
            title = " ".join(caption.split())  # as every tokenizer reads it
            rows.writerow([place, f"{title} " if title in MISSING else title])
    done.command = [*_OPEN_CLIP, "--train-data", str(done.folder / "train.csv")]


def _write_shards(part: Path, placed: list[tuple[str, str, str]], shards: int, seed: int) -> None:
    (part / FOLDER).mkdir()
    order = np.random.default_rng([seed, 3]).permutation(len(placed))
    key = 0
    for number, rows in enumerate(np.array_split(order, shards)):
        with (part / FOLDER / f"{number:05d}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                id, caption, place = placed[row]
                sample = {"key": f"{key:09d}", "id": id, "caption": caption, "image": place}
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
                key += 1


def _file(image: dict) -> str | None:
    """Return the absolute path of an image that is a file; None for others."""
    lies_in_a_file = image["bytes"] is None and "://" not in image["path"]
    return os.path.abspath(image["path"]) if lies_in_a_file else None


def _part(image: dict, in_arrow: dict[bytes, str]) -> str | None:
    """Return the path of an image, or its address in a tar or an Arrow file; None if it lies in memory alone."""
    if image["bytes"] is not None:
        return in_arrow.get(_digest(image["bytes"]))
    return image["path"] if image["path"].startswith(SCHEME) else _file(image)


def _in_arrow(pairs: Dataset) -> dict[bytes, str]:
    """Return the addresses of the images that are embedded in the Arrow files of a table, by the digest of their bytes.

    A table does not tell in which row of which file a row of it lies. Therefore the images are found by their content.
    """
    found: dict[bytes, str] = {}
    for file in {cached["filename"] for cached in pairs.cache_files}:
        with pa.memory_map(file) as mapped:
            whole = mapped.read_buffer()
            for batch in pa.ipc.open_stream(pa.BufferReader(whole)):
                if "image" not in batch.schema.names or not pa.types.is_struct(batch.schema.field("image").type):
                    continue
                images = batch.column("image").field("bytes")
                _, ends, held = images.buffers()  # validity, where each image ends, all bytes one after the other
                if held is None or not 0 <= held.address - whole.address <= whole.size - held.size:
                    continue  # no image at all, or the file is compressed
                wide = pa.types.is_large_binary(images.type)
                at = np.frombuffer(ends, np.int64 if wide else np.int32)[images.offset :][: len(images) + 1]
                for start, end in zip(at.tolist(), at[1:].tolist()):
                    if start < end:
                        place = address(os.path.abspath(file), held.address - whole.address + start, end - start)
                        found[_digest(held[start:end])] = place
    return found


def _digest(data: bytes | pa.Buffer) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _bytes(image: dict) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    with fsspec.open(image["path"], "rb") as file:
        return file.read()


def _suffix(image: dict) -> str:
    """Return the ending of an image's file as far as its name tells, else that of PNG, which is what we store."""
    return Path(image["path"] or "").suffix or ".png"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
