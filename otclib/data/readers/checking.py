"""The one policy for rows that cannot be used: what they are, how images are checked, what is said of them.

A row cannot be used if

- its image is missing, empty or no image, does not decode, or has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``;
- its path is relative and leaves the root, or its name in a tar leaves the folder. Absolute paths are allowed in a CSV,
  and links are followed: both are how large sets are kept on other disks;
- its line, or its entry in a JSON file, is malformed;
- its caption is missing, no text, empty, or without a letter or digit of any script. A long caption can be used: towers
  read its beginning, and ``data.examine`` counts it;
- its id is that of an earlier row.

Each image that will be used is decoded once when its table is loaded (``check="decode"``), exactly as it will be in
training, by one thread for each core (Pillow decodes outside Python's lock). The cache remembers what was good by path,
size and time of change, so the same images are not decoded again. ``check="header"`` reads no more than format and
size, and ``"none"`` only looks whether the file is there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from stat import S_ISREG
from typing import Any

import fsspec
import numpy as np
import PIL.Image
import pyarrow.compute as pc
from datasets import Dataset, Image
from tqdm.auto import tqdm

from otclib.data.cache import cache_dir
from otclib.data.parallel import cores
from otclib.data.readers.tarpart import SCHEME
from otclib.data.table import rgb

CHECKS, ON_ERROR = ("decode", "header", "none"), ("raise", "skip")
LISTED = 1000  # rows that a list of what is left out holds at most
MISSING = "its image is missing"  # a reason is what is wrong, then a colon and details
FEW = 4096  # images between two looks at the time


def climbs(name: str) -> bool:
    """Return whether a path leaves the folder that it is relative to."""
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def caption_problem(caption: object) -> str:
    """Return why a caption cannot be used, or an empty text."""
    if caption is None:
        return "its caption is missing"
    if not isinstance(caption, str):
        return f"its caption is no text: {type(caption).__name__}"
    if not caption.strip():
        return "its caption is empty"
    return "" if any(map(str.isalnum, caption)) else f"its caption has no letter or digit: {caption[:40].strip()}"


def image_problem(image: dict[str, Any], check: str) -> str:
    """Return why an image ``{"bytes", "path"}`` that is there cannot be used, or an empty text."""
    path, content = image["path"], image["bytes"]
    inside = content is not None or path.startswith(SCHEME)  # of a table or a tar: the row says where
    tail = "" if inside else f", {path}"
    try:
        if content is None and path.startswith(SCHEME):
            with fsspec.open(path) as file:
                content = file.read()
        if not (os.path.getsize(path) if content is None else len(content)):
            return f"its image is empty: 0 bytes{tail}"
        if check == "header":
            PIL.Image.open(path if content is None else io.BytesIO(content)).close()
        else:
            rgb(Image().decode_example({"path": path, "bytes": content}))
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError):
        return f"its image is huge: more pixels than PIL.Image.MAX_IMAGE_PIXELS, {PIL.Image.MAX_IMAGE_PIXELS:,}{tail}"
    except PIL.UnidentifiedImageError:
        return f"its image is not an image: Pillow knows no such format{tail}"
    except Exception as error:  # decoders raise errors of many kinds
        return f"its image does not decode: {error}{tail}"
    return ""


def sort_out(
    table: Dataset, order: Sequence[int] | np.ndarray, size: int | None, *, check: str, on_error: str, home: str
) -> tuple[list[int], dict[int, str]]:
    """Return the first ``size`` rows of ``order`` that can be used, and why those before them cannot.

    ``table`` has the columns of ``files.ROWS``. With ``on_error="raise"`` nothing is looked for in place of rows that
    cannot be used. ``home`` names the set in the cache.
    """
    if check not in CHECKS or on_error not in ON_ERROR:
        known = f"check is one of {', '.join(CHECKS)}, on_error one of {', '.join(ON_ERROR)}"
        raise ValueError(f"{known}, got {check!r} and {on_error!r}")
    known_bad, places = dict(_known(table)), _places(table)
    good: list[int] = []
    bad: dict[int, str] = {}
    done, wanted = 0, len(order) if size is None else size
    with _Verdicts(home, check) as verdicts:
        while done < len(order) and len(good) < wanted and not (bad and on_error == "raise"):
            part = [int(row) for row in order[done : done + wanted - len(good)]]
            done += len(part)
            found = {row: known_bad[row] for row in part if row in known_bad}
            found |= verdicts.of(table, places, [row for row in part if row not in found])
            bad |= found
            good += [row for row in part if row not in found]
    return good, bad


def report(table: Dataset, bad: dict[int, str], looked_at: int) -> dict[str, Any]:
    """Return what was left out: ``count`` of the ``of`` rows looked at, ``reasons`` counted, and the ``rows``.

    A row has ``id``, ``place`` (file and line) and ``reason``. Only the first 1,000 are listed.
    """
    reasons = Counter(reason.partition(":")[0] for reason in bad.values())
    first = sorted(bad)[:LISTED]
    about = table.select_columns(["id", "place"])[first] if first else {"id": [], "place": []}
    rows = [{"id": id, "place": at, "reason": bad[k]} for k, id, at in zip(first, about["id"], about["place"])]
    return {"count": len(bad), "of": looked_at, "reasons": dict(reasons.most_common()), "rows": rows}


def _known(table: Dataset) -> Iterator[tuple[int, str]]:
    """Yield the rows that the reader could not use, and those whose id is that of an earlier row."""
    for row in np.flatnonzero(np.asarray(table.data.column("problem").is_valid())):
        yield int(row), table[int(row)]["problem"]
    ids = table["id"][:]
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        for k, id in enumerate(ids):
            if first.setdefault(id, k) != k:
                yield k, f"its id is that of an earlier row: {id}, {table[first[id]]['place']}"


def _places(table: Dataset) -> list[str | None]:
    """Return the path or address of every row's image; None if its bytes lie in the table, and "" if it has none."""
    column = table.data.column("image")
    if not isinstance(table.features["image"], Image):
        return column.to_pylist()
    inside = np.asarray(pc.struct_field(column, "bytes").is_valid())
    return [None if held else path or "" for held, path in zip(inside, pc.struct_field(column, "path").to_pylist())]


