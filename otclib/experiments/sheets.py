"""Draw the contact sheets of ``emoji`` and ``emoji-scenes``: ``python -m otclib.experiments.sheets``.

They are small pictures with attribution, in ``figures``. The drawings themselves are not in the repository.
"""

from __future__ import annotations

from pathlib import Path

from otclib import data, figures
from otclib.data.emoji import HELD_OUT, attribution
from otclib.experiments.pages import FIGURES

SHOWN = (
    "cat", "octopus", "parrot", "unicorn", "mushroom", "cactus", "strawberry", "pizza", "teapot", "rocket", "castle",
    "sailboat", "violin", "umbrella", "lipstick", "alembic",
)  # fmt: skip


def artists(folder: Path = FIGURES) -> Path:
    """Draw some things by each artist; return the file."""
    drawn: dict[str, dict] = {}
    tables = [data.load("emoji", split=split, image_size=112) for split in ("train", "val", "test")]
    for table in tables:
        names, by = table["label"][:], table["artist"][:]
        for row in (k for k, name in enumerate(names) if name in SHOWN):
            drawn.setdefault(by[row], {})[names[row]] = table[row]["image"]
    names = [name for name in SHOWN if all(name in own for own in drawn.values())]
    images = {artist: [own[name] for name in names] for artist, own in drawn.items()}
    figures.by_artist(images, names, HELD_OUT, attribution()).savefig(folder / "emoji.png", dpi=130)
    return folder / "emoji.png"


def scenes(folder: Path = FIGURES) -> Path:
    """Draw some scenes with their captions; return the file."""
    table = data.load("emoji-scenes", image_size=160, size=32)
    fig = figures.contact_sheet(list(table["image"]), table["caption"][:], columns=8, source=attribution())
    fig.savefig(folder / "emoji-scenes.png", dpi=130)
    return folder / "emoji-scenes.png"


if __name__ == "__main__":
    print(artists(), scenes(), sep="\n")
