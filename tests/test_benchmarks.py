"""The benchmark's own arithmetic, and that the book shows what was measured."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import solvers, training, transport
from otclib.experiments.pages import into_page

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("record, page, make", [("transport", "speed", transport), ("training", "training", training)])
def test_the_book_shows_the_committed_records(record, page, make):
    found = json.loads((ROOT / "benchmarks" / "results" / f"{record}.json").read_text())
    assert make.tables(found) in (ROOT / "book" / "results" / f"{page}.md").read_text()


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
    page = tmp_path / "speed.md"
    page.write_text("before\n<!-- speed: generated -->\nold\n<!-- speed ends -->\nafter\n")
    into_page("speed", "new", tmp_path)
    into_page("speed", "newer", tmp_path)
    marks = "<!-- speed: generated -->\n\nnewer\n\n<!-- speed ends -->"
    assert page.read_text() == f"before\n{marks}\nafter\n" and list(tmp_path.iterdir()) == [page]
    (tmp_path / "other.md").write_text("nothing to replace")
    with pytest.raises(ValueError, match="has no place for the text"):
        into_page("other", "new", tmp_path)
