"""However a command is stopped, none of its processes lives five seconds later, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otclib import processes
from otclib.experiments import demo

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends the signals of POSIX")
ROOT = demo.NOTEBOOKS.parent
SECONDS = 5.0
GROUP = "Ctrl-C"  # SIGINT to every process of the terminal, and not to one
HOW = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, GROUP]
every_way = pytest.mark.parametrize("how", HOW, ids=lambda how: getattr(how, "name", how))


class Command:
    """A command in a process group of its own, and what it started."""

    def __init__(self, arguments: list[str], log: Path, cwd: Path = ROOT):
        self.log = log
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        more = {"env": environment, "cwd": cwd, "start_new_session": True, "preexec_fn": _hear}
        with open(log, "a") as file:
            self.process = subprocess.Popen(arguments, stdout=file, stderr=file, **more)
        self.known: dict[int, psutil.Process] = {}

    def running(self) -> list[psutil.Process]:
        """The command and its descendants, also those whose parent is gone."""
        self.process.poll()
        for pid in [*self.known, *([] if self.known else [self.process.pid])]:
            try:
                process = self.known.get(pid) or psutil.Process(pid)
                for each in (process, *process.children(recursive=True)):
                    self.known.setdefault(each.pid, each)
            except psutil.NoSuchProcess:
                pass
        return [process for process in self.known.values() if _lives(process)]

    def wait_for(self, reached, seconds: float = 900) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            self.running()
            assert self.process.poll() is None, f"it ended before it was stopped:\n{self.said()}"
            assert time.monotonic() < deadline, f"not there after {seconds:.0f} s:\n{self.said()}"
            time.sleep(0.2)

    def stop(self, how) -> float:
        """Stop it, wait until no process is left, and return the seconds that this took."""
        before, start = self.running(), time.monotonic()
        if how == GROUP:
            os.killpg(self.process.pid, signal.SIGINT)
        else:
            self.process.send_signal(how)
        while (left := [p for p in {*before, *self.running()} if _lives(p)]) and time.monotonic() < start + SECONDS:
            time.sleep(0.05)
        seconds = time.monotonic() - start
        assert not left, f"{len(left)} of {len(self.known)} processes live {SECONDS} s later: {left}\n{self.said()}"
        print(f"{len(before)} processes gone {seconds:.2f} s after {getattr(how, 'name', how)}")
        return seconds

    def said(self) -> str:
        return self.log.read_text()[-3000:]

    def clear(self) -> None:
        for process in self.running():
            process.kill()
        self.process.wait()


def _hear() -> None:
    """As in a terminal: where the tests run in the background, SIGINT is ignored, and so would it be in the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def command(tmp_path):
    """Start ``python ARGUMENTS`` (or another program); whatever a failed test leaves is killed."""
    commands = []

    def start(*arguments: str, program: str = sys.executable, cwd: Path = ROOT) -> Command:
        commands.append(Command([program, *arguments], tmp_path / "said.txt", cwd))
        return commands[-1]

    yield start
    for each in commands:
        each.clear()


def code_and_words(stopped: Command, how, name: str) -> None:
    """The exit code of the signal, one line that says what to do, and no traceback."""
    if how == signal.SIGKILL:
        return
    assert stopped.process.wait() == (143 if how == signal.SIGTERM else 130), stopped.said()
    assert f"{name}: stopped; the same command goes on" in stopped.said()
    assert "Traceback" not in stopped.said() and "leaked" not in stopped.said(), stopped.said()


ALONE = f"""
import importlib.util, multiprocessing, os, sys, time
spec = importlib.util.spec_from_file_location("processes", {processes.__file__!r})
processes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
"""  # the module without the package, whose imports take seconds
WORKERS = """
def work(parent):
    processes.end_with(parent)
    time.sleep(100)

if __name__ == "__main__":
    workers = [multiprocessing.get_context({method!r}).Process(target=work, args=(os.getpid(),)) for _ in range(2)]
    with processes.stoppable("test"):
        try:
            with processes.starting():
                for worker in workers:
                    worker.start()
            print("started", flush=True)
            time.sleep(100)
        finally:
            processes.stop(workers)
"""


@every_way
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_end_with_their_parent(command, tmp_path, how, method):
    script = tmp_path / "script.py"
    script.write_text(ALONE + WORKERS.format(method=method))
    started = command(str(script))
    started.wait_for(lambda: "started" in started.said() and len(started.running()) >= 3)
    time.sleep(1)  # they are in their work, or still on their way there
    started.stop(how)
    code_and_words(started, how, "test")


def test_a_command_that_does_not_clear_up_ends_all_the_same(command, tmp_path):
    script = tmp_path / "script.py"
    stuck = "try:\n        print('there', flush=True); time.sleep(100)\n    finally:\n        time.sleep(100)"
    script.write_text(f"{ALONE}\nwith processes.stoppable('test'):\n    {stuck}")
    started = command(str(script))
    started.wait_for(lambda: "there" in started.said())
    assert started.stop(signal.SIGTERM) > processes.PATIENCE - 0.5
    code_and_words(started, signal.SIGTERM, "test")


