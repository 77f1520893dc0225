"""`make batch`: chapter 6 under Snakemake, for all of a list."""

import json
import os
import subprocess
import sys

import pytest

from otclib.experiments import demo

pytestmark = pytest.mark.slow
LIST = {
    "datasets": {"few": {"dataset": "scenes", "dataset_options": {}, "size": 200}},
    "attacks": {"badnets": ["badnets"]},
    "defenses": ["clip", "cleanclip"],
    "seeds": [3],
    "parameters": {"epochs": 1},
}


@pytest.fixture
def batch(tmp_path):
    """Run Snakemake on a list, in a folder of its own, where it leaves its notes."""

    def run(**changes):
        (tmp_path / "list.json").write_text(json.dumps(LIST | {"out": str(tmp_path / "out")} | changes))
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--snakefile", str(demo.NOTEBOOKS / "Snakefile")]
        command += ["--configfile", str(tmp_path / "list.json")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    return run


def test_every_run_and_a_table_once(batch, tmp_path):
    done = batch()
    runs = tmp_path / "out" / "few" / "badnets" / "seed3"
    said = "".join(file.read_text()[-2000:] for file in runs.glob("*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + said
    for defense in LIST["defenses"]:
        config = json.loads((runs / defense / "config.json").read_text())
        assert (config["defense"], config["seed"], config["options"]["epochs"]) == (defense, 3, 1)
        assert (runs / defense / "chapter.ipynb").exists()
    assert json.loads((runs / "clip" / "metrics.json").read_text())["poison_auroc"] is not None
    assert json.loads((runs / "cleanclip" / "metrics.json").read_text())["poison_auroc"] is None  # trained without
    table = (runs.parent / "table.md").read_text()
    assert "| | clip | cleanclip |" in table and "| backdoor ASR, % |" in table
    again = batch()
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"defenses": ["clip", "cilp"]}, "unknown defense 'cilp'"),
        ({"attacks": {"mine": ["badnet"]}}, "unknown attack 'badnet'"),
        ({"datasets": {"few": {"dataset": "scene"}}}, "unknown dataset 'scene'"),
    ],
)
def test_a_misspelled_list_is_refused_before_anything_runs(batch, tmp_path, changes, words):
    done = batch(**changes)
    assert done.returncode != 0 and words in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
