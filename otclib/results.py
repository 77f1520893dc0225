"""Reads run folders, and builds the tables. ``python -m otclib.results`` makes the published one: three seeds of both.

python -m otclib.results --out runs/seeds --figures figures     # resumes where it stopped
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np

SYSTEMS = ("clip", "otcclip")
ROWS = (  # key, label, factor, format
    ("zero_shot_top1", "zero-shot top-1, %", 100, "{:.1f}"),
    ("attack_success_rate", "BadNets ASR, %", 100, "{:.1f}"),
    ("untriggered_target_rate", "... without the trigger, %", 100, "{:.1f}"),
    ("targets_hit", "targeted images hit", 1, "{:.0f}"),
    ("targets", "... of", 1, "{:.0f}"),
    ("poison_auroc", "poison AUROC", 1, "{:.3f}"),
    ("linear_probe/scenes", "linear probe, scenes, %", 100, "{:.1f}"),
    ("linear_probe/digits", "linear probe, digits, %", 100, "{:.1f}"),
    ("image_to_text_recall_at_1", "image-to-text R@1, %", 100, "{:.1f}"),
    ("text_to_image_recall_at_1", "text-to-image R@1, %", 100, "{:.1f}"),
    ("plan_pointing_accuracy", "plan pointing, %", 100, "{:.1f}"),
    ("plan_mass_ratio", "plan mass on object / chance", 1, "{:.2f}"),
    ("plan_mass_ratio/names", "... of object names alone", 1, "{:.2f}"),
    ("plan_mass_ratio/attributes", "... of colours and sizes alone", 1, "{:.2f}"),
    ("cosine_mass_ratio", "cosine mass on object / chance", 1, "{:.2f}"),
    ("cosine_mass_ratio/names", "... of object names alone", 1, "{:.2f}"),
    ("seconds_per_epoch", "seconds per epoch", 1, "{:.0f}"),
)


def read(run: str | Path) -> dict:
    """``metrics.json`` of a run folder."""
    path = Path(run) / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no metrics.json: it is not a finished run")
    return json.loads(path.read_text())


def config(run: str | Path) -> dict:
    """What was asked: defence, its options, seed, learning rate, ..."""
    return json.loads((Path(run) / "config.json").read_text())


def log(run: str | Path) -> list[dict]:
    """One dict per epoch."""
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def grouped(runs: Iterable[str | Path | dict]) -> dict[str, list[dict]]:
    """Metrics by defence, in order of appearance."""
    out: dict[str, list[dict]] = {}
    for run in runs:
        metrics = run if isinstance(run, dict) else read(run)
        out.setdefault(metrics["defense"], []).append(metrics)
    return out


def table(runs: Iterable[str | Path | dict]) -> str:
    """A Markdown table, one column per defence: the value, or mean and range over seeds."""
    groups = grouped(runs)
    lines = ["| | " + " | ".join(groups) + " |", "|---|" + "---:|" * len(groups)]
    first = next(iter(groups.values()))[0]
    rates = [k for k in first if k.startswith("poison_rate/")]
    rows = [*ROWS, *((k, f"{k.split('/')[1]} poison rate, % of pairs", 100, "{:.2f}") for k in rates)]
    for key, label, factor, form in rows:
        cells = []
        for runs_of in groups.values():
            values = [factor * r[key] for r in runs_of if r.get(key) is not None]
            if not values:
                cells.append("")
            elif min(values) == max(values):
                cells.append(form.format(values[0]))
            else:
                mean = "{:.1f}" if form == "{:.0f}" else form
                cells.append(
                    f"{mean.format(np.mean(values))} ({form.format(min(values))} to {form.format(max(values))})"
                )
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    import torch

    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def main(arguments: list[str] | None = None) -> None:
    import otclib
    from otclib import plots

    p = argparse.ArgumentParser(prog="python -m otclib.results", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/seeds"))
    p.add_argument("--figures", type=Path, default=Path("figures"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    a = p.parse_args(arguments)
    runs = []
    for seed in a.seeds:
        pairs = otclib.data.load("scenes", seed=seed)
        planned = [otclib.attacks.load("targeted"), otclib.attacks.load("badnets")]
        poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=seed)
        made = otclib.train_each(poisoned, a.systems, manifest=manifest, out=a.out / f"seed{seed}", seed=seed)
        runs += made.values()
    records = [{**read(run), "machine": machine()} for run in runs]
    a.figures.mkdir(parents=True, exist_ok=True)
    otclib.training.write_json(a.figures / "seeds.json", records)
    (a.figures / "seeds.md").write_text(table(records) + "\n")
    plots.comparison(grouped(records)).savefig(a.figures / "comparison.png", dpi=150)
    print(table(records))


if __name__ == "__main__":
    main()