class _Verdicts:
    """Which images can be used; the cache keeps those that were found good, as hashes of their stamps, sorted."""

    def __init__(self, home: str, check: str):
        self.check = check
        self.fresh: list[int] = []
        key = f"{home}\0{check}\0{PIL.__version__}\0{PIL.Image.MAX_IMAGE_PIXELS}"
        self.file = cache_dir() / "checked" / f"{_hash(key):016x}.npy"
        try:
            self.known = np.load(self.file)
        except (OSError, ValueError, EOFError):  # none yet, or not a whole file
            self.known = np.empty(0, np.uint64)

    def __enter__(self) -> _Verdicts:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what was found, also of a check that was interrupted. A cache that cannot be written is no error."""
        if self.fresh:
            with contextlib.suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                part = self.file.with_name(f"{self.file.name}.{os.getpid()}.part")
                with open(part, "wb") as file:
                    np.save(file, np.union1d(self.known, np.array(self.fresh, np.uint64)))
                os.replace(part, self.file)

    def of(self, table: Dataset, places: list[str | None], rows: list[int]) -> dict[int, str]:
        """Return the rows whose image cannot be used, and why. An image of several rows is decoded once."""
        bad, there, stamps, stat = {}, [], [], functools.cache(os.stat)
        for row in rows:
            try:
                stamps.append(_hash(_stamp(places[row], stat) or f"{table._fingerprint}\0{row}"))
                there.append(row)
            except (OSError, ValueError):  # ValueError: a path that holds a zero byte
                bad[row] = f"{MISSING}: {places[row] or 'none is given'}"
        if self.check == "none":
            return bad
        of_row = np.array(stamps, np.uint64)
        new, first = np.unique(of_row, return_index=True)
        unknown = ~np.isin(new, self.known)
        problems = self._look(table, places, new[unknown].tolist(), [there[k] for k in first[unknown]])
        return bad | {row: problems[stamp] for row, stamp in zip(there, stamps) if stamp in problems}

    def _look(self, table: Dataset, places: list, stamps: list[int], rows: list[int]) -> dict[int, str]:
        """Return why images cannot be used, by stamp; the others are remembered."""
        raw = table.select_columns("image")
        raw = raw.cast_column("image", Image(decode=False)) if None in places else raw

        def look(row: int) -> str:
            held = raw[row]["image"] if places[row] is None else {"bytes": None, "path": places[row]}
            return image_problem(held, self.check)

        problems: dict[int, str] = {}
        bar = tqdm(total=len(rows), desc="checking images", leave=False, disable=not sys.stderr.isatty())
        with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool, bar:
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            for k in range(0, len(rows), FEW):
                for stamp, problem in zip(stamps[k : k + FEW], pool.map(look, rows[k : k + FEW])):
                    if problem:
                        problems[stamp] = problem
                    else:
                        self.fresh.append(stamp)
                bar.update(min(FEW, len(rows) - k))
        return problems


def _stamp(place: str | None, stat: Callable[[str], os.stat_result]) -> str:
    """Return what identifies an image outside the table: its path or address, and size and time of change of the file.

    Raises
    ------
    OSError, ValueError : there is no such file.
    """
    if place is None:
        return ""
    file = "/" + place.removeprefix(SCHEME).partition("/")[2] if place.startswith(SCHEME) else place
    about = stat(file)
    if not (S_ISREG(about.st_mode) and os.path.isabs(file)):  # a table of the hub may hold any path
        raise FileNotFoundError(f"{file} is not the absolute path of a file")
    return f"{place}\0{about.st_size}\0{about.st_mtime_ns}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
