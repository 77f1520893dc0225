"""Visual Genome's region descriptions."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from datasets import Dataset

from otclib.data.readers.files import need, table_of_files


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
    captions = {}
    for image in json.loads(file.read_bytes()):
        if (random.Random(f"split {split_seed} {image['id']}").random() < 0.05) == (split == "val"):
            distinct = list(dict.fromkeys(text for r in image["regions"] if (text := r["phrase"].strip())))
            drawn = random.Random(f"phrases {seed} {image['id']}").sample(distinct, min(phrases, len(distinct)))
            captions[image["id"]] = ", ".join(drawn)
    paths = (folders[f"{i}.jpg" in second] / f"{i}.jpg" for i in captions)
    return table_of_files(captions, paths, captions.values())
