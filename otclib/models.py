"""Models: load any open_clip model, and get its pooled *and* its token features in the joint space with one call.

    model, preprocess, tokenizer = otclib.models.load("small")    # or "RN50-quickgelu:openai", "RN50:/path/weights.pt"
    v = otclib.models.encode_image(model, images)          # Features(pooled [B, D], tokens [B, T, D], mask [B, T])
    t = otclib.models.encode_text(model, tokenizer(["a red umbrella"]))

A token is what the tower's own head returns for one place alone. The head is the last norm and projection (ViT, text),
the value and output projections of the attention pool (ModifiedResNet; the pooling query is not used), or the trunk's
head applied to each place (timm). So tokens lie in the space of the pooled feature, and are L2-normalised like it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from otclib.data import Resize
from otclib.small import CONFIGS

MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)

Tokenizer = Callable[[list[str]], Tensor]  # captions -> token ids [B, L]


@dataclass
class Features:
    """Features of a batch in the joint space, L2-normalised.

    ``pooled`` [B, D], ``tokens`` [B, T, D], ``mask`` [B, T] (True: a real token; every row has at least one).
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Features:
        return Features(self.pooled[rows], self.tokens[rows], self.mask[rows])

    def __len__(self) -> int:
        return len(self.pooled)

    def detach(self) -> Features:
        return Features(self.pooled.detach(), self.tokens.detach(), self.mask)

    @staticmethod
    def cat(parts: list[Features]) -> Features:
        return Features(*(torch.cat([getattr(p, f) for p in parts]) for f in ("pooled", "tokens", "mask")))


def load(name: str | Path = "small", *, random: bool = False) -> tuple[nn.Module, Callable, Tokenizer]:
    """Load a model with its weights, or with random weights if they are asked for.

    Parameters
    ----------
    name : a file that ``save`` wrote; an open_clip name with one of its tags, ``"ViT-B-32:laion2b_s34b_b79k"``, whose
        weights are downloaded once; an open_clip name with a file, ``"RN50:/path/weights.pt"``; or an open_clip name
        alone. As in open_clip, ``"ViT-B-32-quickgelu:openai"`` is OpenAI's model, and ``"ViT-B-32:openai"`` loads with
        a warning.
    random : start a model whose name has no weights from random ones. ``small`` has no published weights and does so
        without being asked.

    Returns
    -------
    ``(model, preprocess, tokenizer)``: ``preprocess`` takes PIL images or uint8/float tensors [..., 3, H, W].

    Raises
    ------
    ValueError : an unknown model or tag; a file that does not say which model it holds; a name without weights and
        without ``random``, or with both.
    FileNotFoundError : no such file; a tag's weights are not in the cache and could not be downloaded.
    """
    asked, (name, weights) = str(name), _parsed(name)
    if random and weights is not None:
        raise ValueError(f"{asked!r} names weights, and random=True asks for random ones: choose one")
    if weights is None and not random and name not in CONFIGS:
        tags = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if _same_activation(name, tag)]
        published = f"'{name}:{tags[0]}' (tags: {', '.join(tags)}) or " if tags else ""
        raise ValueError(f"{name!r} names no weights: load {published}'{name}:/path/file', or ask for random=True")
    pretrained, metadata = None, {}
    if weights is not None and open_clip.get_pretrained_cfg(name, weights):
        _fetch(name, weights)
        pretrained = weights
    elif weights is not None:
        pretrained, metadata = weights, _metadata(Path(weights))
    logging.disable(logging.WARNING)  # open_clip warns that a model without weights has none
    try:
        shown = json.loads(metadata.get("preprocess", "{}"))
        model = open_clip.create_model(name, pretrained=pretrained, force_preprocess_cfg=shown)
    finally:
        logging.disable(logging.NOTSET)
    model = model.to(memory_format=torch.channels_last)  # convolutions run 1.4 to 1.6 times faster
    return model.eval(), preprocess(model), open_clip.get_tokenizer(name)


