"""Figures of a run: accuracy and success, pairs kept and left out, distances of pairs, two runs that should agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from otclib import metrics
from otclib.defenses import look
from otclib.figures.style import CHOSEN, CLEAN, NEUTRAL, POISON, clean_axes


def learning_curves(logs: Mapping[str, Sequence[Mapping]], loss: bool = False) -> Figure:
    """Draw zero-shot accuracy, backdoor success and targets hit per epoch, if they were measured; one line per run.

    ``loss`` adds a first panel with the sum of the loss's parts. A run without labelled images has only this panel.
    """
    lines = [line for log in logs.values() for line in log]
    targets = max((line["targets"] for line in lines if "targets" in line), default=0)
    panels = [
        (m.key, m.label, m.unit or f"of {targets}", m.factor, targets if m.key == "targets_hit" else m.factor)
        for m in map(metrics.of, ("zero_shot_top1", "attack_success_rate", "targets_hit"))
    ]
    panels = [panel for panel in panels if any(line.get(panel[0]) is not None for line in lines)]
    if loss or not panels:
        panels.insert(0, ("loss", "loss", "sum of its parts", 1, None))
    fig, axes = plt.subplots(1, len(panels), figsize=(3.5 * len(panels), 2.9), squeeze=False)
    for ax, (key, title, unit, factor, top) in zip(axes[0], panels):
        for name, log in logs.items():
            if key == "loss":
                points = [(line["epoch"], sum(v for k, v in line.items() if k.startswith("loss/"))) for line in log]
            else:
                points = [(line["epoch"], factor * line[key]) for line in log if line.get(key) is not None]
            if points:
                ax.plot(*zip(*points), marker="o", markersize=4, color=look(name).colour, label=look(name).label)
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        if top:
            ax.set(ylim=(-0.03 * top, 1.05 * top), yticks=np.linspace(0, top, 5))
        else:
            ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        clean_axes(ax)
    axes[0, 0].legend(fontsize=8, frameon=False)
    fig.tight_layout()
    return fig


def assignments(log: Sequence[Mapping]) -> Figure:
    """Draw, left, which pairs are kept and left out (the rest is re-matched) and, right, what the captions name.

    Without a re-matched pair there is no right half. The warm-up are the epochs before the first matching.
    """
    warmup = next((k for k, line in enumerate(log) if line.get("matched")), len(log))
    moved = [(line.get("clean_kept") or 0) + (line.get("clean_left_out") or 0) < 0.999 for line in log]
    panels = (
        (
            "what becomes of a pair",
            (
                ("clean_kept", "clean: keeps its caption", CLEAN, "o-"),
                ("clean_left_out", "clean: left out", CLEAN, "o:"),
                ("poison_kept", "planted: keeps its caption", POISON, "s-"),
                ("poison_left_out", "planted: left out", POISON, "s:"),
            ),
        ),
        (
            "what the captions say",
            (
                ("clean_rematched_named", "names the object: clean, re-matched", CLEAN, "o-"),
                ("poison_named", "names the true object: planted, not left out", POISON, "s-"),
                ("distinct_captions", "distinct captions / images", NEUTRAL, "^--"),
            ),
        ),
    )
    n = len(panels) if any(moved) else 1
    fig, axes = plt.subplots(1, n, figsize=(4.8 * n, 3.9), sharey=True, squeeze=False)
    for ax, (title, series) in zip(axes[0], panels):
        for key, label, colour, style in series:
            values = [np.nan if line.get(key) is None else 100 * line[key] for line in log]
            if key.endswith("named"):  # a share of the few images that pass by mistake would say nothing
                values = [value if some else np.nan for value, some in zip(values, moved)]
            ax.plot([line["epoch"] for line in log], values, style, color=colour, markersize=4, label=label)
        if warmup:
            ax.axvspan(0.5, warmup + 0.5, color="0.93", zorder=0)
            ax.text(0.5 + warmup / 2, 50, "warm-up:\nown captions", fontsize=8, color="0.35", ha="center", va="center")
        ax.set(title=title, xlabel="epoch", ylim=(-3, 104), xlim=(0.5, len(log) + 0.5))
        ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        clean_axes(ax)
    axes[0, 0].set_ylabel("share, %")
    fig.tight_layout()
    return fig


def separation(distances: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw the histogram of 1 − cos of images and their own captions: clean against planted, one panel per run."""
    fig, axes = plt.subplots(1, len(distances), figsize=(4.2 * len(distances), 2.8), squeeze=False)
    for ax, (name, (clean, planted)) in zip(axes.flat, distances.items()):
        bins = np.linspace(min(clean.min(), planted.min()), max(clean.max(), planted.max()), 50)
        ax.hist(clean, bins, density=True, color=CLEAN, alpha=0.75, label=f"clean ({len(clean):,})")
        ax.hist(planted, bins, density=True, color=POISON, alpha=0.75, label=f"planted ({len(planted):,})")
        ax.set(title=look(name).label, xlabel="1 − cos of image and own caption", ylabel="density")
        ax.legend(fontsize=8, frameon=False)
        clean_axes(ax)
    fig.tight_layout()
    return fig


