"""The transport explorer shows where every word of a caption goes on an image, in any model and after any epoch.

    explorer = Explorer("runs/demo/otcclip", pairs, manifest=manifest)
    explorer.show()                                  # widgets, in a notebook
    explorer.figure(3, reg=0.05).savefig("plan.pdf")  # the same view, for papers and slides
    explorer.save_html("plans.html")                 # the same view with working sliders, without a kernel

The plan P is that of ``transport.sinkhorn`` on the cost C_nm = 1 - <v_n, t_m> of the image's tokens v_n (its places)
and the caption's t_m, both evenly weighted. A word's mass is the sum over its tokens. With ``unbalanced`` = rho a word
may leave a part of its mass unmoved, at the price of rho times the Kullback-Leibler divergence of what it gives from
what it has.
"""

from __future__ import annotations

import difflib
import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from matplotlib.figure import Figure
from torch import nn

from otclib import data, models
from otclib.explorer import page, picture
from otclib.explorer.panel import Panel
from otclib.explorer.view import LAST, Ranks, View
from otclib.matching import TokenSets, distances
from otclib.models import Features
from otclib.runs import log_of
from otclib.transport import Transport, sinkhorn


class Explorer:
    """Views of the pairs of a table under one or several models.

    Parameters
    ----------
    runs : a run folder (with ``snapshots``, all its epochs), or what ``models.load`` takes: a weights file, an
        open_clip name with a tag; or {name: any of these}.
    pairs : a table with ``image`` and ``caption``, see ``otclib.data``.
    manifest : what was planted. The planted pairs are marked, and both of their captions are offered.
    pool : number of captions of the table that compete, drawn with ``seed``.
    random : also show models that are named without weights, with random weights. Their plans are noise.

    Raises
    ------
    ValueError : no pairs, an unknown model, a model without weights unless ``random``.
    FileNotFoundError : a folder without weights, no such file.
    """

    def __init__(
        self,
        runs: str | Path | Mapping[str, str | Path],
        pairs: Dataset,
        *,
        manifest: Dataset | None = None,
        pool: int = 500,
        seed: int = 0,
        random: bool = False,
    ):
        if not len(pairs):
            raise ValueError("the explorer needs at least one pair, got an empty table")
        if pool < 1:
            raise ValueError(f"the pool needs at least 1 caption, got {pool}")
        if not isinstance(runs, Mapping):
            runs = {Path(runs).name: runs}
        for run in runs.values():
            if not (random or Path(run).is_dir() or models.has_weights(run)):
                raise ValueError(
                    f"{str(run)!r} names a model without weights, whose plans would be noise: give a run folder, a "
                    f"weights file or an open_clip name with a tag, or ask for random=True"
                )
        self.checkpoints = {name: _checkpoints(run) for name, run in runs.items()}
        self.pairs = pairs
        self.planted = {} if manifest is None else {row["id"]: row for row in manifest.remove_columns("image")}
        self.captions = pairs["caption"][:]
        self._ids = pairs["id"][:] if "id" in pairs.column_names else [None] * len(pairs)
        drawn = np.random.default_rng(seed).permutation(len(pairs))
        self.pool = list(dict.fromkeys(self.captions[k] for k in drawn))[:pool]
        trained = all((Path(run) / "config.json").exists() for run in runs.values())
        self.vocabulary = {w for c in self.captions for w in _words(c)} if trained else None
        self._networks: dict[str, tuple[Path | str, nn.Module, models.Tokenizer]] = {}
        self._pools: OrderedDict[tuple, TokenSets] = OrderedDict()
        self._to_pool: OrderedDict[tuple, dict[str, list[float]]] = OrderedDict()

    # -- one view ----------------------------------------------------------------------------------------------------

    @classmethod
    def of_runs(cls, runs: Sequence[Path], pairs: Dataset) -> Explorer:
        """Return an explorer of run folders or weights, on what was planted in the first poisoned run and ``pairs``."""
        pairs = pairs.select_columns(["id", "image", "caption"])
        file = next((run / "manifest.parquet" for run in runs if (run / "manifest.parquet").exists()), None)
        manifest = Dataset.from_parquet(str(file)) if file else None
        if manifest is not None:
            planted = manifest.select_columns(["id", "image", "poison_caption"])
            planted = planted.rename_column("poison_caption", "caption").cast(pairs.features)
            pairs = concatenate_datasets([planted, pairs])
        return cls({run.name: run for run in runs}, pairs, manifest=manifest)

    def view(
        self,
        pair: int = 0,
        caption: str | None = None,
        *,
        reg: float = 0.1,
        unbalanced: float | None = None,
        run: str | None = None,
        epoch: str | None = None,
        top: int = 5,
    ) -> View:
        """Return the view of a pair's image with its own caption, or with another one.

        ``run`` and ``epoch`` : default the first run, and its last weights.

        Raises
        ------
        ValueError : no such pair, run or epoch; an empty caption; words that no caption of the table has (``unknown``).
        """
        run = next(iter(self.checkpoints)) if run is None else run
        if run not in self.checkpoints:
            raise ValueError(f"no run {run!r}: there are {', '.join(self.checkpoints)}")
        epochs = self.checkpoints[run]
        epoch = list(epochs)[-1] if epoch is None else epoch
        if epoch not in epochs:
            raise ValueError(f"{run} has no epoch {epoch!r}: there are {', '.join(epochs)}")
        if not 0 <= pair < len(self.pairs):
            raise ValueError(f"pair must lie in 0 ... {len(self.pairs) - 1}, got {pair}")
        caption = self.captions[pair] if caption is None else caption.strip()
        if message := self.unknown(caption):
            raise ValueError(message)
        network, tokenizer = self._model(run, epoch)
        pixels = data.image_tensor(self.pairs.select([pair]), models.resize(network))
        device = next(network.parameters()).device
        with torch.no_grad():
            image = models.encode_image(network, models.normalize(network)(pixels.to(device).float() / 255))
            text = models.encode_text(network, tokenizer([caption]).to(device))
        plan, solved, weights, words = self._plan(image, text, tokenizer, caption, reg, unbalanced)
        return View(
            image=pixels[0].permute(1, 2, 0).numpy(),
            caption=caption,
            words=words,
            plan=plan,
            weights=weights,
            grid=_grid(image.tokens.shape[1]),
            cost=float(solved.cost),
            converged=bool(solved.converged),
            cosine=float(1 - (image.pooled * text.pooled).sum()),
            reg=reg,
            unbalanced=unbalanced,
            pool=len(self.pool),
            rank=functools.partial(self._ranking, (run, epoch, pair, reg), image, text, caption, top),
            title=run if len(epochs) == 1 else f"{run}, {_after(epoch)}",
        )

    def figure(self, pair: int = 0, caption: str | None = None, *, word: int | None = None, **options: Any) -> Figure:
        """Return ``view`` as a matplotlib figure; ``word`` is laid over the image, default the sharpest one."""
        return picture.transport_view(self.view(pair, caption, **options), word)

    def unknown(self, caption: str) -> str:
        """Return why this caption cannot be shown; an empty text if it can."""
        words = _words(caption)
        if not words:
            return "The caption is empty: type at least one word."
        if self.vocabulary is None:
            return ""
        strange = [w for w in dict.fromkeys(words) if w not in self.vocabulary]
        if not strange:
            return ""
        near = list(dict.fromkeys(n for w in strange for n in difflib.get_close_matches(w, self.vocabulary, 3, 0.6)))
        listed = ", ".join(f"“{w}”" for w in strange)
        hint = f" Near in spelling: {', '.join(near)}." if near else ""
        return f"No caption of this table holds {listed}, so the model cannot know it.{hint}"

    # -- what a view is made of --------------------------------------------------------------------------------------

    def _model(self, run: str, epoch: str) -> tuple[nn.Module, models.Tokenizer]:
        """Return the network and tokenizer of a run at an epoch. All epochs of a run share one network in turn."""
        source = self.checkpoints[run][epoch]
        held = self._networks.get(run)
        if held is None:
            network, _, tokenizer = models.load(source, random=not models.has_weights(source))
            held = source, network, tokenizer
        elif held[0] != source:
            models.load_weights(held[1], source)
            held = source, *held[1:]
        self._networks[run] = held
        return held[1], held[2]

    def _pool(self, run: str, epoch: str) -> TokenSets:
        key = run, epoch
        if key not in self._pools:
            network, tokenizer = self._model(run, epoch)
            device = next(network.parameters()).device
            text = tokenizer(self.pool).to(device)
            length = models.text_length(network, text)
            with torch.no_grad():
                parts = [models.encode_text(network, some, length) for some in text.split(250)]
            self._pools[key] = TokenSets.of(models.Features.cat(parts))
            if len(self._pools) > 32:
                self._pools.popitem(last=False)
        return self._pools[key]

    def _plan(
        self,
        image: Features,
        text: Features,
        tokenizer: models.Tokenizer,
        caption: str,
        reg: float,
        unbalanced: float | None,
    ) -> tuple[np.ndarray, Transport, np.ndarray, list[str]]:
        """The plan by words [N, W], the solved problem, what every word has [W], and the words."""
        weights = text.mask[0].float()
        C = 1 - image.tokens[0] @ text.tokens[0].T
        solved = sinkhorn(C, None, weights, reg=reg, unbalanced=None if unbalanced is None else (None, unbalanced))
        spans = [s for s in models.word_spans(tokenizer, caption) if s.first < len(weights) and weights[s.first]]
        columns = [slice(s.first, s.last) for s in spans]
        has = weights / weights.sum()
        plan = torch.stack([solved.plan[:, c].sum(1) for c in columns], 1)
        given = torch.stack([has[c].sum() for c in columns])
        return plan.cpu().numpy(), solved, given.cpu().numpy(), [s.text for s in spans]

    def _distances(self, key: tuple, image: Features) -> dict[str, list[float]]:
        """Return the image's distances to the captions of the pool, cached by ``key``: run, epoch, pair, reg."""
        if key not in self._to_pool:
            run, epoch, _, reg = key
            pool = self._pool(run, epoch)
            everyone = torch.arange(len(pool))[None]
            by = {"transport": distances(image, pool, everyone, reg), "cosine": 1 - image.pooled @ pool.pooled.T}
            self._to_pool[key] = {name: found[0].tolist() for name, found in by.items()}
            if len(self._to_pool) > 1000:
                self._to_pool.popitem(last=False)
        return self._to_pool[key]

    def _ranking(self, key: tuple, image: Features, text: Features, caption: str, top: int) -> Ranks:
        own, reg = TokenSets.of(text), key[-1]
        to_own = {
            "transport": distances(image, own, torch.zeros(1, 1).long(), reg),
            "cosine": 1 - image.pooled @ own.pooled.T,
        }
        out = {}
        for name, others in self._distances(key, image).items():
            mine = float(to_own[name])
            rest = [(c, d) for c, d in zip(self.pool, others) if c != caption]
            rank = 1 + sum(d < mine for _, d in rest)
            out[name] = rank, sorted([*rest, (caption, mine)], key=lambda pair: pair[1])[:top]
        return out

    # -- widgets -----------------------------------------------------------------------------------------------------

    def choices(self, count: int = 12) -> list[tuple[str, int]]:
        """Return labels and indices of pairs to choose from: planted ones, then clean ones, up to ``count`` of each."""
        planted = [k for k, id in enumerate(self._ids) if id in self.planted]
        clean = [k for k, id in enumerate(self._ids) if id not in self.planted][:count]
        planted = planted[:: max(1, len(planted) // count)][:count]
        label = {k: f"planted: {self.captions[k]}" for k in planted} | {k: self.captions[k] for k in clean}
        return [(f"{text[:60]}  ({k})", k) for k, text in label.items()]

    def is_planted(self, pair: int) -> bool:
        return self._ids[pair] in self.planted

    def own_captions(self, pair: int) -> list[str]:
        """Return a pair's caption, and for a planted pair also its original caption."""
        row = self.planted.get(self._ids[pair])
        return [self.captions[pair], *([row["original_caption"]] if row else [])]

    def show(self, dpi: int = 88) -> Any:
        """Return the widgets to display. Tab reaches them, and the arrow keys move them."""
        return Panel(self, dpi).box

    def save_html(self, path: str | Path, pairs: Sequence[int] | None = None, **options: Any) -> Path:
        """Write the views of some pairs as one page with sliders, which needs no kernel and no network connection.

        ``options`` : see ``page.write``.
        """
        return page.write(self, path, pairs, **options)


def _checkpoints(run: str | Path) -> dict[str, str | Path]:
    """Return the weights of a model by epoch: every snapshot of a run, and its last weights."""
    folder = Path(run)
    if not folder.is_dir():
        return {LAST: run}
    found: dict[str, str | Path] = {str(int(file.stem)): file for file in sorted(folder.glob("epochs/*.safetensors"))}
    final = folder / "model.safetensors"
    if final.exists():
        found.pop(str(len(log_of(folder))), None)  # the same weights, rounded
        found[LAST] = final
    if not found:
        raise FileNotFoundError(f"no weights in {folder}: neither model.safetensors nor epochs/*.safetensors")
    return found


def _words(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation at their ends."""
    return [w for w in (word.strip(".,;:!?\"'()").lower() for word in caption.split()) if w]


def _grid(places: int) -> tuple[int, int]:
    side = round(places**0.5)
    if side * side != places:
        raise ValueError(f"the places of an image must form a square to be drawn, this model has {places}")
    return side, side


def _after(epoch: str) -> str:
    return "at the end" if epoch == LAST else f"after epoch {epoch}"
