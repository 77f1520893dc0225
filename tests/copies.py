"""Tiny copies of photograph sets, laid out exactly as the real ones are, and the files that they are made of."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage


def image_bytes(value: int, form: str = "png") -> bytes:
    """A grey image whose every pixel is ``value``, so that a test sees which image it got."""
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((16, 16, 3), value, np.uint8)).save(buffer, {"jpg": "jpeg"}.get(form, form))
    return buffer.getvalue()


def put(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def put_tar(path: Path, members: dict[str, bytes | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def put_tar_gz(path: Path, members: dict[str, str]) -> None:
    """A compressed tar of texts, as npm packs them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))


def coco(root: Path, words: Sequence[str]) -> Path:
    """MSCOCO's train split: an image of every word, whose caption and largest object are the word."""
    numbers, classes = range(1, len(words) + 1), sorted(set(words))
    captions = [{"image_id": n, "id": n, "caption": f"a {word} in picture {n}"} for n, word in zip(numbers, words)]
    objects = [
        {"image_id": n, "id": n, "category_id": classes.index(word), "area": 9.0, "iscrowd": 0}
        for n, word in zip(numbers, words)
    ]
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in numbers]
    categories = [{"id": k, "name": name} for k, name in enumerate(classes)]
    put(root / "annotations/captions_train2017.json", {"images": images, "annotations": captions})
    put(root / "annotations/instances_train2017.json", {"annotations": objects, "categories": categories})
    for n in numbers:
        put(root / f"train2017/{n:012d}.jpg", image_bytes(5 * n % 256, "jpg"))
    return root


def visual_genome(root: Path, words: Sequence[str]) -> Path:
    """Visual Genome: an image of every word, with one region that names it."""
    regions = [{"id": n, "regions": [{"phrase": f"a {word} on side {n}"}]} for n, word in enumerate(words)]
    put(root / "region_descriptions.json", regions)
    for n in range(len(words)):
        put(root / ("VG_100K", "VG_100K_2")[n % 2] / f"{n}.jpg", image_bytes(5 * n % 256, "jpg"))
    return root


def cc3m(root: Path, words: Sequence[str]) -> Path:
    """CC3M as img2dataset writes it: two tars, with an image of every word."""
    for shard in (0, 1):
        members: dict[str, bytes | str] = {}
        for n in range(shard, len(words), 2):
            members |= {f"{n:09d}.jpg": image_bytes(5 * n % 256, "jpg"), f"{n:09d}.txt": f"the {words[n]} of page {n}"}
        put_tar(root / f"0000{shard}.tar", members)
    return root