def _parsed(model: str | Path) -> tuple[str, str | None]:
    """Split what ``load`` takes into its open_clip name and its weights: a tag, an existing file, or None."""
    asked = str(model)
    name, colon, weights = asked.partition(":")
    known = open_clip.list_models()
    if name in known and not colon:
        return name, None
    if name in known:
        if open_clip.get_pretrained_cfg(name, weights) or Path(weights).is_file():
            return name, weights
        if Path(weights).suffix or "/" in weights or os.sep in weights:
            raise FileNotFoundError(f"no weights file at {weights}")
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none, only files"
        raise ValueError(f"{asked!r} names {weights!r}, neither a file nor a tag of {name}; its tags: {tags}")
    if Path(asked).is_file():
        metadata = _metadata(Path(asked))
        if "model" not in metadata:
            raise ValueError(f"{asked} does not say which model it holds: name it, as in 'RN50:{asked}'")
        if metadata["model"] not in known:
            raise ValueError(f"{asked} holds a model {metadata['model']!r}, which open_clip does not know")
        return metadata["model"], asked
    if Path(asked).suffix == ".safetensors":
        raise FileNotFoundError(f"no weights file at {asked}")
    close = [m for m in known if m.lower().startswith(name.lower()[:3])][:6]
    raise ValueError(
        f"unknown model {asked!r}: choose 'small' or an open_clip name such as {', '.join(close) or 'RN50'}"
    )


def _same_activation(name: str, tag: str) -> bool:
    """Return whether a tag was trained with the architecture's activation. (open_clip loads others with a warning.)"""
    trained, built = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
    return bool(trained.get("quick_gelu")) == bool(built.get("quick_gelu"))


