"""The numbers of the README: undefended and OTCCLIP on three seeds (``make figures``)."""

from __future__ import annotations

import argparse
from pathlib import Path

import otclib
from otclib import figures, processes
from otclib.experiments.records import grouped, into_readme, made_by, order, table
from otclib.runs import config_of as config
from otclib.runs import metrics_of as read
from otclib.runs import write_json

SYSTEMS = ("clip", "otcclip")


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m otclib.experiments.seeds", description=__doc__.split(". ")[0])
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
    kept = ("machine", "code", "precision")
    records = [{**read(run), **{key: config(run).get(key) for key in kept}} for run in runs]
    a.figures.mkdir(parents=True, exist_ok=True)
    write_json(a.figures / "seeds.json", records)
    text = f"{table(records)}\n\nMade by {made_by(records)}, in {', '.join(order(records, 'precision'))}."
    (a.figures / "seeds.md").write_text(text + "\n")
    if a.publish:
        into_readme("figures", text, a.figures.resolve().parent / "README.md")
    figures.comparison(grouped(records)).savefig(a.figures / "comparison.png", dpi=150)
    print(text)


if __name__ == "__main__":
    with processes.stoppable("otclib.experiments.seeds"):
        main()
