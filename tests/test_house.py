"""The house: one direction without a circle, no long file, and a defence that is one file."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor

import otclib
from otclib import defenses, figures, losses
from otclib.defenses import Batch, Defense, Look, Training
from otclib.experiments import records
from otclib.runs import log_of, metrics_of

PACKAGE = Path(otclib.__file__).parent
FILES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
LAYERS = (  # a layer imports itself and what stands above it
    "version processes optim metrics ranks shard",
    "runs data",
    "small models",
    "transport losses matching",
    "attacks defenses",
    "evaluation",
    "training",
    "figures",
    "explorer",
    "experiments doctor",
    "cli train",
)


def imported(name: str) -> set[str]:
    """The modules of the package that a module imports, at the top or in a function, but for its types alone."""
    tree, out, skipped = ast.parse(FILES[name].read_text()), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in FILES else node.module for a in node.names
            }
    return {other for other in out if other in FILES} - {name}


GRAPH = {name: imported(name) for name in FILES}


def test_no_module_imports_itself_by_a_detour():
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(GRAPH[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in GRAPH:
        walk(name, ())


def test_imports_go_one_way():
    level = {part: k for k, layer in enumerate(LAYERS) for part in layer.split()}
    unknown = {name for name in FILES if name != "otclib" and name.split(".")[1] not in level}
    assert not unknown, f"in no layer: {', '.join(sorted(unknown))}"
    for name, others in GRAPH.items():
        for other in others if name != "otclib" else ():
            if other != "otclib":
                one, two = name.split(".")[1], other.split(".")[1]
                assert level[one] >= level[two], f"{name} imports {other}, which stands below it"


def test_files_are_short():
    long = {name: n for name, file in FILES.items() if (n := len(file.read_text().splitlines())) > 350}
    assert not long, f"more than 350 lines: {long}"


def test_the_book_names_every_module():
    pages = (PACKAGE.parent / "book" / "api").glob("*.md")
    named = [name for page in pages for name in re.findall(r"automodule:: (\S+)", page.read_text())]
    missing = set(FILES) - {"otclib", "otclib.version", "otclib.train"} - set(named)
    assert len(named) == len(set(named)) and set(named) <= set(FILES)
    by_itself = {name for name in missing if re.match(r"otclib\.(attacks|defenses|data\.readers)\.", name)}
    assert not missing - by_itself, "the book gives a new attack, defence or reader a section by itself"


@dataclass
class Shuffle(Defense):
    """A share of the images is trained with the caption of another pair."""

    share: float = 0.1

    LOOK: ClassVar[Look] = Look("captions shuffled", "#56B4E9", "P")

    def begin_epoch(self, training: Training) -> dict:
        n = len(training.caption_of)
        moved = torch.rand(n, generator=training.rng) < self.share
        other = torch.randperm(n, generator=training.rng)
        training.caption_of = torch.where(moved, other, torch.arange(n))
        return {"moved": float(moved.float().mean())}

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        image, text = training.towers(training.view(batch), batch.text)
        return {"contrastive": losses.contrastive(image.pooled, text.pooled, training.scale, batch.caption_id)}


def test_a_defence_is_one_class_and_a_name(poisoned, little, tmp_path, monkeypatch):
    monkeypatch.setitem(defenses.DEFENSES, "shuffle", Shuffle)
    table, manifest = poisoned
    how = {"manifest": manifest, "seed": 5, "epochs": 2, "progress": False, "precision": "fp32"}
    run = otclib.train(table, defense="shuffle", share=0.5, out=tmp_path / "shuffle", **how)
    assert 0.4 < log_of(run)[-1]["moved"] < 0.6 and log_of(run)[-1]["clean_kept"] < 0.7
    assert otclib.evaluate(run)["zero_shot_top1"] == metrics_of(run)["zero_shot_top1"]
    axis = figures.learning_curves({"shuffle": log_of(run)}).axes[0]
    assert axis.get_legend().get_texts()[0].get_text() == "captions shuffled"
    bar = figures.comparison(records.grouped([run])).axes[0]
    assert bar.get_xticklabels()[0].get_text() == "captions\nshuffled"
    assert "| shuffle" in records.table([run])
    plt.close("all")
    with pytest.raises(ValueError, match="has no option shar"):
        defenses.load("shuffle", shar=1)
