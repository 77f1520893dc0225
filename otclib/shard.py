"""Stream a shard of an exported set as a tar, whose images stay where they are: ``otclib shard DIR 00000``.

``DIR/shards/00000.jsonl`` has a line for each sample: its ``key``, ``caption`` and the place of its ``image``, which is
a path, or ``tarpart://OFFSET-SIZE/path/of/a/file`` for some bytes of a tar or of an Arrow file. webdataset and
open_clip read the stream through a pipe, ``pipe:otclib shard DIR {00000..00007}``, and ``otclib shard DIR 00000 >
00000.tar`` makes a tar of its own.

This file imports the standard library alone, because a training starts the command once for every shard and epoch.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PART = "tarpart://"  # the scheme of an address
FOLDER = "shards"  # of an exported set


def content(place: str) -> bytes:
    """Return the bytes at a place: those of a file, or ``SIZE`` bytes of it from ``OFFSET`` on.

    Raises
    ------
    ValueError : not a place.
    FileNotFoundError : no such file, or it ends too early.
    """
    if not place.startswith(PART):
        return Path(place).read_bytes()
    part, _, file = place.removeprefix(PART).partition("/")
    offset, _, size = part.partition("-")
    if not (offset.isdecimal() and size.isdecimal()):
        raise ValueError(f"{place} cannot be opened: it reads OFFSET-SIZE/path/of.tar")
    with open(f"/{file}", "rb") as whole:
        whole.seek(int(offset))
        found = whole.read(int(size))
    if len(found) < int(size):
        raise FileNotFoundError(f"/{file} ends after {len(found)} of the {size} bytes at {offset}: was it changed?")
    return found


def stream(folder: str | Path, name: str, to: IO[bytes]) -> None:
    """Write the shard ``name`` of the set in ``folder`` as a tar: ``key.jpg`` (or png, webp) and ``key.txt`` by sample.

    The bytes of an image are the original's. Formats that neither open_clip nor our reader takes become PNG on the way.

    Raises
    ------
    FileNotFoundError : no such set or shard, or an image is missing.
    """
    file = Path(folder) / FOLDER / f"{name.removesuffix('.tar')}.jsonl"
    if not file.is_file():
        names = sorted(path.stem for path in file.parent.glob("*.jsonl"))
        known = f"has the shards {names[0]} to {names[-1]}" if names else "is no set of shards"
        raise FileNotFoundError(f"{folder} {known}: asked for {name!r}")
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.USTAR_FORMAT) as tar, file.open(encoding="utf-8") as lines:
        for sample in map(json.loads, lines):
            for ending, data in _members(sample):
                member = tarfile.TarInfo(f"{sample['key']}.{ending}")  # without time and owner: always the same bytes
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _members(sample: dict) -> Iterator[tuple[str, bytes]]:
    image = content(sample["image"])
    ending = _ending(image)
    yield (ending, image) if ending else ("png", _recoded(image))
    yield "txt", sample["caption"].encode()


def _ending(image: bytes) -> str | None:
    """Return the ending that fits the first bytes of an image; None if readers of shards do not take its format."""
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"\xff\xd8"):
        return "jpg"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


def _recoded(image: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(out, "PNG")
    return out.getvalue()


def to_stdout(folder: str | Path, name: str) -> int:
    """Write a shard to the standard output; return the exit code, which says whether its reader closed the pipe.

    Raises
    ------
    ValueError : the standard output is a terminal.
    FileNotFoundError : as ``stream``.
    """
    to = sys.stdout.buffer
    if to.isatty():
        raise ValueError(f"a tar is no text for a terminal: write > {name}.tar behind the command, or pipe it")
    try:
        stream(folder, name, to)
        to.flush()
    except BrokenPipeError:  # whoever reads has enough, and webdataset expects this exit code then
        os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())
        return 128 + signal.SIGPIPE
    return 0
