"""The table of every option of every defence: the published value, ours, and why ours.

``otclib/defenses/options.yaml`` has the published values, the reasons and the seeds. Ours are the classes' defaults.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from otclib import defenses
from otclib.experiments.records import markdown

FILE = Path(defenses.__file__).with_name("options.yaml")
HEADS = ("published", "source", "reason", "seeds")  # the keys of a row; a value that is not known has no ``published``


def told(name: str) -> dict[str, dict[str, str]]:
    """Return the rows of a defence, {option: row}; those of the classes that it extends are its own, too.

    A class that is no defence by itself has its rows under its own name.
    """
    found: dict[str, dict] = yaml.safe_load(FILE.read_text())
    names = {kind: name for name, kind in defenses.DEFENSES.items()}
    out: dict[str, dict[str, str]] = {}
    for kind in reversed(defenses.DEFENSES[name].__mro__):
        out |= found.get(names.get(kind, kind.__name__), {})
    return out


def options_table() -> str:
    """Return the Markdown table, a row per option, in the order of the fields of each class.

    Raises
    ------
    ValueError : the file misses an option, or has one that no defence has, or a row with other keys than ``HEADS``.
    """
    rows = []
    for name, kind in defenses.DEFENSES.items():
        of, defaults = told(name), {field.name: field.default for field in fields(kind)}
        if wrong := sorted(set(of) ^ set(defaults)):
            raise ValueError(f"{FILE.name} and the fields of {name} differ in {', '.join(wrong)}")
        for option, ours in defaults.items():
            row = {"published": ""} | of[option]
            if set(row) != set(HEADS):
                raise ValueError(f"{name}.{option} in {FILE.name} has {', '.join(row)}; a row has {', '.join(HEADS)}")
            shown = str(ours).lower() if isinstance(ours, bool) else ours
            rows.append([name, f"`{option}`", row["published"], row["source"], shown, row["reason"], row["seeds"]])
    heads = ["defence", "option", "published", "source", "ours", "reason for ours", "tried on seeds"]
    return markdown(rows, heads, left=len(heads))
