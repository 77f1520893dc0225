"""The benchmark's own arithmetic, and that the book shows what was measured."""

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import solvers, throughput, training, transport
from benchmarks.open_clip_loop import Waited
from otclib import defenses
from otclib.experiments.pages import into_page

ROOT = Path(__file__).parent.parent


PAGES = [
    ("transport", "speed", transport),
    ("training", "training", training),
    ("throughput", "throughput", throughput),
]


@pytest.mark.parametrize("record, page, make", PAGES)
def test_the_book_shows_the_committed_records(record, page, make):
    file = ROOT / "benchmarks" / "results" / f"{record}.json"
    found = json.loads(file.read_text())
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


@pytest.mark.slow
def test_throughput_measures_both_loops_every_defence_and_memory(tmp_path):
    threads = torch.get_num_threads()
    few = ["--quick", "--models", "small", "--repeats", "1", "--threads", "1", "--workers", "1", "--pairs", "40"]
    try:
        throughput.main([*few, "--results", str(tmp_path / "record.json")])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "record.json").read_text())
    lines = throughput.tables(record).splitlines()
    rows = [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ") and not line.startswith("| |")]
    loops = ["open_clip", "ours", "ours, images in memory"]
    assert rows == [*loops, "clip", "roclip", "safeclip", "cleanclip", "otcclip", "40 pairs"]
    assert all(way["seconds"] > 0 and 0 <= way["waiting"] < 1 for way in record["plain"][0]["ways"].values())
    assert all(0.05 < each["process_rss_gib"] < 8 for each in record["memory"])
    about = {"machine", "code", "device", "threads", "workers", "batch"}
    assert all(about <= set(each) for part in ("plain", "defenses", "memory") for each in record[part])


def test_a_safeclip_run_is_made_of_its_phases():
    method = defenses.load("safeclip")
    phases = throughput.phases("safeclip", method)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert phases[-1].matchings == pytest.approx(10 / 16)
    assert phases[1].share == pytest.approx((3 + sum(0.15 + 0.05 * k for k in range(10))) / 16)


def test_waiting_is_counted_apart_from_the_first_item():
    def slow():
        for k in range(3):
            time.sleep(0.05 if k else 0.2)
            yield k

    stream = Waited(slow())
    assert list(stream) == [0, 1, 2] and stream.first >= 0.2 and stream.later >= 0.1
