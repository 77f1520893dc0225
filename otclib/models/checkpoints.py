"""Checkpoints of any code: read the tensors of a file without running anything in it, and say which models they fit."""

from __future__ import annotations

import argparse
import math
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError, safe_open

# Objects without code that training codes keep beside their tensors. Every cosine schedule by NumPy makes learning
# rates NumPy scalars, which older versions of NumPy write under an older name.
SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [argparse.Namespace, np.dtype, SCALAR, (SCALAR, "numpy.core.multiarray.scalar")]
HARMLESS += [(SCALAR, "numpy._core.multiarray.scalar"), *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd")]


@contextmanager
def reading(file: str | Path, name: str = "a model") -> Iterator[None]:
    """Let PyTorch read tensors and a few harmless objects of a file, and say in one sentence why it cannot.

    Raises
    ------
    ValueError : the file holds code, or other objects than tensors, or it is no whole file of weights.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch remarks on the format before it refuses the file
            yield
    except pickle.UnpicklingError as error:
        asks = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = asks[1] if asks else "what no state dict holds"
        raise ValueError(
            f"{file} is refused, and nothing in it was run: it asks for {what}, which is no tensor and could be code; "
            "a file of the state_dict alone can be read"
        ) from None
    except (RuntimeError, EOFError, SafetensorError, UnicodeDecodeError, LookupError, AssertionError) as error:
        reason = str(error).split("\n")[0].split(". ")[0] or "it is empty"
        raise ValueError(f"{file} cannot be read as weights of {name}: {reason}") from None


def shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's weights by their names, without ``module.``, which parallel training puts first.

    ``file`` is safetensors; a state dict that ``torch.save`` wrote; or a training checkpoint with its ``state_dict``.

    Raises
    ------
    ValueError : see ``reading``; or there is no tensor in it.
    """
    found: dict[str, tuple[int, ...]] = {}
    with reading(file):
        if Path(file).suffix == ".safetensors":
            with safe_open(str(file), "pt") as opened:
                found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
        else:
            held = torch.load(file, map_location="meta", weights_only=True)
            held = held.get("state_dict", held) if isinstance(held, dict) else {}
            found = {str(k): tuple(v.shape) for k, v in held.items() if isinstance(v, torch.Tensor)}
    if not found:
        raise ValueError(f"{file} holds no weights: neither a state dict nor a checkpoint with one")
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    return {name.removeprefix(prefix): shape for name, shape in found.items()}


def check(file: str | Path, name: str) -> None:
    """Raise a ValueError that says what a file holds, if it is refused, or not of the architecture ``name``."""
    if Path(file).suffix in (".npz", ".npy"):  # big_vision's arrays, which open_clip reads without pickle
        return
    found = shapes(file)
    asked, towers = _configured(name), _towers(found)
    if asked is not None and towers is not None and asked[0] != towers[0]:  # other numbers of positions are resized
        raise ValueError(f"{file} holds no {name}{described(found)}")


def described(found: dict[str, tuple[int, ...]]) -> str:
    """Return, as the end of a sentence, which models have weights of these shapes; empty if that is not known."""
    names = fitting(found)
    if not names:
        return ""
    what = f": its weights have the shapes of {' and '.join(names)}"
    return what + ("; -quickgelu is OpenAI's, CleanCLIP's, RoCLIP's and SafeCLIP's" if len(names) > 1 else "")


def fitting(found: dict[str, tuple[int, ...]]) -> list[str]:
    """Return the open_clip names whose towers have these shapes; none for towers of timm or Hugging Face."""
    towers = _towers(found)
    return [name for name in open_clip.list_models() if towers is not None and _configured(name) == towers]


def _towers(found: dict[str, tuple[int, ...]]) -> tuple[tuple, tuple] | None:
    """Return the sizes of both towers, and how many pixels and tokens they take; None for other towers."""
    text = "text." if "text.text_projection" in found else ""

    def blocks(prefix: str) -> int:
        start = prefix.count(".")
        return len({name.split(".")[start] for name in found if name.startswith(prefix)})

    try:
        embed_dim = found[f"{text}text_projection"][1]
        words, width = found[f"{text}token_embedding.weight"]
        length = found[f"{text}positional_embedding"][0]
        if "visual.layer1.0.conv1.weight" in found:
            layers = tuple(blocks(f"visual.layer{k}.") for k in (1, 2, 3, 4))
            image: tuple = (found["visual.layer1.0.conv1.weight"][0], layers, None)
            pixels = 32 * math.isqrt(found["visual.attnpool.positional_embedding"][0] - 1)
        else:
            of_image, _, patch, _ = found["visual.conv1.weight"]
            image = (of_image, blocks("visual.transformer.resblocks."), patch)
            pixels = patch * math.isqrt(found["visual.positional_embedding"][0] - 1)
    except (KeyError, ValueError, IndexError):
        return None
    return (embed_dim, image, width, blocks(f"{text}transformer.resblocks."), words), (pixels, length)


def _configured(name: str) -> tuple[tuple, tuple] | None:
    """Return what ``_towers`` finds in the weights of an open_clip model."""
    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in config:
        return None
    v, t = open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)
    image = (v.width, v.layers, v.patch_size) if isinstance(v.layers, int) else (v.width, tuple(v.layers), None)
    return (config["embed_dim"], image, t.width, t.layers, t.vocab_size), (v.image_size, t.context_length)
