"""``make test`` and ``make test-slow`` together run every test, and none twice; CI runs both."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


def would_run(*targets: str) -> str:
    """What ``make`` would run for the targets."""
    command = ["make", "--dry-run", *targets]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@needs_make
def test_quick_and_slow_are_all():
    """A test is marked or it is not, so these two expressions split the suite; a misspelled mark is an error."""
    runs = [line.split("pytest", 1)[1].strip() for line in would_run("test-all").splitlines() if "-m pytest" in line]
    assert [line.split("#")[0].strip() for line in runs] == ['-n 2 --dist loadfile -m "not slow"', "-m slow"]
    assert "--strict-markers" in (ROOT / "pyproject.toml").read_text()


def test_ci_checks_the_style_and_runs_each_half_once():
    commands = [line.split("#")[0].strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert [line for line in commands if line.startswith("make ")] == ["make lint", "make test", "make test-slow"]


@needs_make
def test_what_a_command_installs_is_an_extra():
    for target in ("demo", "explorer", "test-all", "lint", "book", "batch", "bench"):
        asked = {part.split("]")[0] for part in would_run("--always-make", target).split("--editable '.[")[1:]}
        assert asked and asked <= set(EXTRAS), target
        assert "notebooks" in asked, "the first set-up comes first"
    assert would_run("--always-make", "demo").count("pip install") == 1, "the demo needs no test tools"


def test_the_oldest_dependencies_are_the_lower_bounds():
    needed = [*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["test"]]
    bounds = {asked.split(",")[0].replace(">=", "==") for asked in needed}
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == bounds


def test_conda_installs_the_same_extras():
    (pip,) = [part["pip"] for part in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1:]]
    asked = set(pip[-1].split("[")[1].rstrip("]").split(","))
    assert asked == set(EXTRAS) - {"bench"}, "all but what make bench adds"