def _metadata(file: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; empty for other files."""
    if file.suffix != ".safetensors":
        return {}
    with safe_open(str(file), "pt") as f:
        return f.metadata() or {}


def _fetch(name: str, tag: str) -> None:
    """Make open_clip download a tag's weights into its cache, unless they are in it."""
    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    except Exception as error:  # open_clip has several clients, each with its own errors
        cache = HF_HUB_CACHE if open_clip.get_pretrained_cfg(name, tag).get("hf_hub") else "~/.cache/clip"
        raise FileNotFoundError(
            f"the weights {tag!r} of {name} are not in the cache {cache} and could not be downloaded: load "
            f"'{name}:{tag}' once with a network and without HF_HUB_OFFLINE, copy that cache here, or name a file, "
            f"'{name}:/path/file' ({error})"
        ) from error


def name_of(model: str | Path) -> str:
    """Return the open_clip name of what ``load`` takes; raises as ``load`` does."""
    return _parsed(model)[0]


def has_weights(model: str | Path) -> bool:
    """Return whether what ``load`` takes names weights, by a file or a tag; raises as ``load`` does."""
    return _parsed(model)[1] is not None


def save(model: nn.Module, path: str | Path, name: str, dtype: torch.dtype | None = None) -> None:
    """Write the weights as safetensors; ``open_clip.create_model_and_transforms(name, pretrained=path)`` reads them.

    ``dtype`` : of the numbers in the file; default the model's. The header names the model and its preprocessing, so
    ``load`` needs only the file.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    metadata = {"model": name, "format": "pt"}
    if shown := getattr(model.visual, "preprocess_cfg", None):
        metadata["preprocess"] = json.dumps(shown)
    save_file(state, str(part), metadata=metadata)
    os.replace(part, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read the weights of a file that ``save`` wrote, in any precision, into a model of the same architecture."""
    model.load_state_dict(load_file(str(path)))


def image_size(model: nn.Module) -> int:
    visual: Any = model.visual
    size = visual.image_size
    return size if isinstance(size, int) else size[0]


@torch.no_grad()
def takes_any_size(model: nn.Module) -> bool:
    """Return whether the image tower takes images smaller than its own, as convolutions with a pooled end do."""
    side, device = 3 * image_size(model) // 4, next(model.parameters()).device
    training = model.training
    try:
        encode_image(model.eval(), torch.zeros(1, 3, side, side, device=device))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        model.train(training)
    return True


def preprocess(model: nn.Module) -> Callable:
    """Return ``resize``, then scale to [0, 1], then normalise: PIL or tensor [..., 3, H, W] -> float [..., 3, S, S]."""
    return v2.Compose([resize(model), v2.ToDtype(torch.float32, scale=True), normalize(model)])


def resize(model: nn.Module) -> Resize:
    """Return the step from an image to the pixels that the model sees, in training, evaluation and ``preprocess``.

    Size, interpolation and mode are those of the model's ``preprocess_cfg``. Without one they are CLIP's: bicubic,
    shorter side, centre.
    """
    said = getattr(model.visual, "preprocess_cfg", None) or {}
    return Resize(
        image_size(model),
        interpolation=said.get("interpolation") or "bicubic",
        mode=said.get("resize_mode") or "shortest",
        fill=said.get("fill_color") or 0,
    )


def normalize(model: nn.Module) -> v2.Normalize:
    return v2.Normalize(
        getattr(model.visual, "image_mean", None) or MEAN, getattr(model.visual, "image_std", None) or STD
    )


def encode_image(model: nn.Module, images: Tensor) -> Features:
    """Return the features of normalised images [B, 3, S, S]; tokens in reading order (row by row)."""
    visual: Any = model.visual
    images = images.to(memory_format=torch.channels_last)
    if hasattr(visual, "trunk"):  # timm
        pooled, tokens = _timm(visual, images)
    elif hasattr(visual, "attnpool"):  # ModifiedResNet
        pool = visual.attnpool
        grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        pooled = pool(grid)
        tokens = pool.c_proj(pool.v_proj(grid.flatten(2).transpose(1, 2)))  # (B, HW, D)
    else:  # (B, prefix + N, C)
        out = visual.forward_intermediates(images, indices=1, output_fmt="NLC", normalize_intermediates=True)
        pooled, tokens = out["image_features"], out["image_intermediates"][-1]
        if getattr(visual, "proj", None) is not None:
            tokens = tokens @ visual.proj
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return Features(F.normalize(pooled.float(), dim=-1), F.normalize(tokens.float(), dim=-1), mask)


def _timm(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    trunk = visual.trunk
    features = trunk.forward_features(images)
    pooled = visual.head(trunk.forward_head(features))
    prefix = getattr(trunk, "num_prefix_tokens", 0)
    if features.ndim == 4:  # (B, C, H, W), or (B, H, W, C) as in Swin
        channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        grid = features if channels_last else features.permute(0, 2, 3, 1)
        places = grid.flatten(1, 2)  # (B, HW, C)
        alone = places.reshape(-1, 1, 1, places.shape[-1])
        alone = alone if channels_last else alone.permute(0, 3, 1, 2)
    else:  # (B, prefix + N, C)
        places = features[:, prefix:]
        alone = places.reshape(-1, 1, places.shape[-1])
    tokens = visual.head(trunk.forward_head(alone)).view(*places.shape[:2], -1)
    return pooled, tokens


def encode_text(model: nn.Module, text: Tensor, length: int | None = None) -> Features:
    """Return the features of token ids [B, L], cut after the longest caption (or after ``length``).

    The mask leaves out padding, start and end. An empty caption keeps its end, so that every row has a token.
    """
    tower: Any = model.text if hasattr(model, "text") else model
    end = text.argmax(dim=-1, keepdim=True)  # the end token has the largest id
    text = text[:, : length or int(end.max()) + 1]
    place = torch.arange(text.shape[1], device=text.device)
    mask = ((place > 0) & (place < end)) | ((end <= 1) & (place == end))
    states = _text_states(tower, text)
    pooled = states[torch.arange(len(text), device=text.device), end[:, 0]]
    return Features(F.normalize(pooled, dim=-1), F.normalize(states, dim=-1), mask)


def _text_states(tower: Any, text: Tensor) -> Tensor:
    """Return the projected token states [B, L, D] of open_clip's own text tower."""
    if not hasattr(tower, "token_embedding"):
        raise ValueError(f"token features need open_clip's own text tower, this model has {type(tower).__name__}")
    if getattr(tower, "pool_type", "argmax") != "argmax":
        raise ValueError(f"text towers that pool at the end token are supported, this one pools by {tower.pool_type!r}")
    x = tower.token_embedding(text)
    x = x + tower.positional_embedding[: text.shape[1]].to(x.dtype)
    mask = tower.attn_mask
    x = tower.transformer(x, attn_mask=None if mask is None else mask[: text.shape[1], : text.shape[1]])
    x = tower.ln_final(x)
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        x = projection(x)
    elif projection is not None:
        x = x @ projection
    return x


@dataclass
class WordSpan:
    """A word of a caption: its characters [start, end) and its token positions [first, last)."""

    text: str
    start: int
    end: int
    first: int
    last: int


def word_spans(tokenizer: Tokenizer, caption: str) -> list[WordSpan]:
    """Return the token positions of each whitespace-separated word of a caption (position 0 is the start token).

    Raises
    ------
    ValueError : the tokenizer does not split into words first, as CLIP's byte-pair encoding does.
    """
    if not hasattr(tokenizer, "encode"):
        raise ValueError(f"words can be located with CLIP's own tokenizer, not with {type(tokenizer).__name__}")
    spans, position = [], 1
    for word in re.finditer(r"\S+", caption):
        n = len(tokenizer.encode(word.group()))
        spans.append(WordSpan(word.group(), word.start(), word.end(), position, position + n))
        position += n
    return spans
