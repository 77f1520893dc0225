"""Where a table comes from, kept in its ``info``: selecting, filtering, poisoning and saving a table keep it."""

from __future__ import annotations

import json
from typing import Any

from datasets import Dataset

MARK = "otclib"  # key of our facts in the JSON text that ``info.description`` holds


def origin(table: Dataset) -> dict[str, Any]:
    """Return what is known of a table's origin: ``{}`` for a table that ``load`` did not make.

    ``name`` and ``options`` are what ``load`` was given. ``left_out`` of a set that was read says which rows could not
    be used: their ``count`` of how many (``of``), the ``reasons`` counted, and the first 1,000 of the ``rows`` with id,
    place and reason.
    """
    try:
        found = json.loads(table.info.description or "{}")
    except json.JSONDecodeError:  # the description of somebody else's table
        return {}
    return found.get(MARK, {}) if isinstance(found, dict) else {}


def left_out(table: Dataset) -> dict[str, Any]:
    """Return what ``load`` left out, see ``origin``; ``{}`` if nothing was."""
    found = origin(table).get("left_out", {})
    return found if found.get("count") else {}


def with_origin(table: Dataset, **facts: Any) -> Dataset:
    """Return the table, with these facts added to its origin; what JSON cannot hold becomes text."""
    table.info.description = json.dumps({MARK: origin(table) | facts}, default=str)
    return table
