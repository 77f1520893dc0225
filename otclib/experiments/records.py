"""Records of runs: choose them, group them and put them into tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from otclib import metrics
from otclib.runs import metrics_of

ROWS = (  # of the table of a few runs
    "zero_shot_top1",
    "attack_success_rate",
    "untriggered_target_rate",
    "triggered_top1",
    "targets_hit",
    "targets",
    "poison_auroc",
    "poison_kept",
    "clean_kept",
    "linear_probe/scenes",
    "linear_probe/digits",
    "image_to_text_recall_at_1",
    "text_to_image_recall_at_1",
    "plan_pointing_accuracy",
    "cosine_pointing_accuracy",
    "plan_mass_ratio",
    "plan_mass_ratio/names",
    "plan_mass_ratio/attributes",
    "cosine_mass_ratio",
    "cosine_mass_ratio/names",
    "seconds_per_epoch",
    "core_seconds_per_epoch",
)


def grouped(runs: Iterable[str | Path | dict]) -> dict[str, list[dict]]:
    """Return the metrics of runs by defence, in order of appearance."""
    out: dict[str, list[dict]] = {}
    for run in runs:
        found = run if isinstance(run, dict) else metrics_of(run)
        out.setdefault(found["defense"], []).append(found)
    return out


def table(runs: Iterable[str | Path | dict]) -> str:
    """Return a Markdown table, one column per defence: the value, or mean and range over seeds."""
    groups = grouped(runs)
    first = next(iter(groups.values()))[0]
    of_kinds = [key for key in first if key.startswith("poison_") and "/" in key]
    return explained(metric_table(groups, [*ROWS, *of_kinds]))


def metric_table(columns: Mapping[str, Sequence[dict]], keys: Iterable[str]) -> str:
    """Return a Markdown table: a row per metric that some run has, a column per group of runs."""
    rows = {}
    for metric in map(metrics.of, keys):
        cells = [measured(metric, runs) for runs in columns.values()]
        if any(cells):
            rows[metric.title] = cells
    return markdown(rows, list(columns))


def measured(metric: metrics.Metric, runs: Sequence[dict]) -> str:
    """Return a cell: the mean of a metric and its range over runs, and of an attack's success ``metrics.at_most``."""
    return ", ".join(filter(None, (metric.summary(r.get(metric.key) for r in runs), metrics.at_most(metric.key, runs))))


def explained(text: str) -> str:
    """Return a table, and below it the meaning of ≤ if it has that sign."""
    said = "≤: the upper end of the 95 % Wilson interval of the rate, over all images of all seeds."
    return f"{text}\n\n{said}" if "≤" in text else text


def markdown(rows: Mapping[str, Sequence] | Sequence[Sequence], heads: Sequence[str], left: int = 1) -> str:
    """Return a Markdown table of {first cell: the others} or of whole rows; ``left`` columns are left-aligned."""
    if isinstance(rows, Mapping):
        rows, heads = [[name, *cells] for name, cells in rows.items()], ["", *heads]
    frame = pd.DataFrame([[str(cell) for cell in row] for row in rows], columns=list(heads))
    align = ["left" if k < left else "right" for k in range(len(heads))]
    text = frame.to_markdown(index=False, colalign=align if rows else None, disable_numparse=True)
    text = re.sub(r"-{4,}", "---", text)  # no padding, so that a longer cell changes no other line
    return re.sub(r"(?<=\|) +(?=[^|\n]*\|)| +(?=\|)", " ", text)


def spoken(attack: str, run: str | Path) -> str:
    """Return a finished run's results as one line of text."""
    found = metrics_of(run)
    words = [f"{found['defense']} on {attack}, seed {found['seed']}:", *metrics.spoken(found)]
    return "  ".join([*words, f"{found['seconds_per_epoch']:.0f} s an epoch"])


def select(records: list[dict], **where: object) -> list[dict]:
    """Return the records with these values."""
    return [r for r in records if all(r.get(k) == v for k, v in where.items())]


def beside(records: list[dict], other: Mapping[str, object], **where: object) -> list[tuple[dict, dict]]:
    """Return the records of two systems, run by run: those of the same data set, attack and seed.

    ``where`` selects the runs of the one, by its ``defense`` or ``variant``. ``other`` is what the partner has instead:
    ``{"defense": "clip"}``, ``{"variant": "full"}``, or ``{"defense": "clip", "attack": "none"}`` for the undefended
    model without poison.
    """
    out = []
    for r in select(records, **where):
        same = {k: r.get(k) for k in ("dataset", "attack", "seed")} | dict(other)
        out += [(r, o) for o in select(records, **same)]
    return out


def difference(metric: metrics.Metric, pairs: Iterable[tuple[dict, dict]]) -> str:
    """Return the mean difference of a metric with its interval (``metrics.paired``), as text; empty if not measured.

    ``pairs`` are records of two systems (``beside``). What one seed gives under several attacks counts once, as a mean,
    because the seeds are what is drawn independently. One seed has no interval.
    """
    by_seed: dict[int, list[tuple]] = {}
    for r, o in pairs:
        both = r.get(metric.key), o.get(metric.key)
        if None not in both:
            by_seed.setdefault(r["seed"], []).append(both)
    if not by_seed:
        return ""
    ours, theirs = zip(*(np.mean(of_seed, axis=0) for of_seed in by_seed.values()))
    mean, low, high = (f"{metric.factor * v:+.{metric.digits}f}" for v in metrics.paired(ours, theirs))
    return f"{mean} [{low}, {high}]" if len(by_seed) > 1 else mean


def order(records: list[dict], key: str) -> list[str]:
    """Return the values of a key in order of appearance."""
    return list(dict.fromkeys(r[key] for r in records))


def made_by(records: list[dict]) -> str:
    """Return, in words, which code made the records: version and commit, or the number of records of each."""
    count: dict[str, int] = {}
    for record in records:
        code = record.get("code") or {}
        name = f"{code.get('version', 'an unknown version')}, commit {code.get('commit') or 'unknown'}"
        count[name] = count.get(name, 0) + 1
    if len(count) == 1:
        return f"otclib {next(iter(count))}"
    return "different code: " + "; ".join(f"{n} by otclib {name}" for name, n in count.items())
