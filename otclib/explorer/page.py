"""The transport explorer as one HTML file: the plans are computed beforehand, and the sliders choose among them.

The page holds everything that it shows. It opens from a disk, without a kernel and without a network connection.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from otclib.explorer import picture
from otclib.explorer.view import Source, View
from otclib.figures import style

REGS = (1.0, 0.3, 0.1, 0.05, 0.02)
MARGINALS = (None, 1.0, 0.1)  # rho of the words
TEMPLATE = Path(__file__).with_name("page.html")


def write(
    explorer: Source,
    path: str | Path,
    pairs: Sequence[int] | None = None,
    *,
    regs: Sequence[float] = REGS,
    marginals: Sequence[float | None] = MARGINALS,
    title: str = "Transport plans",
    progress: bool = True,
) -> Path:
    """Write the views of ``pairs`` (default: three planted and three clean ones) under every model and epoch.

    A planted pair is shown with both of its captions. A view takes W x N bytes (words, places). A page of six pairs
    under two runs of twelve epochs takes about two megabytes.

    Raises
    ------
    ValueError : no pairs, or one that is not in the table; raised before anything is written.
    """
    path = Path(path)
    pairs = [k for _, k in explorer.choices(3)] if pairs is None else list(pairs)
    if not pairs or not all(0 <= k < len(explorer.pairs) for k in pairs):
        raise ValueError(f"pairs must be some of 0 ... {len(explorer.pairs) - 1}, got {pairs}")
    shown = [(k, caption) for k in pairs for caption in explorer.own_captions(k)]
    places = [(run, epoch) for run, epochs in explorer.checkpoints.items() for epoch in epochs]
    cases: list[dict] = [{} for _ in shown]
    for run, epoch in tqdm(places, desc="plans", disable=not progress):  # each checkpoint is read once
        for case, (k, caption) in zip(cases, shown):
            grid = [
                [explorer.view(k, caption, run=run, epoch=epoch, reg=reg, unbalanced=rho) for rho in marginals]
                for reg in regs
            ]
            if not case:
                case |= _case(explorer, k, grid[0][0])
            case["plans"].append([[_packed(view) for view in row] for row in grid])
            case["transport"].append([_ranked(row[0], "transport") for row in grid])
            case["cosine"].append(_ranked(grid[0][0], "cosine"))
    content = {
        "cases": cases,
        "runs": {run: list(epochs) for run, epochs in explorer.checkpoints.items()},
        "regs": [f"{reg:g}" for reg in regs],
        "marginals": ["exact" if rho is None else f"rho {rho:g}" for rho in marginals],
        "pool": len(explorer.pool),
        "heat": _colours(style.HEAT),
        "matrix": _colours("viridis"),
        "chosen": style.CHOSEN,
        "faint": picture.FAINT,
    }
    text = TEMPLATE.read_text()
    text = text.replace("{{title}}", html.escape(title))
    text = text.replace("{{content}}", json.dumps(content, separators=(",", ":")).replace("</", "<\\/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)
    return path


def _case(explorer: Source, pair: int, view: View) -> dict:
    out = io.BytesIO()
    Image.fromarray(view.image).save(out, "PNG", optimize=True)
    planted = explorer.is_planted(pair)
    return {
        "name": view.caption,
        "kind": "clean" if not planted else "planted" if view.caption == explorer.captions[pair] else "before planting",
        "image": "data:image/png;base64," + base64.b64encode(out.getvalue()).decode(),
        "words": view.words,
        "weights": [round(float(w), 5) for w in view.weights],
        "grid": view.grid,
        "plans": [],
        "transport": [],
        "cosine": [],
    }


def _packed(view: View) -> dict:
    """Return a plan as bytes, word by word, in 255ths of its largest entry."""
    most = float(view.plan.max())
    levels = np.round(view.plan.T / (most or 1.0) * 255).astype(np.uint8)
    return {"most": round(most, 7), "cost": round(view.cost, 4), "p": base64.b64encode(levels.tobytes()).decode()}


def _ranked(view: View, by: str) -> dict:
    rank, nearest = view.ranking[by]
    return {"rank": rank, "nearest": [[caption, round(distance, 3)] for caption, distance in nearest]}


def _colours(name: str, stops: int = 17) -> list[list[int]]:
    from matplotlib import colormaps

    return (255 * colormaps[name](np.linspace(0, 1, stops))[:, :3]).round().astype(int).tolist()
