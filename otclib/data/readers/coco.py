"""COCO 2017."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset

from otclib.data.readers.files import need, table_of_files


def read(root: Path, split: str, seed: int, *, captions: str = "first", labels: str | None = None) -> Dataset:
    """Read COCO 2017, as unpacked from cocodataset.org (Lin et al. 2014; captions: Chen et al. 2015).

    ::

        root/annotations/captions_{train,val}2017.json     {"images": [{"id", "file_name"}],
                                                            "annotations": [{"id", "image_id", "caption"}]}
        root/annotations/instances_{train,val}2017.json    only for labels
        root/{train,val}2017/000000391895.jpg

    Parameters
    ----------
    captions : ``"first"``: one row per image (``id`` is the image's); ``"all"``: one row for each of its about five
        captions (``id`` is ``image-annotation``).
    labels : None, or ``"largest"``: the category of the image's largest object that is not a crowd.
    """
    if captions not in ("first", "all"):
        raise ValueError(f"captions must be 'first' or 'all', got {captions!r}")
    if labels not in (None, "largest"):
        raise ValueError(f"labels must be None or 'largest', got {labels!r}")
    file, instances = (root / "annotations" / f"{kind}_{split}2017.json" for kind in ("captions", "instances"))
    folder = root / f"{split}2017"
    need(f"'coco' {split!r}", file, folder, *([instances] if labels else []))
    content = json.loads(file.read_bytes())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rows = content["annotations"]
    if captions == "first":
        rows = list({row["image_id"]: row for row in reversed(rows)}.values())[::-1]
    largest = {}
    if labels:
        content = json.loads(instances.read_bytes())
        classes = {category["id"]: category["name"] for category in content["categories"]}
        objects = sorted((o for o in content["annotations"] if not o.get("iscrowd")), key=lambda o: o["area"])
        largest = {o["image_id"]: classes[o["category_id"]] for o in objects}  # an image's last stays
    return table_of_files(
        (row["image_id"] if captions == "first" else f"{row['image_id']}-{row['id']}" for row in rows),
        (folder / names[row["image_id"]] for row in rows),
        (row["caption"] for row in rows),
        (largest.get(row["image_id"]) for row in rows),
    )
