"""The numbers of the README: undefended and OTCCLIP on three seeds. ``python -m otclib.seeds``, or ``make figures``."""

from __future__ import annotations

import argparse
from pathlib import Path

import otclib
from otclib import plots, processes
from otclib.results import config, grouped, into_readme, read, table

SYSTEMS = ("clip", "otcclip")


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m otclib.seeds", description=__doc__.split(". ")[0])
    p.add_argument("--out", type=Path, default=Path("runs/seeds"))
    p.add_argument("--figures", type=Path, default=Path("figures"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    p.add_argument("--publish", action="store_true", help="put the table into the README as well")
    a = p.parse_args(arguments)
    runs = []
    for seed in a.seeds:
        pairs = otclib.data.load("scenes", seed=seed)
        planned = [otclib.attacks.load("targeted"), otclib.attacks.load("badnets")]
        poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=seed)
        made = otclib.train_each(poisoned, a.systems, manifest=manifest, out=a.out / f"seed{seed}", seed=seed)
        runs += made.values()
    records = [{**read(run), "machine": config(run).get("machine")} for run in runs]
    a.figures.mkdir(parents=True, exist_ok=True)
    otclib.training.write_json(a.figures / "seeds.json", records)
    (a.figures / "seeds.md").write_text(table(records) + "\n")
    if a.publish:
        into_readme("figures", table(records), a.figures.resolve().parent / "README.md")
    plots.comparison(grouped(records)).savefig(a.figures / "comparison.png", dpi=150)
    print(table(records))


if __name__ == "__main__":
    with processes.stoppable("otclib.seeds"):
        main()
