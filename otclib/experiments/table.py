"""The table: five systems against six attacks, three seeds each (``make table``).

    runs/table/<attack>/<defense>/seed<k>       the runs; ``none`` is the attack of the clean ones
    figures/results.json                        one record per run
    figures/classes.json                        where OTCCLIP's accuracy is lost, summed over its runs
    figures/results.md, figures/*.png           what is made of them; with --publish, the README's section too

It goes on where it stopped, and draws what there is; ``--limit`` stops it in time. A record stays until its run is
there again, so that a grid may be run in several sittings and on several machines: ``--recorded`` trains only what has
none. With ``--ablation`` it runs OTCCLIP with one part missing or changed at a time instead, into ``runs/ablation`` and
``figures/ablation.json``; with ``--dose`` the undefended model on more and more poison, into ``runs/dose`` and
``figures/dose.json``. The attack ``sig`` (much like ``blended`` here) and ``cleanclip-supervised`` (which leaves a
linear head, not a CLIP model) are run on demand: ``--attacks sig --defenses clip cleanclip-supervised``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

import otclib
from otclib import figures as plots
from otclib import processes
from otclib.attacks import planting
from otclib.data import scenes
from otclib.experiments import records as results
from otclib.experiments import tables as compare
from otclib.runs import code, column, config_of, log_of, machine, metrics_of, seconds_of, seconds_until_safe, write_json
from otclib.training.side_by_side import begin_worker

DEFENSES = ("clip", "roclip", "safeclip", "cleanclip", "otcclip")
ATTACKS = ("targeted", "badnets", "blended", "wanet", "label-consistent", "adaptive")
SEEDS = (0, 1, 2)
SURROGATE_SEED = 100  # the adaptive attacker's own model is trained on other scenes than the victim
CLEAN_SEED, CLEAN_PAIRS = 1000, 2000  # CleanCLIP fine-tunes on scenes of seed + 1000

PARTS = {  # of the paper's
    "full": {},
    "no transport in matching": {"global_weight": 1.0},
    "no inter-modal loss": {"inter": 0.0},
    "no intra-modal loss": {"intra": 0.0},
    "global only": {"global_weight": 1.0, "inter": 0.0, "intra": 0.0},
    "captions always re-assigned": {"keep_near": False},
    "no matching": {"near_share": 1.0},
}
ADDED = {  # what is ours
    "no restart": {"restart": False},
    "no robust loss": {"q": 0.0},
    "no strong views": {"strong": False},
    "16 epochs instead of 10": {"epochs": 16},
}
ABLATION = PARTS | ADDED
BY_EPOCH = ("zero_shot_top1", "attack_success_rate", "targets_hit", "poison_kept", "clean_kept")  # kept of each run
DOSES = (1 / 8, 1 / 4, 1 / 2, 1)  # times the copies and the rate that the attacks have by default


@dataclass(frozen=True)
class Job:
    """One run of the table, or of the ablation (``variant``: a key of ``ABLATION``), or of the ``dose`` series."""

    attack: str
    defense: str
    seed: int
    variant: str | None = None
    dose: float | None = None

    @property
    def what(self) -> str:
        """What sets it apart from others of its system and seed, in words."""
        if self.variant is not None:
            return f"{self.attack}, {self.variant}"
        return self.attack if self.dose is None else f"{self.dose:g} times {self.attack}"

    def folder(self, out: Path) -> Path:
        if self.dose is not None:
            return out / f"{self.dose:g}" / self.defense / f"seed{self.seed}"
        if self.variant is not None:
            return out / self.variant.replace(" ", "-") / f"seed{self.seed}"
        return out / self.attack / self.defense / f"seed{self.seed}"

    def needs(self) -> list[Job]:
        """What must be finished first."""
        if self.attack == "none" or self.variant is not None or self.dose is not None:
            return []
        first = [Job("none", "clip", self.seed)]
        if self.attack == "adaptive":
            first.append(Job("none", "clip", SURROGATE_SEED))
        if otclib.defenses.repairs(self.defense):
            first.append(Job(self.attack, "clip", self.seed))
        return first

    def planned(self, out: Path) -> list:
        """The attacks on the training set."""
        if self.variant is not None or self.dose is not None:
            dose = 1 if self.dose is None else self.dose
            targeted, badnets = otclib.attacks.load("targeted"), otclib.attacks.load("badnets")
            copies = max(1, round(dose * targeted.copies))
            return [
                dataclasses.replace(targeted, copies=copies),
                dataclasses.replace(badnets, rate=dose * badnets.rate),
            ]
        if self.attack == "adaptive":
            surrogate = Job("none", "clip", SURROGATE_SEED).folder(out) / "model.safetensors"
            return [otclib.attacks.load("adaptive", surrogate=str(surrogate))]
        return [] if self.attack == "none" else [otclib.attacks.load(self.attack)]

    def finished(self, out: Path, precision: str, epochs: int | None = None, size: int | None = None) -> bool:
        """Is the run there, as it would be trained now?

        Raises
        ------
        ValueError : there is a run, but of other attacks or options, or of fewer pairs.
        """
        run = self.folder(out)
        if not (run / "metrics.json").exists():
            return False
        if difference := self.difference(config_of(run), out, precision, epochs, size):
            raise ValueError(f"{run} holds another run: {difference}; move it away")
        return True

    def difference(self, found: dict, out: Path, precision: str, epochs: int | None, size: int | None) -> str | None:
        """Between a run's configuration, or its record, and what would be trained now; None: there is none."""
        options = ABLATION.get(self.variant, {}) | ({"epochs": epochs} if epochs else {})
        method = otclib.defenses.load(self.defense, **options)
        wanted = {
            "precision": precision,
            "lr": method.LR,
            "options": dataclasses.asdict(method),
            "attacks": sorted(planting.spec(attack, attack.kind) for attack in self.planned(out)),
        }
        least = self.pairs(size)
        if found["pairs"] < least and self.defense != "cleanclip-supervised":  # it takes the labelled ones alone
            return f"of {found['pairs']} pairs, not {least} and more"
        for key, value in wanted.items():
            if found.get(key, value) != value:
                return f"{key} was {found[key]!r}, is {value!r}"
        return None

    def pairs(self, size: int | None) -> int:
        """Clean pairs that it begins with."""
        if otclib.defenses.repairs(self.defense):
            return min(size or CLEAN_PAIRS, CLEAN_PAIRS)
        return size or scenes.SPLITS["train"][0]

    def run(self, out: Path, size: int | None = None, **options) -> Path:
        """Poison, train, evaluate. ``size`` and ``options`` (``epochs``, ``precision``, ...) make it a small one."""
        pairs, manifest = otclib.data.load("scenes", seed=self.seed, size=size), None
        if planned := self.planned(out):
            pairs, manifest = otclib.attacks.plant(pairs, planned, seed=self.seed)
        options = ABLATION.get(self.variant, {}) | options
        if Job("none", "clip", self.seed) in self.needs():
            options["clean"] = Job("none", "clip", self.seed).folder(out)
        if otclib.defenses.repairs(self.defense):
            pairs = otclib.data.load("scenes", seed=self.seed + CLEAN_SEED, size=self.pairs(size))
            if self.defense == "cleanclip-supervised":
                pairs = pairs.filter(lambda label: label is not None, input_columns="label")
            options["model"] = Job(self.attack, "clip", self.seed).folder(out) / "model.safetensors"
        same = {"seed": self.seed, "progress": False}
        return otclib.train(pairs, manifest=manifest, defense=self.defense, out=self.folder(out), **same, **options)


