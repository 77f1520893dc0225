"""Scenes of glyphs: the embedded image-caption set, drawn instead of downloaded.

One to three objects (symbols of the DejaVu font that matplotlib ships) lie on a textured ground, and a small grammar
describes them. We drew the scene, so for every content word of every caption we know which part of the image it names.
No photograph set has this, and it makes it possible to *score* a transport plan.

A scene is first *sampled* (positions in units of the image side, so that one seed gives the same scene at any size),
then *described* and *rendered*. Captions name colour, size and ground only now and then. If they always did, these
words alone would distinguish the pairs of a batch, and the objects would never be learned.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from multiprocessing import get_context

import numpy as np
from PIL import Image

from otclib import processes
from otclib.data.drawing import render
from otclib.data.grammar import (
    describe,
    sample,
)

VERSION = 7  # part of the cache's name: raise it when the same seed begins to give other scenes
SPLITS = {"train": (12_000, 3), "val": (1_000, 3), "test": (2_000, 1)}  # default rows, most objects in a scene


def _rows(task: tuple[str, int, int, int, int, int]) -> list[dict]:
    split, seed, size, max_objects, start, stop = task
    rows = []
    for k in range(start, stop):
        rng = np.random.default_rng([seed, list(SPLITS).index(split), k])
        scene = sample(rng, max_objects)
        caption, words = describe(scene, rng)
        png = io.BytesIO()
        Image.fromarray(render(scene, size)).save(
            png, "PNG", compress_level=0
        )  # level 1 halves the file and triples the time
        rows.append(
            {
                "id": f"{split}-{seed}-{k:06d}",
                "image": {"bytes": png.getvalue(), "path": None},
                "caption": caption,
                "label": scene.things[0].name if len(scene.things) == 1 else None,
                "objects": [{"name": t.name, "colour": t.colour, "size": t.size, "box": t.box} for t in scene.things],
                "ground": scene.ground,
                "words": words,
            }
        )
    return rows


def generate(split: str, n: int, size: int = 64, seed: int = 0, workers: int | None = None) -> Iterator[dict]:
    """Yield ``n`` rows of the split in order, drawn by ``workers`` processes (default: one per core)."""
    max_objects, chunk = SPLITS[split][1], 250
    tasks = [(split, seed, size, max_objects, a, min(a + chunk, n)) for a in range(0, n, chunk)]
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield from _rows(task)
        return
    context = get_context("fork" if os.name == "posix" else "spawn")
    with processes.starting():
        pool = context.Pool(workers, processes.end_with, (os.getpid(),))
    with pool:
        for rows in pool.imap(_rows, tasks):
            yield from rows
