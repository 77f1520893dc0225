"""Figures of plans on images, of the bounds that make most plans unnecessary, and of the speed of matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from otclib.figures.style import CHOSEN, CLEAN, GOOD, HEAT, NEUTRAL, clean_axes, show


def bounds(bound: np.ndarray, cost: np.ndarray) -> Figure:
    """Draw every caption's lower bound [P] against its cost [P]; only bounds below the best cost must be solved."""
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
    clean_axes(ax)
    fig.tight_layout()
    return fig


def word_overlays(image: np.ndarray, words: Sequence[str], maps: np.ndarray, boxes: Sequence | None = None) -> Figure:
    """Draw where each word's mass goes: ``maps`` [words, side, side] over the image, one panel per word.

    ``boxes`` (left, top, right, bottom in [0, 1], or None) outline the object that the word names.
    """
    fig, axes = plt.subplots(1, len(words) + 1, figsize=(1.55 * (len(words) + 1), 1.95), squeeze=False)
    height, width = image.shape[:2]
    show(axes[0, 0], image, "image")
    top = maps.max()
    for k, word in enumerate(words):
        ax = axes[0, k + 1]
        show(ax, image, word)
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
    """Draw a word's mass on its object, relative to an even spread, for names and for colours and sizes."""
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
    """Draw one word's mass over the image at several regularisations."""
    fig, axes = plt.subplots(1, len(maps), figsize=(1.9 * len(maps), 2.3), squeeze=False)
    height, width = image.shape[:2]
    for ax, (reg, spread) in zip(axes.flat, maps.items()):
        show(ax, image)
        ax.imshow(spread, cmap=HEAT, alpha=0.6, extent=(0, width, height, 0), vmin=0, interpolation="bilinear")
        ax.set(xlim=(0, width), ylim=(height, 0))
        ax.set_title(f"reg {reg:g}\n<P, C> {cost[reg]:.3f}", fontsize=9)
    fig.suptitle(f"“{word}”", fontsize=10)
    fig.tight_layout()
    return fig


def matching_speed(rows: Sequence[Mapping]) -> Figure:
    """Draw exact matching against the number of captions: seconds for 256 images, and the share of pairs solved.

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
        clean_axes(ax)
    return fig
