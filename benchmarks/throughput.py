"""Images a second of training, beside open_clip's own loop. ``python -m benchmarks.throughput``, 20 minutes.

- Plain CLIP: ``open_clip_train.train.train_one_epoch`` and ours, in one process and in turn. Both read the same JPEGs
  from disk by a CSV, with as many workers and threads, batches of the same size, AdamW, and the same precision.
- The share of an epoch in which each of them waits for its next batch.
- Every defence beside plain CLIP: its steps, and what it does before its epochs.
- The memory of processes that train on few and on many pairs.

On a GPU the batches are larger, the precision is bf16, and compiled towers are one more way. Written to
``benchmarks/results/throughput.json`` (``throughput-gpu.json`` on a GPU) and to ``book/results/throughput.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

import otclib
from benchmarks import memory, open_clip_loop
from benchmarks.open_clip_loop import Waited
from benchmarks.training import step, trainer_of
from otclib import models
from otclib.data.images import Images
from otclib.defenses import Defense
from otclib.experiments.pages import into_page
from otclib.experiments.records import markdown
from otclib.runs import code, machine, write_json
from otclib.training import Trainer
from otclib.training.epoch import begin, run

RESULTS = Path(__file__).parent / "results"
FEW = 1_000  # JPEGs on disk, and the pairs that memory is compared with
GOALS = {"ratio": 1.0, "waiting": 0.1, "gib": 2.0}
LR = 5e-4  # open_clip's own default


class Size(NamedTuple):
    """How a model is measured: the side of its images, pairs a step, steps an epoch, steps of a defence."""

    side: int
    batch: int
    steps: int
    defended: int


CPU = {"small": Size(64, 64, 60, 20), "RN50": Size(224, 8, 8, 2)}
GPU = {"small": Size(64, 512, 60, 20), "RN50": Size(224, 256, 20, 10)}
QUICK = {"small": Size(64, 8, 2, 1), "RN50": Size(224, 2, 1, 1)}


# -- an epoch of either loop, and its time ---------------------------------------------------------------------------


def core_seconds() -> float:
    """Core-seconds of this process and of its workers that have ended."""
    own, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + theirs.ru_utime + theirs.ru_stime


def timed(epoch: Callable[[], Waited]) -> dict[str, float]:
    """Return the seconds of an epoch, the seconds of waiting, and the core-seconds with its workers."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start, core = time.perf_counter(), core_seconds()
    batches = epoch()
    if cuda:
        torch.cuda.synchronize()
    out = {"seconds": time.perf_counter() - start, "core_seconds": core_seconds() - core}
    out |= {"first_wait": batches.first, "waiting": batches.later / (out["seconds"] - batches.first)}
    return out | ({"cuda_gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else {})


def our_epoch(trainer: Trainer, method: Defense, images: Images, size: int) -> Waited:
    """Train an epoch as ``otclib.train`` does, with these images."""
    trainer.images, seen = images, []

    def batches(plan: list) -> Waited:
        seen.append(Waited(Trainer.batches(trainer, plan)))
        return seen[0]

    trainer.batches = batches
    nothing = {"bar": False, "wait": lambda: None, "after": lambda *_: None}
    run(trainer, method, begin(trainer, method), config={"lr": LR, "batch_size": size}, **nothing)
    del trainer.batches
    return seen[0]


def plain_rows(model: str, size: Size, csv: Path, workers: int, where: Accelerator, repeats: int) -> dict:
    """Plain CLIP by both loops: every way trains an epoch in turn, ``repeats`` times after one that does not count."""
    device = where.device.type
    precision = "bf16" if device == "cuda" else "fp32"
    pairs = otclib.data.load("csv", root=csv.parent, csv=csv.name)
    trainer, method = trainer_of("clip", pairs, model, accelerator=where, optimizer="adamw", precision=precision)
    resize = models.resize(trainer.model)
    lazy, held = Images(pairs, resize, 0, workers), Images(pairs, resize, 1 << 40)
    ways = {
        "open_clip": open_clip_loop.epochs(model, csv, size.batch, LR, workers, device, precision),
        "ours": lambda: our_epoch(trainer, method, lazy, size.batch),
        "ours, images in memory": lambda: our_epoch(trainer, method, held, size.batch),
    }
    found: dict[str, list] = {}
    for name, way in ways.items():
        way()
        found[name] = []
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(timed(way))
    out = {"model": model, **size._asdict(), "precision": precision, "optimizer": "adamw", "repeats": repeats}
    out |= {"runs": found, "ways": {name: middle(runs, size) for name, runs in found.items()}}
    theirs = [each["seconds"] for each in found["open_clip"]]
    out["ratio"] = {
        name: statistics.median(other / each["seconds"] for other, each in zip(theirs, found[name]))
        for name in list(found)[1:]
    }
    if device == "cuda":
        out["ways"]["ours, compiled"] = way = compiled(trainer, ways["ours"], size, repeats)
        if "error" not in way:
            out["ratio"]["ours, compiled"] = out["ways"]["open_clip"]["seconds"] / way["seconds"]
    return out


def middle(runs: list[dict], size: Size) -> dict[str, float]:
    """Return the medians of the runs of a way, and images a second from that of its seconds."""
    out = {key: statistics.median(each[key] for each in runs) for key in runs[0]}
    images = size.batch * size.steps
    return out | {
        "images_per_second": images / out["seconds"],
        "core_ms_per_image": 1000 * out["core_seconds"] / images,
    }


def compiled(trainer: Trainer, way: Callable[[], Waited], size: Size, repeats: int) -> dict:
    """Ours with towers from ``torch.compile``; if that fails, the error in words."""
    before = trainer.towers
    try:
        trainer.towers = torch.compile(before)
        way()
        return middle([timed(way) for _ in range(repeats)], size)
    except Exception as error:  # a compiler has many
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    finally:
        trainer.towers = before


# -- the defences ----------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """Epochs of a kind: one of them, their share of a run's steps, and how often in an epoch ``begin_epoch`` works."""

    epoch: int
    share: float
    matchings: float = 0.0


def phases(name: str, method: Defense) -> list[Phase]:
    """Return what a whole run of a defence is made of."""
    n = method.epochs
    if name == "roclip":
        matching = [epoch for epoch in range(n) if method.matches(epoch)]
        return [Phase(0, 1 - len(matching) / n), Phase(matching[0], len(matching) / n)]
    if name == "safeclip":  # a selecting epoch has the unimodal loss of the risky pairs, too
        selecting = range(n - method.warmup - method.slow_epochs)
        safe = sum(min(method.cap, method.min_safe + k * method.grow) for k in selecting)
        unimodal = (method.warmup + len(selecting) - safe) / n
        return [
            Phase(0, unimodal),
            Phase(method.warmup, 1 - unimodal),
            Phase(n - len(selecting), 0, len(selecting) / n),
        ]
    if name == "otcclip":
        matchings = len(range(method.warmup, n, method.every))
        return [Phase(0, method.warmup / n), Phase(method.warmup, 1 - method.warmup / n, matchings / n)]
    return [Phase(0, 1.0)]


def milliseconds(act: Callable[[], object]) -> dict[str, float]:
    """Return how long something takes by the clock and, on the CPU, of its cores."""
    start, core = time.perf_counter(), time.process_time()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"ms": 1000 * (time.perf_counter() - start), "core_ms": 1000 * (time.process_time() - core)}


def train_on(trainer: Trainer, method: Defense, plan: list) -> None:
    for batch in trainer.batches(plan):
        step(trainer, method, batch)


def defense_rows(model: str, size: Size, csv: Path, where: Accelerator, repeats: int) -> dict:
    """Milliseconds an image of every defence over a whole run, steps in turn; images in memory, at full size.

    One model is trained by all of them. It has learned nothing, so the matching solves more than later in a real run.
    """
    pairs = otclib.data.load("csv", root=csv.parent, csv=csv.name)
    precision = "bf16" if where.device.type == "cuda" else "fp32"
    how = {"accelerator": where, "optimizer": "adamw", "precision": precision, "image_memory": 1 << 40, "lr": 1e-4}
    trainer, _ = trainer_of("clip", pairs, model, grow=True, **how)
    own, work = trainer.caption_of, []
    first, matching = trainer_of("otcclip", pairs.select(range(min(16, len(pairs)))))
    first.epoch = matching.warmup
    matching.begin_epoch(first)  # compiles the transport
    parts: dict[str, dict] = {}
    for name in ("clip", "roclip", "safeclip", "cleanclip", "otcclip"):
        method = otclib.defenses.load(name)
        method.begin(trainer)
        parts[name] = {"before_epochs": {"ms": 0.0, "core_ms": 0.0}, "steps": []}
        for phase in phases(name, method):
            trainer.caption_of, trainer.epoch = own, phase.epoch
            if phase.matchings:
                taken = milliseconds(lambda: method.begin_epoch(trainer))  # noqa: B023 (called at once)
                # a pool of OTCCLIP costs as much as so many pairs; of a long table it is a small part
                many = len(pairs) + min(len(pairs), getattr(method, "pool", 0) if name == "otcclip" else 0)
                for kind, value in taken.items():
                    parts[name]["before_epochs"][kind] += phase.matchings * value / many
            if phase.share:
                entry = {"epoch": phase.epoch, "share": phase.share, "ms": [], "core_ms": []}
                parts[name]["steps"].append(entry)
                work.append((method, phase, trainer.caption_of, entry))
    for turn in range(repeats + 1):
        for method, phase, captions, entry in work:
            trainer.caption_of, trainer.epoch = captions, phase.epoch
            plan = trainer.plan(torch.randperm(len(pairs)), size.batch)[: size.defended]
            trainer.model.train()
            taken = milliseconds(lambda: train_on(trainer, method, plan))  # noqa: B023
            for kind, value in taken.items() if turn else ():
                entry[kind].append(value / (len(plan) * size.batch))
    out = {"model": model, **size._asdict(), "precision": precision, "pairs": len(pairs), "repeats": repeats}
    for part in parts.values():
        for kind, before in part["before_epochs"].items():
            steps = sum(entry["share"] * statistics.median(entry[kind]) for entry in part["steps"])
            part[f"{kind}_per_image"] = steps + before
        part["images_per_second"] = 1000 / part["ms_per_image"]
    ratio = {name: p["images_per_second"] / parts["clip"]["images_per_second"] for name, p in parts.items()}
    return out | {"defenses": parts, "ratio": ratio}


# -- the record ------------------------------------------------------------------------------------------------------


def tables(record: dict) -> str:
    """The record as Markdown, as its page of the book shows it."""
    parts = []
    for r in record.get("plain", []):
        heads = ["images/s", "over open_clip", "core-ms an image", "waiting for data, %"]
        rows = {}
        for name, way in r["ways"].items():
            if "error" in way:
                rows[name] = [way["error"], "", "", ""]
                continue
            ratio = f"{r['ratio'][name]:.2f}" if name in r["ratio"] else ""
            rows[name] = [f"{way['images_per_second']:.1f}", ratio]
            rows[name] += [f"{way['core_ms_per_image']:.1f}", f"{100 * way['waiting']:.1f}"]
            if "cuda_gib" in way:
                rows[name].append(f"{way['cuda_gib']:.1f}")
        heads += ["peak CUDA GiB"] if "cuda_gib" in r["ways"]["ours"] else []
        rows = {name: cells + [""] * (len(heads) - len(cells)) for name, cells in rows.items()}
        title = (
            f"Plain CLIP, {r['model']}, {r['side']} px, batches of {r['batch']}, {r['precision']}, AdamW, medians of "
        )
        title += f"{r['repeats']} epochs of {r['steps']} steps"
        parts += [f"{title}:", markdown(rows, heads)]
    for r in record.get("defenses", []):
        rows = {}
        for name, part in r["defenses"].items():
            before = 100 * part["before_epochs"]["ms"] / part["ms_per_image"]
            rows[name] = [f"{part['images_per_second']:.1f}", f"{r['ratio'][name]:.2f}"]
            rows[name] += [f"{part['core_ms_per_image']:.1f}", f"{before:.1f}"]
        heads = ["images/s", "over clip", "core-ms an image", "before the epochs, % of the time"]
        title = f"Defences, {r['model']}, {r['side']} px, batches of {r['batch']}, images in memory, "
        title += f"medians of {r['repeats']} times {r['defended']} steps"
        parts += [f"{title}:", markdown(rows, heads)]
    rows = {
        f"{r['pairs']:,} pairs": [
            f"{r[f'{who}_{kind}_gib']:.2f}" for who in ("process", "worker") for kind in ("rss", "uss")
        ]
        for r in record.get("memory", [])
    }
    heads = ["process, RSS", "process, USS", "largest worker, RSS", "largest worker, USS"]
    title = "Peak memory of `otclib.train` with `small`, images decoded by workers, GiB"
    parts += [f"{title}:", markdown(rows, heads)] if rows else []
    made = f"On {record['machine']}, {record['threads']} threads and {record['workers']} workers. Made by otclib "
    return "\n\n".join([*parts, f"{made}{record['code']['version']}, commit {record['code']['commit']}."])


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.split("\n")[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    p.add_argument("--models", nargs="+", choices=list(CPU), default=list(CPU))
    p.add_argument("--only", nargs="+", choices=("plain", "defenses", "memory"), help="measure these anew")
    p.add_argument("--pairs", type=int, default=1_000_000, help="the large number, for memory")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--threads", type=int, default=cores)
    p.add_argument("--workers", type=int, default=min(8, cores))
    p.add_argument("--quick", action="store_true", help="tiny batches and few steps: whether it runs, not how fast")
    cuda = torch.cuda.is_available()
    p.add_argument("--results", type=Path, default=RESULTS / ("throughput-gpu.json" if cuda else "throughput.json"))
    a = p.parse_args(arguments)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip says that random weights are random
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # open_clip asks for it on a CPU, too
    torch.set_num_threads(a.threads)
    where, sizes = Accelerator(cpu=not cuda), QUICK if a.quick else GPU if cuda else CPU
    record = json.loads(a.results.read_text()) if a.only and a.results.exists() else {}
    about = {"machine": machine(), "code": code(), "device": str(where.device)}
    about |= {"threads": a.threads, "workers": a.workers, "goals": GOALS}
    record |= about
    with tempfile.TemporaryDirectory() as folder:
        for what in a.only or ("plain", "defenses", "memory"):
            record[what] = []
            for model in a.models if what != "memory" else ["small"]:
                size, place = sizes[model], Path(folder) / what / model
                place.mkdir(parents=True)
                steps = {"plain": size.steps, "defenses": max(size.defended, 1 if a.quick else 512 // size.batch)}
                images = min(FEW, size.batch * steps.get(what, FEW))
                rows = memory.written(place, size.side, min(images, 16) if a.quick else images)
                if what == "memory":
                    for n in (min(FEW, a.pairs), a.pairs):
                        record[what].append(
                            memory.peak_of(memory.listed(place / f"{n}.csv", rows, n), n, size.batch, a.workers)
                        )
                else:
                    csv = memory.listed(place / "train.csv", rows, size.batch * steps[what])
                    if what == "plain":
                        record[what].append(plain_rows(model, size, csv, a.workers, where, a.repeats))
                    else:
                        record[what].append(defense_rows(model, size, csv, where, a.repeats))
                record[what] = [about | each for each in record[what]]
                print(f"{what}, {model}: done", flush=True)
    a.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(a.results, record)
    if a.results == RESULTS / "throughput.json":
        into_page("throughput", tables(record))
    print(tables(record))


if __name__ == "__main__":
    main()
