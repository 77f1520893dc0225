"""``python -m otclib.train``: the command ``otclib train``, by the name that ``accelerate launch`` takes."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

from otclib import processes
from otclib.ranks import as_many_as_asked


class _Command(types.ModuleType):
    """Importing this module puts it where the function ``otclib.train`` was, so it can be called like it."""

    def __call__(self, *arguments: Any, **options: Any) -> Path:
        from otclib.training import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _Command


def main(arguments: list[str] | None = None) -> None:
    """Run ``otclib train``. Several names may follow one ``--attack``, and none: a clean set."""
    from otclib.cli import call

    given, out = sys.argv[1:] if arguments is None else arguments, []
    while given:
        word, given = given[0], given[1:]
        if word != "--attack":
            out.append(word)
            continue
        names = []
        while given and not given[0].startswith("-"):
            names.append(given[0])
            given = given[1:]
        out += [part for name in names or ["none"] for part in ("--attack", name)]
    call(["train", *out])


if __name__ == "__main__":
    as_many_as_asked("otclib.train")
    with processes.stoppable("otclib.train", "the same command goes on from its last checkpoint"):
        main()