def distance_bands(by_epoch: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]) -> Figure:
    """Draw 1 − cos of images and their own captions over the epochs: the median, and a band of eight pairs in ten.

    ``by_epoch`` : the result of ``workbook.distances_by_epoch``; one panel per run, one band per kind of pair.
    """
    looks = {"clean": (CLEAN, "o"), "targeted": ("#CC79A7", "s")}
    fig, axes = plt.subplots(1, len(by_epoch), figsize=(4.8 * len(by_epoch), 3.2), sharey=True, squeeze=False)
    for ax, (name, epochs) in zip(axes.flat, by_epoch.items()):
        for kind in dict.fromkeys(k for of in epochs.values() for k in of):
            colour, marker = looks.get(kind, (POISON, "^"))
            low, median, high = np.array([np.percentile(of[kind], (10, 50, 90)) for of in epochs.values()]).T
            label = "clean pairs" if kind == "clean" else f"planted, {kind}"
            ax.plot(list(epochs), median, color=colour, marker=marker, markersize=4, label=label)
            ax.fill_between(list(epochs), low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set(title=look(name).label, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        clean_axes(ax)
    axes[0, 0].set_ylabel("1 − cos of image and own caption")
    axes[0, 0].legend(fontsize=8, frameon=False)
    fig.tight_layout()
    return fig


def two_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], ylabel: str = "loss") -> Figure:
    """Draw two curves over each other, and below them on a log axis how far apart they are.

    ``curves`` : two of {label: (steps, values)}, at the same steps. A step at which they are equal has no point below.

    Raises
    ------
    ValueError : there are not two curves, or their steps differ.
    """
    (first, (steps, a)), (second, (others, b)) = _two(curves)
    if list(steps) != list(others):
        raise ValueError(f"both curves need the same steps, got {list(steps)} and {list(others)}")
    fig, (above, below) = plt.subplots(
        2, 1, figsize=(6.4, 4.6), sharex=True, gridspec_kw={"height_ratios": (3, 2)}, layout="constrained"
    )
    above.plot(steps, a, color=CHOSEN, linewidth=6, alpha=0.75, solid_capstyle="round", label=first)
    above.plot(steps, b, color=CLEAN, linewidth=1.6, marker="o", markersize=3.5, label=second)
    above.set(ylabel=ylabel)
    above.legend(fontsize=9, frameon=False)
    apart = np.abs(np.asarray(a, float) - np.asarray(b, float))
    rounding = np.finfo(np.float32).eps * np.abs(np.asarray(a, float))
    below.plot(steps, np.where(apart > 0, apart, np.nan), color=CLEAN, marker="o", markersize=3.5, linewidth=1.2)
    below.plot(steps, rounding, color=NEUTRAL, linestyle="--", linewidth=1.2)
    below.set_yscale("log")
    top = max(1e-3, 3 * float(apart.max()))
    below.set(xlabel="step", ylabel="difference", ylim=(float(rounding.min()) / 5, top))
    below.yaxis.set_major_locator(LogLocator(numticks=6))
    below.yaxis.set_minor_locator(NullLocator())
    where = {"xytext": (0, -3), "textcoords": "offset points", "ha": "right", "va": "top"}
    below.annotate("one rounding of fp32", (steps[-1], rounding[-1]), fontsize=8, color="0.35", **where)
    for ax in (above, below):
        clean_axes(ax)
    return fig


def _two(curves: Mapping) -> list:
    if len(curves) != 2:
        raise ValueError(f"two curves are compared, got {len(curves)}: {', '.join(curves) or 'none'}")
    return list(curves.items())
