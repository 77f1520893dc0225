"""The benchmark's own arithmetic, and that the README shows what was measured."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import solvers, transport
from otclib.experiments.records import into_readme

ROOT = Path(__file__).parent.parent


def test_the_readme_shows_the_committed_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "transport.json").read_text())
    assert transport.tables(record) in (ROOT / "README.md").read_text()


def test_least_effort_is_enough_and_little_less_is_not():
    g = torch.Generator().manual_seed(0)
    C = 2 * torch.rand(6, 9, 7, generator=g)
    a, b = torch.full((6, 9), 1 / 9), torch.full((6, 7), 1 / 7)
    for solver in (solvers.pot_log, solvers.pot_kernel, solvers.torch_kernel, solvers.pot_loop):
        effort, reached = solvers.least_effort(solver, C, a, b, 0.1)
        assert reached <= solvers.TOL < float(solvers.marginal_error(solver(C, a, b, 0.1, effort // 2), a, b).max())
    costs = (solvers.pot_log(C, a, b, 0.1, effort) * C).sum((1, 2))
    assert torch.allclose(solvers.ours(C, a, b, 0.1), costs, atol=1e-3)
    assert solvers.least_effort(solvers.torch_kernel, 1000 * C, a, b, 0.1)[0] is None, "what underflows never arrives"


def test_ways_are_run_in_turn_after_a_first_time_that_does_not_count():
    log = []
    seconds = transport.in_turn({"x": lambda: log.append("x"), "y": lambda: log.append("y")}, 2)
    assert "".join(log) == "xyxyxy" and [len(s) for s in seconds.values()] == [2, 2]


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench: written by make bench -->\nold\n<!-- bench ends -->\nafter\n")
    into_readme("bench", "new", readme)
    into_readme("bench", "newer", readme)
    marks = "<!-- bench: written by make bench -->\n\nnewer\n\n<!-- bench ends -->"
    assert readme.read_text() == f"before\n{marks}\nafter\n" and list(tmp_path.iterdir()) == [readme]
    with pytest.raises(ValueError):
        into_readme("bench", "new", _without_marks(tmp_path))


def _without_marks(folder: Path) -> Path:
    (folder / "other.md").write_text("nothing to replace")
    return folder / "other.md"
