"""Figures: arrays and tables in, a matplotlib figure out. No function here trains, loads or encodes.

Colours are Okabe and Ito's, told apart by colour-blind readers: clean is blue, planted is vermilion, in every figure.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

CLEAN, POISON, NEUTRAL, GOOD = "#0072B2", "#D55E00", "#7F7F7F", "#009E73"
LINE = {"clip": POISON, "roclip": "#E69F00", "safeclip": GOOD, "cleanclip": "#CC79A7", "otcclip": CLEAN}
MARKER = {"clip": "o", "roclip": "s", "safeclip": "^", "cleanclip": "D", "otcclip": "v"}
NAME = {
    "clip": "CLIP, undefended",
    "roclip": "RoCLIP",
    "safeclip": "SafeCLIP",
    "cleanclip": "CleanCLIP",
    "cleanclip-supervised": "CleanCLIP, supervised",
    "otcclip": "OTCCLIP (reconstruction)",
}
HEAT, CHOSEN = "magma", "#E69F00"
BESIDE, TILE = 1.13, 172  # where a transport view's words begin, in widths of its image; a word's share of the strip
FAINT = 4.0  # in a transport view, mass spread evenly has a quarter of the brightest colour, or less


def _clean_axes(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def _show(ax, image, title: str = "", width: int = 24, colour: str = "black") -> None:
    ax.imshow(image)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(textwrap.fill(title, width), fontsize=8, color=colour, pad=3, va="bottom")


def contact_sheet(images: Sequence, captions: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Images in a grid, each under its caption."""
    rows = -(-len(images) // columns)
    height = 1.15 if captions is None else 1.62
    fig, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, height * 1.12 * rows), squeeze=False)
    for k, ax in enumerate(axes.flat):
        ax.axis("off")
        if k < len(images):
            _show(ax, images[k], captions[k] if captions else "", width=22)
    fig.tight_layout(pad=0.4)
    return fig


def planted_pairs(rows: Sequence[Mapping], title: str = "") -> Figure:
    """Manifest rows: the planted image, its own caption (blue) and the attacker's (vermilion)."""
    fig, axes = plt.subplots(1, len(rows), figsize=(1.75 * len(rows), 2.75), squeeze=False)
    for ax, row in zip(axes.flat, rows):
        _show(ax, row["image"])
        ax.set_title(textwrap.fill(row["original_caption"], 22), fontsize=8, color=CLEAN)
        ax.set_xlabel(textwrap.fill(row["poison_caption"], 22), fontsize=8, color=POISON)
    fig.suptitle(title, fontsize=10)
    fig.tight_layout()
    return fig


def trigger(before: np.ndarray, after: np.ndarray) -> Figure:
    """Images without the trigger (top) and with it (bottom)."""
    fig, axes = plt.subplots(2, len(before), figsize=(1.2 * len(before), 2.6), squeeze=False)
    for k in range(len(before)):
        _show(axes[0, k], before[k])
        _show(axes[1, k], after[k])
    axes[0, 0].set_ylabel("as it is", fontsize=9)
    axes[1, 0].set_ylabel("triggered", fontsize=9)
    fig.tight_layout(pad=0.4)
    return fig


def triggers(plain: np.ndarray, triggered: Mapping[str, np.ndarray]) -> Figure:
    """Every attack's trigger on the same images [N, H, W, 3]; at the bottom what it changed in the last, 3 times."""
    rows = len(plain) + 1
    columns = {"as it is": plain, **triggered}
    fig, axes = plt.subplots(rows, len(columns), figsize=(1.3 * len(columns), 1.3 * rows + 0.3), squeeze=False)
    for column, (name, images) in zip(axes.T, columns.items()):
        for ax, image in zip(column, images):
            _show(ax, image)
        column[0].set_title(name, fontsize=9)
        change = 128 + 3 * (images[-1].astype(int) - plain[-1])
        _show(column[-1], np.clip(change, 0, 255).astype(np.uint8))
    axes[-1, 0].set_ylabel("change, times 3", fontsize=8)
    fig.tight_layout(pad=0.5)
    return fig


