"""The style of every figure: colours, axes, images.

The colours are Okabe and Ito's, which are safe for colour-blind readers. In every figure clean is blue and planted is
vermilion.
"""

from __future__ import annotations

import textwrap
from typing import Any

import PIL.Image
from matplotlib.axes import Axes

from otclib.data import rgb

CLEAN, POISON, NEUTRAL, GOOD = "#0072B2", "#D55E00", "#7F7F7F", "#009E73"
HEAT, CHOSEN = "magma", "#E69F00"


def clean_axes(ax: Axes) -> None:
    """Take away the frame's upper and right line, and draw horizontal lines behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def show(ax: Axes, image: Any, title: str = "", width: int = 24, colour: str = "black") -> None:
    """Show an image without axes, under a title that is wrapped after ``width`` letters."""
    ax.imshow(rgb(image) if isinstance(image, PIL.Image.Image) else image)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(textwrap.fill(title, width), fontsize=8, color=colour, pad=3, va="bottom")
