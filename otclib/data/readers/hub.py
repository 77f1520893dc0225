"""Any data set that Hugging Face ``datasets`` can read."""

from __future__ import annotations

import os
import re
from pathlib import Path

from datasets import ClassLabel, Dataset, Image, Value, get_dataset_split_names, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from otclib.data.readers.checking import caption_problem
from otclib.data.readers.files import ROWS


def read(
    root: Path | None,
    split: str,
    seed: int,
    *,
    path: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    label_column: str | None = None,
) -> Dataset:
    """Read what ``datasets`` can read: a dataset of the hub, a folder of parquet files or images, a saved dataset.

    ::

        root/train-00000.parquet                            columns image, caption
        root/train/metadata.csv  root/train/a.jpg           file_name,caption: an "imagefolder"
        root/train/state.json  root/dataset_dict.json       what ``save_to_disk`` wrote

    ``id`` is the row's number, from 0; ``val`` also stands for a split called ``validation``.

    Parameters
    ----------
    path : a name on the hub, or a folder (below ``root`` if that is given); default ``root`` itself.
    config, revision : passed on to ``load_dataset``.
    image_column, caption_column, label_column : a caption is a string, or a list of strings whose first is taken. A
        label is a string or a numbered class. Without ``label_column`` no row has a label.
    """
    if root is None and path is None:
        raise ValueError("'hub' needs path, a name on the hub or a folder, or root; got neither")
    where = str(Path(root or "", path or "").expanduser())
    if not os.path.isdir(where) and (root or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", where)):
        raise FileNotFoundError(f"'hub' was to be read from {where}, which is neither a folder nor a name on the hub")
    saved = _saved(Path(where))
    splits = list(saved) if saved else get_dataset_split_names(where, config, revision=revision)
    split = "validation" if split == "val" and "val" not in splits else split
    if (split if saved else re.split(r"[\[+]", split)[0]) not in splits:
        raise ValueError(f"{where} has the splits {', '.join(splits)}, not {split!r}")
    try:
        table = saved[split] if saved else load_dataset(where, config, split=split, revision=revision)
    except DatasetGenerationError as error:
        raise ValueError(f"{where} cannot be read by datasets: {error.__cause__ or error}") from error
    asked = [column for column in (image_column, caption_column, label_column) if column is not None]
    if not set(asked) <= set(table.column_names):
        raise ValueError(f"{where} has the columns {', '.join(table.column_names)}; asked for {', '.join(asked)}")
    kind = table.features[image_column]
    if isinstance(kind, Value) and kind.dtype != "binary":
        raise ValueError(f"column {image_column!r} of {where} holds {kind.dtype}, asked for images")
    captions = [(caption or [None])[0] if isinstance(caption, list) else caption for caption in table[caption_column]]
    labels = table[label_column][:] if label_column else [None] * len(table)
    if label_column and isinstance(kind := table.features[label_column], ClassLabel):
        labels = [None if label in (None, -1) else kind.int2str(label) for label in labels]
    texts = {
        "id": [str(row) for row in range(len(table))],
        "caption": [str(caption or "").strip() for caption in captions],
        "label": [None if label is None else str(label) for label in labels],
        "place": [f"{split} row {row}" for row in range(len(table))],
        "problem": [caption_problem(caption) or None for caption in captions],
    }
    table = table.select_columns(image_column).rename_columns({image_column: "image"}).cast_column("image", Image())
    for column, values in texts.items():
        table = table.add_column(column, values, feature=Value("string"))
    return table.select_columns(list(ROWS))


def _saved(folder: Path) -> dict[str, Dataset]:
    """Return the splits that ``save_to_disk`` wrote into a folder, if any. A split without a name is ``train``."""
    if (folder / "dataset_dict.json").is_file():
        return dict(load_from_disk(str(folder)))
    if (folder / "state.json").is_file():
        table = load_from_disk(str(folder))
        return {str(table.split or "train"): table}
    return {}
