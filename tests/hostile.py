"""Copies of data sets in every format, of which some rows cannot be used."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from copies import put, put_tar
from PIL import Image


def picture(side: int, form: str) -> bytes:
    """A noisy picture, whose pixels take most of its bytes."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


LONG = "a very long caption " * 500  # 10,000 characters: towers read its beginning
WHOLE = picture(24, "jpeg")
IMAGES = {  # content (None: there is none), and the reason, in a test that allows 1,000 pixels
    "missing": (None, "its image is missing"),
    "zero bytes": (b"", "its image is (empty: 0 bytes|missing)"),
    "truncated jpeg": (WHOLE[:-40], "its image does not decode: "),
    "truncated header": (WHOLE[:300], "its image does not decode: "),
    "truncated png": (picture(24, "png")[:900], "its image does not decode: "),
    "no image": (b"<html>404 not found</html>", "its image is not an image"),
    "huge": (
        picture(64, "png"),
        "its image is huge: more pixels than PIL.Image.MAX_IMAGE_PIXELS, 1,000",
    ),
}
CAPTIONS = {
    "empty": ("", "its caption is (empty|missing)"),
    "blank": (" \t ", "its caption is (empty|missing)"),
    "no letters": ("?! ... \U0001f600", "its caption has no letter or digit"),
}
OF_JSON = {  # what a CSV cannot hold
    "none": (None, "its caption is missing|its caption is empty"),
    "a number": (5, "its caption is no text: int|its entry is malformed"),
    "half a character": ("a \ud800 cat", "its text is not Unicode"),
}
FORMATS = ("csv", "webdataset", "cc3m", "coco", "visual-genome", "hub")


def train_ids(n: int) -> list[int]:
    """Ids that Visual Genome's reader puts into the training split."""
    ids = (k for k in range(1, 1000) if random.Random(f"split 0 {k}").random() >= 0.05)
    return [next(ids) for _ in range(n)]


def write(name: str, root: Path, rows: Sequence[tuple[bytes | None, object]]) -> list[str]:
    """Write a copy in the format ``name``; return the place of every row, as messages name it."""
    contents = [image for image, _ in rows]
    captions = [caption for _, caption in rows]
    ids = train_ids(len(rows)) if name == "visual-genome" else list(range(len(rows)))
    file = {"csv": "images/{}.jpg", "cc3m": "00000/{:09d}.jpg", "coco": "train2017/{}.jpg"}.get(name, "VG_100K/{}.jpg")
    if name not in ("webdataset", "hub"):
        (root / file).parent.mkdir(parents=True)
        for id, content in zip(ids, contents):
            if content is not None:
                put(root / file.format(id), content)
    if name == "csv":
        with open(root / "train.csv", "w", newline="", encoding="utf-8") as opened:
            lines = [(file.format(id), caption) for id, caption in zip(ids, captions)]
            csv.writer(opened).writerows([("image", "caption"), *lines])
        return [f"train.csv line {id + 2}" for id in ids]
    if name == "coco":
        images = [{"id": id, "file_name": f"{id}.jpg"} for id in ids]
        notes = [{"image_id": id, "id": id, "caption": caption} for id, caption in zip(ids, captions)]
        put(root / "annotations/captions_train2017.json", {"images": images, "annotations": notes})
        return [f"annotations/captions_train2017.json annotation {id}" for id in ids]
    if name == "visual-genome":
        regions = [{"id": id, "regions": [{"phrase": caption}]} for id, caption in zip(ids, captions)]
        put(root / "region_descriptions.json", regions)
        return [f"region_descriptions.json entry {k}" for k in range(len(ids))]
    if name == "hub":
        cells = [None if content is None else {"bytes": content, "path": None} for content in contents]
        table = datasets.Dataset.from_dict({"image": cells, "caption": captions})
        table.cast_column("image", datasets.Image()).to_parquet(root / "train.parquet")
        return [f"train row {id}" for id in ids]
    members = {}
    for id, content, caption in zip(ids, contents, captions):
        members |= {} if content is None else {f"{id:09d}.jpg": content}
        members[f"{id:09d}.json"] = json.dumps({"caption": caption}).encode()
    if name == "webdataset":
        put_tar(root / "00000.tar", members)
        return [f"00000.tar sample {id:09d}" for id in ids]
    for member, content in members.items():
        put(root / "00000" / member, content)
    return [f"00000 sample {id:09d}" for id in ids]
