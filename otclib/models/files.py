"""Files: load a model by its name, a tag or a file, and write its weights."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import open_clip
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from open_clip import hf_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from otclib.models.checkpoints import check, described, reading, shapes
from otclib.models.features import Tokenizer
from otclib.models.images import preprocess
from otclib.models.text import attach_tokenizer
from otclib.small import CONFIGS


def load(name: str | Path = "small", *, random: bool = False) -> tuple[nn.Module, Callable, Tokenizer]:
    """Load a model with its weights, or with random weights if they are asked for.

    Parameters
    ----------
    name : a file that ``save`` wrote; an open_clip name with one of its tags, ``"ViT-B-32:laion2b_s34b_b79k"``, whose
        weights are downloaded once; an open_clip name with a file, ``"RN50:/path/weights.pt"``; or an open_clip name
        alone. As in open_clip, ``"ViT-B-32-quickgelu:openai"`` is OpenAI's model, and ``"ViT-B-32:openai"`` loads with
        a warning. A file is safetensors, a state dict, or a training checkpoint of open_clip or of the CleanCLIP family
        (CleanCLIP, RoCLIP, SafeCLIP), whose RN50 is OpenAI's: ``"RN50-quickgelu:/path/epoch_64.pt"``. Tensors are read,
        and nothing in a file is run.
    random : start a model whose name has no weights from random ones. ``small`` has no published weights and does so
        without being asked. A Hugging Face tower is then random, too.

    Returns
    -------
    ``(model, preprocess, tokenizer)``: ``preprocess`` takes PIL images or uint8/float tensors [..., 3, H, W].

    Raises
    ------
    ValueError : an unknown model or tag; a file that does not say which model it holds, holds another one, or holds
        other objects than tensors; a name without weights and without ``random``, or with both.
    FileNotFoundError : no such file; a tag's weights, or what a Hugging Face tower is made of, are not in the cache and
        could not be downloaded.
    ModuleNotFoundError : the name needs transformers, which is not installed.
    """
    asked, (name, weights) = str(name), _parsed(name)
    if random and weights is not None:
        raise ValueError(f"{asked!r} names weights, and random=True asks for random ones: choose one")
    if weights is None and not random and name not in CONFIGS:
        tags = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if _same_activation(name, tag)]
        published = f"'{name}:{tags[0]}' (tags: {', '.join(tags)}) or " if tags else ""
        raise ValueError(f"{name!r} names no weights: load {published}'{name}:/path/file', or ask for random=True")
    tokenizer = _tokenizer(name)
    pretrained, metadata, file = None, {}, None
    if weights is not None and open_clip.get_pretrained_cfg(name, weights):
        _fetch(name, weights)
        pretrained = weights
    elif weights is not None:
        file, pretrained, metadata = weights, weights, _metadata(Path(weights))
        check(file, name)
    logging.disable(logging.WARNING)  # open_clip warns that a model without weights has none
    try:
        shown = json.loads(metadata.get("preprocess", "{}"))
        with reading(file, name) if file else nullcontext():
            model = open_clip.create_model(name, pretrained, force_preprocess_cfg=shown, pretrained_text=False)
    finally:
        logging.disable(logging.NOTSET)
    model = model.to(memory_format=torch.channels_last)  # convolutions run 1.4 to 1.6 times faster
    attach_tokenizer(model, tokenizer)
    return model.eval(), preprocess(model), tokenizer


def _tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of an open_clip name, after a look whether what it takes from Hugging Face is there."""
    config = open_clip.get_model_config(name)["text_cfg"]
    tower = config.get("hf_model_name")
    source = tower or config.get("hf_tokenizer_name")
    if not source:
        return open_clip.get_tokenizer(name)
    what = f"the {'text tower' if tower else 'tokenizer'} {source!r} of {name}"
    if hf_model.transformers is None:
        raise ModuleNotFoundError(f"{what} needs transformers: install it with pip install 'otclib[hf]'")
    try:
        if tower:
            hf_model.AutoConfig.from_pretrained(tower)
        return open_clip.get_tokenizer(name)
    except OSError as error:
        raise FileNotFoundError(
            f"{what} is not in the cache {HF_HUB_CACHE} and could not be downloaded: load {name!r} once with a network "
            f"and without HF_HUB_OFFLINE, or copy that cache here ({str(error).splitlines()[0]})"
        ) from error


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
            raise ValueError(
                f"{asked} does not say which model it holds: name it, as in 'RN50:{asked}'{described(shapes(asked))}"
            )
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
    with reading(file), safe_open(str(file), "pt") as f:
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
