"""otclib: poison CLIP pre-training, defend it by optimal transport, look at the plans, measure the attack.

pairs = otclib.data.load("scenes")
poisoned, manifest = otclib.attacks.plant(pairs, [otclib.attacks.load("targeted"), otclib.attacks.load("badnets")])
run = otclib.train(poisoned, manifest=manifest, defense="otcclip", out="runs/mine")
otclib.evaluate(run)
"""

from otclib import attacks, data, defenses, evaluation, losses, matching, models, transport
from otclib.evaluation import evaluate
from otclib.training import train, train_each

__all__ = [
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
__version__ = "0.1.0"
