"""Shards in the format of webdataset."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from otclib.data.readers.shards import find_shards, index


def read(
    root: Path, split: str, seed: int, *, shards: str | None = None, class_names: list[str] | None = None
) -> Dataset:
    """Read tars of samples (github.com/webdataset/webdataset): files that share their name up to the first dot.

    ::

        root/00000.tar         000000000.jpg (jpeg, png, webp)
                               000000000.txt, or .json with "caption"
                               000000000.cls (optional), the label

    Shards are looked for in ``root/{split}/``, then in ``root`` by the split in their name (``cc3m-train-0000.tar``).
    Shards in ``root`` that name no split are ``train``. Tars must not be compressed. One pass over headers and texts
    makes an index, which the cache keeps until a shard changes. Images are read from the shards when asked for.

    Parameters
    ----------
    shards : a pattern below root (``"part-*/*.tar"``) that is read instead, whatever the split.
    class_names : the names of the integers in ``.cls``; default: the text of ``.cls`` is the label.
    """
    found = sorted(root.glob(shards)) if shards else find_shards(root, split, split == "train")
    if not found:
        wanted, tars = shards or f"tars of the split {split!r}", len(list(root.glob("*.tar")))
        raise FileNotFoundError(f"'webdataset' found no {wanted} in {root}, which holds {tars} tars")
    return index(root, found, None, class_names)
