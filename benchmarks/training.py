"""Where a training step's time goes, beside its floor. ``python -m benchmarks.training``, two minutes on two cores.

- The profile of a plain CLIP step on one core: the towers' matrix products and convolutions, what else the towers do,
  the views, the optimisers, the rest. The floor is the FLOPs of the towers, forward and backward, over the rate that
  this machine reaches in a convolution of the tower's own shape.
- Views against torchvision's transforms, which share one draw among eight images.
- An epoch of OTCCLIP over an undefended one, in core-seconds, its matching included.
- With ``--against COMMIT``: core-seconds until zero-shot accuracy reaches 95 %, of this code and of that commit, side
  by side, on ``--seeds`` (40 minutes on two cores).

Written to ``benchmarks/results/training.json`` and to ``book/results/training.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

import otclib
from otclib import defenses, models, training
from otclib.defenses import views
from otclib.experiments.pages import into_page
from otclib.experiments.records import markdown
from otclib.runs import code, log_of, machine, seconds_of, write_json

RESULTS = Path(__file__).parent / "results" / "training.json"
PRODUCTS = (
    "convolution",
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::baddbmm",
    "scaled_dot_product",
    "aten::linear",
)
ACCURATE = 0.95
STRONG = views.Views(
    scale=(0.6, 1.0), ratio=(0.8, 1.25), brightness=0.3, contrast=0.3, saturation=0.5, hue=0.5
)  # as many options of a view as are drawn


def trainer_of(defense: str, pairs, model: str = "small", **how) -> tuple[training.Trainer, defenses.Defense]:
    """A trainer of a model with random weights on the CPU, and a defence; ``how`` are options of ``Trainer``."""
    torch.manual_seed(0)
    network, _, tokenizer = models.load(model, random=True)
    method = defenses.load(defense)
    where = how.pop("accelerator", None) or Accelerator(cpu=True)
    how = {"lr": method.LR} | how
    trainer = training.Trainer(pairs, network.to(where.device), tokenizer, where, **how)
    method.begin(trainer)
    network.train()
    return trainer, method


def step(trainer: training.Trainer, method: defenses.Defense, batch: defenses.Batch) -> None:
    """One step of the optimisers."""
    loss = sum(method.loss(trainer, batch).values())
    for opt in trainer.optimizers:
        opt.zero_grad()
    loss.backward()
    for opt in trainer.optimizers:
        opt.step()


def split_of_a_step(pairs, batch_size: int, steps: int = 20) -> dict:
    """Milliseconds of a plain CLIP step by kind of operation: self times of one thread under the profiler."""
    trainer, method = trainer_of("clip", pairs)
    stream = trainer.batches(trainer.plan(torch.randperm(len(pairs)), batch_size))

    def parts() -> None:
        with torch.profiler.record_function("part:rest"):
            batch = next(stream)
        with torch.profiler.record_function("part:views"):
            seen = trainer.view(batch)
        with torch.profiler.record_function("part:towers"):
            image, text = trainer.towers(seen, batch.text)
        with torch.profiler.record_function("part:rest"):
            loss = otclib.losses.contrastive(image.pooled, text.pooled, trainer.scale, batch.caption_id)
            for opt in trainer.optimizers:
                opt.zero_grad()
        with torch.profiler.record_function("part:towers"):
            loss.backward()
        with torch.profiler.record_function("part:optimisers"):
            for opt in trainer.optimizers:
                opt.step()

    for _ in range(3):
        parts()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            parts()
    total = {"products": 0.0, "towers besides": 0.0, "views": 0.0, "optimisers": 0.0, "rest": 0.0}
    for event in found.events():
        own, above = event.self_cpu_time_total, event
        while above is not None and not above.name.startswith("part:"):
            above = above.cpu_parent
        # the backward pass has no parent: autograd's nodes stand beside the part that called them
        part = "towers" if above is None else above.name.removeprefix("part:")
        if part == "towers":
            part = "products" if any(name in event.name for name in PRODUCTS) else "towers besides"
        total[part] += own / steps / 1000
    return total


def floor_of_a_step(pairs, batch_size: int) -> dict:
    """FLOPs of the towers for a batch, the rate reached in the tower's own largest convolution, and their quotient."""
    trainer, _ = trainer_of("clip", pairs)
    batch = next(trainer.batches(trainer.plan(torch.arange(len(pairs)), batch_size)))
    seen = trainer.view(batch)
    convolutions = {}

    def remember(module, inputs, output):
        convolutions[module] = inputs[0].detach(), output.shape

    hooks = [m.register_forward_hook(remember) for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d)]
    with FlopCounterMode(display=False) as count:
        image, text = trainer.towers(seen, batch.text)
        (image.pooled.sum() + text.pooled.sum() + image.tokens.sum()).backward()
    for hook in hooks:
        hook.remove()
    layer = max(convolutions, key=lambda m: m.weight.numel() * convolutions[m][1][-1] ** 2)
    x, shape = convolutions[layer]
    flops = 2 * layer.weight.numel() * shape[0] * shape[2] * shape[3]
    with torch.no_grad():
        seconds = []
        for _ in range(12):
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
    rate = flops / min(seconds)
    total = count.get_total_flops()
    return {"gflop": total / 1e9, "gflop_per_second": rate / 1e9, "milliseconds": 1000 * total / rate}


