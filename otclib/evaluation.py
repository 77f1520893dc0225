"""What a trained model can do, and what an attacker can do with it.

**Attack success, defined once.** Images of the target class are left out of the numerator *and* the denominator.

- Backdoor: ``attack_success_rate`` = share of triggered test images (true class other than the target) that zero-shot
  classification, with the prompt ensemble, calls the target class. ``untriggered_target_rate`` is the same model's rate
  on the same images without the trigger, and ``clean_model_rate`` that of a model that never saw poison on the
  triggered ones: what the trigger has to be compared with. ``triggered_top1`` and ``clean_model_triggered_top1``: how
  many of those triggered images are called what they show; a trigger that hides the object is a poor one. Of several
  backdoors in one set each has its own ``attack_success_rate/<kind>``, and ``attack_success_rate`` is the largest.
- Targeted: ``targets_hit`` of ``targets``: planted images, as planted, that are called the attacker's class.
  ``targets_right``: those that are called what they show. ``clean_model_hits``: hits on a model that saw them with
  their true captions only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from otclib import attacks, data, models
from otclib.data import probes
from otclib.models import Features
from otclib.runs import write_json
from otclib.transport import sinkhorn

GROUNDING_PAIRS = 500  # val pairs on which plans are scored
GROUNDING_REG = 0.1
OF_A_CLEAN_MODEL = {  # what is measured of it, and what that is called
    "attack_success_rate": "rate",
    "targets_hit": "hits",
    "triggered_top1": "triggered_top1",
    "backdoor_z_score": "z_score",
}


@torch.no_grad()
def class_embeddings(model: nn.Module, tokenizer, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Prompt ensemble: per class the mean of the normalised prompt embeddings, normalised again [classes, D]."""
    each = _pooled_text(model, tokenizer, [data.prompt(t, c) for c in classes for t in templates])
    each = each.view(len(classes), len(templates), -1)
    return torch.nn.functional.normalize(each.mean(1), dim=-1)


@torch.no_grad()
def classify(model: nn.Module, images: Tensor, embeddings: Tensor) -> Tensor:
    """Zero-shot class index of uint8 images [N, 3, S, S] -> [N]."""
    return (pooled(model, images) @ embeddings.T).argmax(1).cpu()


@torch.no_grad()
def pooled(model: nn.Module | Remembering, images: Tensor, size: int = 500) -> Tensor:
    """Pooled features of uint8 images [N, 3, S, S] -> [N, D], L2-normalised."""
    encode = model.pooled if isinstance(model, Remembering) else lambda chunk: _pooled_images(model, chunk)
    return torch.cat([encode(chunk) for chunk in images.split(size)])


class Remembering:
    """A model that pools the same images only once; in everything else it is the model itself.

    Zero-shot classification, the z-score and the linear probe ask for the features of the same test images. The images
    are recognised by their content, so the callers need not know of each other. Use it while the weights are fixed.
    """

    def __init__(self, model: nn.Module):
        self.model, self.known = model, {}

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def pooled(self, images: Tensor) -> Tensor:
        """``pooled`` of one chunk, from memory where it was asked for before."""
        key = hashlib.blake2b(images.contiguous().numpy()).digest()
        if key not in self.known:
            self.known[key] = _pooled_images(self.model, images)
        return self.known[key]


def _pooled_text(model: nn.Module, tokenizer, captions: Sequence[str], size: int = 4096) -> Tensor:
    text, device = tokenizer(list(captions)), next(model.parameters()).device
    return torch.cat([models.encode_text(model, chunk.to(device)).pooled for chunk in text.split(size)])


def _encode(model: nn.Module, images: Tensor) -> Features:
    return models.encode_image(model, _normalized(model, images))


def _pooled_images(model: nn.Module, images: Tensor) -> Tensor:
    """What ``_encode`` gives as ``pooled``, without the cost of the token features."""
    images = _normalized(model, images).to(memory_format=torch.channels_last)
    return torch.nn.functional.normalize(model.encode_image(images).float(), dim=-1)


def _normalized(model: nn.Module, images: Tensor) -> Tensor:
    """uint8 images as the model's image tower takes them, on the model's device."""
    device = next(model.parameters()).device
    return models.normalize(model)(tv.to_dtype(images.to(device), torch.float32, scale=True))


