"""Pairs on disk, as many as asked for, and the peak memory of a process that trains on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil

import otclib


def written(folder: Path, side: int, images: int) -> list[tuple[str, str]]:
    """Write scenes as JPEGs of 8/7 of ``side``, as img2dataset's 256 pixels are to 224; return paths and captions."""
    scenes = otclib.data.load("scenes", root=folder / "drawn", size=images, seed=10, image_size=side * 8 // 7)
    (folder / f"{side}").mkdir()
    rows = []
    for k, scene in enumerate(scenes):
        rows.append((str(folder / f"{side}" / f"{k}.jpg"), scene["caption"]))
        scene["image"].save(rows[-1][0], quality=90)
    return rows


def listed(file: Path, rows: list[tuple[str, str]], pairs: int) -> Path:
    """Write a CSV of so many pairs over the images; every caption is another one."""
    many = ((rows[k % len(rows)][0], f"{rows[k % len(rows)][1]}, {k}") for k in range(pairs))
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(many, columns=["image", "caption"]).to_csv(file, index=False)
    return file


FEW_STEPS = """
import sys, otclib
csv, size, workers, steps, out = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
folder, _, name = csv.rpartition("/")
done = []
def stop(through):
    done.append(through)
    if len(done) == steps:
        raise SystemExit
how = {"epochs": 1, "batch_size": size, "optimizer": "adamw", "precision": "fp32", "image_memory": 0}
pairs = otclib.data.load("csv", root=folder, csv=name)
otclib.train(pairs, defense="clip", workers=workers, tracker="none", progress=False, tick=stop, out=out, **how)
"""


def peak_of(csv: Path, pairs: int, batch: int, workers: int, steps: int = 10) -> dict:
    """Peak GiB of ``otclib.train`` on a CSV, until some steps are done: of the process, and of its largest worker."""
    command = [sys.executable, "-c", FEW_STEPS, str(csv), *map(str, (batch, workers, steps)), str(csv) + ".run"]
    environment = os.environ | {"PYTHONPATH": str(Path(otclib.__file__).resolve().parent.parent)}
    out = {"pairs": pairs, "batch": batch, "workers": workers, "steps": steps}
    peak = {f"{who}_{kind}_gib": 0.0 for who in ("process", "worker") for kind in ("rss", "uss")}
    start, child = time.perf_counter(), subprocess.Popen(command, env=environment)
    own = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            for who, process in ("process", own), *(("worker", each) for each in own.children()):
                now = process.memory_full_info()
                for kind in ("rss", "uss"):
                    peak[f"{who}_{kind}_gib"] = max(peak[f"{who}_{kind}_gib"], getattr(now, kind) / 2**30)
        except psutil.Error:  # it has just ended
            pass
        time.sleep(0.05)
    if child.returncode:
        raise RuntimeError(f"training on {pairs} pairs ended with {child.returncode}")
    return out | peak | {"seconds": time.perf_counter() - start}
