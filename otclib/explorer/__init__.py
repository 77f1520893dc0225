"""The transport explorer shows where every word of a caption goes on an image, in any model and after any epoch."""

from otclib.explorer.explorer import Explorer
from otclib.explorer.panel import Panel
from otclib.explorer.view import EXACT, LAST, NOWHERE, View

__all__ = ["EXACT", "LAST", "NOWHERE", "Explorer", "Panel", "View"]