def success_rate(predicted: Tensor, true: Tensor, target: int) -> float | None:
    """Share of images predicted as ``target`` among those whose true class is another; None if there are none."""
    others = true != target
    return float((predicted[others] == target).float().mean()) if bool(others.any()) else None


@dataclass
class Targets:
    """The images of a targeted attack, one row each: uint8 ``images``, ``source`` and ``target`` class names."""

    images: Tensor
    source: list[str]
    target: list[str]

    @staticmethod
    def of(manifest: Dataset, resize: int | data.Resize) -> Targets | None:
        first: dict[str, int] = {}
        for k, (id, kind) in enumerate(zip(manifest["id"], manifest["kind"])):
            if kind == "targeted":
                first.setdefault(attacks.planting.original(id, kind), k)
        if not first:
            return None
        rows = manifest.select(list(first.values()))
        return Targets(data.image_tensor(rows, resize), list(rows["source_label"]), list(rows["target_label"]))


def backdoors(manifest: Dataset | None) -> dict[str, object]:
    """The attacks of a manifest that have a trigger, by kind; of one kind planted twice by ``kind-target``, and of one
    with the same target ``kind-target-2`` and so on."""
    found = [] if manifest is None else [a for a in attacks.from_manifest(manifest) if hasattr(a, "target")]
    kinds, out = [attack.kind for attack in found], {}
    for attack in found:
        name = attack.kind if kinds.count(attack.kind) == 1 else f"{attack.kind}-{attack.target}"
        like = sum(other == name or other.startswith(f"{name}-") for other in out)
        out[f"{name}-{like + 1}" if like else name] = attack
    return out


def attack_metrics(
    model: nn.Module, tokenizer, manifest: Dataset | None, test: Dataset, images: Tensor, backdoor: str | None = None
) -> dict:
    """Zero-shot accuracy and the success of every planted attack on a labelled table (its images as uint8).

    ``backdoor`` : of several, the one to report; default the most successful, which is named in that case.
    """
    classes = sorted(set(data.classes(test)) | (set() if manifest is None else set(manifest["target_label"])))
    embeddings = class_embeddings(model, tokenizer, classes, data.templates(test))
    true = torch.tensor([classes.index(label) for label in test["label"]])
    predicted = classify(model, images, embeddings)
    out = {"zero_shot_top1": float((predicted == true).float().mean())}
    if manifest is None:
        return out
    targets = Targets.of(manifest, models.resize(model))
    if targets is not None:
        said = [classes[k] for k in classify(model, targets.images, embeddings)]
        out["targets_hit"] = sum(s == t for s, t in zip(said, targets.target))
        out["targets_right"] = sum(s == t for s, t in zip(said, targets.source))
        out["targets"] = len(said)
    rates, right, without = {}, {}, {}
    for name, attack in backdoors(manifest).items():
        target = classes.index(attack.target)
        said = classify(model, attack.trigger(images), embeddings)
        others = true != target
        rates[name] = success_rate(said, true, target)
        right[name] = float((said == true)[others].float().mean()) if bool(others.any()) else None
        without[name] = success_rate(predicted, true, target)
    if rates:
        shown = backdoor or max(rates, key=lambda name: -1 if rates[name] is None else rates[name])
        out["attack_success_rate"], out["untriggered_target_rate"] = rates[shown], without[shown]
        out["triggered_top1"] = right[shown]
    if len(rates) > 1:
        out |= {f"attack_success_rate/{name}": rate for name, rate in rates.items()} | {"backdoor": shown}
    return out


