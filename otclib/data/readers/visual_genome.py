"""Visual Genome's region descriptions."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from otclib.data.readers.files import broken, json_of, need, row, table_of


def read(root: Path, split: str, seed: int, *, phrases: int = 1, split_seed: int = 0) -> Dataset:
    """Read Visual Genome's region descriptions (Krishna et al. 2017, homes.cs.washington.edu/~ranjay/visualgenome).

    ::

        root/region_descriptions.json                  [{"id": image id, "regions": [{"phrase"}]}]
        root/VG_100K/2.jpg  root/VG_100K_2/1.jpg       an image lies in either; image_data.json is not needed

    There is no official split: a hash of the image's id puts 5 % in ``val``, whatever ``seed`` is.

    Parameters
    ----------
    phrases : number of the image's distinct region phrases, drawn by ``seed``, that commas join to its caption.
    split_seed : another one gives another split; give ``train`` and ``val`` the same one.
    """
    if phrases < 1:
        raise ValueError(f"phrases must be at least 1, got {phrases}")
    file, folders = root / "region_descriptions.json", [root / "VG_100K", root / "VG_100K_2"]
    need(f"'visual-genome' {split!r}", file, *([] if folders[1].exists() else folders[:1]))
    second = set(os.listdir(folders[1])) if folders[1].exists() else set()
    content = json_of(file)

    def rows() -> Iterator[dict]:
        for entry, image in enumerate(content):
            id, place = None, f"{file.name} entry {entry}"
            try:
                id = image["id"]
                if (random.Random(f"split {split_seed} {id}").random() < 0.05) != (split == "val"):
                    continue
                texts = [region["phrase"].strip() for region in image["regions"] if region["phrase"] is not None]
            except (AttributeError, KeyError, TypeError) as error:
                if id is not None or split == "train":  # what has no id is in no split: it is counted once
                    yield broken(root, f"entry-{entry}", error, place)
                continue
            distinct = list(dict.fromkeys(filter(None, texts)))
            drawn = random.Random(f"phrases {seed} {id}").sample(distinct, min(phrases, len(distinct)))
            path = f"{folders[f'{id}.jpg' in second].name}/{id}.jpg"
            yield row(root, id, path, ", ".join(drawn), place=place)

    return table_of(rows())
