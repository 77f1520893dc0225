"""Reads run folders, and makes tables of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ROWS = (  # key, label, factor, format
    ("zero_shot_top1", "zero-shot top-1, %", 100, "{:.1f}"),
    ("attack_success_rate", "backdoor ASR, %", 100, "{:.1f}"),
    ("untriggered_target_rate", "... without the trigger, %", 100, "{:.1f}"),
    ("triggered_top1", "triggered images still called what they show, %", 100, "{:.1f}"),
    ("targets_hit", "targeted images hit", 1, "{:.0f}"),
    ("targets", "... of", 1, "{:.0f}"),
    ("poison_auroc", "poison AUROC", 1, "{:.3f}"),
    ("linear_probe/scenes", "linear probe, scenes, %", 100, "{:.1f}"),
    ("linear_probe/digits", "linear probe, digits, %", 100, "{:.1f}"),
    ("image_to_text_recall_at_1", "image-to-text R@1, %", 100, "{:.1f}"),
    ("text_to_image_recall_at_1", "text-to-image R@1, %", 100, "{:.1f}"),
    ("plan_pointing_accuracy", "plan pointing, %", 100, "{:.1f}"),
    ("cosine_pointing_accuracy", "cosine pointing, %", 100, "{:.1f}"),
    ("plan_mass_ratio", "plan mass on object / chance", 1, "{:.2f}"),
    ("plan_mass_ratio/names", "... of object names alone", 1, "{:.2f}"),
    ("plan_mass_ratio/attributes", "... of colours and sizes alone", 1, "{:.2f}"),
    ("cosine_mass_ratio", "cosine mass on object / chance", 1, "{:.2f}"),
    ("cosine_mass_ratio/names", "... of object names alone", 1, "{:.2f}"),
    ("seconds_per_epoch", "seconds per epoch", 1, "{:.0f}"),
    ("core_seconds_per_epoch", "core-seconds per epoch", 1, "{:.0f}"),
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
    """One dict per epoch, of a run that is under way too; none before its first is over."""
    file = Path(run) / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


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
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spoken(attack: str, run: str | Path) -> str:
    """A finished run in one line."""
    metrics = read(run)
    words = [f"{metrics['defense']} on {attack}, seed {metrics['seed']}:"]
    words.append(f"zero-shot {100 * metrics['zero_shot_top1']:.1f} %")
    if metrics.get("attack_success_rate") is not None:
        words.append(f"ASR {100 * metrics['attack_success_rate']:.1f} %")
    if "targets_hit" in metrics:
        words.append(f"targets {metrics['targets_hit']}/{metrics['targets']}")
    return "  ".join([*words, f"{metrics['seconds_per_epoch']:.0f} s an epoch"])


def seconds_until_safe(log: list[dict], before: float = 0.0, accuracy: float = 0.95, asr: float = 0.02) -> float | None:
    """Seconds of training until a model is accurate and safe, and stays so: training efficiency.

    That is the end of the first epoch from which on zero-shot accuracy is at least ``accuracy``, the attack success
    rate at most ``asr`` and no targeted image is hit, in every epoch (on the watched images). None: never.
    ``before``: seconds already spent, by CleanCLIP on the model that it cleans. On a CPU these are seconds of a core,
    which do not depend on what else the machine is doing.
    """

    def good(line: dict) -> bool:
        safe = (line.get("attack_success_rate") or 0) <= asr and not line.get("targets_hit")
        return line.get("zero_shot_top1", 0) >= accuracy and safe

    last_bad = max((k for k, line in enumerate(log) if not good(line)), default=-1)
    if last_bad + 1 == len(log):
        return None
    return before + seconds(log[: last_bad + 2])


def column(log: list[dict], key: str) -> list[float | None]:
    """One value of every epoch, to four digits; None where there is none."""
    return [None if line.get(key) is None else round(line[key], 4) for line in log]


def seconds(log: list[dict]) -> float:
    """Seconds of training: of a core where they were counted, else of the clock."""
    return sum(line.get("core_seconds", line["seconds"]) for line in log)


def select(records: list[dict], **where) -> list[dict]:
    return [r for r in records if all(r.get(k) == v for k, v in where.items())]


def order(records: list[dict], key: str) -> list[str]:
    """The values of a key in order of appearance."""
    return list(dict.fromkeys(r[key] for r in records))


def summary(values: list, factor: float = 1, digits: int = 1) -> str:
    """Mean, and the range if there is one."""
    values = [factor * v for v in values if v is not None]
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"


def made_by(records: list[dict]) -> str:
    """Which code made the records, in words: its version and commit, or how many are of each."""
    count: dict[str, int] = {}
    for record in records:
        code = record.get("code") or {}
        name = f"{code.get('version', 'an unknown version')}, commit {code.get('commit') or 'unknown'}"
        count[name] = count.get(name, 0) + 1
    if len(count) == 1:
        return f"otclib {next(iter(count))}"
    return "different code: " + "; ".join(f"{n} by otclib {name}" for name, n in count.items())


def into_readme(name: str, text: str, readme: Path) -> None:
    """Replace what stands in the README between ``<!-- name: written by make name -->`` and ``<!-- name ends -->``."""
    begin, end = f"<!-- {name}: written by make {name} -->", f"<!-- {name} ends -->"
    head, rest = readme.read_text().split(begin)
    part = readme.with_suffix(".part")
    part.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
    os.replace(part, readme)
