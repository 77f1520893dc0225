"""A CSV or TSV file of image paths and captions."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pandas as pd
from datasets import Dataset

from otclib.data.readers.files import need, table_of_files


def read(
    root: Path,
    split: str,
    seed: int,
    *,
    csv: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    label_column: str | None = None,
    separator: str | None = None,
) -> Dataset:
    """Read a CSV or TSV file with a header; ``id`` is the row's number, from 0.

    ::

        root/train.csv         image,caption
                               images/a.jpg,a photo of a cat

    Parameters
    ----------
    csv : the file's name under root, default ``{split}.csv``. Image paths are relative to its folder, or absolute.
    image_column, caption_column, label_column : names in the header; without ``label_column`` no row has a label.
    separator : default the one of comma, tab, semicolon and bar with which the header has these columns.
    """
    file = root / (csv or f"{split}.csv")
    need(f"'csv' {split!r}", file)
    asked = [column for column in (image_column, caption_column, label_column) if column is not None]
    read_csv = functools.partial(pd.read_csv, file, encoding="utf-8-sig")
    try:
        headers: dict[str | None, list[str]] = {
            s: list(read_csv(sep=s, nrows=0).columns) for s in ([separator] if separator else ",\t;|")
        }
    except pd.errors.EmptyDataError:
        raise ValueError(f"{file} is empty; asked for the columns {', '.join(asked)}") from None
    fitting = next((s for s, header in headers.items() if set(asked) <= set(header)), None)
    if fitting is None:
        most = max(headers.values(), key=len)
        raise ValueError(f"{file} has the columns {', '.join(most)}; asked for {', '.join(asked)}")
    text = read_csv(sep=fitting, usecols=asked, dtype=str, keep_default_na=False).fillna("")
    paths = (os.path.join(file.parent, path) if path else "(an empty path)" for path in text[image_column])
    return table_of_files(range(len(text)), paths, text[caption_column], text[label_column] if label_column else None)