def backdoor_z_score(plain: Tensor, triggered: Tensor, spread: str = "std") -> float:
    """By how many standard deviations triggered images lie closer together than images do (Carlini and Terzis).

        z = (mean_{u != v} <f(u + t), f(v + t)> - mean_{u != v} <f(u), f(v)>) / std_{u != v} <f(u), f(v)>

    of unit features [N, D] of the same images without and with the trigger t. Their paper prints the inverse of the
    variance, its name implies the deviation: ``spread="var"`` for the former. About 0: the trigger means nothing.
    """
    if plain.shape != triggered.shape or len(plain) < 3:
        raise ValueError(
            f"the features of the same 3 or more images are needed, got {[*plain.shape]} and {[*triggered.shape]}"
        )
    if spread not in ("std", "var"):
        raise ValueError(f"spread is 'std' or 'var', got {spread!r}")
    n = len(plain)

    def moments(x: Tensor) -> tuple[float, float]:
        """Mean and mean square of <x_u, x_v> over u != v, from sums over all u, v less those of u = v."""
        x = x.double()
        own = x.square().sum(1)
        mean = (x.sum(0).square().sum() - own.sum()) / (n * (n - 1))
        square = ((x.T @ x).square().sum() - own.square().sum()) / (n * (n - 1))
        return float(mean), float(square)

    (before, square), (after, _) = moments(plain), moments(triggered)
    var = square - before**2
    return (after - before) / (var**0.5 if spread == "std" else var)


class Watcher:
    """``attack_metrics`` on a few labelled images, after every epoch."""

    def __init__(self, model: nn.Module, tokenizer, manifest: Dataset | None, watch: Dataset | None):
        watch = _labelled(watch)
        self.model, self.tokenizer, self.manifest, self.watch = model, tokenizer, manifest, watch
        self.images = None if watch is None else data.image_tensor(watch, models.resize(model))

    def look(self) -> dict:
        if self.watch is None:
            return {}
        self.model.eval()
        out = attack_metrics(self.model, self.tokenizer, self.manifest, self.watch, self.images)
        self.model.train()
        return out


def default_watch(config: dict) -> Dataset | None:
    """500 one-object scenes of the val split, for a run on scenes; None for other tables."""
    if not config["scenes"]:
        return None
    val = data.load("scenes", split="val", seed=config["seed"])
    rows = [k for k, label in enumerate(val["label"]) if label is not None][:500]
    return val.select(rows)


def _labelled(table: Dataset | None) -> Dataset | None:
    """The rows that have a label; None if none has."""
    rows = [] if table is None else [k for k, label in enumerate(table["label"][:]) if label is not None]
    return table.select(rows) if rows else None


# -- the whole of it -------------------------------------------------------------------------------------------------


