"""A grid of runs: its cells, what they need, what is recorded of them; and Snakemake, which runs them."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import otclib
from otclib import evaluation, figures
from otclib.experiments import pages
from otclib.experiments.grid import Cell, Grid
from otclib.runs import config_of, metrics_of

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / "workflow"
SMALL = {
    "out": "runs",
    "record": "results",
    "kind": "systems",
    "datasets": {"scenes": {"dataset": "scenes", "size": 200}},
    "attacks": {"none": [], "badnets": ["badnets"]},
    "systems": {"clip": {"defense": "clip"}, "cleanclip": {"defense": "cleanclip"}},
    "seeds": [5],
    "parameters": {"epochs": 1, "precision": "fp32"},
}
CLEAN, CLIP, REPAIRED = (
    Cell("scenes", *names, 5) for names in (("none", "clip"), ("badnets", "clip"), ("badnets", "cleanclip"))
)


def configuration(name: str) -> dict:
    return yaml.safe_load((WORKFLOW / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", ["table", "ablation", "controls", "dose", "seeds", "batch"])
def test_the_committed_configurations_are_grids(name):
    grid = Grid(configuration(name))
    assert len(grid.cells) == len(set(map(grid.folder, grid.cells))) > 1
    assert all(grid.cell(*c, k) == cell for cell in grid.cells for *c, k in [_names(grid, cell)])


def _names(grid: Grid, cell: Cell) -> list:
    *_, dataset, attack, seed, system = grid.folder(cell).parts
    return [dataset, attack, system, int(seed.removeprefix("seed"))]


def test_cells_need_what_they_are_made_from():
    grid = Grid(configuration("table"))
    assert len(grid.cells) == 3 * (6 * 6 + 1), "of the set without poison the clean model alone"
    clip, adaptive = Cell("scenes", "badnets", "clip", 0), Cell("scenes", "adaptive", "clip", 0)
    assert grid.needs(Cell("scenes", "none", "clip", 0)) == []
    assert clip in grid.needs(Cell("scenes", "badnets", "cleanclip", 0))
    assert Cell("scenes", "none", "clip", 100) in grid.needs(adaptive)
    assert "none/seed100/clip" in grid.planned(adaptive)[0].surrogate
    assert Grid(configuration("ablation")).needs(Cell("scenes", "targeted+badnets", "full", 0)) == []


def trained_as(system: str) -> Grid:
    table = configuration("table")
    surrogate = {"attack": "none", "system": system, "seed": 100}
    return Grid(table | {"attacks": {"none": [], "adaptive": [{"name": "adaptive", "surrogate": surrogate}]}})


@pytest.mark.parametrize(
    "asked, victim, system",
    [
        ("otcclip", "clip", "otcclip"),
        ("otcclip", "otcclip", "otcclip"),
        ("same", "clip", "clip"),
        ("same", "otcclip", "otcclip"),
        ("same", "safeclip", "safeclip"),
        ("same", "cleanclip", "clip"),  # the poison is planted before the repair
    ],
)
def test_a_surrogate_is_trained_under_any_system(asked, victim, system):
    grid, cell = trained_as(asked), Cell("scenes", "adaptive", victim, 0)
    surrogate = Cell("scenes", "none", system, 100)
    assert surrogate in grid.needs(cell) and grid.needs(surrogate) == []
    (attack,) = grid.planned(cell)
    assert attack.surrogate == str(grid.folder(surrogate) / "model.safetensors")


def test_a_repaired_model_and_its_repair_have_the_same_poison():
    grid = trained_as("same")
    clip, repair = (Cell("scenes", "adaptive", system, 0) for system in ("clip", "cleanclip"))
    assert grid.planned(clip) == grid.planned(repair) and clip in grid.needs(repair)


def test_a_dose_is_a_multiple_of_both_attacks():
    grid = Grid(configuration("dose"))
    targeted, badnets = otclib.attacks.load("targeted"), otclib.attacks.load("badnets")
    for cell in grid.cells:
        a, b = grid.planned(cell)
        assert (a.copies, b.rate) == (float(cell.attack) * targeted.copies, float(cell.attack) * badnets.rate)


def test_every_control_is_another_system_at_the_recorded_doses(tmp_path):
    grid = Grid(configuration("controls"))
    made = [otclib.defenses.load(system["defense"], **grid._options(system)) for system in grid.systems.values()]
    assert all(method not in made[:k] for k, method in enumerate(made)) and made[0] == otclib.defenses.load(
        "otcclip-plus"
    )
    assert grid.asked(tmp_path) == grid.cells and len(grid.cells) == 2 * 3 * len(made)
    assert all(
        attack.copies if attack.kind == "targeted" else attack.count for c in grid.cells for attack in grid.planned(c)
    )
    record = {"dataset": "scenes", "attack": "six", "defense": "otcclip-plus", "seed": 20, "variant": "no blur"}
    assert grid.cell_of(record) in grid.cells


def test_a_target_that_the_set_chooses_is_no_difference():
    """Records name the target that was chosen; a target that the configuration names must be the recorded one."""
    grid = Grid(configuration("table"))
    for record in json.loads((ROOT / "figures" / "results.json").read_text()):
        cell = grid.cell_of(record)
        if record["attack"] in ("badnets", "label-consistent") and record["defense"] in otclib.defenses.DEFENSES:
            now = record | {"options": asdict(otclib.defenses.load(record["defense"]))}
            assert record["attacks"][0]["target"] == "umbrella" and grid.difference(cell, now) is None
            named = {cell.attack: [{"name": cell.attack, "target": "star"}]}
            assert "attacks was" in (Grid(grid.config | {"attacks": named}).difference(cell, now) or "")


OF_NONE = {"name": "adaptive", "surrogate": {"attack": "none", "system": "otc", "seed": 1}}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"systems": {"mine": {"defense": "cilp"}}}, "unknown defense 'cilp'"),
        ({"systems": {"mine": {"defense": "otcclip", "kep": 1}}}, "has no option kep"),
        ({"attacks": {"mine": ["badnet"]}}, "unknown attack 'badnet'"),
        ({"attacks": {"mine": [{"name": "badnets", "rat": 1}]}}, "has no option rat"),
        ({"datasets": {"mine": {"dataset": "scene"}}}, "unknown dataset 'scene'"),
        ({"system": {}}, "unknown key system"),
        ({"attacks": {"none": [], "mine": [OF_NONE]}}, "its system one of same, clip, cleanclip, got .*'otc'"),
    ],
)
def test_a_misspelled_grid_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Grid(SMALL | change)


@pytest.fixture(scope="module")
def small(cache, tmp_path_factory):
    """Two systems, one attack, on 200 pairs: the grid, and the folder of its figures."""
    out = tmp_path_factory.mktemp("grid")
    grid = Grid(SMALL | {"out": str(out / "runs")})
    assert grid.cells == [CLEAN, CLIP, REPAIRED]
    for cell in grid.cells:
        grid.run(cell)
    grid.collect(out / "figures")
    return grid, out / "figures"


@pytest.mark.slow
def test_results_are_recorded_run_by_run(small):
    grid, folder = small
    records = json.loads((folder / "results.json").read_text())
    assert [grid.cell_of(record) for record in records] == grid.cells
    for record in records[1:]:
        assert record["rate"] == 1 / 200, "CleanCLIP's is that of the model that it cleans"
        assert 0 <= record["clean_model_rate"] <= 1 and "cores" in record["machine"]
        assert len(record["by_epoch"]["attack_success_rate"]) == record["epochs"] == 1
        assert {"zero_shot_top1", "attack_success_rate", "seconds_per_epoch", "linear_probe/letters"} <= set(record)
    assert config_of(grid.folder(REPAIRED))["model"].endswith("badnets/seed5/clip/model.safetensors")
    pages.publish("results", folder, folder)
    text = (folder / "systems.md").read_text()
    assert "badnets" in text and "1 seed" in text and "99.9 %" in text
    assert (folder / "results.png").stat().st_size > 10_000


@pytest.mark.slow
def test_records_outlive_their_runs_and_are_not_mixed(small, tmp_path):
    grid, folder = small
    (tmp_path / "results.json").write_text((folder / "results.json").read_text())
    elsewhere = Grid(grid.config | {"out": str(tmp_path / "runs")})
    assert elsewhere.collect(tmp_path) == json.loads((folder / "results.json").read_text())
    assert elsewhere.asked(tmp_path) == grid.cells
    assert Grid(elsewhere.config | {"recorded": True}).asked(tmp_path) == []
    more = Grid(elsewhere.config | {"recorded": True, "seeds": [5, 6]}).asked(tmp_path)
    assert [cell.seed for cell in more] == [6, 6, 6]
    for change, words in (
        ({"parameters": {"epochs": 1, "precision": "bf16"}}, "precision was 'fp32', is 'bf16'"),
        ({"parameters": {"epochs": 2, "precision": "fp32"}}, "options was"),
        ({"attacks": {"none": [], "badnets": [{"name": "badnets", "patch": 0.5}]}}, "attacks was"),
    ):
        with pytest.raises(ValueError, match=words):
            Grid(elsewhere.config | change).collect(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_run_of_another_configuration_is_no_result(small):
    grid, _ = small
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        Grid(grid.config | {"parameters": {"epochs": 1, "precision": "bf16"}}).run(CLIP)


@pytest.mark.slow
def test_where_accuracy_is_lost_adds_up(small):
    grid, _ = small
    pairs = otclib.data.load("scenes", seed=5, size=200)
    test = otclib.data.load("scenes", split="test", seed=5)
    runs = [grid.folder(cell) for cell in (CLIP, CLEAN)]
    classes = evaluation.by_class((run, pairs, test) for run in runs)
    assert len(classes) == 42 and sum(of["images"] for of in classes.values()) == 2 * 2000
    misread = sum(of["misread"] for of in classes.values())
    assert misread == pytest.approx(sum(2000 * (1 - metrics_of(run)["zero_shot_top1"]) for run in runs), abs=0.1)
    assert all(sum(of["as"].values()) == of["misread"] and label not in of["as"] for label, of in classes.items())
    labelled = sum(label is not None for label in pairs["label"])
    assert sum(of["pairs"] for of in classes.values()) == 2 * labelled - 1, "one of them is planted"
    assert sum(of["not_kept"] for of in classes.values()) == 0, "the undefended model keeps every caption"
    assert figures.lookalikes(classes).axes[0].texts[0].get_text().startswith(next(iter(classes)))


@pytest.fixture
def snakemake(tmp_path):
    """Run Snakemake on a grid, in a folder of its own, where it leaves its notes."""

    def run(grid: dict, *more: str) -> subprocess.CompletedProcess:
        (tmp_path / "grid.json").write_text(json.dumps({"figures": str(tmp_path / "figures")} | grid))
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--snakefile", str(WORKFLOW / "Snakefile")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command += ["--configfile", str(tmp_path / "grid.json"), *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table", "ablation", "controls", "dose", "seeds", "batch"])
def test_every_configuration_is_planned(snakemake, name, tmp_path):
    done = snakemake(configuration(name) | {"out": str(tmp_path / "out")}, "--dry-run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "total" in done.stdout and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_surrogate_of_every_system_is_planned(snakemake, tmp_path):
    surrogate = {"attack": "none", "system": "same", "seed": 100}
    attacked = {"none": [], "adaptive": [{"name": "adaptive", "surrogate": surrogate}]}
    systems = {name: {"defense": name} for name in ("clip", "safeclip", "otcclip")}
    grid = SMALL | {"attacks": attacked, "systems": systems, "parameters": {}, "out": str(tmp_path / "out")}
    done = snakemake(grid, "--dry-run")
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    for system in systems:
        assert f"out/scenes/none/seed100/{system}/metrics.json" in said, "each trains its own"


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(snakemake, tmp_path):
    broken = tmp_path / "runs" / "scenes" / "badnets" / "seed5" / "roclip"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{not JSON")
    systems = {"clip": {"defense": "clip"}, "roclip": {"defense": "roclip"}}
    grid = SMALL | {"systems": systems, "attacks": {"badnets": ["badnets"]}, "kind": None}
    done = snakemake(grid)
    assert (
        done.returncode != 0
        and "JSONDecodeError" in done.stdout
        and "not finished: runs/scenes/badnets/seed5/roclip" in done.stdout
    )
    records = json.loads((tmp_path / "figures" / "results.json").read_text())
    assert [record["defense"] for record in records] == ["clip"]
    assert (tmp_path / "figures" / "results.png").exists()


CHAPTERS = {
    "chapter": "notebooks/06_own_data.ipynb",
    "datasets": {"few": {"dataset": "scenes", "dataset_options": {}, "size": 200}},
    "attacks": {"badnets": ["badnets"]},
    "systems": {"clip": {"defense": "clip"}, "cleanclip": {"defense": "cleanclip"}},
    "seeds": [3],
    "parameters": {"epochs": 1},
}


@pytest.mark.slow
def test_every_run_of_a_batch_and_a_table_once(snakemake, tmp_path):
    batch = CHAPTERS | {"out": str(tmp_path / "out")}
    done, runs = snakemake(batch), tmp_path / "out" / "few" / "badnets" / "seed3"
    said = "".join(file.read_text()[-2000:] for file in runs.glob("*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + said
    for defense in CHAPTERS["systems"]:
        config = json.loads((runs / defense / "config.json").read_text())
        assert (config["defense"], config["seed"], config["options"]["epochs"]) == (defense, 3, 1)
        assert (runs / defense / "chapter.ipynb").exists()
    assert json.loads((runs / "clip" / "metrics.json").read_text())["poison_auroc"] is not None
    assert json.loads((runs / "cleanclip" / "metrics.json").read_text())["poison_auroc"] is None  # trained without
    table = (runs.parent / "table.md").read_text()
    assert "| | clip | cleanclip |" in table and "| backdoor success (ASR), % |" in table
    again = snakemake(batch)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.slow
def test_a_misspelled_batch_is_refused_before_anything_runs(snakemake, tmp_path):
    done = snakemake(CHAPTERS | {"out": str(tmp_path / "out"), "systems": {"mine": {"defense": "cilp"}}})
    assert done.returncode != 0 and "unknown defense 'cilp'" in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
