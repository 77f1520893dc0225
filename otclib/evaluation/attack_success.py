"""What a trained model can do, and what an attacker can do with it.

**Attack success, defined once.** Images of the target class are left out of the numerator *and* the denominator.

- Backdoor: ``attack_success_rate`` = share of triggered test images (true class other than the target) that zero-shot
  classification, with the prompt ensemble, calls the target class. Two rates are there to compare it with:
  ``untriggered_target_rate`` is that of the same model on the same images without the trigger, and
  ``clean_model_rate`` that of a model that never saw poison on the triggered images. ``triggered_top1`` and
  ``clean_model_triggered_top1`` are the shares of those triggered images that are called what they show; they are low
  for a trigger that hides the object. If one set has several backdoors, each has its own
  ``attack_success_rate/<kind>``, and ``attack_success_rate`` is the largest. ``triggered_images`` is the number of
  images that these rates are of; with several backdoors also ``triggered_images/<kind>``, because targets differ.
- Targeted: ``targets_hit`` of ``targets`` planted images, as first planted, are called the attacker's class.
  ``targets_right`` are called what they show. ``clean_model_hits`` are hits on a model that saw these images with their
  true captions only. They count the images of all attacks that choose images (``targeted``, ``toxic-text``). If one set
  has several kinds, each has its own ``targets_hit/<kind>`` and ``targets/<kind>`` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from safetensors import safe_open
from torch import Tensor, nn

from otclib import attacks, data, models
from otclib.evaluation.zero_shot import class_embeddings, classify, pooled

Planted: TypeAlias = Dataset | Sequence[attacks.Attack] | None  # a manifest, or attacks alone: a trigger and a target


def success_rate(predicted: Tensor, true: Tensor, target: int) -> float | None:
    """Return the share of images predicted as ``target`` among those whose true class is another; None if none is.

    The last of these images shows the target class itself, so it is not counted.

    >>> predicted, true = torch.tensor([2, 2, 0, 2]), torch.tensor([0, 1, 0, 2])
    >>> print(f"{success_rate(predicted, true, target=2):.3f}")
    0.667
    """
    others = true != target
    return float((predicted[others] == target).float().mean()) if bool(others.any()) else None


@dataclass
class Targets:
    """The images of targeted attacks, one row each: ``kind``, uint8 ``images``, ``source`` and ``target`` classes."""

    kind: list[str]
    images: Tensor
    source: list[str]
    target: list[str]

    @staticmethod
    def of(manifest: Dataset, resize: int | data.Resize) -> Targets | None:
        first: dict[str, int] = {}
        for k, (id, kind) in enumerate(zip(manifest["id"], manifest["kind"])):
            if attacks.plants_copies(kind):
                first.setdefault(attacks.original(id, kind), k)
        if not first:
            return None
        rows = manifest.select(list(first.values()))
        images, names = data.image_tensor(rows, resize), ("kind", "source_label", "target_label")
        kind, source, target = (list(rows[name]) for name in names)
        return Targets(kind, images, source, target)


def backdoors(planted: Planted) -> dict[str, attacks.Triggered]:
    """Return those attacks that have a trigger, by kind.

    A kind that is planted twice is named ``kind-target``, and with the same target ``kind-target-2`` and so on.
    """
    each = attacks.from_manifest(planted) if isinstance(planted, Dataset) else planted or ()
    found = [attack for attack in each if isinstance(attack, attacks.Triggered)]
    kinds = [attack.kind for attack in found]
    out: dict[str, attacks.Triggered] = {}
    for attack in found:
        name = attack.kind if kinds.count(attack.kind) == 1 else f"{attack.kind}-{attack.target}"
        like = sum(other == name or other.startswith(f"{name}-") for other in out)
        out[f"{name}-{like + 1}" if like else name] = attack
    return out


def targets_of(planted: Planted) -> set[str]:
    """Return the classes that the attacks ask for."""
    if isinstance(planted, Dataset):
        return set(planted["target_label"])
    return {attack.target for attack in backdoors(planted).values()}


def attack_metrics(
    model: nn.Module,
    tokenizer: models.Tokenizer,
    planted: Planted,
    test: Dataset,
    images: Tensor,
    backdoor: str | None = None,
) -> dict:
    """Return zero-shot accuracy and the success of every attack on a labelled table (its images as uint8).

    The classes are those of the table and the targets of the attacks. A targeted attack is measured on the images of
    its manifest.

    ``backdoor`` : the one of several to report; default the most successful one. The result names it then.
    """
    classes = sorted(set(data.classes(test)) | targets_of(planted))
    embeddings = class_embeddings(model, tokenizer, classes, data.templates(test))
    true = torch.tensor([classes.index(label) for label in test["label"]])
    predicted = classify(model, images, embeddings)
    out: dict[str, Any] = {"zero_shot_top1": float((predicted == true).float().mean()), "test_images": len(true)}
    targets = Targets.of(planted, models.resize(model)) if isinstance(planted, Dataset) else None
    if targets is not None:
        called = [classes[k] for k in classify(model, targets.images, embeddings)]
        hit = [said == target for said, target in zip(called, targets.target)]
        out["targets_hit"] = sum(hit)
        out["targets_right"] = sum(s == t for s, t in zip(called, targets.source))
        out["targets"] = len(called)
        kinds = dict.fromkeys(targets.kind)
        for each in kinds if len(kinds) > 1 else ():
            out[f"targets_hit/{each}"] = sum(one for one, kind in zip(hit, targets.kind) if kind == each)
            out[f"targets/{each}"] = targets.kind.count(each)
    rates: dict[str, float | None] = {}
    right: dict[str, float | None] = {}
    without: dict[str, float | None] = {}
    images_of: dict[str, int] = {}
    for name, attack in backdoors(planted).items():
        target = classes.index(attack.target)
        said = classify(model, attack.trigger(images), embeddings)
        others = true != target
        images_of[name] = int(others.sum())
        rates[name] = success_rate(said, true, target)
        right[name] = float((said == true)[others].float().mean()) if bool(others.any()) else None
        without[name] = success_rate(predicted, true, target)
    if rates:
        shown = backdoor or max(rates, key=lambda name: -1 if (rate := rates[name]) is None else rate)
        out["attack_success_rate"], out["untriggered_target_rate"] = rates[shown], without[shown]
        out["triggered_top1"], out["triggered_images"] = right[shown], images_of[shown]
    if len(rates) > 1:
        out |= {f"attack_success_rate/{name}": rate for name, rate in rates.items()} | {"backdoor": shown}
        out |= {f"triggered_images/{name}": n for name, n in images_of.items()}
    return out


def backdoor_z_score(plain: Tensor, triggered: Tensor, spread: str = "std") -> float:
    """Return by how many standard deviations triggered images lie closer together (Carlini and Terzis).

        z = (mean_{u != v} <f(u + t), f(v + t)> - mean_{u != v} <f(u), f(v)>) / std_{u != v} <f(u), f(v)>

    f are unit features [N, D] of the same images without and with the trigger t. Near 0 the trigger means nothing. The
    formula in their paper divides by the variance (``spread="var"``), but the name z-score implies the deviation.
    """
    if plain.shape != triggered.shape or len(plain) < 3:
        raise ValueError(
            f"the features of the same 3 or more images are needed, got {[*plain.shape]} and {[*triggered.shape]}"
        )
    if spread not in ("std", "var"):
        raise ValueError(f"spread is 'std' or 'var', got {spread!r}")
    n = len(plain)

    def moments(x: Tensor) -> tuple[float, float]:
        """Return mean and mean square of <x_u, x_v> over u != v: sums over all u, v less those of u = v."""
        x = x.double()
        own = x.square().sum(1)
        mean = (x.sum(0).square().sum() - own.sum()) / (n * (n - 1))
        square = ((x.T @ x).square().sum() - own.square().sum()) / (n * (n - 1))
        return float(mean), float(square)

    (before, square), (after, _) = moments(plain), moments(triggered)
    var = square - before**2
    return (after - before) / (var**0.5 if spread == "std" else var)


def trigger_metrics(model: nn.Module, planted: Planted, images: Tensor, backdoor: str | None = None) -> dict:
    """Return ``backdoor_z_score`` of one ``backdoor`` (default the first) on the first 1,000 uint8 images.

    It is None for fewer than 3 images.
    """
    for name, attack in backdoors(planted).items():
        if backdoor in (None, name):
            some = images[:1000]
            both = pooled(model, some), pooled(model, attack.trigger(some))
            return {"backdoor_z_score": backdoor_z_score(*both) if len(some) > 2 else None}
    return {}


def head_metrics(
    model: nn.Module, file: Path, planted: Planted, test: Dataset, images: Tensor, backdoor: str | None = None
) -> dict:
    """Return accuracy and attack success of a linear head on the pooled features (cleanclip-supervised)."""
    with safe_open(str(file), "pt") as f:
        classes = f.metadata()["classes"].split("\n")
        weight, bias = f.get_tensor("weight"), f.get_tensor("bias")

    def said(of: Tensor) -> Tensor:
        return (pooled(model, of).cpu() @ weight.T + bias).argmax(1)

    true = torch.tensor([classes.index(label) if label in classes else -1 for label in test["label"]])
    out: dict[str, float | None] = {"head_top1": float((said(images) == true).float().mean())}
    for name, attack in backdoors(planted).items():
        if backdoor in (None, name) and attack.target in classes:
            rate = success_rate(said(attack.trigger(images)), true, classes.index(attack.target))
            out["head_attack_success_rate"] = rate
    return out