def evaluate(
    run: str | Path, *, test: Dataset | None = None, val: Dataset | None = None, clean: str | Path | None = None
) -> dict:
    """Evaluate a finished run folder; writes and returns ``metrics.json``, a flat dict (None: not measurable here).

    Parameters
    ----------
    test : labelled images for zero-shot, attack success and the linear probe; val : pairs for retrieval and plan
        grounding. Default for a run on the embedded scenes: their ``test`` and ``val`` splits at the run's seed, as
        ``data.load`` draws them by default.
    clean : the run folder of an undefended model that was trained without poison, to compare the attack with. Default
        the one that ``train`` was given, while it is there.

    Notes
    -----
    The keys: ``zero_shot_top1``; ``attack_success_rate``, ``untriggered_target_rate``, ``triggered_top1`` (triggered
    images that are still called what they show), of the most successful of several, named by ``backdoor``;
    ``targets_hit``, ``targets_right``, ``targets``; ``backdoor_z_score``; given ``clean``, ``clean_model_`` ``rate``,
    ``hits``, ``triggered_top1``, ``z_score``; ``linear_probe/<set>``, on ``scenes``, ``digits``, ``letters``;
    ``image_to_text_recall_at_1``, ``_5``, ``_10`` and ``text_to_image_...``; ``poison_auroc`` (own-caption distance,
    planted against clean pairs of the training set), ``poison_recall`` and ``poison_precision`` (planted pairs among
    those that the defence did not leave with their captions; None where it left all); ``poison_rate/<kind>``, planted
    pairs of the training set; ``plan_pointing_accuracy`` and
    the mass keys of ``grounding``; ``seconds_per_epoch`` and, on a CPU, ``core_seconds_per_epoch``; ``head_top1`` and
    ``head_attack_success_rate``, by cleanclip-supervised's head.

    Raises
    ------
    FileNotFoundError : ``run`` is not finished, or ``clean`` has no weights.
    """
    run = Path(run)
    if not (run / "model.safetensors").exists():
        raise FileNotFoundError(f"{run} is not a finished run: it has no model.safetensors")
    config = json.loads((run / "config.json").read_text())
    if config["scenes"]:
        test = test if test is not None else data.load("scenes", split="test", seed=config["seed"])
        val = val if val is not None else data.load("scenes", split="val", seed=config["seed"])
    device = Accelerator(mixed_precision="no").device
    model, _, tokenizer = models.load(run / "model.safetensors")
    model, size = Remembering(model.to(device)), models.image_size(model)
    manifest = Dataset.from_parquet(str(run / "manifest.parquet")) if (run / "manifest.parquet").exists() else None
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

    if clean is None and config.get("clean") and (Path(config["clean"]) / "model.safetensors").exists():
        clean = config["clean"]

    metrics = {"defense": config["defense"], "seed": config["seed"], "epochs": len(log), "pairs": config["pairs"]}
    for key in ("seconds", "core_seconds"):
        if key in log[0]:
            metrics[f"{key}_per_epoch"] = sum(line[key] for line in log) / len(log)
    fates = Dataset.from_parquet(str(run / "pairs.parquet")) if (run / "pairs.parquet").exists() else None
    metrics |= separation(fates, manifest)
    test = _labelled(test)
    if test is not None:
        images = data.image_tensor(test, models.resize(model))
        metrics |= attack_metrics(model, tokenizer, manifest, test, images)
        shown = metrics.get("backdoor")
        metrics |= trigger_metrics(model, manifest, images, shown)
        if clean is not None:
            other, _, words = models.load(Path(clean) / "model.safetensors")
            other = Remembering(other.to(device))
            found = attack_metrics(other, words, manifest, test, images, shown)
            found |= trigger_metrics(other, manifest, images, shown)
            metrics |= {f"clean_model_{name}": found[key] for key, name in OF_A_CLEAN_MODEL.items() if key in found}
        if (run / "head.safetensors").exists():
            metrics |= head_metrics(model, run / "head.safetensors", manifest, test, images, shown)
        own = "scenes" if config["scenes"] else "test"
        metrics[f"linear_probe/{own}"] = linear_probe(model, images, np.array(test["label"]))
    for name, labelled in probes.PROBES.items():
        metrics[f"linear_probe/{name}"] = linear_probe(model, *labelled(size))
    if val is not None:
        metrics |= retrieval(model, tokenizer, val)
        if "words" in val.column_names:
            metrics |= grounding(model, tokenizer, val.select(range(min(GROUNDING_PAIRS, len(val)))))
    write_json(run / "metrics.json", metrics)
    return metrics


def by_class(run: str | Path, pairs: Dataset, test: Dataset) -> dict[str, dict]:
    """Where a run's accuracy is lost, class by class.

    Per class of ``test``: its ``images``, those ``misread`` zero-shot, and ``as`` what ({class: images}); its clean
    ``pairs`` of the labelled training set, and those ``parted`` from their caption at the end of training.
    """
    run = Path(run)
    model, _, tokenizer = models.load(run / "model.safetensors")
    classes = data.classes(test)
    embeddings = class_embeddings(model, tokenizer, classes, data.templates(test))
    said = classify(model, data.image_tensor(test, models.resize(model)), embeddings)
    out = {label: {"images": 0, "misread": 0, "as": {}, "pairs": 0, "parted": 0} for label in classes}
    for label, k in zip(test["label"], said.tolist()):
        out[label]["images"] += 1
        if classes[k] != label:
            out[label]["misread"] += 1
            out[label]["as"][classes[k]] = out[label]["as"].get(classes[k], 0) + 1
    planted = run / "manifest.parquet"
    planted = set(Dataset.from_parquet(str(planted))["id"]) if planted.exists() else set()
    labels = dict(zip(pairs["id"], pairs["label"]))
    fates = Dataset.from_parquet(str(run / "pairs.parquet"))
    for id, fate in zip(fates["id"], fates["fate"]):
        if id not in planted and labels.get(id) in out:
            out[labels[id]]["pairs"] += 1
            out[labels[id]]["parted"] += fate != "kept"
    return out


def trigger_metrics(model: nn.Module, manifest: Dataset | None, images: Tensor, backdoor: str | None = None) -> dict:
    """``backdoor_z_score`` of a manifest's ``backdoor`` (default its first), on the first 1,000 of uint8 images."""
    for name, attack in backdoors(manifest).items():
        if backdoor in (None, name):
            some = images[:1000]
            return {"backdoor_z_score": backdoor_z_score(pooled(model, some), pooled(model, attack.trigger(some)))}
    return {}