def learning_curves(logs: Mapping[str, Sequence[Mapping]], loss: bool = False) -> Figure:
    """Per epoch, one line per run: zero-shot accuracy, backdoor success, targets hit, so far as they were measured.

    ``loss``: the sum of the loss's parts before them. Of a run without any labelled image there is nothing else.
    """
    lines = [line for log in logs.values() for line in log]
    targets = max((line["targets"] for line in lines if "targets" in line), default=0)
    panels = [
        ("zero_shot_top1", "zero-shot accuracy", "%", 100, 100),
        ("attack_success_rate", "backdoor success (ASR)", "%", 100, 100),
        ("targets_hit", "targeted images hit", f"of {targets}", 1, targets),
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
                ax.plot(*zip(*points), marker="o", markersize=4, color=LINE.get(name), label=NAME.get(name, name))
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        if top:
            ax.set(ylim=(-0.03 * top, 1.05 * top), yticks=np.linspace(0, top, 5))
        else:
            ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _clean_axes(ax)
    axes[0, 0].legend(fontsize=8, frameon=False)
    fig.tight_layout()
    return fig


def assignments(log: Sequence[Mapping], warmup: int = 0) -> Figure:
    """Left: who keeps its caption, who is left out (the rest is re-matched)? Right: what do the new captions say?"""
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
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True)
    for ax, (title, series) in zip(axes, panels):
        for key, label, colour, style in series:
            values = [np.nan if line.get(key) is None else 100 * line[key] for line in log]
            if key.endswith("named"):  # of a few images that were let pass by mistake it would tell nothing
                moved = [(line.get("clean_kept") or 0) + (line.get("clean_left_out") or 0) < 0.999 for line in log]
                values = [value if some else np.nan for value, some in zip(values, moved)]
            ax.plot([line["epoch"] for line in log], values, style, color=colour, markersize=4, label=label)
        if warmup:
            ax.axvspan(0.5, warmup + 0.5, color="0.93", zorder=0)
            ax.text(0.5 + warmup / 2, 50, "warm-up:\nown captions", fontsize=8, color="0.35", ha="center", va="center")
        ax.set(title=title, xlabel="epoch", ylim=(-3, 104), xlim=(0.5, len(log) + 0.5))
        ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _clean_axes(ax)
    axes[0].set_ylabel("share, %")
    fig.tight_layout()
    return fig


def separation(distances: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """1 − cos of images and their own captions: clean against planted, one panel per run."""
    fig, axes = plt.subplots(1, len(distances), figsize=(4.2 * len(distances), 2.8), squeeze=False)
    for ax, (name, (clean, planted)) in zip(axes.flat, distances.items()):
        bins = np.linspace(min(clean.min(), planted.min()), max(clean.max(), planted.max()), 50)
        ax.hist(clean, bins, density=True, color=CLEAN, alpha=0.75, label=f"clean ({len(clean):,})")
        ax.hist(planted, bins, density=True, color=POISON, alpha=0.75, label=f"planted ({len(planted):,})")
        ax.set(title=NAME.get(name, name), xlabel="1 − cos of image and own caption", ylabel="density")
        ax.legend(fontsize=8, frameon=False)
        _clean_axes(ax)
    fig.tight_layout()
    return fig


def distance_bands(by_epoch: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]) -> Figure:
    """1 − cos of images and their own captions over the epochs: median and eight in ten, clean and planted.

    ``by_epoch`` is what ``workbook.distances_by_epoch`` returns; one panel per run, one band per kind of pair.
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
        ax.set(title=NAME.get(name, name), xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _clean_axes(ax)
    axes[0, 0].set_ylabel("1 − cos of image and own caption")
    axes[0, 0].legend(fontsize=8, frameon=False)
    fig.tight_layout()
    return fig


def bounds(bound: np.ndarray, cost: np.ndarray) -> Figure:
    """Every caption's lower bound [P] against its true cost [P]: only what is left of the best cost must be solved."""
    best = cost.min()
    open_ = bound <= best
    fig, ax = plt.subplots(figsize=(5.4, 3.6))
    ax.plot(bound[~open_], cost[~open_], ".", color="0.7", markersize=3, label=f"ruled out ({(~open_).sum():,})")
    ax.plot(bound[open_], cost[open_], "o", color=CHOSEN, markersize=5, label=f"may be nearest ({open_.sum():,})")
    ax.axvline(best, color=CHOSEN, linewidth=1, linestyle="--")
    ax.text(best, cost.max(), " distance of the nearest caption", fontsize=8, color="0.3", va="top")
    ends = [min(bound.min(), best), cost.max()]
    ax.plot(ends, ends, color="0.4", linewidth=1)
    ax.text(ends[0], ends[0] + 0.02 * (ends[1] - ends[0]), "bound = distance", fontsize=8, color="0.4", rotation=33)
    ax.set(xlabel="lower bound of the distance", ylabel="distance")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    _clean_axes(ax)
    fig.tight_layout()
    return fig


