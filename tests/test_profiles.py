"""One run's configuration under Snakemake, here and with the profiles for clusters; nothing is trained."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from otclib.experiments.grid import Grid

ROOT = Path(__file__).parent.parent
PROFILES = ROOT / "workflow" / "profiles"
PLUGINS = {
    "slurm": ("snakemake_executor_plugin_slurm",),
    "kubernetes": ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"),
}
pytestmark = pytest.mark.slow


@pytest.fixture
def planned(tmp_path):
    """What Snakemake would run for a published configuration: what it prints, in a folder that has nothing else."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def plan(name: str, *more: str) -> str:
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds"]
        command += ["--snakefile", str(ROOT / "workflow" / "Snakefile")]
        command += ["--configfile", f"configs/published/{name}.yaml", *more]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    return plan


def commands(said: str) -> list[str]:
    return [line for line in said.splitlines() if "otclib.experiments.grid" in line]


def test_one_configuration_is_one_run(planned):
    said = planned("otcclip-coco", "--cores", "1")
    (command,) = commands(said)
    assert "rule run:\n    output: runs/published/coco/targeted+badnets/seed0/otcclip/metrics.json" in said
    assert "-m otclib.processes otclib.experiments.grid " in command and "accelerate" not in command
    assert re.search(r"^    resources: .*\bgpu=1\b", said, re.MULTILINE)
    grid = Grid(json.loads(re.search(r"'({.*})'", command)[1]))
    assert [str(cell) for cell in grid.cells] == ["otcclip on targeted+badnets, coco, seed 0"]


def test_what_is_repaired_is_trained_first(planned):
    clip, cleanclip = commands(planned("cleanclip-cc3m-1m", "--cores", "1", "--config", "seed=1", "out=here/x"))
    folder = "here/cc3m/targeted+badnets/seed1"
    assert f"targeted+badnets clip 1 {folder}/clip/metrics.json" in clip
    assert f"targeted+badnets cleanclip 1 {folder}/cleanclip/metrics.json" in cleanclip


@pytest.mark.parametrize("name", PLUGINS)
def test_a_profile_asks_for_a_gpu_for_every_process(name, planned):
    if missing := [plugin for plugin in PLUGINS[name] if find_spec(plugin) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'otclib[cluster]'")
    profile = ["--profile", str(PROFILES / name)]
    for n, launched in ((1, ""), (4, "accelerate.commands.accelerate_cli launch --num_processes 4 -m ")):
        said = planned("otcclip-coco", *profile, "--config", f"processes={n}", "out=/shared/runs/x")
        (command,) = commands(said)
        assert f"-m otclib.processes {launched}otclib.experiments.grid " in command
        assert re.search(rf"^    resources: mem_mb=32000.*\bgpu={n}\b", said, re.MULTILINE)
        kept = "/shared/snakemake//shared/runs" if name == "kubernetes" else "/shared/runs"
        assert f"    output: {kept}/coco/targeted+badnets/seed0/otcclip/metrics.json" in said


@pytest.mark.parametrize("name", PLUGINS)
def test_a_profile_leaves_the_number_of_gpus_to_the_snakefile(name):
    asked = yaml.safe_load((PROFILES / name / "config.yaml").read_text())["default-resources"]
    assert not [line for line in asked if line.startswith(("gres", "gpu="))], "the SLURM plugin refuses both"