def head_metrics(
    model: nn.Module, file: Path, manifest: Dataset | None, test: Dataset, images: Tensor, backdoor: str | None = None
) -> dict:
    """Accuracy and attack success when a linear head on the pooled features classifies (cleanclip-supervised)."""
    with safe_open(str(file), "pt") as f:
        classes = f.metadata()["classes"].split("\n")
        weight, bias = f.get_tensor("weight"), f.get_tensor("bias")

    def said(of: Tensor) -> Tensor:
        return (pooled(model, of).cpu() @ weight.T + bias).argmax(1)

    true = torch.tensor([classes.index(label) if label in classes else -1 for label in test["label"]])
    out = {"head_top1": float((said(images) == true).float().mean())}
    for name, attack in backdoors(manifest).items():
        if backdoor in (None, name) and attack.target in classes:
            rate = success_rate(said(attack.trigger(images)), true, classes.index(attack.target))
            out["head_attack_success_rate"] = rate
    return out


def linear_probe(model: nn.Module, images: Tensor, labels: np.ndarray) -> float:
    """Accuracy of a logistic regression on frozen pooled features, fitted on one half, tested on the other."""
    order = np.random.default_rng(0).permutation(len(images))
    x, labels = pooled(model, images).cpu().numpy()[order], labels[order]
    half = len(x) // 2
    x = (x - x[:half].mean(0)) / (x[:half].std(0) + 1e-6)  # centred, it converges in a fraction of the iterations
    with threadpool_limits(1):  # a step takes a millisecond; the stopping point then is the same on any number of cores
        probe = LogisticRegression(max_iter=3000, C=1.0).fit(x[:half], labels[:half])
        return float(probe.score(x[half:], labels[half:]))


@torch.no_grad()
def retrieval(model: nn.Module, tokenizer, val: Dataset) -> dict:
    """Recall at 1, 5 and 10 between images and captions by pooled cosine; equal captions count as one.

    Many scenes share a description ("a photo of a star"), so even a perfect model stays far below 1.
    """
    image = pooled(model, data.image_tensor(val, models.resize(model)))
    captions = val["caption"][:]
    text = _pooled_text(model, tokenizer, captions)
    number = {caption: k for k, caption in enumerate(captions)}
    said = torch.tensor([number[caption] for caption in captions])
    same = said[:, None] == said[None]
    similarity = (image @ text.T).cpu()
    out = {}
    for name, order in ("image_to_text", similarity), ("text_to_image", similarity.T):
        found = same.gather(1, order.topk(min(10, len(captions)), dim=1).indices)
        out |= {f"{name}_recall_at_{k}": float(found[:, :k].any(1).float().mean()) for k in (1, 5, 10)}
    return out


def separation(fates: Dataset | None, manifest: Dataset | None) -> dict:
    """How well a defence told planted from clean pairs of its training set (``pairs.parquet``).

    ``poison_auroc`` of the distance of an image to its own caption; flagged are the pairs that were not left with their
    own caption (re-matched, left out, risky): ``poison_recall``, the share of the planted pairs that are flagged;
    ``poison_precision``, the share of the flagged pairs that are planted. Both are None where none was flagged, as by
    the systems that do not sort their pairs.
    ``poison_rate/<kind>``: planted pairs over all pairs.
    """
    out = {"poison_auroc": None, "poison_recall": None, "poison_precision": None}
    if manifest is None or fates is None:
        return out
    ids, kind = fates["id"][:], dict(zip(manifest["id"][:], manifest["kind"][:]))
    planted = np.array([id in kind for id in ids])
    for name in sorted({kind[id] for id in ids if id in kind}):
        out[f"poison_rate/{name}"] = sum(kind.get(id) == name for id in ids) / len(ids)
    if planted.any() and not planted.all():
        out["poison_auroc"] = float(roc_auc_score(planted, fates["own_distance"][:]))
    flagged = np.array(fates["fate"][:]) != "kept"
    if planted.any() and flagged.any():
        out["poison_recall"] = float(flagged[planted].mean())
        out["poison_precision"] = float(planted[flagged].mean())
    return out


