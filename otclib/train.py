"""``python -m otclib.train``: ``otclib.train`` on the command line."""

from __future__ import annotations

import argparse
import json
import sys
import types

from otclib import attacks, data, defenses, processes
from otclib.training import train


class _Command(types.ModuleType):
    """Importing this module puts it where the function ``otclib.train`` was: so it can be called like it."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Command


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="python -m otclib.train", description="Poison a set, train under a defence, evaluate."
    )
    p.add_argument("--out", required=True, help="run folder; an unfinished run is resumed")
    p.add_argument("--dataset", default="scenes", help=f"one of {', '.join(data.NAMES)}")
    p.add_argument("--root", help="where a copy of the dataset lies")
    p.add_argument("--data-options", type=json.loads, default={}, help="what the data set takes besides, as JSON")
    p.add_argument("--size", type=int, help="number of pairs, default all")
    p.add_argument(
        "--attack", nargs="*", default=["targeted", "badnets"], help=f"of {', '.join(attacks.ATTACKS)}; none: clean"
    )
    p.add_argument("--defense", default="otcclip", help=f"one of {', '.join(defenses.DEFENSES)}")
    p.add_argument("--model", default="small", help="'small', an open_clip name, or a run's model.safetensors")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--lr", type=float, help="default the defence's own")
    p.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    p.add_argument("--clean", help="a finished run without poison, to compare the attack with")
    p.add_argument("--snapshots", action="store_true", help="keep the weights of every epoch, for the explorer")
    p.add_argument("--options", type=json.loads, default={}, help="the defence's options, as JSON")
    a = p.parse_args(arguments)
    try:
        planned = [attacks.load(name) for name in a.attack]
        if repeated := {"epochs", "lr"} & set(a.options):
            raise ValueError(f"--options must not repeat --{', --'.join(sorted(repeated))}")
        pairs, manifest = data.load(a.dataset, root=a.root, size=a.size, seed=a.seed, **a.data_options), None
        if planned:
            poisoned, manifest = attacks.plant(pairs, planned, seed=a.seed)
            if defenses.repairs(a.defense):  # it repairs a model, on pairs that no attack touched
                pairs = attacks.trusted(pairs, manifest)
            else:
                pairs = poisoned
        run = train(
            pairs,
            manifest=manifest,
            defense=a.defense,
            model=a.model,
            out=a.out,
            seed=a.seed,
            epochs=a.epochs,
            batch_size=a.batch_size,
            lr=a.lr,
            precision=a.precision,
            clean=a.clean,
            snapshots=a.snapshots,
            **a.options,
        )
    except (ValueError, FileNotFoundError, NotImplementedError) as error:
        p.exit(2, f"otclib.train: {error}\n")
    print((run / "metrics.json").read_text())


if __name__ == "__main__":
    with processes.stoppable("otclib.train", "the same command goes on from the last finished epoch"):
        main()