def rematched(rows: Sequence[Mapping], title: str = "") -> Figure:
    """Images with the caption they came with (vermilion if planted, else blue) and the one they were given (green)."""
    fig, axes = plt.subplots(1, len(rows), figsize=(1.75 * len(rows), 2.75), squeeze=False)
    for ax, row in zip(axes.flat, rows):
        _show(ax, row["image"])
        ax.set_title(textwrap.fill(row["caption"], 22), fontsize=8, color=POISON if row["planted"] else CLEAN)
        ax.set_xlabel(textwrap.fill(row["given"], 22), fontsize=8, color=GOOD)
    fig.suptitle(title, fontsize=10)
    fig.tight_layout()
    return fig


def word_overlays(image: np.ndarray, words: Sequence[str], maps: np.ndarray, boxes: Sequence | None = None) -> Figure:
    """Where each word's mass goes: ``maps`` [words, side, side] over the image, each panel one word.

    ``boxes`` (left, top, right, bottom in [0, 1], or None) outline what the word speaks of.
    """
    fig, axes = plt.subplots(1, len(words) + 1, figsize=(1.55 * (len(words) + 1), 1.95), squeeze=False)
    height, width = image.shape[:2]
    _show(axes[0, 0], image, "image")
    top = maps.max()
    for k, word in enumerate(words):
        ax = axes[0, k + 1]
        _show(ax, image, word)
        ax.imshow(
            maps[k], cmap=HEAT, alpha=0.6, extent=(0, width, height, 0), vmin=0, vmax=top, interpolation="bilinear"
        )
        if boxes is not None and boxes[k] is not None:
            left, upper, right, lower = boxes[k]
            size = ((right - left) * width, (lower - upper) * height)
            ax.add_patch(plt.Rectangle((left * width, upper * height), *size, fill=False, color="white", linewidth=1.3))
        ax.set(xlim=(0, width), ylim=(height, 0))
    fig.tight_layout(pad=0.4)
    return fig


KINDS = (("names", "names of objects"), ("attributes", "colours and sizes"))


def grounding(metrics: Mapping[str, float]) -> Figure:
    """How much of a word's mass lands on its object, over what an even spread gives: names, colours and sizes."""
    readings = (
        ("plan", "transport plan", CLEAN),
        ("softmax", "softmax of cosine", "#56B4E9"),
        ("cosine", "raw cosine", "#E69F00"),
    )
    kinds = [(k, label) for k, label in KINDS if f"plan_mass_ratio/{k}" in metrics]
    fig, ax = plt.subplots(figsize=(6.4, 0.7 + 0.95 * len(kinds)))
    for n, (reading, name, colour) in enumerate(readings):
        values = [metrics[f"{reading}_mass_ratio/{kind}"] for kind, _ in kinds]
        places = [k + 0.27 * (n - 1) for k in range(len(kinds))]
        ax.barh(places, values, height=0.25, color=colour, label=name)
        for y, value in zip(places, values):
            ax.text(value + 0.05, y, f"{value:.1f}", va="center", fontsize=9)
    ax.axvline(1, color="0.3", linewidth=1, linestyle="--")
    ax.set(yticks=range(len(kinds)), yticklabels=[label for _, label in kinds])
    ax.set_xlabel("mass on the word's object, relative to an even spread (dashed)")
    ax.set_xlim(0, 1.2 * ax.get_xlim()[1])
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    return fig


def reg_sweep(image: np.ndarray, word: str, maps: Mapping[float, np.ndarray], cost: Mapping[float, float]) -> Figure:
    """One word's mass over the image at several regularisations."""
    fig, axes = plt.subplots(1, len(maps), figsize=(1.9 * len(maps), 2.3), squeeze=False)
    height, width = image.shape[:2]
    for ax, (reg, spread) in zip(axes.flat, maps.items()):
        _show(ax, image)
        ax.imshow(spread, cmap=HEAT, alpha=0.6, extent=(0, width, height, 0), vmin=0, interpolation="bilinear")
        ax.set(xlim=(0, width), ylim=(height, 0))
        ax.set_title(f"reg {reg:g}\n<P, C> {cost[reg]:.3f}", fontsize=9)
    fig.suptitle(f"“{word}”", fontsize=10)
    fig.tight_layout()
    return fig


