"""A CSV or TSV file of image paths and captions."""

from __future__ import annotations

import csv as formats
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from otclib.data.readers.files import need, row, table_of


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
    """Read a CSV or TSV file in UTF-8 with a header; ``id`` is the row's number, from 0.

    ::

        root/train.csv         image,caption
                               images/a.jpg,a photo of a cat

    A line is malformed if it has more or fewer fields than the header, or a quote that is not closed or ends before its
    field does. Reading goes on with the next line.

    Parameters
    ----------
    csv : the file's name under root, default ``{split}.csv``. Image paths are absolute, or relative to its folder and
        then inside ``root``.
    image_column, caption_column, label_column : names in the header; without ``label_column`` no row has a label.
    separator : default the one of comma, tab, semicolon and bar with which the header has these columns.
    """
    file = root / (csv or f"{split}.csv")
    need(f"'csv' {split!r}", file)
    if separator is not None and len(separator) != 1:
        raise ValueError(f"separator must be one character, got {separator!r}")
    asked = [column for column in (image_column, caption_column, label_column) if column is not None]
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        lines = opened.readlines()
    headers = {s: next(_records(lines, s), (0, [], ""))[1] for s in ([separator] if separator else ",\t;|")}
    if not any(headers.values()):
        what = "has a malformed header" if any(map(str.strip, lines)) else "is empty"
        raise ValueError(f"{file} {what}; asked for the columns {', '.join(asked)}")
    fitting = next((s for s, header in headers.items() if set(asked) <= set(header)), None)
    if fitting is None:
        most = max(headers.values(), key=len)
        raise ValueError(f"{file} has the columns {', '.join(most)}; asked for {', '.join(asked)}")
    header, folder, name = headers[fitting], os.path.relpath(file.parent, root), os.path.relpath(file, root)

    def rows() -> Iterator[dict]:
        for number, (line, fields, problem) in enumerate(itertools.islice(_records(lines, fitting), 1, None)):
            if not problem and len(fields) != len(header):
                problem = f"{len(fields)} field{'s' * (len(fields) != 1)} where the header has {len(header)}"
            found = dict(zip(header, fields))
            path, label = found.get(image_column), found.get(label_column) if label_column else None
            path = os.path.join(folder, path) if path else ""
            problem = f"its line is malformed: {problem}" if problem else ""
            yield row(
                root, number, path, found.get(caption_column), label, place=f"{name} line {line}", problem=problem
            )

    return table_of(rows())


def _records(lines: list[str], separator: str) -> Iterator[tuple[int, list[str], str]]:
    """Yield the first line (from 1), the fields, and what is wrong, of every record that is not blank."""
    start = 0
    while start < len(lines):
        records = formats.reader((lines[k] for k in range(start, len(lines))), delimiter=separator, strict=True)
        done = 0  # lines of whole records since ``start``
        try:
            for fields in records:
                if fields:
                    yield start + done + 1, fields, ""
                done = records.line_num
            return
        except formats.Error as error:  # a quote may have swallowed whole lines: only its own is given up
            yield start + done + 1, [], str(error)
            start += done + 1