def step_of(defense: str, pairs, batch_size: int, steps: int = 25) -> float:
    """Core-milliseconds of a whole step, median."""
    trainer, method = trainer_of(defense, pairs)
    stream, taken = trainer.batches(trainer.plan(torch.randperm(len(pairs)), batch_size)), []
    for _ in range(steps):
        start = time.process_time()
        step(trainer, method, next(stream))
        taken.append(1000 * (time.process_time() - start))
    return statistics.median(taken[3:])


def matching_of(pairs) -> float:
    """Core-seconds of OTCCLIP's matchings over an epoch of a whole run, by a model that has learned nothing."""
    trainer, method = trainer_of("otcclip", pairs)
    times = range(method.warmup, method.epochs, method.every)
    trainer.epoch = times[1]
    start = time.process_time()
    if not method.begin_epoch(trainer):
        raise RuntimeError(f"OTCCLIP did not match before epoch {trainer.epoch + 1}")
    return (time.process_time() - start) * len(times) / method.epochs


def views_against_torchvision(pairs, batch_size: int, rounds: int = 30) -> dict[str, float]:
    """Core-milliseconds of a batch of views: ours, one draw an image, and torchvision's, one for eight images."""
    images = otclib.data.image_tensor(pairs.select(range(batch_size)), 64)
    crop = {"ratio": (0.8, 1.25), "antialias": True}
    theirs = {
        "weak": [v2.RandomResizedCrop(64, scale=(0.8, 1.0), **crop), v2.ColorJitter(0.2, 0.2)],
        "strong": [v2.RandomResizedCrop(64, scale=(0.6, 1.0), **crop), v2.ColorJitter(0.3, 0.3, 0.5, 0.5)],
    }
    out = {}
    for name, ours in ("weak", views.WEAK), ("strong", STRONG):
        other = v2.Compose([*theirs[name], v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])
        ways = {
            "ours": lambda ours=ours: ours(images, 64),
            "torchvision": lambda other=other: torch.cat([other(chunk) for chunk in images.split(8)]),
        }
        for way, act in ways.items():
            taken = []
            for _ in range(rounds):
                start = time.process_time()
                act()
                taken.append(1000 * (time.process_time() - start))
            out[f"{name}, {way}"] = statistics.median(taken[2:])
    return out


RACE = """
import os, sys, torch
torch.set_num_threads(1)
import otclib
from otclib import evaluation
out, seed, goal = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
evaluation.evaluate = lambda run, **_: (run / "metrics.json").write_text("{}")
def stop(logs):
    if list(logs.values())[0][-1]["zero_shot_top1"] >= goal:
        os._exit(0)
pairs = otclib.data.load("scenes", seed=seed)
planned = [otclib.attacks.load("targeted"), otclib.attacks.load("badnets")]
pairs, manifest = otclib.attacks.plant(pairs, planned, seed=seed)
same = {"manifest": manifest, "defense": "clip", "precision": "fp32", "seed": seed}
otclib.train(pairs, out=out, progress=False, live=stop, **same)
"""


def race(commit: str, seeds: list[int]) -> dict:
    """Core-seconds of undefended training until zero-shot accuracy reaches 95 %: this code's and a commit's.

    Each run is a process of its own on one core, and has the schedule of its code's whole run; one after the other.
    """
    root = Path(otclib.__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "-C", str(root), "worktree", "add", "--detach", str(old), commit], check=True)
        try:
            taken = {"now": [], commit: []}
            for seed in seeds:
                for name, tree in ("now", root), (commit, old):
                    out = Path(folder) / f"{name}-{seed}"
                    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
                    command = [sys.executable, "-c", RACE, str(out), str(seed), str(ACCURATE)]
                    subprocess.run(command, env=environment, cwd=folder, check=True)
                    taken[name].append(until_accurate(log_of(out)))
                    print(f"seed {seed}  {name}: {taken[name][-1]}", flush=True)
        finally:
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(old)], check=True)
    mean = {name: statistics.mean(run["core_seconds"] for run in runs) for name, runs in taken.items()}
    return {
        "goal": ACCURATE,
        "seeds": seeds,
        "runs": taken,
        "mean_core_seconds": mean,
        "share": mean["now"] / mean[commit],
    }