def comparison(results: Mapping[str, Sequence[Mapping]]) -> Figure:
    """The final figure: accuracy, backdoor and targets by defence; a dot per seed, a bar for the mean."""
    panels = (
        ("zero_shot_top1", "zero-shot accuracy\n(higher is better)", 100, "%", 105),
        ("attack_success_rate", "backdoor success\n(lower is better)", 100, "%", 105),
        ("targets_hit", "targeted images hit\n(lower is better)", 1, "of 16", 16.8),
    )
    fig, axes = plt.subplots(1, 3, figsize=(9.2, 3.1))
    for ax, (key, title, factor, unit, top) in zip(axes, panels):
        for k, (name, runs) in enumerate(results.items()):
            values = [factor * run[key] for run in runs if run.get(key) is not None]
            if not values:
                continue
            ax.bar(k, np.mean(values), width=0.62, color=LINE.get(name, NEUTRAL), alpha=0.85)
            if len(values) > 1:
                ax.plot(np.linspace(k - 0.12, k + 0.12, len(values)), values, "o", color="black", markersize=3.5)
            text = f"{np.mean(values):.{1 if factor > 1 or len(values) > 1 else 0}f}"
            ax.text(k, max(values) + 0.03 * top, text, ha="center", va="bottom", fontsize=9)
        ax.set(title=title, ylabel=unit, ylim=(0, top * 1.1), xticks=range(len(results)))
        ax.set_xticklabels([textwrap.fill(NAME.get(n, n), 16) for n in results], fontsize=8)
        _clean_axes(ax)
    fig.tight_layout()
    return fig


def attack_grid(records: Sequence[Mapping]) -> Figure:
    """What the attacker gets from each system under each attack: a mark per seed, a bar for the mean."""
    attacks = [a for a in dict.fromkeys(r["attack"] for r in records) if a != "none"]
    groups = [[a for a in attacks if a == "targeted"], [a for a in attacks if a != "targeted"]]
    widths = [max(1.2, len(group)) for group in groups]
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=widths, layout="constrained")
    systems = list(dict.fromkeys(r["defense"] for r in records))
    for ax, group, (key, factor, unit, top) in zip(
        axes,
        groups,
        (("targets_hit", 1, "targeted images hit, of 16", 16), ("attack_success_rate", 100, "ASR, %", 100)),
    ):
        for k, system in enumerate(systems):
            place = (k - (len(systems) - 1) / 2) * 0.16
            colour = LINE.get(system, NEUTRAL)
            for x, attack in enumerate(group):
                here = [r for r in records if r["attack"] == attack and r["defense"] == system]
                values = [factor * r[key] for r in here if r.get(key) is not None]
                if values:
                    ax.bar(x + place, np.mean(values), width=0.15, color=colour, alpha=0.45)
                    ax.plot([x + place] * len(values), values, MARKER.get(system, "o"), color=colour, markersize=4)
        ax.set(ylabel=unit, ylim=(-0.03 * top, 1.05 * top), xticks=range(len(group)), xlim=(-0.6, len(group) - 0.4))
        ax.set_xticklabels(group)
        _clean_axes(ax)
    looks = [(s, LINE.get(s, NEUTRAL), MARKER.get(s, "o")) for s in systems]
    marks = [plt.Line2D([], [], color=c, marker=m, linewidth=0, label=NAME.get(s, s)) for s, c, m in looks]
    fig.legend(handles=marks, loc="outside upper center", ncols=len(systems), frameon=False, fontsize=9)
    return fig


