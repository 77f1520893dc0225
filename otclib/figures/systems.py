"""Figures that compare systems: under every attack, with one part missing, at several doses of poison."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from otclib import metrics
from otclib.defenses import look
from otclib.figures.style import CLEAN, NEUTRAL, POISON, clean_axes


def comparison(results: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Draw accuracy, backdoor success and targets hit by defence; a dot per seed, a bar for the mean."""
    panels = [
        (m.key, f"{m.label}\n({m.better} is better)", m.factor, m.unit or "of 16", 1.05 * (100 if m.unit else 16))
        for m in map(metrics.of, ("zero_shot_top1", "attack_success_rate", "targets_hit"))
    ]
    fig, axes = plt.subplots(1, 3, figsize=(9.2, 3.1))
    for ax, (key, title, factor, unit, top) in zip(axes, panels):
        for k, (name, runs) in enumerate(results.items()):
            values = [factor * run[key] for run in runs if run.get(key) is not None]
            if not values:
                continue
            ax.bar(k, np.mean(values), width=0.62, color=look(name).colour or NEUTRAL, alpha=0.85)
            if len(values) > 1:
                ax.plot(np.linspace(k - 0.12, k + 0.12, len(values)), values, "o", color="black", markersize=3.5)
            text = f"{np.mean(values):.{1 if factor > 1 or len(values) > 1 else 0}f}"
            ax.text(k, max(values) + 0.03 * top, text, ha="center", va="bottom", fontsize=9)
        ax.set(title=title, ylabel=unit, ylim=(0, top * 1.1), xticks=range(len(results)))
        ax.set_xticklabels([textwrap.fill(look(n).label, 16) for n in results], fontsize=8)
        clean_axes(ax)
    fig.tight_layout()
    return fig


def attack_grid(records: Sequence[Mapping]) -> Figure:
    """Draw the attacker's success against each system under each attack: a mark per seed, a bar for the mean."""
    attacks = [a for a in dict.fromkeys(r["attack"] for r in records) if a != "none"]
    triggered = {r["attack"] for r in records if r.get("attack_success_rate") is not None}
    groups = [[a for a in attacks if a not in triggered], [a for a in attacks if a in triggered]]
    widths = [max(1.2, len(group)) for group in groups]
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=widths, layout="constrained")
    systems = list(dict.fromkeys(r["defense"] for r in records))
    hits, asr = metrics.of("targets_hit"), metrics.of("attack_success_rate")
    panels = ((hits, f"{hits.label}, of 16", 16), (asr, asr.title, 100))
    for ax, group, (metric, unit, top) in zip(axes, groups, panels):
        for k, system in enumerate(systems):
            place = (k - (len(systems) - 1) / 2) * 0.16
            colour = look(system).colour or NEUTRAL
            for x, attack in enumerate(group):
                here = [r for r in records if r["attack"] == attack and r["defense"] == system]
                values = [metric.factor * r[metric.key] for r in here if r.get(metric.key) is not None]
                if values:
                    ax.bar(x + place, np.mean(values), width=0.15, color=colour, alpha=0.45)
                    ax.plot([x + place] * len(values), values, look(system).marker, color=colour, markersize=4)
        ax.set(ylabel=unit, ylim=(-0.03 * top, 1.05 * top), xticks=range(len(group)), xlim=(-0.6, len(group) - 0.4))
        ax.set_xticklabels(group)
        clean_axes(ax)
    named(fig, systems)
    return fig


