"""Figures of pairs: the pairs of a set, the planted ones, the re-matched ones, the triggers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from otclib.figures.style import CLEAN, GOOD, POISON, show


def contact_sheet(
    images: Sequence, captions: Sequence[str] | None = None, columns: int = 8, source: str = ""
) -> Figure:
    """Draw images in a grid, each under its caption; ``source``: whose pictures they are, in a line below."""
    rows = -(-len(images) // columns)
    height = 1.15 if captions is None else 1.62
    fig, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, height * 1.12 * rows), squeeze=False)
    for k, ax in enumerate(axes.flat):
        ax.axis("off")
        if k < len(images):
            show(ax, images[k], captions[k] if captions else "", width=22)
    fig.tight_layout(pad=0.4, rect=(0, 0.035 if source else 0, 1, 1))
    fig.text(0.5, 0.01, textwrap.fill(source, 150), fontsize=6.5, color="0.35", ha="center")
    return fig


def by_artist(drawn: Mapping[str, Sequence], names: Sequence[str], held_out: str, source: str) -> Figure:
    """Draw the same things by several artists, a row each; that of ``held_out`` comes last, and apart.

    ``source`` : the line below, which says whose pictures these are.
    """
    artists = [artist for artist in drawn if artist != held_out] + [held_out]
    heights = [1.0] * (len(artists) - 1) + [1.35]
    fig, axes = plt.subplots(
        len(artists), len(names), figsize=(0.82 * len(names) + 1, 0.8 * len(artists) + 0.9), height_ratios=heights
    )
    for row, artist in zip(axes, artists):
        for ax, image in zip(row, drawn[artist]):
            show(ax, image)
            ax.set_anchor("S")
        label, colour = (f"{artist}\ntest only", GOOD) if artist == held_out else (artist, "0.2")
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5, color=colour)
    for ax, name in zip(axes[0], names):
        ax.set_title(name, fontsize=8.5)
    fig.tight_layout(pad=0.3, rect=(0, 0.05, 1, 1))
    fig.text(0.5, 0.012, textwrap.fill(source, 150), fontsize=6.5, color="0.35", ha="center")
    return fig


def planted_pairs(rows: Sequence[Mapping], title: str = "") -> Figure:
    """Draw manifest rows: the planted image, its original caption (blue) and the attacker's (vermilion)."""
    fig, axes = plt.subplots(1, len(rows), figsize=(1.75 * len(rows), 2.75), squeeze=False)
    for ax, row in zip(axes.flat, rows):
        show(ax, row["image"])
        ax.set_title(textwrap.fill(row["original_caption"], 22), fontsize=8, color=CLEAN)
        ax.set_xlabel(textwrap.fill(row["poison_caption"], 22), fontsize=8, color=POISON)
    fig.suptitle(title, fontsize=10)
    fig.tight_layout()
    return fig


def trigger(before: np.ndarray, after: np.ndarray) -> Figure:
    """Draw images without the trigger (top) and with it (bottom)."""
    fig, axes = plt.subplots(2, len(before), figsize=(1.2 * len(before), 2.6), squeeze=False)
    for k in range(len(before)):
        show(axes[0, k], before[k])
        show(axes[1, k], after[k])
    axes[0, 0].set_ylabel("as it is", fontsize=9)
    axes[1, 0].set_ylabel("triggered", fontsize=9)
    fig.tight_layout(pad=0.4)
    return fig


def triggers(plain: np.ndarray, triggered: Mapping[str, np.ndarray]) -> Figure:
    """Draw every attack's trigger on the same images [N, H, W, 3]; the bottom row: the change in the last, times 3."""
    rows = len(plain) + 1
    columns = {"as it is": plain, **triggered}
    fig, axes = plt.subplots(rows, len(columns), figsize=(1.3 * len(columns), 1.3 * rows + 0.3), squeeze=False)
    for column, (name, images) in zip(axes.T, columns.items()):
        for ax, image in zip(column, images):
            show(ax, image)
        column[0].set_title(name, fontsize=9)
        change = 128 + 3 * (images[-1].astype(int) - plain[-1])
        show(column[-1], np.clip(change, 0, 255).astype(np.uint8))
    axes[-1, 0].set_ylabel("change, times 3", fontsize=8)
    fig.tight_layout(pad=0.5)
    return fig


def rematched(rows: Sequence[Mapping], title: str = "") -> Figure:
    """Draw images with their original caption (vermilion if planted, else blue) and the one they were given (green)."""
    fig, axes = plt.subplots(1, len(rows), figsize=(1.75 * len(rows), 2.75), squeeze=False)
    for ax, row in zip(axes.flat, rows):
        show(ax, row["image"])
        ax.set_title(textwrap.fill(row["caption"], 22), fontsize=8, color=POISON if row["planted"] else CLEAN)
        ax.set_xlabel(textwrap.fill(row["given"], 22), fontsize=8, color=GOOD)
    fig.suptitle(title, fontsize=10)
    fig.tight_layout()
    return fig


def planted_caption(
    image: np.ndarray, planted: str, own: str, nearest: Mapping[str, tuple[int, Sequence[tuple[str, float]]]], pool: int
) -> Figure:
    """A planted pair as several models read it: the captions of a pool that are nearest to its image.

    ``nearest`` : {what a model is called: the rank of the planted caption (1: nearest), and the nearest captions with
    their distances}. The planted caption is vermilion, the one that the image had before is blue.
    """
    fig, axes = plt.subplots(
        1, 1 + len(nearest), figsize=(2.2 + 3.3 * len(nearest), 2.5), width_ratios=[2] + [3.1] * len(nearest)
    )
    show(axes[0], image)
    below = {"transform": axes[0].transAxes, "fontsize": 9, "va": "top"}
    axes[0].text(0, -0.06, f"planted: {planted}", color=POISON, **below)
    axes[0].text(0, -0.19, f"before: {own}", color=CLEAN, **below)
    for ax, (model, (rank, captions)) in zip(axes[1:], nearest.items()):
        for k, (caption, distance) in enumerate(captions):
            colour = POISON if caption == planted else CLEAN if caption == own else "0.25"
            how = {"color": colour, "weight": "bold" if caption in (planted, own) else "normal", "va": "center"}
            ax.text(0, k, f"{distance:.2f}", fontsize=9, **how)
            ax.text(0.14, k, textwrap.shorten(caption, 42), fontsize=10, **how)
        ax.set(xlim=(0, 1), ylim=(len(captions) - 0.3, -0.7))
        ax.axis("off")
        ax.set_title(f"{model}\nnearest of {pool:,} captions (1 − cos)", fontsize=9.5, loc="left")
        ax.text(0, len(captions), f"the planted caption is number {rank:,}", fontsize=9, color="0.4", va="center")
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    return fig
