"""How long the explorer takes to redraw when a slider moves. ``python -m benchmarks.explorer``, a minute on two cores.

Beside it stands the floor: the picture alone, with nothing to compute.
"""

from __future__ import annotations

import statistics
import time

import otclib
from otclib import plots, training
from otclib.explorer import REGS, Explorer, Panel


def milliseconds(act, rounds: int) -> list[float]:
    out = []
    for _ in range(rounds):
        start = time.perf_counter()
        act()
        out.append(1000 * (time.perf_counter() - start))
    return out


def main(rounds: int = 60) -> None:
    pairs = otclib.data.load("scenes", size=1000)
    panel = Panel(Explorer("small", pairs))
    regs = iter(REGS * (rounds + 2))

    def move() -> None:
        panel.reg.value = next(regs)

    def draw() -> None:
        plots.png(plots.transport_view(panel.view, panel.word.value, competitors=False))

    for act in (move, draw):
        act()
    print(f"on {training.machine()}, {rounds} redraws, milliseconds: median (slowest)")
    for name, act in (
        ("the reg slider moves: plan, ranking of 500 captions, picture", move),
        ("the picture alone", draw),
    ):
        taken = milliseconds(act, rounds)
        print(f"{statistics.median(taken):6.0f} ({max(taken):.0f})  {name}")


if __name__ == "__main__":
    main()
