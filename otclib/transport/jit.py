"""How Numba compiles the CPU's kernels, where the compiled code is cached, and how kernels use several cores."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import torch

# like fastmath, but infinities and NaN keep their meaning, because they signal errors
FLAGS: dict[str, Any] = {
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "nogil": True,
    "error_model": "numpy",
    "cache": True,
}

config: Any = numba.config  # its names are made when it is imported
njit: Any = numba.njit  # its types forbid an optional signature
_here = Path(__file__).parent
_kernels = (_here / "jit.py", _here / "cpu.py", _here.parent / "matching" / "cpu.py")
_sources = hashlib.sha256(b"".join(file.read_bytes() for file in _kernels))
FOLDER = str(Path(config.CACHE_DIR or _here / "__pycache__") / f"otclib-{_sources.hexdigest()[:12]}")


def kernel(*signature: str) -> Callable[[Callable], Any]:
    """Return ``njit`` with our flags, and with a cache that depends on the contents of all kernel files.

    Numba's own cache depends on the file of the function alone, so it would return a kernel whose helpers in another
    file have changed.
    """

    def compile(function: Callable) -> Any:
        before, config.CACHE_DIR = config.CACHE_DIR, FOLDER
        try:
            return njit(*signature, **FLAGS)(function)
        finally:
            config.CACHE_DIR = before

    return compile


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # threads do not survive a fork


os.register_at_fork(after_in_child=_forget_pool)


def parallel(function: Callable[..., None], count: int, *arguments: Any, least: int = 16) -> None:
    """Call ``function(*arguments, start, stop)`` over 0 .. count, on the threads that torch may use, this one included.

    The function must not call ``parallel`` again.
    """
    global _pool
    threads = min(torch.get_num_threads(), -(-count // least))
    step = max(least, -(-count // (4 * threads)), 1) if threads > 1 else max(1, count)
    starts = iter(range(0, count, step))

    def work() -> None:
        for k in starts:
            function(*arguments, k, min(count, k + step))

    if threads > 1 and (_pool is None or _pool._max_workers < threads - 1):
        _pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="otclib")
    helpers = [] if _pool is None else [_pool.submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that never began has nothing left to do
            helper.result()
