"""otclib: poison CLIP pre-training, defend it by optimal transport, look at the plans, measure the attack.

pairs = otclib.data.load("scenes")
poisoned, manifest = otclib.attacks.plant(pairs, [otclib.attacks.load("targeted"), otclib.attacks.load("badnets")])
run = otclib.train(poisoned, manifest=manifest, defense="otcclip", out="runs/mine")
otclib.evaluate(run)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from otclib import processes
from otclib.version import __version__

processes.end_early()  # in a worker of ours, before the imports that take seconds

if TYPE_CHECKING:
    from otclib import attacks, data, defenses, evaluation, explorer, figures, losses, matching, models, transport
    from otclib.evaluation import evaluate
    from otclib.training import train, train_each

_FUNCTIONS = {"evaluate": "otclib.evaluation", "train": "otclib.training", "train_each": "otclib.training"}
_MODULES = (
    *("attacks", "data", "defenses", "evaluation", "explorer", "figures", "losses", "matching", "metrics", "models"),
    *("runs", "training", "transport"),
)

__all__ = [
    "__version__",
    "attacks",
    "data",
    "defenses",
    "evaluate",
    "evaluation",
    "explorer",
    "figures",
    "losses",
    "matching",
    "models",
    "train",
    "train_each",
    "transport",
]


def __getattr__(name: str) -> Any:
    """Import a part when it is first asked for, so that ``otclib doctor`` and ``--help`` need not wait for torch."""
    if name in _FUNCTIONS:
        found = getattr(import_module(_FUNCTIONS[name]), name)
    elif name in _MODULES:
        found = import_module(f"otclib.{name}")
    else:
        raise AttributeError(f"module 'otclib' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