def lookalikes(classes: Mapping[str, Mapping], named: int = 3) -> Figure:
    """Class by class: clean pairs parted from their captions against test images misread.

    ``classes`` : of ``table.by_class``, the most misread ones first; ``named`` of them bear their name and what they
    pass for.
    """
    fig, ax = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    x, y = (
        {label: 100 * of[some] / max(1, of[whole]) for label, of in classes.items()}
        for some, whole in (("parted", "pairs"), ("misread", "images"))
    )
    ax.plot(list(x.values()), list(y.values()), MARKER["otcclip"], color=LINE["otcclip"], markersize=5, alpha=0.8)
    for label in list(classes)[:named]:
        taken = classes[label]["as"]
        others = sorted(taken, key=lambda other: -taken[other])
        text = label + (f" (as {others[0]})" if others else "")
        left = x[label] < (min(x.values()) + max(x.values())) / 2
        place, side = ((6, 0), "left") if left else ((-6, 0), "right")
        ax.annotate(text, (x[label], y[label]), place, textcoords="offset points", ha=side, va="center", fontsize=8)
    ax.set(xlabel="clean pairs parted from their caption at the end, %", ylabel="test images misread, %")
    _clean_axes(ax)
    return fig


def by_epoch(records: Sequence[Mapping], key: str, ylabel: str, factor: float = 100) -> Figure:
    """A value after every epoch, a panel per attack: a thin line per run, a line with marks for a system's mean."""
    records = [r for r in records if key in r["by_epoch"]]
    attacks = list(dict.fromkeys(r["attack"] for r in records))
    rows = -(-len(attacks) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(11, 2.5 * rows), sharey=True, squeeze=False, layout="constrained")
    systems = list(dict.fromkeys(r["defense"] for r in records))
    for ax, attack in zip(axes.flat, attacks):
        for system in systems:
            runs = [r for r in records if r["attack"] == attack and r["defense"] == system]
            lines = [factor * np.array(r["by_epoch"][key], dtype=float) for r in runs]
            look = {"color": LINE.get(system, NEUTRAL)}
            for line in lines:
                ax.plot(range(1, len(line) + 1), line, alpha=0.35, linewidth=0.8, **look)
            if lines:
                mean = np.mean([line[: min(map(len, lines))] for line in lines], axis=0)
                ax.plot(range(1, len(mean) + 1), mean, marker=MARKER.get(system, "o"), markersize=4, **look)
        ax.set(title=attack, xlabel="epoch", ylim=(-0.03 * factor, 1.05 * factor))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _clean_axes(ax)
    for ax in axes.flat[len(attacks) :]:
        ax.set_visible(False)
    axes[0, 0].set_ylabel(ylabel)
    looks = [(s, LINE.get(s, NEUTRAL), MARKER.get(s, "o")) for s in systems]
    marks = [plt.Line2D([], [], color=c, marker=m, label=NAME.get(s, s)) for s, c, m in looks]
    fig.legend(handles=marks, loc="outside upper center", ncols=len(systems), frameon=False, fontsize=9)
    return fig


