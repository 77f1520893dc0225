"""Every notebook is in step with its .py, carries outputs, and runs from its parameters alone."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from PIL import Image

from otclib.experiments import demo

NOTEBOOKS = sorted(demo.NOTEBOOKS.glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


def test_the_story_is_there():
    assert set(demo.STORY) <= {p.stem for p in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_paired(path):
    text = jupytext.read(path.with_suffix(".py"))
    notebook = nbformat.read(path, as_version=4)
    found, wanted = ([(c.cell_type, c.source.strip()) for c in each.cells] for each in (notebook, text))
    assert found == wanted


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_whoever_opens_it_has_widgets(path):
    """Nothing of papermill's is left, and what the cells say to ``INTERACTIVE`` is True."""
    notebook = nbformat.read(path, as_version=4)
    said = []
    for cell in notebook.cells:
        assert not {"injected-parameters", "remove-cell"} & set(cell.metadata.get("tags", []))
        assert not {"papermill", "execution"} & set(cell.metadata)
        if cell.cell_type == "code":
            said += re.findall(r"^\s*INTERACTIVE\s*=\s*(\w+)", cell.source, re.M)
    assert said == ["True"]
    assert not {"papermill", "widgets"} & set(notebook.metadata)


def test_a_copy_to_commit_keeps_the_outputs_and_not_the_parameters(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("INTERACTIVE = True", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("print(INTERACTIVE)\nINTERACTIVE"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    (tmp_path / "here").mkdir()
    nbformat.write(notebook, tmp_path / "here" / "one.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NOTEBOOKS", tmp_path / "here")
        patch.chdir(tmp_path)
        demo.main(["--only", "one"])
    done = nbformat.read(tmp_path / "here" / "one.ipynb", as_version=4)
    assert [c.source for c in done.cells] == [c.source for c in notebook.cells]
    assert [c.execution_count for c in done.cells] == [1, 2]
    assert [o.get("text") or o.data["text/plain"] for o in done.cells[1].outputs] == ["False\n", "False"]
    assert not list(tmp_path.glob("here/*.part*"))


def test_smaller_figures_keep_their_colours():
    """Blue captions once came out green: a palette must not give a rare colour up for the many."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8) // 2 + 64
    pixels[:60] = 255
    pixels[5:15, 5:40], pixels[20:30, 5:40], pixels[35:45, 5:200] = (0, 114, 178), (213, 94, 0), (127, 127, 127)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    smaller = demo._smaller(base64.b64encode(out.getvalue()).decode())
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(smaller))).convert("RGB"))
    assert np.abs(found[:60].astype(int) - pixels[:60]).max() <= 24


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs, "never executed"
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.output_type == "stream" and "Warning" in o.text]
    assert path.stat().st_size < 1_000_000
    parameters = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1 and "seed" in parameters[0].source and "fast" in parameters[0].source
    for place in (Path.home(), demo.NOTEBOOKS.parent):  # of one machine
        assert str(place) not in json.dumps(notebook)


@pytest.mark.slow
def test_the_whole_story_fast(tmp_path):
    """`make demo` with the fast setting: four notebooks, three runs, the table."""
    # half a minute of work: a process of its own, so that kernels find the test's cache and nothing of this process
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "otclib.experiments.demo", "--out", str(tmp_path / "demo"), "--fast"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=demo.NOTEBOOKS.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| zero-shot accuracy, % |" in done.stdout
    for name in ("clip", "otcclip", "otcclip-plus"):
        assert "attack_success_rate" in json.loads((tmp_path / "demo-fast" / name / "metrics.json").read_text())
    for name in demo.STORY:
        clean(tmp_path / "demo" / "notebooks" / f"{name}.ipynb")
    for name in ("01_poisoning", "02_transport_plans", "04_attack_success"):  # the runs are there
        with_solutions(name, tmp_path / "solved", {"out": str(tmp_path / "demo"), "fast": True, "INTERACTIVE": False})
    assert {p.stem for p in (tmp_path / "demo-fast" / "figures").iterdir()} >= {
        "contact_sheet",
        "comparison",
        "grounding",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, made",
    [
        ("00_start", "clip/metrics.json"),
        ("04_attack_success", "otcclip/metrics.json"),
        ("06_own_data", "otcclip-plus/metrics.json"),
        ("explorer", "figures/explorer.html"),
    ],
)
def test_a_chapter_alone_makes_what_it_lacks(name, made, tmp_path):
    demo.execute(name, tmp_path / "alone.ipynb", {"out": str(tmp_path / "alone"), "fast": True, "INTERACTIVE": False})
    assert (tmp_path / "alone-fast" / made).exists()
    clean(tmp_path / "alone.ipynb")


@pytest.mark.slow
@pytest.mark.parametrize("name, widgets", [("00_start", True), ("03_defense_training", False), ("06_own_data", False)])
def test_a_chapter_that_is_watched(name, widgets, tmp_path):
    """As in JupyterLab: curves that grow, and the explorer where the chapter shows it."""
    demo.execute(name, tmp_path / "watched.ipynb", {"out": str(tmp_path / "watched"), "fast": True})
    cells = nbformat.read(tmp_path / "watched.ipynb", as_version=4).cells
    training = next(
        c for c in cells if c.cell_type == "code" and re.search(r"workbook.runs\(|otclib.train\(", c.source)
    )
    assert [o for o in training.outputs if "image/png" in o.get("data", {})], "no curves"
    shown = [o.data for c in cells for o in c.get("outputs", []) if WIDGET in o.get("data", {})]
    assert bool([data for data in shown if data["text/plain"].startswith("VBox")]) == widgets


@pytest.mark.slow
def test_processes_kills_and_decoding_change_no_result(tmp_path):
    """Chapter 7 says so; after it the code of its solutions runs, and a second call trains nothing again."""
    given = {"out": str(tmp_path / "cluster"), "fast": True, "INTERACTIVE": False}
    with_solutions("07_laptop_to_cluster", tmp_path / "solved", given)
    said = printed(tmp_path / "solved" / "07_laptop_to_cluster_done.ipynb")
    assert said.count("weights that differ: []") == 2 and said.count("equal: True") == 3
    assert "a batch of 32 pairs cannot be shared by 3 processes equally" in said and "18 runs, " in said
    assert "killed; saved in epoch" in said and "resumed: 3 values of the learning rate" in said
    demo.execute("07_laptop_to_cluster", tmp_path / "again.ipynb", given)
    text = printed(tmp_path / "again.ipynb")
    assert text.count("it was finished before") == 3 and "killed; saved" not in text


@pytest.mark.slow
def test_the_table_chapter_alone(tmp_path):
    demo.execute("05_all_systems", tmp_path / "alone.ipynb", {"out": str(tmp_path / "figures"), "fast": True})
    figures = tmp_path / "figures-fast"
    assert (figures / "results.json").exists() and (figures / "triggers.png").exists()
    assert not list(tmp_path.glob("README*"))
    clean(tmp_path / "alone.ipynb")


@pytest.mark.slow
def test_the_table_chapter_of_the_committed_results(tmp_path):
    figures = tmp_path / "figures"
    shutil.copytree(demo.NOTEBOOKS.parent / "figures", figures)
    with_solutions("05_all_systems", tmp_path / "solved", {"out": str(figures)})
    for name in ("results.png", "triggers.png"):
        assert (figures / name).read_bytes() == (demo.NOTEBOOKS.parent / "figures" / name).read_bytes(), name


def with_solutions(name, folder, parameters):
    """Execute a chapter, and after it the code of its exercises' solutions, unless that trains a whole run."""
    notebook = nbformat.read(demo.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    said = notebook.cells[-1].source.split("## Exercises")[1]
    blocks = re.findall(r"^```python\n(.*?)^```", said, re.M | re.S)
    solutions = [code for code in blocks if "otclib.train(" not in code]
    assert solutions, f"{name} has none"
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions]
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NOTEBOOKS", folder)
        demo.execute(name, folder / f"{name}_done.ipynb", parameters)
    clean(folder / f"{name}_done.ipynb")


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.output_type == "stream")


def clean(path):
    """Nothing was printed to the error stream: no warning of ours."""
    notebook = nbformat.read(path, as_version=4)
    streams = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"]
    assert not [o.text for o in streams if o.name == "stderr"], path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_exercise_has_a_solution(path):
    last = nbformat.read(path, as_version=4).cells[-1].source
    assert "## Summary" in last and "## Exercises" in last
    exercises = re.findall(r"^\d\. ", last.split("## Exercises")[1], re.M)
    assert exercises and last.count("<details><summary>Solution</summary>") == last.count("</details>") == len(
        exercises
    )


@pytest.mark.slow
def test_the_book_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "book", str(tmp_path / "book")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=demo.NOTEBOOKS.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index", "notebooks/00_start", "notebooks/explorer", "api/transport", "search"):
        assert (tmp_path / "book" / f"{page}.html").exists(), page
    assert "Cuturi" in (tmp_path / "book" / "api" / "transport.html").read_text(), "the docstrings are in it"
    table = (tmp_path / "book" / "notebooks" / "05_all_systems.html").read_text()
    assert table.count("<table") >= 4 and "|---|" not in table and "|—|" not in table
    equations = (tmp_path / "book" / "notebooks" / "02_transport_plans.html").read_text()
    assert 'src="../_static/mathjax/tex-chtml.js"' in equations, "they need no network"
    assert (tmp_path / "book" / "_static" / "mathjax" / "tex-chtml.js").exists()
