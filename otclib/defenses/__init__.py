"""Defences: how a CLIP model is pre-trained on a set that may be poisoned. One defence per file.

A defence has two main methods. ``begin_epoch(training)`` may change which caption each image is trained with
(``training.caption_of``). ``loss(training, batch)`` returns what is minimised on a batch. ``clip`` does nothing in the
first and returns CLIP's loss in the second, so read it before the others. ``base`` has the whole interface.
``options.yaml`` has, for every option of every defence, the published value and the reason for ours.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from otclib.defenses.base import LEFT_OUT, Batch, Defense, Look, Training
from otclib.defenses.cleanclip import CleanCLIP, CleanCLIPSupervised
from otclib.defenses.clip import Clip
from otclib.defenses.dao import DAO
from otclib.defenses.otcclip import OTCClip
from otclib.defenses.otcclip_plus import OTCClipPlus
from otclib.defenses.par import PAR
from otclib.defenses.roclip import RoCLIP
from otclib.defenses.safeclip import SafeCLIP

__all__ = ["DEFENSES", "LEFT_OUT", "Batch", "Defense", "Look", "Training", "load", "look", "repairs"]

DEFENSES: dict[str, type[Defense]] = {
    "clip": Clip,
    "roclip": RoCLIP,
    "safeclip": SafeCLIP,
    "dao": DAO,
    "cleanclip": CleanCLIP,
    "cleanclip-supervised": CleanCLIPSupervised,
    "par": PAR,
    "otcclip": OTCClip,
    "otcclip-plus": OTCClipPlus,
}

# in records of earlier code: the abstract's parts with a robust loss and strong views in the warm-up; OTCCLIP plus with
# a warm-up on sharp images, judged blurred, as a whole and in part; and today's with OTCCLIP's inter-modal loss
BEFORE = {
    "earlier OTCCLIP": Look("OTCCLIP, earlier code", "#999999", "D"),
    "earlier otcclip-plus": Look("OTCCLIP plus, earlier code", "#9A8FCC", "p"),
    "otcclip-plus, inter 0.5": Look("OTCCLIP plus, inter 0.5", "#CC79A7", "d"),
}


def load(name: str, **options: Any) -> Defense:
    """Return a defence by its name in ``DEFENSES``; its options are the fields of its class.

    Raises
    ------
    ValueError : an unknown name or option.
    """
    if name not in DEFENSES:
        raise ValueError(f"unknown defense {name!r}: choose one of {', '.join(DEFENSES)}")
    kind = DEFENSES[name]
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"defense {name!r} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
    return kind(**options)


def repairs(name: str) -> bool:
    """Return whether a defence goes on from a trained model, on trusted pairs. The others train on the poisoned set."""
    return type(load(name)).REPAIRS


def look(name: str) -> Look:
    """Return the label, colour and marker of a defence; an unknown defence has its own name as label."""
    return DEFENSES[name].LOOK if name in DEFENSES else BEFORE.get(name, Look(name))
