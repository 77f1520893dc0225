"""Work in several processes whose results come back in order."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_context
from typing import TypeVar

from tqdm.auto import tqdm

from otclib import processes

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[Task], Iterable[Result]], tasks: Sequence[Task], workers: int | None = None
) -> Iterator[Result]:
    """Yield what ``function`` returns for each of the tasks, one task after the other.

    ``workers`` : processes that work at the same time, default one for each core; with one, it is this process.
    """
    workers = min(cores() if workers is None else workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield from function(task)
        return
    context = get_context("fork" if os.name == "posix" else "spawn")
    with processes.starting():
        pool = context.Pool(workers, processes.end_with, (os.getpid(),))
    with pool:
        for results in pool.imap(function, tasks):
            yield from results


def shown(results: Iterable[Result], total: int, doing: str) -> Iterable[Result]:
    """Return the results with a progress bar, where a person looks at a terminal."""
    return tqdm(results, total=total, desc=doing, leave=False, disable=not sys.stderr.isatty())
