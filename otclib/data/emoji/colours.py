"""The colour that prevails in a drawing, where one does."""

from __future__ import annotations

import numpy as np
from PIL import Image

PREVAILS = 0.55  # the share of a drawing's area that its colour must have
HUES = ((14, "red"), (40, "orange"), (66, "yellow"), (165, "green"), (258, "blue"), (295, "purple"), (340, "pink"))


def prevailing(drawing: Image.Image) -> str | None:
    """Return the name of the colour that 55 % of a drawing (RGBA) has, or None.

    A pixel is black, white or grey by its value and saturation, else it is named by its hue; a dark orange is brown.

    >>> prevailing(Image.new("RGBA", (8, 8), (200, 35, 40, 255)))
    'red'
    >>> prevailing(Image.new("RGBA", (8, 8), (115, 70, 35, 255)))
    'brown'
    """
    opaque = np.asarray(drawing)[np.asarray(drawing)[..., 3] > 127][:, :3].astype(np.float32) / 255
    if not len(opaque):
        return None
    high, low = opaque.max(1), opaque.min(1)
    red, green, blue = opaque.T
    spread = np.maximum(high - low, 1e-6)
    sector = np.select(
        [high == red, high == green],
        [(green - blue) / spread % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    saturation, hue = (high - low) / np.maximum(high, 1e-6), 60 * sector
    names = np.full(len(opaque), "red", dtype="<U6")
    for bound, name in reversed(HUES):
        names[hue < bound] = name
    names[np.isin(names, ["red", "orange"]) & (hue > 8) & (hue < 45) & (high < 0.72)] = "brown"
    names[saturation < 0.18] = "grey"
    names[(saturation < 0.12) & (high > 0.88)] = "white"
    names[high < 0.25] = "black"
    found, count = np.unique(names, return_counts=True)
    return str(found[count.argmax()]) if count.max() >= PREVAILS * len(opaque) else None
