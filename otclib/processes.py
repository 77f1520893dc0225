"""Workers that end with the process that started them, and commands that stop at once and say so in one line.

A command can be stopped in three ways, and none may leave a process behind:

* Ctrl-C sends SIGINT to every process of the terminal. The workers ignore it; the command ends them.
* SIGTERM reaches one process. ``stoppable`` treats it like Ctrl-C, so that every ``finally`` runs.
* SIGKILL reaches one process, which cannot react. Its workers notice that it is gone (``end_with``) and end themselves.

``python -m otclib.processes MODULE ...`` runs another module as ``python -m MODULE ...`` does, and ends it with its
parent. This file imports the standard library alone, because ``otclib`` imports it before anything that takes seconds.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

WORKER_OF = "OTCLIB_WORKER_OF"  # in the environment of a worker while it is starting: the process that started it
PARENT = "OTCLIB_PARENT"  # in the environment of a command: it stops when this process is gone; the Makefile sets it
POLL = 0.5  # seconds between two checks of the parent
PATIENCE = 3.0  # seconds that a stopped command has to clean up
PR_SET_PDEATHSIG = 1  # of Linux's prctl
END = getattr(signal, "SIGKILL", signal.SIGTERM)

STARTED_BY = os.getppid()  # when otclib was imported, which is the first thing that its commands do

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_followed: set[tuple[int, int]] = set()  # (this process, a process that it ends with)


def end_with(parent: int) -> None:
    """End this process when its parent does, even if the parent is killed. Call it first in a worker.

    Linux sends SIGKILL to this process when the thread that started it ends. On every system a thread also checks the
    parent twice a second. This process ignores Ctrl-C, which the parent handles; SIGTERM ends it at once.

    parent : the parent's process id as the parent itself knows it. If the parent is gone already, this process ends.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (os.getpid(), parent) not in _followed:
        killed_with_parent()
        _follow(parent)


def _follow(parent: int) -> None:
    """End this process when the parent is gone, by a look twice a second; calling it again changes nothing."""
    if (os.getpid(), parent) in _followed:
        return
    _followed.add((os.getpid(), parent))
    if _left(parent):
        os._exit(1)
    _watch(lambda: _left(parent), lambda: os._exit(1))


def killed_with_parent() -> None:
    """On Linux, have SIGKILL sent to this process when the thread that started it ends, also after an ``exec``."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, END)


def end_with_launcher() -> None:
    """End this process when the launcher that started it is gone, also if that was killed; call it in each of several.

    ``torchrun`` starts every process in a session of its own, so what kills the launcher leaves them alive. They would
    wait for each other for an hour.
    """
    _follow(STARTED_BY)


def end_early() -> None:
    """Call ``end_with`` in a worker that is starting; else do nothing. ``otclib`` calls this before its imports."""
    if parent := os.environ.pop(WORKER_OF, None):
        if int(parent) == os.getppid() or os.name == "posix":
            end_with(int(parent))


def _left(parent: int) -> bool:
    """Return whether the parent is gone. Windows keeps the id of a process that has ended."""
    if os.name == "posix":
        return os.getppid() != parent
    process = multiprocessing.parent_process()
    return process is not None and not process.is_alive()


def _watch(happened: Callable[[], bool], then: Callable[[], None]) -> None:
    def look() -> None:
        while not happened():
            time.sleep(POLL)
        then()

    threading.Thread(target=look, daemon=True, name="otclib-parent").start()


@contextmanager
def starting() -> Iterator[None]:
    """Start workers in this block: they ignore Ctrl-C, and end with this process from their first import on.

    A Ctrl-C within the block reaches this process at the end of the block.
    """
    before = None
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # its start would change the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.environ[WORKER_OF] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(WORKER_OF, None)
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(workers: Sequence[BaseProcess], seconds: float = 1.0) -> None:
    """Terminate workers and wait until they are gone; kill those that remain after ``seconds``."""
    started = [worker for worker in workers if worker.pid is not None]
    for worker in started:
        worker.terminate()
    deadline = time.monotonic() + seconds
    for worker in started:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()


@contextmanager
def stoppable(name: str, then: str = "the same command goes on where it stopped") -> Iterator[None]:
    """Wrap a command's ``main``: Ctrl-C, SIGTERM and the end of ``make`` unwind it, and one line says so.

    The exit code is 130 after SIGINT and 143 after SIGTERM. A command ends at once if it has not cleaned up after
    ``PATIENCE`` seconds, or if it is stopped again more than a second later. Its workers end with it.
    """
    stopped: list[tuple[int, float]] = []
    line = f"\n{name}: stopped; {then}\n".encode()

    def handle(number: int, _: object) -> None:
        if stopped:
            if time.monotonic() - stopped[0][1] > 1:
                os._exit(128 + number)
            return
        stopped.append((number, time.monotonic()))
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    _limit_patience(line)
    _follow_make()
    try:
        yield
        return
    except KeyboardInterrupt:
        pass
    gc.collect()  # free what the unwound frames held, else the tracker of semaphores would warn
    sys.stdout.flush()
    os.write(2, line)
    os._exit(128 + (stopped[0][0] if stopped else signal.SIGINT))  # Python's own shutdown may take many seconds


def _limit_patience(line: bytes) -> None:
    """End this process ``PATIENCE`` seconds after SIGINT or SIGTERM, whatever its main thread does, and say so."""
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)

    def listen(mouth: socket.socket = mouth) -> None:  # the default argument keeps it open
        while (number := ears.recv(1)[0]) not in (signal.SIGINT, signal.SIGTERM):
            pass
        time.sleep(PATIENCE)
        os.write(2, line)
        os._exit(128 + number)

    threading.Thread(target=listen, daemon=True, name="otclib-patience").start()


def _follow_make() -> None:
    """End this process with ``make``, which ``PARENT`` names, or with the process between them.

    It gets SIGTERM when one of them is gone. It gets SIGINT when ``make`` alone was interrupted, as by ``kill -INT``,
    because ``make`` then waits for its children to end by themselves.
    """
    if os.name != "posix" or not os.environ.get(PARENT, "").isdigit():
        return
    parent, between = int(os.environ.pop(PARENT)), os.getppid()  # popped: not for the processes that this one starts
    caught = _catches(parent, signal.SIGINT)

    def interrupted() -> bool:  # its handler ran: it resets the signal first
        return caught and not _catches(parent, signal.SIGINT)

    def gone() -> bool:
        return os.getppid() != between or not _exists(parent)

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM if gone() else signal.SIGINT)

    _watch(lambda: gone() or interrupted(), end)


def _catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for this signal, by Linux's /proc; False on other systems."""
    try:
        with open(f"/proc/{pid}/status") as lines:
            masks = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
    except OSError:
        return False
    return any(mask >> (number - 1) & 1 for mask in masks)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    _follow_make()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
