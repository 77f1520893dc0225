"""Addresses of files inside tars: ``tarpart://OFFSET-SIZE/path/of.tar``. Their bytes are read when they are asked for.

A table of a tar's images then holds addresses and no bytes, as that of a folder holds paths. ``datasets`` opens such an
address through fsspec, also in the worker processes that decode images.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from otclib import shard

SCHEME = shard.PART


def address(tar: str | Path, offset: int, size: int) -> str:
    """Return the address of ``size`` bytes of a tar from ``offset`` on; the tar's path is absolute.

    >>> address("/data/00000.tar", 512, 3000)
    'tarpart://512-3000/data/00000.tar'
    """
    return f"{SCHEME}{offset}-{size}{Path(tar).as_posix()}"


class TarPart(AbstractFileSystem):
    """Opens such addresses; fsspec makes one when it sees their scheme."""

    protocol = SCHEME.removesuffix("://")

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        if mode != "rb":
            raise ValueError(f"{SCHEME}{path} cannot be opened with mode {mode!r}: it is only read")
        return io.BytesIO(shard.content(f"{SCHEME}{path}"))


fsspec.register_implementation(TarPart.protocol, TarPart, clobber=True)