def test_a_worker_whose_parent_is_gone_ends_before_it_begins():
    code = f"{ALONE}\nprocesses.end_with(os.getppid() + 1); print('went on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "went on" not in done.stdout


def lines(*runs: Path) -> list[str]:
    return [
        line for run in runs if (run / "log.jsonl").exists() for line in (run / "log.jsonl").read_text().split("\n")
    ]


TRAIN = ["-m", "otclib.train", "--size", "400", "--defense", "clip", "--batch-size", "32"]


@pytest.mark.slow
@every_way
def test_a_training_stops_and_goes_on(command, tmp_path, how):
    arguments = [*TRAIN, "--epochs", "40" if how != signal.SIGTERM else "6", "--out", str(tmp_path / "run")]
    started = command(*arguments)
    started.wait_for(lambda: lines(tmp_path / "run"))
    first = lines(tmp_path / "run")[0]
    started.stop(how)
    code_and_words(started, how, "otclib.train")
    if how == signal.SIGTERM:
        again = command(*arguments)
        assert again.process.wait(600) == 0, again.said()
        log = lines(tmp_path / "run")
        assert log[0] == first, "the first epoch was not trained again"
        assert [json.loads(line)["epoch"] for line in log if line] == [1, 2, 3, 4, 5, 6]


EACH = """
import sys
import otclib
if __name__ == "__main__":
    pairs = otclib.data.load("scenes", size=400, seed=5)
    otclib.train_each(pairs, ["clip", "roclip"], out=sys.argv[1], seed=5, epochs=60, batch_size=32)
"""


@pytest.mark.slow
@every_way
def test_train_each_in_a_script(command, tmp_path, how):
    """Without ``stoppable``, too: a script of a reader's."""
    script = tmp_path / "script.py"
    script.write_text(EACH)
    started = command(str(script), str(tmp_path / "runs"))
    started.wait_for(lambda: lines(tmp_path / "runs" / "clip", tmp_path / "runs" / "roclip"))
    started.stop(how)
    assert "leaked" not in started.said(), started.said()


@pytest.mark.slow
def test_train_each_is_killed_while_its_workers_are_starting(command, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(EACH)
    started = command(str(script), str(tmp_path / "runs"))
    started.wait_for(lambda: len(started.running()) >= 4)  # itself, the resource tracker and two workers
    started.stop(signal.SIGKILL)


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("name", ["make", "python"])
def test_the_demo_stops_and_goes_on(command, tmp_path, how, name):
    out, runs = tmp_path / "demo", [tmp_path / "demo-fast" / name for name in ("clip", "otcclip")]
    arguments = ["-m", "otclib.experiments.demo", "--fast", "--out", str(out)]

    def start() -> Command:
        if name == "python":
            return command(*arguments)
        recipe = (ROOT / "Makefile").read_text().split("\nsetup:")[0].replace("BIN := .venv/bin", "BIN := unused")
        words = " ".join([sys.executable, *arguments])
        (tmp_path / "Makefile").write_text(f"{recipe}\n\ndemo:\n\t{words}\n")  # the demo as `make` starts it, but fast
        return command("-f", str(tmp_path / "Makefile"), "demo", program="make")

    started = start()
    started.wait_for(lambda: lines(*runs))
    before = [(run, line) for run in runs for line in lines(run) if line]
    started.stop(how)
    if name == "python":
        code_and_words(started, how, "otclib.experiments.demo")
    if (name, how) == ("python", signal.SIGTERM):
        again = start()
        assert again.process.wait(900) == 0, again.said()
        for run, line in before:
            assert line in lines(run), "an epoch that was there was trained again"
        assert "Done in" in again.said()


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("chapter", [False, True], ids=["grid", "batch"])
def test_a_grid_stops(command, tmp_path, how, chapter):
    few, out = {"few": {"dataset": "scenes", "size": 400}}, tmp_path / "out"
    asked = {"out": str(out), "datasets": few, "attacks": {"badnets": ["badnets"]}, "seeds": [3]}
    asked |= {"systems": {"clip": {"defense": "clip"}}, "parameters": {"epochs": 60}}
    if chapter:
        few["few"]["dataset_options"] = {}
        asked["chapter"] = "notebooks/06_own_data.ipynb"
    (tmp_path / "grid.json").write_text(json.dumps(asked))
    arguments = ["-m", "snakemake", "--cores", "2", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    started = command(*arguments, "--configfile", str(tmp_path / "grid.json"), cwd=tmp_path)
    started.wait_for(lambda: lines(out / "few" / "badnets" / "seed3" / "clip"))
    started.stop(how)
