"""Read a table once and say what is in it: words, classes, sizes, images that occur twice, captions that are too long.

    print(otclib.data.examine(pairs))

Two images are *the same* if all their pixels are, and *alike* if at most 4 of the 64 bits of their perceptual hashes
differ (``imagehash.phash``). That hash sees light and dark shapes, and no colours.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import imagehash
import numpy as np
from datasets import Dataset, Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from otclib.data.origin import left_out
from otclib.data.parallel import cores
from otclib.data.readers.checking import caption_problem
from otclib.data.table import rgb, stored

BITS = 4  # of the 64 of a perceptual hash, in which images that are alike differ at most
LENGTHS = {"small": 32, "CLIP": 77}  # tokens that a text tower reads, its marks of start and end included
FEW = 512  # images that wait for a thread, hashes that are compared with others at once


@dataclass(frozen=True)
class Examination:
    """What is in a table; ``str`` of it is the report. Pairs and images are named by their ids."""

    pairs: int
    words: int  # that differ, in lower case
    classes: dict[str, int]  # pairs of every class, the most frequent first
    unlabelled: int  # pairs
    captions: tuple[int, float, int]  # of an image: least, mean, most
    images: int  # files, or images that lie in the table
    sizes: list[tuple[int, int]]  # width and height in pixels: the smallest, the median and the largest image
    modes: dict[str, int]  # images of every mode of Pillow
    same: list[list[str]]  # groups of images with the same pixels
    alike: list[list[str]]  # groups of images that are linked by hashes that differ in at most ``BITS`` bits
    undecoded: dict[str, str]  # why an image does not decode
    unusable: dict[str, str]  # why a caption cannot be used
    long: dict[str, list[str]]  # captions with more tokens than each of ``LENGTHS``
    left_out: dict[str, Any]  # rows that were not even loaded, see ``origin``

    def __str__(self) -> str:
        """Return the report, a line for every fact."""
        without = self.left_out
        lines = [f"pairs       {self.pairs:,}" + (f" of {without['of']:,} rows" if without else "")]
        lines += [f"left out    {n:,}: {reason}" for reason, n in without.get("reasons", {}).items()]
        lines += [f"            {row['place']}: {row['reason']}" for row in without.get("rows", [])[:3]]
        lines += [f"words       {self.words:,} distinct", f"classes     {self._classes()}"]
        least, mean, most = self.captions
        each = f"{least}" if least == most else f"{least} to {most}, {mean:.2f} on average"
        lines.append(f"images      {self.images:,}, captions of each: {each}")
        if self.sizes:
            small, middle, large = (f"{width} x {height}" for width, height in self.sizes)
            lines.append(f"sizes       {small} to {large} px, median {middle}")
            lines.append("modes       " + ", ".join(f"{mode} {n:,}" for mode, n in self.modes.items()))
        lines.append(f"the same    {_groups(self.same)}")
        lines.append(f"alike       {_groups(self.alike)}; at most {BITS} of 64 bits of a perceptual hash differ")
        lines.append(f"undecoded   {_reasons(self.undecoded)}")
        long = (f"{len(self.long[name]):,} with more than the {n} tokens of {name}" for name, n in LENGTHS.items())
        lines += [f"unusable    {_reasons(self.unusable)}", f"too long    {', '.join(long)}; the rest is not read"]
        return "\n".join(lines)

    def _classes(self) -> str:
        if not self.classes:
            return "none: no pair has a label"
        (most, many), (least, few) = next(iter(self.classes.items())), list(self.classes.items())[-1]
        bare = f"; {self.unlabelled:,} pairs have no label" if self.unlabelled else ""
        return f"{len(self.classes):,}, the most frequent is {most} ({many:,}), the least {least} ({few:,}){bare}"


def examine(pairs: Dataset) -> Examination:
    """Read a table once, decode every image, and return what is in it. Nothing in it is an error.

    Tokens are those of CLIP's tokenizer. Images are decoded by one thread for each core.
    """
    ids, captions, labels = pairs["id"][:], pairs["caption"][:], pairs["label"][:]
    texts = [caption if isinstance(caption, str) else "" for caption in captions]
    classes = Counter(label for label in labels if label is not None)
    first, rows, found = _looked_at(pairs)
    looks = {ids[row]: look for row, look in zip(first, found) if isinstance(look, Look)}
    sizes = sorted((look.size for look in looks.values()), key=lambda size: (size[0] * size[1], size))
    pixels, same = _grouped({id: look.pixels for id, look in looks.items()})
    shapes, _ = _grouped({group[0]: looks[group[0]].shape for group in pixels})
    return Examination(
        pairs=len(pairs),
        words=len({word for text in texts for word in re.findall(r"\w+", text.lower())}),
        classes=dict(sorted(classes.items(), key=lambda item: (-item[1], item[0]))),
        unlabelled=len(labels) - classes.total(),
        captions=(min(rows, default=0), len(pairs) / max(1, len(rows)), max(rows, default=0)),
        images=len(first),
        sizes=[sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else [],
        modes=dict(Counter(look.mode for look in looks.values()).most_common()),
        same=same,
        alike=_alike(shapes, np.array([looks[group[0]].shape for group in shapes], np.uint64)),
        undecoded={ids[row]: look for row, look in zip(first, found) if isinstance(look, str)},
        unusable={id: problem for id, caption in zip(ids, captions) if (problem := caption_problem(caption))},
        long=_long(ids, texts),
        left_out=left_out(pairs),
    )


class Look(NamedTuple):
    """What is seen of an image: its size in pixels, its mode, and hashes of its pixels and of its light and dark."""

    size: tuple[int, int]
    mode: str
    pixels: int
    shape: int


def look(image: dict[str, Any] | None) -> Look | str:
    """Return what is seen of a stored image, or why it does not decode."""
    try:
        opened = Image().decode_example(image)
        seen = rgb(opened)
        pixels = hashlib.blake2b(repr(seen.size).encode() + seen.tobytes(), digest_size=8)
        return Look(seen.size, opened.mode, int(pixels.hexdigest(), 16), int(str(imagehash.phash(seen)), 16))
    except Exception as error:  # decoders raise errors of many kinds
        return f"{type(error).__name__}: {error}"


def _looked_at(pairs: Dataset) -> tuple[list[int], list[int], list[Look | str]]:
    """Return, for every image, its first row, the number of its rows, and what is seen of it.

    A file is one image, however many rows it has. An image that lies in the table has one row.
    """
    place: dict[str | int, int] = {}
    first: list[int] = []
    rows: list[int] = []
    found: list[Look | str] = []
    waiting: list[dict[str, Any] | None] = []
    cells = tqdm(stored(pairs), desc="examining images", leave=False, disable=not sys.stderr.isatty())
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore")
        for row, cell in enumerate(cells):
            image = cell["image"]
            key = row if image is None or image["bytes"] is not None else image["path"]
            if (known := place.setdefault(key, len(first))) < len(first):
                rows[known] += 1
                continue
            first.append(row)
            rows.append(1)
            waiting.append(image)
            if len(waiting) == FEW:
                found += pool.map(look, waiting)
                waiting = []
        found += pool.map(look, waiting)
    return first, rows, found


def _grouped(hashes: dict[str, int]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the ids that have the same hash, for every hash, and those groups that have more than one id."""
    groups: dict[int, list[str]] = {}
    for id, value in hashes.items():
        groups.setdefault(value, []).append(id)
    return list(groups.values()), [group for group in groups.values() if len(group) > 1]


