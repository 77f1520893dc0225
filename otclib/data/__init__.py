"""Image-caption tables, all of one shape: a Hugging Face ``datasets.Dataset`` with lazy images.

    pairs = otclib.data.load("scenes")
    pairs[0]  # {"id": ..., "image": PIL image, "caption": "a photo of ...", "label": class name or None, ...}

Every table has the columns ``id``, ``image``, ``caption`` and ``label``. Scenes add ``objects``, ``ground`` and
``words`` (the ground truth of every content word). Three sets are drawn: ``scenes`` of glyphs, ``emoji`` by six
artists, and ``emoji-scenes`` of their drawings. All others are read.
"""

from otclib.data import drawing, emoji, grammar, probes, scenes
from otclib.data.cache import cache_dir
from otclib.data.examine import examine
from otclib.data.loader import DRAWN, NAMES, load, world, world_of
from otclib.data.table import (
    Resize,
    classes,
    image_tensor,
    mention,
    names,
    prompt,
    rgb,
    templates,
    with_article,
    words_for,
)

__all__ = [
    "DRAWN",
    "NAMES",
    "Resize",
    "cache_dir",
    "classes",
    "drawing",
    "emoji",
    "examine",
    "grammar",
    "image_tensor",
    "load",
    "mention",
    "names",
    "probes",
    "prompt",
    "rgb",
    "scenes",
    "templates",
    "with_article",
    "words_for",
    "world",
    "world_of",
]