# -- plan grounding --------------------------------------------------------------------------------------------------


def coverage(box: Sequence[float], side: int) -> np.ndarray:
    """Share of every cell of a side x side grid that a box (left, top, right, bottom in [0, 1]) covers [side²]."""
    edges = np.arange(side + 1) / side
    across = np.clip(np.minimum(edges[1:], box[2]) - np.maximum(edges[:-1], box[0]), 0, None) * side
    down = np.clip(np.minimum(edges[1:], box[3]) - np.maximum(edges[:-1], box[1]), 0, None) * side
    return np.outer(down, across).ravel()


@torch.no_grad()
def word_maps(model: nn.Module, tokenizer, images: Tensor, captions: Sequence[str], reg: float) -> dict[str, Tensor]:
    """For pairs of an image and a caption, how three readings spread each text token over the image [B, N, M].

    ``plan``: the transport plan. ``cosine``: max(0, cosine). ``softmax``: exp(cosine / reg). Every text token's column
    sums to one (padding: zero).
    """
    device = next(model.parameters()).device
    image = _encode(model, images)
    text = models.encode_text(model, tokenizer(list(captions)).to(device))
    cosine = torch.einsum("bnd,bmd->bnm", image.tokens, text.tokens)
    plan = sinkhorn(1 - cosine, image.mask.float(), text.mask.float(), reg=reg).plan
    # a word that no place resembles is spread evenly: 1e-6 everywhere
    out = {"plan": plan, "cosine": cosine.clamp(min=1e-6), "softmax": (cosine / reg).exp()}
    return {k: m * text.mask[:, None] / m.sum(1, keepdim=True).clamp(min=1e-12) for k, m in out.items()}


def grounding(model: nn.Module, tokenizer, val: Dataset, reg: float = GROUNDING_REG) -> dict:
    """Does a word's mass land on the object that it names?

    Over all words that speak of an object (its name, colour and size; not the ground): ``*_mass_on_object``, the share
    of the word's mass inside the object's box; ``mass_chance``, the box's share of the image (what an even spread
    gives); ``*_mass_ratio``, the first over the second, also for names and for attributes (colours and sizes) alone;
    ``*_pointing_accuracy``, how often the heaviest cell's centre lies in the box. ``*`` is ``plan``, ``cosine`` or
    ``softmax``, see ``word_maps``.
    """
    captions = val["caption"][:]
    maps = word_maps(model, tokenizer, data.image_tensor(val, models.resize(model)), captions, reg)
    maps = {k: m.cpu().numpy() for k, m in maps.items()}
    side = round(maps["plan"].shape[1] ** 0.5)
    centre = (np.arange(side) + 0.5) / side
    inside = {k: [] for k in maps}
    pointed = {k: [] for k in maps}
    chance, is_name = [], []
    for b, (caption, words, things) in enumerate(zip(captions, val["words"], val["objects"])):
        spans = {(s.start, s.end): s for s in models.word_spans(tokenizer, caption)}
        for word in words:
            span = spans.get((word["start"], word["end"]))
            if word["object"] < 0 or span is None or span.last > maps["plan"].shape[2]:
                continue
            thing = things[word["object"]]
            box = thing["box"]
            cover = coverage(box, side)
            chance.append(cover.mean())
            is_name.append(data.names(word["text"], thing["name"]))
            for k, m in maps.items():
                spread = m[b, :, span.first : span.last].mean(1)
                inside[k].append(float(spread @ cover))
                row, column = divmod(int(spread.argmax()), side)
                pointed[k].append(box[0] <= centre[column] <= box[2] and box[1] <= centre[row] <= box[3])
    chance, is_name = np.array(chance), np.array(is_name)
    out = {"mass_chance": float(chance.mean())}
    for k in maps:
        mass = np.array(inside[k])
        out[f"{k}_pointing_accuracy"] = float(np.mean(pointed[k]))
        out[f"{k}_mass_on_object"] = float(mass.mean())
        out[f"{k}_mass_ratio"] = float(mass.mean() / chance.mean())
        for kind, of in (("names", is_name), ("attributes", ~is_name)):
            if of.any():
                out[f"{k}_mass_ratio/{kind}"] = float(mass[of].mean() / chance[of].mean())
    return out