def _alike(groups: list[list[str]], hashes: np.ndarray) -> list[list[str]]:
    """Return the ids that are linked by hashes that differ in at most ``BITS`` bits; a group has one hash.

    Of ``BITS + 1`` parts of two such hashes one is the same, so only hashes that share a part are compared.
    """
    edges: list[np.ndarray] = [np.zeros((2, 0), np.int64)]
    ends = np.linspace(0, 64, BITS + 2).round().astype(int)
    for low, high in zip(ends, ends[1:]):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(part, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            for k in range(0, len(members) if len(members) > 1 else 0, FEW):
                some = members[k : k + FEW]
                near = np.bitwise_count(hashes[some, None] ^ hashes[None, members]) <= BITS
                edges.append(np.stack([some[np.nonzero(near)[0]], members[np.nonzero(near)[1]]]))
    one, other = np.concatenate(edges, axis=1)
    _, label = connected_components(coo_array((np.ones(len(one)), (one, other)), shape=2 * (len(groups),)), False)
    linked: dict[int, list[str]] = {}
    for group, component in zip(groups, label):
        linked.setdefault(int(component), []).extend(group)
    return [group for group in linked.values() if len(group) > 1]


def _long(ids: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the ids of captions that have more tokens than each of ``LENGTHS``; none has more tokens than bytes."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer, ends = SimpleTokenizer(), 2
    tokens = {
        id: len(tokenizer.encode(text)) + ends
        for id, text in zip(ids, texts)
        if len(text.encode()) + ends > min(LENGTHS.values())
    }
    return {name: [id for id, n in tokens.items() if n > most] for name, most in LENGTHS.items()}


def _groups(groups: list[list[str]]) -> str:
    """Return how many images are in how many groups, and some of the first."""
    if not groups:
        return "none"
    images = sum(map(len, groups))
    some = "; ".join(", ".join(group[:3]) + (", ..." if len(group) > 3 else "") for group in groups[:3])
    return f"{images:,} images in {len(groups):,} group{'s' * (len(groups) > 1)} ({some}{'; ...' * (len(groups) > 3)})"


def _reasons(problems: dict[str, str]) -> str:
    """Return how many there are, and the first."""
    if not problems:
        return "none"
    id, reason = next(iter(problems.items()))
    return f"{len(problems):,} (the first is {id}: {reason})"
