"""The cache folder, which keeps what was drawn or fetched and what the readers copied."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, load_from_disk


def cache_dir() -> Path:
    """Return the cache folder: ``$OTCLIB_CACHE``, else ``~/.cache/otclib``."""
    return Path(os.environ.get("OTCLIB_CACHE") or Path.home() / ".cache" / "otclib")


def kept(folder: Path, make: Callable[[], Dataset]) -> Dataset:
    """Return the table that a folder keeps; ``make`` it where there is none. A folder with its name is whole."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
        try:
            make().save_to_disk(part / "table")
            try:
                (part / "table").rename(folder)
            except OSError:  # another process was faster, and its table is the same
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return load_from_disk(str(folder))
