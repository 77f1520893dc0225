"""Attacks on an image-caption set: what an attacker plants, and the manifest that records it.

    attack = otclib.attacks.load("badnets", target="umbrella", rate=0.01)  # or count=120; default: by frequency
    poisoned, manifest = attack.poison(pairs, seed=0)
    triggered = attack.trigger(images)

One attack per file. ``plant`` plants several attacks in one set. The manifest (a ``datasets.Dataset``) has one row per
planted pair: ``id``, ``kind``, ``source_label``, ``target_label``, ``original_caption``, ``poison_caption``, the
planted ``image``, and ``attack``, the attack's name and options as JSON. ``from_manifest`` makes the attack again from
it, so a manifest alone is enough to measure the attack later. ``trusted`` returns the pairs that no attack touched, and
``export`` writes a poisoned set for other training codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from datasets import Image as ImageColumn

from otclib.attacks.adaptive import Adaptive
from otclib.attacks.badnets import BadNets
from otclib.attacks.blended import Blended
from otclib.attacks.exporting import Exported as Exported
from otclib.attacks.exporting import check_export as check_export
from otclib.attacks.exporting import export as export
from otclib.attacks.label_consistent import LabelConsistent
from otclib.attacks.planting import MANIFEST as MANIFEST
from otclib.attacks.planting import Attack as Attack
from otclib.attacks.planting import Backdoor
from otclib.attacks.planting import Triggered as Triggered
from otclib.attacks.sig import SIG
from otclib.attacks.targeted import Targeted
from otclib.attacks.toxic_text import ToxicText
from otclib.attacks.wanet import WaNet

ATTACKS: dict[str, Any] = {a.kind: a for a in (Targeted, ToxicText)}
ATTACKS |= {a.kind: a for a in (BadNets, Blended, WaNet, SIG, LabelConsistent, Adaptive)}


def plants_copies(kind: str) -> bool:
    """Return whether attacks of this kind plant copies of chosen images, with ids ``id+copy`` and without a trigger."""
    return issubclass(ATTACKS.get(kind, object), Targeted)


def load(name: str, **options: Any) -> Attack:
    """Return an attack by name, see ``ATTACKS``; its options are the fields of its class.

    Raises
    ------
    ValueError : an unknown name or option, or an option out of range.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: choose one of {', '.join(ATTACKS)}")
    kind = ATTACKS[name]
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"attack {name!r} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
    return kind(**options)


def named(asked: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the name and the options of an attack that is given by its name, by both, or by both as JSON.

    Raises
    ------
    ValueError : neither name nor options, text that is not JSON, or options without a name.
    """
    if isinstance(asked, str) and asked.lstrip().startswith("{"):
        try:
            asked = json.loads(asked)
        except json.JSONDecodeError as error:
            raise ValueError(f"an attack is a name or JSON, got {asked!r}: {error}") from None
    if not isinstance(asked, str | Mapping):
        raise ValueError(f"an attack is an object of otclib.attacks, its name, or its options, got {asked!r}")
    out = {"name": asked} if isinstance(asked, str) else dict(asked)
    if "name" not in out:
        raise ValueError(f'an attack needs a name, as in {{"name": "badnets", "rate": 0.001}}, got {out}')
    return out


def plant(pairs: Dataset, attacks: Sequence[Attack], seed: int = 0) -> tuple[Dataset, Dataset]:
    """Plant several attacks in one set, one after the other; return the poisoned pairs and the manifest of all.

    No attack takes a row that an earlier one took.

    Raises
    ------
    ValueError : no attack, or one that the pairs do not allow.
    """
    if not attacks:
        raise ValueError("plant needs at least one attack, got none")
    manifests = []
    taken: frozenset[str] = frozenset()
    for attack in attacks:
        pairs, manifest = attack.poison(pairs, seed=seed, taken=taken)
        manifests.append(manifest)
        taken |= frozenset(manifest["id"])
    return pairs, concatenate_datasets(manifests)


def attacked(manifest: Dataset) -> set[str]:
    """Return the ids of the pairs that the attacks of a manifest took, as they were before the attacks."""
    return {original(id, kind) for id, kind in zip(manifest["id"][:], manifest["kind"][:])}


def original(id: str, kind: str) -> str:
    """Return the id of a planted pair before the attack: ``id`` of a targeted image's ``id+copy``."""
    return id.rsplit("+", 1)[0] if plants_copies(kind) else id


def trusted(pairs: Dataset, manifest: Dataset | None, size: int | None = None, seed: int = 0) -> Dataset:
    """Return the pairs on which a repair such as CleanCLIP may train: not planted, and without an attacked image.

    ``size`` of them are drawn by ``seed``; default all.

    ``pairs`` may be the table before or after the attacks. A data set with several captions per image has several rows
    that read one image file; if an attack took one of them, all are dropped. Without a manifest no pair is dropped.

    Raises
    ------
    ValueError : fewer than ``size`` pairs are trusted.
    """
    if size is not None:
        trustworthy = trusted(pairs, manifest)
        if not 1 <= size <= len(trustworthy):
            raise ValueError(f"{len(trustworthy)} pairs can be trusted, asked for {size}")
        drawn = np.random.default_rng([seed, 2]).permutation(len(trustworthy))[:size]
        return trustworthy.select(np.sort(drawn))
    if manifest is None:
        return pairs
    gone, ids = attacked(manifest) | set(manifest["id"][:]), pairs["id"][:]
    images = pairs.cast_column("image", ImageColumn(decode=False))["image"]
    read = [images[k] for k, id in enumerate(ids) if id in gone]
    files = {image["path"] for image in read if image["bytes"] is None}  # an embedded image belongs to one row
    paths = [image["path"] for image in images] if files else [None] * len(ids)
    return pairs.select([k for k, (id, path) in enumerate(zip(ids, paths)) if id not in gone and path not in files])


def from_manifest(manifest: Dataset) -> list[Attack]:
    """Return the attacks that a manifest records, in order of appearance."""
    specs = dict.fromkeys(manifest["attack"])
    return [load(**json.loads(spec)) for spec in specs]


def read(asked: Any) -> Dataset | list[Attack]:
    """Return attacks, or a manifest, that are given in any form.

    Parameters
    ----------
    asked : an attack; its name; its name and options as a mapping or as JSON, ``{"name": "badnets", "patch": 0.25}``; a
        list of these; or a manifest, as a table or as the path of its parquet file. Without pairs on which to choose a
        target, an attack that names none has ``targets.USUAL``.

    Raises
    ------
    ValueError : none of these, an unknown name or option, no attack at all, or a table that is no manifest.
    FileNotFoundError : no such parquet file.
    """
    if isinstance(asked, Path) or (isinstance(asked, str) and asked.endswith(".parquet")):
        if not Path(asked).is_file():
            raise FileNotFoundError(f"no manifest at {asked}")
        asked = Dataset.from_parquet(str(asked))
    if isinstance(asked, Dataset):
        if lacking := set(MANIFEST) - set(asked.column_names):
            raise ValueError(f"a manifest has the columns {', '.join(MANIFEST)}; this table lacks {', '.join(lacking)}")
        return asked
    each = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    if not each:
        raise ValueError("at least one attack is needed, got none")
    found = [as_attack(one) for one in each]
    return [one.aimed() if isinstance(one, Backdoor) else one for one in found]


def as_attack(asked: Any) -> Attack:
    """Return an attack that is given as itself, by its name, or by name and options; raises as ``read`` does."""
    return asked if isinstance(asked, Attack) else load(**named(asked))
