"""The cache folder, which keeps drawn scenes and what the readers copied."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder: ``$OTCLIB_CACHE``, else ``~/.cache/otclib``."""
    return Path(os.environ.get("OTCLIB_CACHE") or Path.home() / ".cache" / "otclib")
