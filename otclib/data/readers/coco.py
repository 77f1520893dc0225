"""COCO 2017."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from otclib.data.readers.files import broken, json_of, need, row, table_of


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
    content = json_of(file, "images", "annotations")
    largest = _largest(instances) if labels else {}
    place = f"annotations/{file.name}"

    def rows() -> Iterator[dict]:
        names: dict[Any, str] = {}
        for entry, image in enumerate(content["images"]):
            try:
                id, name = image["id"], f"{folder.name}/{image['file_name']}"
                if names.setdefault(id, name) != name:
                    raise ValueError(f"image {id} is listed before")
            except (KeyError, TypeError, ValueError) as error:
                yield broken(root, f"image-{entry}", error, f"{place} image {entry}")
        seen = set()
        for entry, note in enumerate(content["annotations"]):
            at = f"{place} annotation {entry}"
            try:
                image, caption = note["image_id"], note["caption"]
                if captions == "first" and image in seen:
                    continue
                seen.add(image)
                if image not in names:
                    raise ValueError(f"image {image} is not listed")
                id = image if captions == "first" else f"{image}-{note['id']}"
            except (KeyError, TypeError, ValueError) as error:
                yield broken(root, f"annotation-{entry}", error, at)
            else:
                yield row(root, id, names[image], caption, largest.get(image), place=at)

    return table_of(rows())


def _largest(instances: Path) -> dict[Any, str]:
    """Return the category of the largest object of every image."""
    content = json_of(instances, "annotations", "categories")
    try:
        classes = {category["id"]: category["name"] for category in content["categories"]}
        objects = sorted((o for o in content["annotations"] if not o.get("iscrowd")), key=lambda o: o["area"])
        return {o["image_id"]: classes[o["category_id"]] for o in objects}  # an image's last stays
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{instances} has a malformed entry, without labels='largest' it is not read: {error!r}"
        ) from None
