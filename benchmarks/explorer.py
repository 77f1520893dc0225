"""How long the explorer takes to redraw when a slider moves. ``python -m benchmarks.explorer``, a minute on two cores.

For every kind of move: until the picture is there, and until all is: the list of the nearest captions too, and Python
has cleared up. A word that is chosen is the floor, the picture alone with nothing to compute. An epoch that is visited
for the first time has its weights read, and then the pool's 500 captions encoded. The model is ``--run``'s, a run
folder with snapshots; default ``runs/demo/otcclip``, which ``make demo`` leaves. Written to
``benchmarks/results/explorer.json``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import otclib
from otclib.explorer import EXACT, MARGINALS, REGS, Explorer, Panel
from otclib.runs import code, machine, write_json

RESULTS = Path(__file__).parent / "results" / "explorer.json"


def milliseconds(act, rounds: int) -> list[float]:
    out = []
    for _ in range(rounds):
        start = time.perf_counter()
        act()
        out.append(1000 * (time.perf_counter() - start))
    return out


def summary(taken: list[float]) -> dict[str, float]:
    return {"median": statistics.median(taken), "slowest": max(taken)}


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__.split("\n")[0])
    p.add_argument("--run", type=Path, default=Path("runs/demo/otcclip"))
    p.add_argument("--rounds", type=int, default=60)
    a = p.parse_args()
    pairs = otclib.data.load("scenes", size=1000)
    panel = Panel(Explorer(a.run, pairs))
    epochs = list(panel.explorer.checkpoints[panel.run.value])

    def moves(slider, values):
        """One step of a slider; it turns back at its ends."""
        values = list(values)
        way = itertools.cycle([*values, *values[-2:0:-1]])
        next(way)

        def move() -> None:
            slider.value = next(way)

        return move

    rows = []

    def measure(name: str, move, rounds: int) -> None:
        pictures = []

        def act() -> None:
            move()
            pictures.append(panel.milliseconds)

        rows.append({"moved": name, "redraws": rounds, "all": summary(milliseconds(act, rounds))})
        rows[-1]["picture"] = summary(pictures)

    panel.reg.value, panel.epoch.value = REGS[0], epochs[-1]
    back = moves(panel.epoch, epochs[::-1])
    measure("an epoch for the first time", back, len(epochs) - 1)
    measure("an epoch again", back, a.rounds)
    measure("reg", moves(panel.reg, REGS), a.rounds)
    panel.reg.value = 0.1
    measure("marginal", moves(panel.unbalanced, [EXACT, *MARGINALS]), a.rounds)
    measure("a word", moves(panel.word, range(len(panel.view.words))), a.rounds)
    print(f"on {machine()}, milliseconds until the picture, and until all: median (slowest)")
    for row in rows:
        times = "  ".join(f"{row[what]['median']:6.0f} ({row[what]['slowest']:.0f})" for what in ("picture", "all"))
        print(f"{times}  {row['moved']}")
    write_json(RESULTS, {"machine": machine(), "code": code(), "run": str(a.run), "milliseconds": rows})


if __name__ == "__main__":
    main()
