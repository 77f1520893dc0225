"""How the CPU's kernels are compiled by Numba, and where what was compiled is kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

from numba import config, njit

# like fastmath, but infinities and NaN keep their meaning: they are how trouble shows
FLAGS = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "nogil": True, "error_model": "numpy", "cache": True}

_here = Path(__file__).parent
_sources = hashlib.sha256(b"".join((_here / f"{name}.py").read_bytes() for name in ("jit", "cpu", "match")))
FOLDER = str(Path(config.CACHE_DIR or _here / "__pycache__") / f"otclib-{_sources.hexdigest()[:12]}")


def kernel(*signature):
    """``njit`` with our flags. What it compiled is kept by the contents of all kernel files: Numba alone looks at the
    file of a function, and would go on using a kernel whose helpers in another file have changed."""

    def compile(function):
        before, config.CACHE_DIR = config.CACHE_DIR, FOLDER
        try:
            return njit(*signature, **FLAGS)(function)
        finally:
            config.CACHE_DIR = before

    return compile