def worlds(records: Sequence[Mapping]) -> Figure:
    """Draw each system in each data set and at each dose, a panel for each measure: marks of seeds, and their mean.

    Accuracy and kept pairs say what a defence costs; ASR, targets and kept poison say what it stops.
    """
    keys = ("zero_shot_top1", "attack_success_rate", "targets_hit", "poison_kept", "clean_kept")
    rows = list(dict.fromkeys((r["dataset"], r["attack"]) for r in records if r["attack"] != "none"))
    systems = list(dict.fromkeys(r["defense"] for r in records))
    size = (11.5, 0.26 * len(systems) * len(rows) + 1.3)
    fig, axes = plt.subplots(1, len(keys), figsize=size, sharey=True, layout="constrained")
    for ax, metric in zip(axes, map(metrics.of, keys)):
        for k, system in enumerate(systems):
            step = 0.8 / len(systems)
            shape, colour = look(system).marker, look(system).colour or NEUTRAL
            for y, (dataset, attack) in enumerate(rows):
                here = [r for r in records if (r["dataset"], r["attack"], r["defense"]) == (dataset, attack, system)]
                values = [metric.factor * r[metric.key] for r in here if r.get(metric.key) is not None]
                if values:
                    at = y + step * (k - (len(systems) - 1) / 2)
                    ax.barh(at, np.mean(values), height=0.85 * step, color=colour, alpha=0.35)
                    ax.plot(values, [at] * len(values), shape, color=colour, markersize=4, clip_on=False)
        top = 100 if metric.unit else 16
        ax.set(xlim=(0, top), ylim=(len(rows) - 0.4, -0.6), xticks=(0, top // 2, top))
        ax.set_title(f"{metric.label}\n({metric.better} is better)", fontsize=9)
        ax.set_xlabel(metric.unit or "of 16", fontsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
        for y in range(2, len(rows), 2):
            ax.axhline(y - 0.5, color="0.85", linewidth=0.8)
    axes[0].set_yticks(range(len(rows)), [f"{dataset}\n{attack} dose" for dataset, attack in rows], fontsize=8.5)
    named(fig, systems)
    return fig


def each_attack(records: Sequence[Mapping]) -> Figure:
    """Draw the success of each of several attacks in one set, a panel a data set: a mark per seed, a bar for the mean.

    Success is ASR, and of a targeted attack the share of the targets that are hit.
    """
    datasets, systems = (list(dict.fromkeys(r[key] for r in records)) for key in ("dataset", "defense"))
    kinds = [key.split("/")[1] for key in records[0] if key.startswith("poison_count/")]
    fig, axes = plt.subplots(1, len(datasets), figsize=(9.5, 4.2), sharey=True, squeeze=False, layout="constrained")
    step = 0.8 / len(systems)
    for ax, dataset in zip(axes[0], datasets):
        for k, system in enumerate(systems):
            here = [r for r in records if (r["dataset"], r["defense"]) == (dataset, system)]
            colour = look(system).colour or NEUTRAL
            for y, kind in enumerate(kinds):
                key = f"attack_success_rate/{kind}"
                values = [100 * (r["targets_hit"] / r["targets"] if kind == "targeted" else r[key]) for r in here]
                if values:
                    at = y + step * (k - (len(systems) - 1) / 2)
                    ax.barh(at, np.mean(values), height=0.85 * step, color=colour, alpha=0.35)
                    ax.plot(values, [at] * len(values), look(system).marker, color=colour, markersize=5, clip_on=False)
        ax.set(xlim=(0, 100), ylim=(len(kinds) - 0.4, -0.6), xlabel="success, % (lower is better)")
        ax.set_title(dataset, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(kinds)), kinds)
    named(fig, systems)
    return fig


def named(fig: Figure, systems: Sequence[str]) -> None:
    """Add a legend of systems above a figure."""
    marks = [
        plt.Line2D([], [], color=look(s).colour or NEUTRAL, marker=look(s).marker, linewidth=0, label=look(s).label)
        for s in systems
    ]
    fig.legend(handles=marks, loc="outside upper center", ncols=len(systems), frameon=False, fontsize=9)


def lookalikes(classes: Mapping[str, Mapping], named: int = 3) -> Figure:
    """Draw, class by class, the clean pairs that are not kept against the test images that are misread.

    ``classes`` : the result of ``evaluation.by_class``, the most misread first. The first ``named`` have labels: their
    name and the class that they are mistaken for.
    """
    fig, ax = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    x, y = (
        {label: 100 * of[some] / max(1, of[whole]) for label, of in classes.items()}
        for some, whole in (("not_kept", "pairs"), ("misread", "images"))
    )
    ax.plot(
        list(x.values()),
        list(y.values()),
        look("otcclip-plus").marker,
        color=look("otcclip-plus").colour,
        markersize=5,
        alpha=0.8,
    )
    for label in list(classes)[:named]:
        taken = classes[label]["as"]
        others = sorted(taken, key=lambda other: -taken[other])
        text = label + (f" (as {others[0]})" if others else "")
        left = x[label] < (min(x.values()) + max(x.values())) / 2
        place, side = ((6, 0), "left") if left else ((-6, 0), "right")
        ax.annotate(text, (x[label], y[label]), place, textcoords="offset points", ha=side, va="center", fontsize=8)
    ax.set(xlabel="clean pairs not kept at the end, %", ylabel="test images misread, %")
    clean_axes(ax)
    return fig


def by_epoch(records: Sequence[Mapping], key: str, ylabel: str, factor: float = 100) -> Figure:
    """Draw a value after every epoch, a panel per attack: a thin line per run, a line with marks for the mean."""
    records = [r for r in records if key in r["by_epoch"]]
    attacks = list(dict.fromkeys(r["attack"] for r in records))
    rows = -(-len(attacks) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(11, 2.5 * rows), sharey=True, squeeze=False, layout="constrained")
    systems = list(dict.fromkeys(r["defense"] for r in records))
    for ax, attack in zip(axes.flat, attacks):
        for system in systems:
            runs = [r for r in records if r["attack"] == attack and r["defense"] == system]
            lines = [factor * np.array(r["by_epoch"][key], dtype=float) for r in runs]
            line_look = {"color": look(system).colour or NEUTRAL}
            for line in lines:
                ax.plot(range(1, len(line) + 1), line, alpha=0.35, linewidth=0.8, **line_look)
            if lines:
                mean = np.mean([line[: min(map(len, lines))] for line in lines], axis=0)
                ax.plot(range(1, len(mean) + 1), mean, marker=look(system).marker, markersize=4, **line_look)
        ax.set(title=attack, xlabel="epoch", ylim=(-0.03 * factor, 1.05 * factor))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        clean_axes(ax)
    for ax in axes.flat[len(attacks) :]:
        ax.set_visible(False)
    axes[0, 0].set_ylabel(ylabel)
    looks = [(s, look(s).colour or NEUTRAL, look(s).marker) for s in systems]
    marks = [plt.Line2D([], [], color=c, marker=m, label=look(s).label) for s, c, m in looks]
    fig.legend(handles=marks, loc="outside upper center", ncols=len(systems), frameon=False, fontsize=9)
    return fig


def ablation(records: Sequence[Mapping]) -> Figure:
    """Draw OTCCLIP with one part missing at a time: accuracy, backdoor, targets, grounding; a dot per seed."""
    variants = list(dict.fromkeys(r["variant"] for r in records))
    most = {"zero_shot_top1": 100, "attack_success_rate": 100, "targets_hit": 16, "plan_mass_ratio/names": 4}
    panels = [(m.key, textwrap.fill(m.title, 28), m.factor, most[m.key]) for m in map(metrics.of, most)]
    fig, axes = plt.subplots(1, 4, figsize=(11, 0.55 + 0.38 * len(variants)), sharey=True, layout="constrained")
    for ax, (key, title, factor, top) in zip(axes, panels):
        for y, variant in enumerate(variants):
            values = [factor * r[key] for r in records if r["variant"] == variant and r.get(key) is not None]
            colour = CLEAN if variant == "full" else NEUTRAL
            ax.plot(values, [y] * len(values), "o", color=colour, alpha=0.7, markersize=5)
            if values:
                ax.plot(np.mean(values), y, "|", color=colour, markersize=15, markeredgewidth=2)
        ax.set(xlim=(-0.04 * top, 1.04 * top), xticks=np.linspace(0, top, 5))
        ax.set_xlabel(title, fontsize=9)
        ax.grid(axis="x", alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(yticks=range(len(variants)), yticklabels=variants, ylim=(len(variants) - 0.4, -0.6))
    return fig


def dose(records: Sequence[Mapping]) -> Figure:
    """Draw attack success against the amount of poison, undefended: a dot per seed, a line through the means."""
    panels = (
        ("pairs", metrics.of("attack_success_rate"), "triggered pairs in the set", "BadNets' success (ASR), %"),
        ("copies", metrics.of("targets_hit"), "copies of every targeted image", "targeted images hit, of 16"),
    )
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
    for ax, (amount, metric, xlabel, ylabel) in zip(axes, panels):
        key, factor = metric.key, metric.factor
        points = [(amount_planted(r)[amount], factor * r[key]) for r in records if r.get(key) is not None]
        ax.plot(*zip(*points), "o", color=POISON, alpha=0.5, markersize=5)
        places = sorted({x for x, _ in points})
        ax.plot(places, [np.mean([y for x, y in points if x == place]) for place in places], color=POISON)
        ax.set(xscale="log", xticks=places, xticklabels=[f"{x:,}" for x in places], xlabel=xlabel, ylabel=ylabel)
        ax.minorticks_off()
        ax.set_ylim(-0.03 * max(factor, 16), 1.05 * max(factor, 16))
        clean_axes(ax)
    return fig


def amount_planted(record: Mapping) -> dict[str, int]:
    """Return the dose of a run: triggered ``pairs`` of BadNets, and ``copies`` of every targeted image."""
    count = {kind: round(record[f"poison_rate/{kind}"] * record["pairs"]) for kind in ("badnets", "targeted")}
    return {"pairs": count["badnets"], "copies": round(count["targeted"] / record["targets"])}
