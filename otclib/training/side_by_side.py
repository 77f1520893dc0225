"""Train several runs at the same time: one process per defence, each with its share of the cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm import std
from tqdm.auto import tqdm

from otclib import defenses, models, processes
from otclib.runs import log_of
from otclib.training.checkpoint import writable
from otclib.training.loop import train
from otclib.training.monitoring import spoken, watched
from otclib.training.precision import choose


def train_each(
    pairs: Dataset,
    defense: Sequence[str],
    *,
    out: str | Path,
    progress: bool = True,
    live: Callable[[dict[str, list[dict]]], None] | None = None,
    retell: bool = False,
    **same: Any,
) -> dict[str, Path]:
    """Train one run per defence in ``out/<defense>`` at the same time; return {defence: run folder}.

    Each run has a process and its share of the cores, because a small model gains little from a second core. ``same``
    are the arguments of ``train``, equal for all runs. A finished run is not trained again; with ``retell`` its lines
    are printed. One bar shows the progress of all runs together.

    Raises
    ------
    ValueError : as ``train`` does, before anything is started.
    RuntimeError : a run died; the message says why.
    """
    for name in defense:
        defenses.load(name)
    runs = {name: writable(Path(out) / name) for name in defense}
    finished = [name for name, run in runs.items() if (run / "metrics.json").exists()]
    for name in finished:
        train(pairs, progress=False, defense=name, out=runs[name], **same)  # refuses a run of another configuration
    same["precision"] = _one_precision(runs.values(), same, progress)
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(runs))
    missing = [name for name in runs if name not in finished]
    pipes = {name: context.Pipe(duplex=False) for name in missing}
    workers = [
        context.Process(
            target=_work, args=(os.getpid(), threads, pipes[n][1], pairs, dict(same, defense=n, out=runs[n]))
        )
        for n in missing
    ]
    done = dict.fromkeys(missing, 0.0)
    look = {"desc": " and ".join(missing), "bar_format": "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"}
    bar = tqdm(total=len(missing), leave=False, disable=not (progress and missing and watched(live)), **look)
    said = {name: len(log_of(run)) if name in finished and not retell else 0 for name, run in runs.items()}
    try:
        with processes.starting():
            for worker in workers:
                worker.start()
        alive = True
        while alive:
            alive = any(worker.is_alive() for worker in workers)
            logs = {name: log_of(run) for name, run in runs.items()}
            new = {name: log[said[name] :] for name, log in logs.items() if len(log) > said[name]}
            for name, lines in new.items():
                epochs = json.loads((runs[name] / "config.json").read_text())["options"]["epochs"]
                for line in lines if progress else ():
                    bar.clear()
                    print(spoken(name, line, epochs), flush=True)
                said[name] += len(lines)
            if new and live is not None:
                live(logs)
            for name, (receiver, _) in pipes.items():
                while receiver.poll():
                    message = receiver.recv()
                    if isinstance(message, str):
                        raise RuntimeError(message)
                    done[name] = message
            bar.n = sum(done.values())
            bar.refresh()
            time.sleep(0.5 if alive else 0)
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(
                f"a run in {out} died (exit codes {[w.exitcode for w in workers]}); call again to resume it"
            )
    finally:
        bar.close()
        processes.stop(workers)
    return runs


def _one_precision(runs: Iterable[Path], same: dict, progress: bool) -> str:
    """Return the one precision of all runs: as asked, or as one of them began, or as measured once for all."""
    asked, model = same.get("precision", "auto"), same.get("model", "small")
    begun = [json.loads(file.read_text())["precision"] for run in runs if (file := run / "config.json").exists()]
    if asked != "auto" or begun:
        return asked if asked != "auto" else begun[0]
    chosen, measured = choose("auto", models.load(model, random=not models.has_weights(model))[0])
    if progress and measured:
        print(measured, flush=True)
    return chosen


def begin_worker(parent: int, threads: int) -> None:
    """Prepare a new worker: it ends with its parent, and has its share of the cores."""
    processes.end_with(parent)
    std.tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore: Python warns of it when the worker is killed
    torch.set_num_threads(threads)


def _work(parent: int, threads: int, sender: Connection, pairs: Dataset, arguments: dict) -> None:
    """Train in a worker; send the share that is done after every step, or a message that says why it failed."""
    begin_worker(parent, threads)
    try:
        train(pairs, progress=False, tick=sender.send, **arguments)
    except Exception as error:
        sender.send(f"{arguments['defense']}: {type(error).__name__}: {error}")
