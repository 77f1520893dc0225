"""Helpers that the chapters share: the poisoned set, the runs, curves that grow, commands that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset

from otclib import attacks, data, evaluation, figures, models, training
from otclib.experiments import doses


def poisoned(
    dataset: str,
    attack: Sequence[str | Mapping[str, Any]],
    *,
    seed: int = 0,
    size: int | None = None,
    root: str | None = None,
) -> tuple[Dataset, Dataset, Dataset]:
    """Return the pairs, the pairs with all attacks planted in them, and the manifest.

    ``attack`` : names, or names with options and a dose, as ``{"name": "badnets", "dose": "least"}``.
    """
    pairs = data.load(dataset, root=root, seed=seed, size=size)
    specs = [doses.with_dose(attacks.named(each), dataset, {"root": root, "size": size}) for each in attack]
    return pairs, *attacks.plant(pairs, [attacks.load(**spec) for spec in specs], seed=seed)


def runs(
    table: Dataset,
    manifest: Dataset,
    defense: Sequence[str],
    *,
    out: str | Path,
    seed: int = 0,
    model: str = "small",
    watched: bool = False,
    retell: bool = False,
    **options: Any,
) -> dict[str, Path]:
    """Return {defence: run folder in ``out``}; train the missing runs at the same time, and keep all epochs' weights.

    ``watched`` : show learning curves that grow during training. ``retell`` : print the lines of finished runs.
    """
    live = Curves() if watched else None
    same = {"manifest": manifest, "seed": seed, "model": model, "snapshots": True, "retell": retell, **options}
    return training.train_each(table, defense, out=out, live=live, **same)


def distances_by_epoch(
    runs: Mapping[str, str | Path], table: Dataset, manifest: Dataset, *, sample: int = 400, seed: int = 0
) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """Return 1 - cosine of images and their own captions as {run: {epoch: {"clean" or an attack's kind: distances}}}.

    The weights are the snapshots. The pairs are ``sample`` clean ones, drawn with ``seed``, and all planted ones.
    """
    ids = np.array(table["id"][:])
    kind_of = dict(zip(manifest["id"][:], manifest["kind"][:]))
    clean = np.flatnonzero(~np.isin(ids, list(kind_of)))
    rows = np.random.default_rng(seed).permutation(clean)[:sample].tolist()
    rows += np.flatnonzero(np.isin(ids, list(kind_of))).tolist()
    kinds = np.array([kind_of.get(ids[k], "clean") for k in rows])
    some = table.select(rows)
    out: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name, run in runs.items():
        out[name] = {}
        for file in sorted(Path(run).glob("epochs/*.safetensors")):
            network, _, tokenizer = models.load(file)
            images = data.image_tensor(some, models.resize(network))
            with torch.no_grad():
                image = evaluation.pooled(network, images)
                text = models.encode_text(network, tokenizer(some["caption"][:])).pooled
            distance = (1 - (image.cpu() * text).sum(1)).numpy()
            out[name][int(file.stem)] = {kind: distance[kinds == kind] for kind in dict.fromkeys(kinds)}
    return out


class Curves:
    """Learning curves in a notebook's output, drawn again after every epoch."""

    def __init__(self) -> None:
        self._shown = None

    def __call__(self, logs: Mapping[str, Sequence[Mapping]]) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display

        figure = figures.learning_curves(logs, loss=True)
        plt.close(figure)  # otherwise the notebook shows it a second time
        if self._shown is None:
            self._shown = display(figure, display_id=True)
        else:
            self._shown.update(figure)


def start(words: Sequence[str | Path], processes: int = 1) -> subprocess.Popen:
    """Start ``otclib train`` with these words, in one process or by ``torchrun`` in several; see ``finish``.

    Each process has one core and no GPU, so that runs take the same steps on every machine and repeat bit for bit.
    """
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "otclib.train", *map(str, words)]
    alone = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **alone}, **pipes)


def finish(process: subprocess.Popen, timeout: float = 600) -> str:
    """Wait for a command; return what it printed. It is killed after ``timeout`` seconds, and when a cell is stopped.

    Raises
    ------
    RuntimeError : the command failed. The message ends with its last words.
    """
    try:
        said, _ = process.communicate(timeout=timeout)
    except BaseException:
        kill(process)
        raise
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}: {said[-20000:]}")
    return said


def kill(process: subprocess.Popen) -> None:
    """Kill a command and all that it started, as a machine that fails does."""
    try:
        whole = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        whole = []
    for each in whole:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()


def curve(run: str | Path, name: str = "loss/contrastive") -> tuple[list[int], list[float]]:
    """Return the steps and the values of one of the curves that a run keeps for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(run) / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found = {event.step: event.value for event in events.Scalars(name)}  # what a resumed run repeats comes last
    return list(found), list(found.values())
