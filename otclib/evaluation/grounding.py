"""Grounding: score how much of a word's mass lands on the object that it names, on scenes whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn

from otclib import data, models
from otclib.evaluation.zero_shot import encode
from otclib.transport import sinkhorn

GROUNDING_REG = 0.1


def visible(thing: Mapping, side: int) -> np.ndarray:
    """Return the share of each cell of a side x side grid that shows an object [side²], by its mask or its box."""
    if thing.get("mask") is None:
        return coverage(thing["box"], side)
    mask = Image.fromarray(data.emoji.mask(thing)).convert("F").resize((side, side), Image.Resampling.BOX)
    return np.asarray(mask).ravel() / 255


def coverage(box: Sequence[float], side: int) -> np.ndarray:
    """Return the share of each cell of a side x side grid under a box (left, top, right, bottom in [0, 1]) [side²]."""
    edges = np.arange(side + 1) / side
    across = np.clip(np.minimum(edges[1:], box[2]) - np.maximum(edges[:-1], box[0]), 0, None) * side
    down = np.clip(np.minimum(edges[1:], box[3]) - np.maximum(edges[:-1], box[1]), 0, None) * side
    return np.outer(down, across).ravel()


@torch.no_grad()
def word_maps(
    model: nn.Module, tokenizer: models.Tokenizer, images: Tensor, captions: Sequence[str], reg: float
) -> dict[str, Tensor]:
    """Return how three readings spread each text token over the image, for pairs of an image and a caption [B, N, M].

    ``plan`` is the transport plan, ``cosine`` is max(0, cosine), and ``softmax`` is exp(cosine / reg). Every text
    token's column sums to one (padding: zero).
    """
    device = next(model.parameters()).device
    image = encode(model, images)
    text = models.encode_text(model, tokenizer(list(captions)).to(device))
    cosine = torch.einsum("bnd,bmd->bnm", image.tokens, text.tokens)
    plan = sinkhorn(1 - cosine, image.mask.float(), text.mask.float(), reg=reg).plan
    # a word that is like no place is spread evenly: 1e-6 everywhere
    out = {"plan": plan, "cosine": cosine.clamp(min=1e-6), "softmax": (cosine / reg).exp()}
    return {k: m * text.mask[:, None] / m.sum(1, keepdim=True).clamp(min=1e-12) for k, m in out.items()}


def grounding(model: nn.Module, tokenizer: models.Tokenizer, val: Dataset, reg: float = GROUNDING_REG) -> dict:
    """Return how much of a word's mass lands on the object that it names or describes.

    All values are means over the words of objects (name, colour and size; not the ground). ``*`` is ``plan``,
    ``cosine`` or ``softmax``, see ``word_maps``.

    - ``*_mass_on_object``: the share of the word's mass inside the object's mask (``emoji-scenes``) or box.
    - ``mass_chance``: the share of the image that this is, which is what an even spread gives.
    - ``*_mass_ratio``: the first over the second; also for names and for attributes (colours and sizes) alone.
    - ``*_pointing_accuracy``: how often the centre of the heaviest cell lies in the box.
    - ``located_words``: the number of these words.
    """
    captions = val["caption"][:]
    images = data.image_tensor(val, models.resize(model))
    maps = {k: m.cpu().numpy() for k, m in word_maps(model, tokenizer, images, captions, reg).items()}
    side = round(maps["plan"].shape[1] ** 0.5)
    centre = (np.arange(side) + 0.5) / side
    inside: dict[str, list[float]] = {k: [] for k in maps}
    pointed: dict[str, list[bool]] = {k: [] for k in maps}
    shares, of_names = [], []
    for b, (caption, words, things) in enumerate(zip(captions, val["words"], val["objects"])):
        spans = {(s.start, s.end): s for s in models.word_spans(tokenizer, caption)}
        for word in words:
            span = spans.get((word["start"], word["end"]))
            if word["object"] < 0 or span is None or span.last > maps["plan"].shape[2]:
                continue
            thing = things[word["object"]]
            box = thing["box"]
            cover = visible(thing, side)
            if not cover.any():  # another object hides it
                continue
            shares.append(cover.mean())
            of_names.append(word["text"] not in data.grammar.ATTRIBUTES)
            for k, m in maps.items():
                spread = m[b, :, span.first : span.last].mean(1)
                inside[k].append(float(spread @ cover))
                row, column = divmod(int(spread.argmax()), side)
                pointed[k].append(box[0] <= centre[column] <= box[2] and box[1] <= centre[row] <= box[3])
    chance, is_name = np.array(shares), np.array(of_names)
    out = {"mass_chance": float(chance.mean()), "located_words": len(chance)}
    for k in maps:
        mass = np.array(inside[k])
        out[f"{k}_pointing_accuracy"] = float(np.mean(pointed[k]))
        out[f"{k}_mass_on_object"] = float(mass.mean())
        out[f"{k}_mass_ratio"] = float(mass.mean() / chance.mean())
        for kind, of in (("names", is_name), ("attributes", ~is_name)):
            if of.any():
                out[f"{k}_mass_ratio/{kind}"] = float(mass[of].mean() / chance[of].mean())
    return out
