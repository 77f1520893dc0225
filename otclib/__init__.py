"""otclib: poison CLIP pre-training, defend it by optimal transport, look at the plans, measure the attack.

pairs = otclib.data.load("scenes")
poisoned, manifest = otclib.attacks.plant(pairs, [otclib.attacks.load("targeted"), otclib.attacks.load("badnets")])
run = otclib.train(poisoned, manifest=manifest, defense="otcclip", out="runs/mine")
otclib.evaluate(run)
"""

from otclib import processes

processes.end_early()  # in a worker of ours, before the imports that take seconds

from otclib import attacks, data, defenses, evaluation, losses, matching, models, transport  # noqa: E402
from otclib.evaluation import evaluate  # noqa: E402
from otclib.training import train, train_each  # noqa: E402
from otclib.version import __version__  # noqa: E402

__all__ = [
    "__version__",
    "attacks",
    "data",
    "defenses",
    "evaluate",
    "evaluation",
    "losses",
    "matching",
    "models",
    "train",
    "train_each",
    "transport",
]