def until_accurate(log: list[dict]) -> dict:
    """The first epoch at whose end zero-shot accuracy is 95 %, and the core-seconds until then (None: never)."""
    for k, line in enumerate(log):
        if line["zero_shot_top1"] >= ACCURATE:
            return {"epoch": k + 1, "core_seconds": seconds_of(log[: k + 1])}
    return {"epoch": None, "core_seconds": None}


def tables(record: dict) -> str:
    """The record as Markdown, as its page of the book shows it."""
    split, total = record["step_ms"], sum(record["step_ms"].values())
    names = {
        "products": "matrix products and convolutions of the towers",
        "towers besides": "norms and activations of the towers",
        "optimisers": "optimisers",
        "views": "views",
        "rest": "the rest",
    }
    shares = {name: [f"{100 * split[key] / total:.1f}"] for key, name in names.items()}
    views, epoch = record["views_ms"], record["epoch_core_seconds"]
    rows = {
        "a plain step of 64 pairs under the profiler, ms": [f"{total:.0f}"],
        "its floor: the towers' FLOPs at the rate of their largest convolution, ms": [
            f"{record['floor']['milliseconds']:.0f}"
        ],
        "an undefended epoch of 12,000 pairs at full size, core-seconds": [f"{epoch['clip']:.1f}"],
        "an OTCCLIP epoch, matching included": [f"{epoch['otcclip'] + epoch['matching']:.1f}"],
        "OTCCLIP over undefended": [f"{record['otcclip_over_clip']:.2f}"],
    }
    for kind in ("weak", "strong"):
        both = " and ".join(f"{views[f'{kind}, {way}']:.1f}" for way in ("ours", "torchvision"))
        rows[f"a batch of {kind} views, ours and torchvision's, ms"] = [both]
    race = record["race"]
    (commit,) = set(race["runs"]) - {"now"}
    seeds = ", ".join(map(str, race["seeds"]))
    for name, label in (("now", "core-seconds to 95 % zero-shot accuracy"), (commit, f"... by the code of {commit}")):
        taken = ", ".join(
            "never" if r["core_seconds"] is None else f"{r['core_seconds']:.0f}" for r in race["runs"][name]
        )
        rows[f"{label}, seeds {seeds}"] = [taken]
    rows["... now over then, of the means"] = [f"{100 * race['share']:.0f} %"]
    made = f"On one core of {record['machine']}. Made by otclib {record['code']['version']}, commit "
    made += f"{record['code']['commit']}; the race by commit {race['code']['commit']}."
    return f"{markdown(shares, ['share of a step, %'])}\n\n{markdown(rows, [''])}\n\n{made}"


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    p.add_argument("--pairs", type=int, default=12_000)
    p.add_argument("--against", metavar="COMMIT", help="race this code against a commit's to 95 %% zero-shot accuracy")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--results", type=Path, default=RESULTS)
    a = p.parse_args(arguments)
    record = json.loads(a.results.read_text()) if a.results.exists() else {}
    record |= {"machine": machine(), "code": code()}
    if a.against:
        record["race"] = race(a.against, a.seeds) | {"machine": machine(), "code": code()}
    else:
        torch.set_num_threads(1)
        pairs, size = otclib.data.load("scenes", seed=10, size=a.pairs), 64
        split, floor = split_of_a_step(pairs, size), floor_of_a_step(pairs, size)
        steps = {name: step_of(name, pairs, size) for name in ("clip", "otcclip")}
        epoch = {name: ms * (len(pairs) // size) / 1000 for name, ms in steps.items()}
        epoch["matching"] = matching_of(pairs)
        record |= {
            "batch_size": size,
            "step_ms": split,
            "share_besides_products": 1 - split["products"] / sum(split.values()),
            "floor": floor,
            "epoch_core_seconds": epoch,
            "otcclip_over_clip": (epoch["otcclip"] + epoch["matching"]) / epoch["clip"],
            "views_ms": views_against_torchvision(pairs, size),
        }
    a.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(a.results, record)
    if a.results == RESULTS:
        into_page("training", tables(record))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