def jobs(attacks: Sequence[str], defenses: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All jobs of the table in an order in which whole seeds come first, and what others need before them."""
    wanted = [Job(attack, defense, seed) for seed in seeds for attack in attacks for defense in defenses]
    ordered: dict[Job, None] = {}

    def add(job: Job) -> None:
        for first in job.needs():
            add(first)
        ordered.setdefault(job)

    for job in wanted:
        add(job)
    return list(ordered)


def unfinished(todo: Sequence[Job], finished: set[Job], recorded: set[Job]) -> list[Job]:
    """Jobs to run, in their order: those neither finished nor recorded, and of the others what these need."""
    wanted: set[Job] = set()
    for job in reversed(todo):
        asked = job.seed != SURROGATE_SEED and job not in recorded
        if job in wanted or (asked and job not in finished):
            wanted |= {job, *job.needs()} - finished
    return [job for job in todo if job in wanted]


def run_all(
    todo: Iterable[Job], out: Path, *, workers: int, minutes: float | None = None, **options
) -> Iterable[tuple[Job, Path | Exception]]:
    """Run jobs in ``workers`` processes, each when what it needs is there; yields them as they finish, or fail.

    ``minutes``: no run is started after so many. Close it to stop the runs that are going on.
    """
    start, running = time.monotonic(), {}
    pending = list(todo)
    unfinished = set(pending)
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, begin_worker, (os.getpid(), threads))
    try:
        while pending or running:
            late = minutes is not None and time.monotonic() - start > 60 * minutes
            ready = [] if late else [job for job in pending if not unfinished & set(job.needs())]
            for job in ready[: workers - len(running)]:
                pending.remove(job)
                with processes.starting():  # the pool starts a worker when it needs one
                    running[pool.submit(job.run, out, **options)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if future.exception() is not None:
                    yield job, future.exception()
                else:
                    unfinished.discard(job)
                    yield job, future.result()
    finally:
        if running:  # stopped
            processes.stop([worker for worker in multiprocessing.active_children() if worker not in others])
        pool.shutdown(cancel_futures=True)


def record(job: Job, out: Path) -> dict:
    """What ``figures/results.json`` holds of one run."""
    run = job.folder(out)
    metrics, config = metrics_of(run), config_of(run)
    rate = sum(value for key, value in metrics.items() if key.startswith("poison_rate/"))
    spent = [run]
    if otclib.defenses.repairs(job.defense):  # its model had to be trained first, and was given the poison
        spent.insert(0, Job(job.attack, "clip", job.seed).folder(out))
        rate = sum(value for key, value in metrics_of(spent[0]).items() if key.startswith("poison_rate/"))
    seconds, log = [seconds_of(log_of(each)) for each in spent], log_of(run)
    return {
        "defense": job.defense,
        "attack": job.attack,
        "seed": job.seed,
        "variant": job.variant,
        "dose": job.dose,
        "rate": rate,
        "seconds_total": sum(seconds),
        "seconds_until_safe": seconds_until_safe(log, sum(seconds[:-1])),
        **{k: v for k, v in metrics.items() if k not in ("defense", "seed")},
        "precision": config["precision"],
        "options": config["options"],
        "attacks": [json.loads(attack) for attack in config["attacks"]],
        "machine": config["machine"],
        "code": config.get("code"),
        "by_epoch": {key: column(log, key) for key in BY_EPOCH if any(key in line for line in log)},
    }


def recorded(file: Path, out: Path, **known) -> dict[Job, dict]:
    """The records in ``file``, by run; ``known``: as in ``Job.finished``.

    Raises
    ------
    ValueError : some are of other options or of fewer pairs than would be trained now, and would be lost.
    """
    found = {}
    for record in json.loads(file.read_text()) if file.exists() else []:
        job = Job(*(record[key] for key in ("attack", "defense", "seed", "variant", "dose")))
        specs = [json.dumps(attack, sort_keys=True) for attack in record["attacks"]]
        if difference := job.difference(record | {"attacks": specs}, out, **known):
            raise ValueError(f"{file} holds the record of another run: {job}, {difference}; name another --figures")
        found[job] = record
    return found


def by_class(finished: Iterable[Job], out: Path, size: int | None = None) -> dict[str, dict]:
    """``evaluation.by_class``, summed over runs."""
    total: dict[str, dict] = {}
    for job in finished:
        pairs = otclib.data.load("scenes", seed=job.seed, size=size)
        test = otclib.data.load("scenes", split="test", seed=job.seed)
        for label, found in otclib.evaluation.by_class(job.folder(out), pairs, test).items():
            mine = total.setdefault(label, {"images": 0, "misread": 0, "as": {}, "pairs": 0, "parted": 0})
            for key in ("images", "misread", "pairs", "parted"):
                mine[key] += found[key]
            for other, images in found["as"].items():
                mine["as"][other] = mine["as"].get(other, 0) + images
    return dict(sorted(total.items(), key=lambda item: -item[1]["misread"]))


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m otclib.experiments.table", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, help="default runs/table, runs/ablation or runs/dose")
    p.add_argument("--figures", type=Path, default=Path("figures"))
    p.add_argument("--defenses", nargs="+", default=list(DEFENSES))
    p.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    p.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    p.add_argument("--ablation", action="store_true", help="OTCCLIP, one part missing or changed at a time, instead")
    p.add_argument("--dose", action="store_true", help="the undefended model on more and more poison, instead")
    p.add_argument("--doses", type=float, nargs="+", default=list(DOSES), help="with --dose: times the usual poison")
    p.add_argument("--workers", type=int, help="runs at a time; default one per core, on a GPU one")
    p.add_argument("--limit", type=float, metavar="MINUTES", help="start no run after so many minutes")
    p.add_argument("--precision", default="bf16", help="bf16, as the committed records, or fp32")
    p.add_argument("--size", type=int, help="pairs; default all 12,000")
    p.add_argument("--epochs", type=int, help="default each system's own")
    p.add_argument("--recorded", action="store_true", help="train only what --figures holds no record of")
    p.add_argument("--publish", action="store_true", help="put the tables into the README as well")
    a = p.parse_args(arguments)
    if a.dose and a.publish:
        p.error("--dose has no section in the README, so there is nothing to --publish: chapter 1 reads its record")
    for name in a.defenses:
        otclib.defenses.load(name)
    for name in a.attacks:
        otclib.attacks.load(name)
    both = "targeted+badnets"
    if a.ablation:
        kind, parts = "ablation", (PARTS, ADDED)
        todo = [Job(both, "otcclip", seed, variant) for some in parts for seed in a.seeds for variant in some]
    elif a.dose:
        kind, todo = "dose", [Job(both, "clip", seed, dose=dose) for seed in a.seeds for dose in a.doses]
    else:
        kind, todo = "table", jobs(a.attacks, a.defenses, a.seeds)
    out = a.out or Path("runs") / kind
    workers = a.workers or (1 if torch.cuda.is_available() else torch.get_num_threads())
    options = {"precision": a.precision, "size": a.size} | ({"epochs": a.epochs} if a.epochs else {})
    known = {"precision": a.precision, "epochs": a.epochs, "size": a.size}
    file = a.figures / f"{FILES.get(kind, kind)}.json"
    records = recorded(file, out, **known)
    finished = [job for job in todo if job.finished(out, **known)]
    print(f"{len(finished)} of {len(todo)} runs are there, {len(records)} are recorded", flush=True)
    missing = unfinished(todo, {*finished}, {*records} if a.recorded else set())
    start, failed = time.monotonic(), []
    with closing(run_all(missing, out, workers=workers, minutes=a.limit, **options)) as runs:
        for job, run in runs:
            minutes = (time.monotonic() - start) / 60
            if isinstance(run, Exception):
                failed.append(job)
                print(f"{minutes:6.1f} min  {job} failed: {type(run).__name__}: {run}", flush=True)
            else:
                finished.append(job)
                print(f"{minutes:6.1f} min  {len(finished)}/{len(todo)}  {results.spoken(job.what, run)}", flush=True)
    for job, made in records.items():
        if job not in finished and made.get("code") != code():
            print(f"kept as recorded, by other code ({(made.get('code') or {}).get('commit')}): {job}", flush=True)
    records |= {job: record(job, out) for job in todo if job in finished and job.seed != SURROGATE_SEED}
    if not records:
        raise SystemExit(f"otclib.experiments.table: no run is finished in {out}")
    order = [None, *ABLATION]
    draw([records[job] for job in sorted(records, key=lambda job: order.index(job.variant))], a.figures, kind)
    ours = [job for job in records if job.defense == "otcclip"]
    if kind == "table" and ours and set(ours) <= set(finished):
        made_by = {"code": code(), "machine": machine()}
        write_json(a.figures / "classes.json", made_by | {"classes": by_class(ours, out, a.size)})
    if a.publish:
        publish(a.figures, kind)
    if failed:
        raise SystemExit(f"otclib.experiments.table: {len(failed)} runs failed, see above")


FILES = {"table": "results"}  # their names in figures/, where they are not the kind's own


def draw(records: list[dict], figures: Path, kind: str) -> None:
    """Write records, tables and pictures."""

    figures.mkdir(parents=True, exist_ok=True)
    file = figures / FILES.get(kind, kind)
    write_json(file.with_suffix(".json"), records)
    draws = {"table": plots.attack_grid, "ablation": plots.ablation, "dose": plots.dose}
    tables = {"table": compare.report, "ablation": compare.ablation_table, "dose": compare.dose_table}
    file.with_suffix(".md").write_text(tables[kind](records) + "\n")
    draws[kind](records).savefig(file.with_suffix(".png"), dpi=150)


def publish(figures: Path, kind: str) -> None:
    """Put the tables that were drawn into the README."""
    text = (figures / FILES.get(kind, kind)).with_suffix(".md").read_text().strip()
    results.into_readme(kind, text, figures.resolve().parent / "README.md")


if __name__ == "__main__":
    with processes.stoppable("otclib.experiments.table"):
        main()
