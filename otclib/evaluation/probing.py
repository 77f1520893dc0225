"""Further measures of the features: linear probes, retrieval, and how well planted pairs are found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from otclib import data, models
from otclib.evaluation.zero_shot import class_embeddings, classify, pooled, pooled_text


def by_class(runs: Iterable[tuple[str | Path, Dataset, Dataset]]) -> dict[str, dict]:
    """Return the mistakes of some runs class by class, summed over the runs; the most misread class comes first.

    For each class of the test images: the number of its ``images``, of those ``misread`` zero-shot, and ``as`` which
    class ({class: images}); the number of its clean ``pairs`` in the labelled training set, and of those ``not_kept``
    at the end of training.

    ``runs`` : for each run its folder, its clean pairs and its labelled test images.
    """
    out: dict[str, dict] = {}
    for folder, pairs, test in runs:
        run = Path(folder)
        model, _, tokenizer = models.load(run / "model.safetensors")
        classes = data.classes(test)
        embeddings = class_embeddings(model, tokenizer, classes, data.templates(test))
        said = classify(model, data.image_tensor(test, models.resize(model)), embeddings)
        for label in classes:
            out.setdefault(label, {"images": 0, "misread": 0, "as": {}, "pairs": 0, "not_kept": 0})
        for label, k in zip(test["label"], said.tolist()):
            out[label]["images"] += 1
            if classes[k] != label:
                out[label]["misread"] += 1
                out[label]["as"][classes[k]] = out[label]["as"].get(classes[k], 0) + 1
        manifest = run / "manifest.parquet"
        planted = set(Dataset.from_parquet(str(manifest))["id"]) if manifest.exists() else set()
        labels = dict(zip(pairs["id"], pairs["label"]))
        fates = Dataset.from_parquet(str(run / "pairs.parquet"))
        for id, fate in zip(fates["id"], fates["fate"]):
            if id not in planted and labels.get(id) in out:
                out[labels[id]]["pairs"] += 1
                out[labels[id]]["not_kept"] += fate != "kept"
    return dict(sorted(out.items(), key=lambda item: -item[1]["misread"]))


def linear_probe(model: nn.Module, images: Tensor, labels: np.ndarray) -> float:
    """Return the accuracy of a logistic regression on frozen pooled features, fitted and tested on one half each."""
    order = np.random.default_rng(0).permutation(len(images))
    x, labels = pooled(model, images).cpu().numpy()[order], labels[order]
    half = len(x) // 2
    x = (x - x[:half].mean(0)) / (x[:half].std(0) + 1e-6)  # centred, it converges in a fraction of the iterations
    with threadpool_limits(1):  # a step takes a millisecond; so the result does not depend on the number of cores
        probe = LogisticRegression(max_iter=3000, C=1.0).fit(x[:half], labels[:half])
        return float(probe.score(x[half:], labels[half:]))


@torch.no_grad()
def retrieval(model: nn.Module, tokenizer: models.Tokenizer, val: Dataset) -> dict:
    """Return recall at 1, 5 and 10 between images and captions of ``val_pairs`` pairs by pooled cosine.

    Equal captions count as one.

    Many scenes share a description ("a photo of a star"), so even a perfect model stays far below 1.
    """
    image = pooled(model, data.image_tensor(val, models.resize(model)))
    captions = val["caption"][:]
    text = pooled_text(model, tokenizer, captions)
    number = {caption: k for k, caption in enumerate(captions)}
    said = torch.tensor([number[caption] for caption in captions])
    same = said[:, None] == said[None]
    similarity = (image @ text.T).cpu()
    out: dict[str, float] = {"val_pairs": len(captions)}
    for name, order in ("image_to_text", similarity), ("text_to_image", similarity.T):
        found = same.gather(1, order.topk(min(10, len(captions)), dim=1).indices)
        out |= {f"{name}_recall_at_{k}": float(found[:, :k].any(1).float().mean()) for k in (1, 5, 10)}
    return out


def separation(fates: Dataset | None, manifest: Dataset | None) -> dict:
    """Return how well a defence separated planted from clean pairs of its training set (``pairs.parquet``).

    A pair is flagged if it was not kept (re-matched, left out, risky). That is the system's own threshold.
    ``otcclip-plus`` draws one of several copies of an image in each epoch. The others are flagged, too.

    - ``poison_auroc``: of the distance of an image to its own caption, planted against clean pairs.
    - ``poison_recall``: the share of the planted pairs that are flagged.
    - ``poison_precision``: the share of the flagged pairs that are planted. This and the recall are None if no pair is
      flagged, as under the systems that do not select pairs.
    - ``poison_kept``, ``clean_kept``: the share of the planted, and of the clean pairs that are kept.
    - ``poison_count/<kind>``: planted pairs; ``poison_rate/<kind>``: the same over all pairs.

    If several kinds of attack are planted, each also has ``poison_auroc/<kind>``, ``poison_recall/<kind>``,
    ``poison_precision/<kind>`` and ``poison_kept/<kind>``. They are what they would be if the pairs of the other kinds
    were not in the set. So the precision of a kind is the share of its pairs among the flagged pairs that are of this
    kind or clean.
    """
    if manifest is None or fates is None:
        return {"poison_auroc": None, "poison_recall": None, "poison_precision": None}
    kind = dict(zip(manifest["id"][:], manifest["kind"][:]))
    kinds = np.array([kind.get(id, "") for id in fates["id"][:]])
    flagged, distance, clean = np.array(fates["fate"][:]) != "kept", np.array(fates["own_distance"][:]), kinds == ""
    planted = sorted(set(kinds[~clean].tolist()))
    out = _separated(~clean, clean, flagged, distance)
    if planted and clean.any():
        out["clean_kept"] = float((~flagged[clean]).mean())
    for name in planted:
        own = kinds == name
        out |= {f"poison_count/{name}": int(own.sum()), f"poison_rate/{name}": float(own.mean())}
        if len(planted) > 1:
            out |= {f"{key}/{name}": value for key, value in _separated(own, clean, flagged, distance).items()}
    return out


def _separated(planted: np.ndarray, clean: np.ndarray, flagged: np.ndarray, distance: np.ndarray) -> dict:
    """Return how well planted pairs were separated from clean ones, all as ``separation`` defines it [N]."""
    out: dict[str, float | None] = {"poison_auroc": None, "poison_recall": None, "poison_precision": None}
    both = planted | clean
    if planted.any():
        out["poison_kept"] = float((~flagged[planted]).mean())
        if clean.any():
            out["poison_auroc"] = float(roc_auc_score(planted[both], distance[both]))
        if flagged.any():
            out["poison_recall"] = float(flagged[planted].mean())
        if flagged[both].any():
            out["poison_precision"] = float(planted[flagged & both].mean())
    return out
