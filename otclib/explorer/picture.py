"""The explorer's picture of one plan, and the word or place under a point of it."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from otclib.explorer.view import View
from otclib.figures.style import CHOSEN, CLEAN, HEAT, NEUTRAL

BESIDE, TILE = 1.13, 172  # left end of a view's words, in widths of its image; width of a word in the strip, in pixels
FAINT = 4.0  # in a transport view evenly spread mass has at most a quarter of the brightest colour


class _Picture(Figure):
    """A figure outside pyplot, so that nobody must close it; notebooks show it through ``_repr_png_``."""

    def _repr_png_(self) -> bytes:
        return png(self, 96)


def transport_view(view: View, word: int | None = None, place: int | None = None, competitors: bool = True) -> Figure:
    """Draw the plan of an ``explorer.View``; ``word`` (default the sharpest) or a ``place`` is highlighted.

    From left to right it shows the image under the word's mass, ribbons from places to words as wide as the mass
    between them, the plan as a matrix with both marginals, and with ``competitors`` the captions of the pool that are
    nearest by transport and by cosine. Below is every word's mass over the image.

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

    def axes(left: float, bottom: float, wide: float, high: float, **limits: Any) -> Axes:
        """Return bare axes at a position in inches."""
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
    for mass, colour in (view.weights, "0.85"), (view.plan.sum(0), NEUTRAL):  # the mass it has, and gives
        beside.barh(range(count), mass, height=0.7, color=colour)

    if competitors:
        _competitors(axes(8.4, 1.7, 3.5, 4.1, xlim=(0, 1), ylim=(0, 1)), view)
    _strip(axes(0.15, 0.06, width - 0.3, 1.5, label="words"), view, maps, word)
    return fig


def pointed_at(figure: Figure, view: View, x: float, y: float) -> tuple[int | None, int | None]:
    """Return the word and the place that a drawn ``transport_view`` shows at a point; None if it shows none.

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
    """Return an image [S, S, 3] under a map [rows, columns] in [0, 1], smoothly enlarged: uint8 [160, 160, 3]."""
    large = np.asarray(Image.fromarray(image).resize((160, 160), Image.Resampling.NEAREST), dtype=np.float32)
    heat = np.asarray(Image.fromarray(share.astype(np.float32)).resize((160, 160), Image.Resampling.BILINEAR)).clip(
        0, 1
    )
    colours = 255 * colormaps[HEAT](heat)[..., :3]
    alpha = np.sqrt(heat)[..., None] * 0.5 + 0.25
    return ((1 - alpha) * large + alpha * colours).astype(np.uint8)


def _ribbons(ax: Axes, view: View, word: int, place: int | None) -> None:
    """Draw curves from places to words: all of the chosen word (or place) in colour, the best three of each other."""
    rows, columns = view.grid
    count = len(view.words)
    t = np.linspace(0, 1, 16)[:, None]
    ease = 3 * t**2 - 2 * t**3
    per_place = view.plan * len(view.plan)  # 1: all mass of a place
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


def _competitors(ax: Axes, view: View) -> None:
    """Draw two lists of captions with bars for their distances; the view's own caption is in bold."""
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


def _strip(ax: Axes, view: View, maps: np.ndarray, word: int) -> None:
    """Draw every word's mass over the image, side by side."""
    count, size = len(view.words), TILE
    sheet = np.full((160, count * size - 12, 3), 255, dtype=np.uint8)
    for k in range(count):
        sheet[:, k * size : k * size + 160] = _under(view.image, maps[k])
        weight = "bold" if k == word else "normal"
        ax.text(k * size + 80, -6, textwrap.shorten(view.words[k], 14), ha="center", fontsize=9, weight=weight)
    ax.imshow(sheet, interpolation="nearest", zorder=1)
    ax.add_patch(Rectangle((word * size, 0), 159, 159, fill=False, color=CHOSEN, linewidth=2.5, zorder=2))
    assert isinstance(ax.figure, Figure)
    wide, high = ax.get_position().size * ax.figure.get_size_inches()
    scale = max((count * size - 12) / wide, 160 / (high - 0.25))  # pixels of the sheet per inch
    ax.set(xlim=(-2, scale * wide - 2), ylim=(scale * (high - 0.25), -0.25 * scale), anchor="SW")


def png(figure: Figure, dpi: int = 88) -> bytes:
    """Return a figure as a PNG file, compressed for speed and not for size."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with rc_context({"text.hinting": "none"}):
        canvas.draw()
    out = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(out, "PNG", compress_level=1)
    return out.getvalue()
