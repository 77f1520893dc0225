"""Where drawn scenes and what the readers copied are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where drawn scenes are kept: ``$OTCLIB_CACHE``, else ``~/.cache/otclib``."""
    return Path(os.environ.get("OTCLIB_CACHE") or Path.home() / ".cache" / "otclib")
