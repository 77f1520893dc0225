"""Drawings by six artists, fetched once: ``emoji`` (one drawing a row) and ``emoji-scenes`` (scenes of drawings).

    otclib.data.load("emoji", split="test")  # 964 drawings by an artist who is in no other split
    otclib.data.load("emoji-scenes", classes=200, image_size=64)

``sources`` says who drew them and under which licence. None of the drawings is part of this repository.
"""

from otclib.data.emoji.scenes import mask
from otclib.data.emoji.sources import ARTISTS, HELD_OUT, attribution

__all__ = ["ARTISTS", "HELD_OUT", "attribution", "mask"]