def ablation(records: Sequence[Mapping]) -> Figure:
    """OTCCLIP with one part missing at a time: accuracy, backdoor, targets, grounding; a dot per seed."""
    variants = list(dict.fromkeys(r["variant"] for r in records))
    panels = (
        ("zero_shot_top1", "zero-shot, %", 100, 100),
        ("attack_success_rate", "BadNets ASR, %", 100, 100),
        ("targets_hit", "targets hit, of 16", 1, 16),
        ("plan_mass_ratio/names", "names' mass on object / chance", 1, 4),
    )
    fig, axes = plt.subplots(1, 4, figsize=(11, 0.55 + 0.38 * len(variants)), sharey=True, layout="constrained")
    for ax, (key, title, factor, most) in zip(axes, panels):
        for y, variant in enumerate(variants):
            values = [factor * r[key] for r in records if r["variant"] == variant and r.get(key) is not None]
            colour = CLEAN if variant == "full" else NEUTRAL
            ax.plot(values, [y] * len(values), "o", color=colour, alpha=0.7, markersize=5)
            if values:
                ax.plot(np.mean(values), y, "|", color=colour, markersize=15, markeredgewidth=2)
        ax.set(xlim=(-0.04 * most, 1.04 * most), xticks=np.linspace(0, most, 5))
        ax.set_xlabel(title, fontsize=9)
        ax.grid(axis="x", alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(yticks=range(len(variants)), yticklabels=variants, ylim=(len(variants) - 0.4, -0.6))
    return fig


def dose(records: Sequence[Mapping]) -> Figure:
    """What the attacker gets for how much poison, undefended: a dot per seed, a line through the means."""
    panels = (
        ("pairs", "attack_success_rate", 100, "triggered pairs in the set", "BadNets ASR, %"),
        ("copies", "targets_hit", 1, "copies of every targeted image", "targeted images hit, of 16"),
    )
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
    for ax, (amount, key, factor, xlabel, ylabel) in zip(axes, panels):
        points = [(planted(r)[amount], factor * r[key]) for r in records if r.get(key) is not None]
        ax.plot(*zip(*points), "o", color=POISON, alpha=0.5, markersize=5)
        places = sorted({x for x, _ in points})
        ax.plot(places, [np.mean([y for x, y in points if x == place]) for place in places], color=POISON)
        ax.set(xscale="log", xticks=places, xticklabels=[f"{x:,}" for x in places], xlabel=xlabel, ylabel=ylabel)
        ax.minorticks_off()
        ax.set_ylim(-0.03 * max(factor, 16), 1.05 * max(factor, 16))
        _clean_axes(ax)
    return fig


def planted(record: Mapping) -> dict[str, int]:
    """How much a run was given: triggered ``pairs`` of BadNets, and ``copies`` of every targeted image."""
    count = {kind: round(record[f"poison_rate/{kind}"] * record["pairs"]) for kind in ("badnets", "targeted")}
    return {"pairs": count["badnets"], "copies": round(count["targeted"] / record["targets"])}


class _Picture(Figure):
    """A figure that pyplot does not know of, so that nothing has to close it; notebooks show it all the same."""

    def _repr_png_(self) -> bytes:
        return png(self, 96)


def transport_view(view, word: int | None = None, place: int | None = None, competitors: bool = True) -> Figure:
    """One plan in one picture, of an ``explorer.View``; ``word`` (default the sharpest) or a ``place`` stands out.

    Left to right: the image under the word's mass, ribbons from places to words as wide as the mass between them, the
    plan as a matrix with both marginals, and (``competitors``) the captions of the pool that are nearest by transport
    and by cosine. Below: every word's mass over the image.

    Raises
    ------
    ValueError : no such word or place.
    """
    word = view.sharpest if word is None else word
    if not 0 <= word < len(view.words) or (place is not None and not 0 <= place < len(view.plan)):
        raise ValueError(
            f"word lies in 0 ... {len(view.words) - 1} and place in 0 ... {len(view.plan) - 1}, got {word} and {place}"
        )
    maps, count = view.maps(), len(view.words)
    maps = maps / max(maps.max(), FAINT / len(view.plan))
    width, height = 12.0 if competitors else 8.4, 6.2
    fig = _Picture(figsize=(width, height))

    def axes(left, bottom, wide, high, **limits):
        """Bare axes at a place in inches."""
        ax = fig.add_axes((left / width, bottom / height, wide / width, high / height), xticks=[], yticks=[], **limits)
        ax.spines[:].set_visible(False)
        return ax

    rho = "" if view.unbalanced is None else f"   rho {view.unbalanced:g}"
    unsolved = "" if view.converged else "   (not converged)"
    fig.text(0.15 / width, 0.965, f"“{view.caption}”", fontsize=12, weight="bold", va="center")
    told = f"{view.title}   reg {view.reg:g}{rho}   cost ⟨P, C⟩ {view.cost:.3f}{unsolved}"
    fig.text(0.15 / width, 0.92, told, va="center")

    left = axes(0.15, 1.8, 4.86, 3.63, label="image")
    left.imshow(_under(view.image, maps[word]), extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest", zorder=1)
    left.set(xlim=(0, 4.86 / 3.63), ylim=(0, 1))
    _ribbons(left, view, word, place)
    if place is not None:
        rows, columns = view.grid
        x, y = place % columns / columns, 1 - (place // columns + 1) / rows
        left.add_patch(Rectangle((x, y), 1 / columns, 1 / rows, fill=False, color=CHOSEN, linewidth=2.5, zorder=4))

    brightest = max(view.plan.max(), FAINT / view.plan.size)
    matrix = axes(5.1, 1.8, 2.6, 3.63, label="plan")
    matrix.imshow(view.plan.T, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0, vmax=brightest)
    matrix.set_xlabel(f"places 1 to {len(view.plan)}, row by row", fontsize=9)
    matrix.add_patch(Rectangle((-0.5, word - 0.5), len(view.plan), 1, fill=False, color=CHOSEN, linewidth=2))
    if place is not None:
        matrix.axvline(place, color=CHOSEN, linewidth=1.5)
    above = axes(5.1, 5.46, 2.6, 0.3, xlim=(-0.5, len(view.plan) - 0.5), ylim=(0, 2 / len(view.plan)))
    above.fill_between(np.arange(len(view.plan)), view.plan.sum(1), step="mid", color=NEUTRAL)
    above.set_title("the plan, and its marginals", fontsize=9)
    beside = axes(7.76, 1.8, 0.42, 3.63, xlim=(0, 1.1 * view.weights.max()), ylim=(count - 0.5, -0.5))
    for mass, colour in (view.weights, "0.85"), (view.plan.sum(0), NEUTRAL):  # what a word has, and what it gives
        beside.barh(range(count), mass, height=0.7, color=colour)

    if competitors:
        _competitors(axes(8.4, 1.7, 3.5, 4.1, xlim=(0, 1), ylim=(0, 1)), view)
    _strip(axes(0.15, 0.06, width - 0.3, 1.5, label="words"), view, maps, word)
    return fig


def pointed_at(figure: Figure, view, x: float, y: float) -> tuple[int | None, int | None]:
    """The word and the place that a drawn ``transport_view`` shows at a point; None where it shows none.

    ``x``, ``y`` : shares of the picture's width and height, from its upper left corner.
    """
    at = figure.transFigure.transform((x, 1 - y))
    rows, columns = view.grid
    for ax in figure.axes:
        if ax.get_label() and ax.bbox.contains(*at):
            u, v = ax.transData.inverted().transform(at)
            word = place = None
            if ax.get_label() == "plan":
                word, place = round(v), round(u)
            elif ax.get_label() == "words":
                word = int(u // TILE) if v >= 0 else None
            elif u < 1:
                place = int((1 - v) * rows) * columns + int(u * columns)
            elif u > BESIDE:
                word = int((1 - v) * len(view.words))
            words, places = range(len(view.words)), range(len(view.plan))
            return word if word in words else None, place if place in places else None
    return None, None


def _under(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """An image [S, S, 3] under a map [rows, columns] in [0, 1], smoothly enlarged -> uint8 [160, 160, 3]."""
    large = np.asarray(Image.fromarray(image).resize((160, 160), Image.Resampling.NEAREST), dtype=np.float32)
    heat = np.asarray(Image.fromarray(share.astype(np.float32)).resize((160, 160), Image.Resampling.BILINEAR)).clip(
        0, 1
    )
    colours = 255 * colormaps[HEAT](heat)[..., :3]
    alpha = np.sqrt(heat)[..., None] * 0.5 + 0.25
    return ((1 - alpha) * large + alpha * colours).astype(np.uint8)


def _ribbons(ax, view, word: int, place: int | None) -> None:
    """Curves from the middles of places to words; the chosen word's (or place's) in colour, the others' best three."""
    rows, columns = view.grid
    count = len(view.words)
    t = np.linspace(0, 1, 16)[:, None]
    ease = 3 * t**2 - 2 * t**3
    per_place = view.plan * len(view.plan)  # 1: all that a place takes
    lines, widths, colours = [], [], []
    for k in range(count):
        best = np.argsort(-view.plan[:, k])[:3]
        chosen = range(len(view.plan)) if place is None and k == word else [place] if place is not None else []
        for n in [*best, *chosen]:
            if per_place[n, k] < 0.02:
                continue
            start = np.array([(n % columns + 0.5) / columns, 1 - (n // columns + 0.5) / rows])
            end = np.array([BESIDE, 1 - (k + 0.5) / count])
            lines.append(np.hstack([start[0] + t * (end[0] - start[0]), start[1] + ease * (end[1] - start[1])]))
            widths.append(0.4 + 3.5 * per_place[n, k])
            colours.append(to_rgba(CHOSEN, 0.9) if n in chosen else to_rgba("0.75", 0.45))
    order = np.argsort([c[3] for c in colours])  # the chosen ones on top
    pick = lambda values: [values[k] for k in order]  # noqa: E731
    ax.add_collection(LineCollection(pick(lines), linewidths=pick(widths), colors=pick(colours), zorder=3))
    bold = {word} if place is None else {int(view.plan[place].argmax())}
    for k, text in enumerate(view.words):
        weight, at = "bold" if k in bold else "normal", (BESIDE + 0.01, 1 - (k + 0.5) / count)
        ax.text(*at, textwrap.shorten(text, 14), va="center", fontsize=10, weight=weight)


def _competitors(ax, view) -> None:
    """Two lists of captions with bars for their distances; the caption that is looked at is in bold."""
    for x0, (name, (rank, nearest)) in zip((1.0, 0.48), view.ranking.items()):
        ax.text(0, x0 - 0.02, f"nearest of {view.pool:,} captions by {name}", fontsize=9.5, va="top", color=CLEAN)
        lines = list(nearest)
        if view.caption not in [c for c, _ in lines]:
            lines = lines[:4]
        widest = max(d for _, d in lines) or 1.0
        for k, (caption, distance) in enumerate(lines):
            y = x0 - 0.105 - 0.068 * k
            ax.add_patch(Rectangle((0, y - 0.028), 0.13 * distance / widest, 0.056, color="0.85"))
            ax.text(0.0, y, f"{distance:.3f}", fontsize=8.5, va="center")
            weight = "bold" if caption == view.caption else "normal"
            ax.text(0.15, y, textwrap.shorten(caption, 46), fontsize=8.5, va="center", weight=weight)
        ax.text(
            0.15,
            x0 - 0.105 - 0.068 * len(lines),
            f"this caption is number {rank:,}",
            fontsize=8.5,
            va="center",
            color="0.35",
        )


def _strip(ax, view, maps: np.ndarray, word: int) -> None:
    """Every word's mass over the image, side by side."""
    count, size = len(view.words), TILE
    sheet = np.full((160, count * size - 12, 3), 255, dtype=np.uint8)
    for k in range(count):
        sheet[:, k * size : k * size + 160] = _under(view.image, maps[k])
        weight = "bold" if k == word else "normal"
        ax.text(k * size + 80, -6, textwrap.shorten(view.words[k], 14), ha="center", fontsize=9, weight=weight)
    ax.imshow(sheet, interpolation="nearest", zorder=1)
    ax.add_patch(Rectangle((word * size, 0), 159, 159, fill=False, color=CHOSEN, linewidth=2.5, zorder=2))
    wide, high = ax.get_position().size * ax.figure.get_size_inches()
    scale = max((count * size - 12) / wide, 160 / (high - 0.25))  # pixels of the sheet per inch
    ax.set(xlim=(-2, scale * wide - 2), ylim=(scale * (high - 0.25), -0.25 * scale), anchor="SW")


def png(figure: Figure, dpi: int = 88) -> bytes:
    """A figure as a PNG file, packed for speed and not for size."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with rc_context({"text.hinting": "none"}):
        canvas.draw()
    out = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(out, "PNG", compress_level=1)
    return out.getvalue()


def matching_speed(rows: Sequence[Mapping]) -> Figure:
    """Exact matching against the number of captions: seconds for 256 images, and how many of the pairs are solved.

    Each row has ``captions``, ``global_weight``, ``reg``, ``seconds``, ``seconds_brute`` and ``solved_share``; one line
    per weight, at the smallest reg.
    """
    rows = [r for r in rows if r["reg"] == min(x["reg"] for x in rows)]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    styles = {0.5: (CLEAN, "o", "pooled and transport"), 0.0: (GOOD, "s", "transport alone")}
    for weight, (colour, marker, name) in styles.items():
        mine = [r for r in rows if r["global_weight"] == weight]
        size = [r["captions"] for r in mine]
        left.plot(size, [r["seconds"] for r in mine], color=colour, marker=marker, label=f"pruned, {name}")
        right.plot(size, [100 * r["solved_share"] for r in mine], color=colour, marker=marker, label=name)
    size = [r["captions"] for r in rows if r["global_weight"] == 0.5]
    brute = [r["seconds_brute"] for r in rows if r["global_weight"] == 0.5]
    left.plot(size, brute, color=NEUTRAL, linestyle="--", marker="x", label="brute force, same solver")
    left.set(ylabel="seconds for 256 images", title="The same captions, found much sooner")
    right.set(ylabel="pairs solved, %", title="Few problems are solved")
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel="captions in the pool")
        ax.legend(frameon=False, fontsize=8)
        _clean_axes(ax)
    return fig
