"""Processes that end with the one that started them, and commands that stop at once and say so in one line.

A command is stopped in three ways, and none may leave a process behind:

* Ctrl-C sends SIGINT to every process of the terminal. The workers do not hear it; the command ends them.
* SIGTERM reaches one process. ``stoppable`` turns it into what Ctrl-C is, so that every ``finally`` is run.
* SIGKILL reaches one process, which cannot react. Its workers see that it is gone (``end_with``) and end themselves.

``python -m otclib.processes MODULE ...`` runs another module as ``python -m MODULE ...`` does, and ends it with its
parent. The module imports the standard library alone: ``otclib`` imports it first, before anything that takes seconds.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

WORKER_OF = "OTCLIB_WORKER_OF"  # in the environment of a worker while it is starting: the process that started it
PARENT = "OTCLIB_PARENT"  # in the environment of a command: it stops when this process is gone; the Makefile sets it
POLL = 0.5  # seconds between two looks at the parent
PATIENCE = 3.0  # seconds that a stopped command has to clear up
PR_SET_PDEATHSIG = 1  # of Linux's prctl
END = getattr(signal, "SIGKILL", signal.SIGTERM)

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_followed: set[tuple[int, int]] = set()  # (this process, a process that it ends with)


def end_with(parent: int) -> None:
    """End this process when its parent does, even if the parent is killed. Call it first in a worker.

    Linux sends SIGKILL to this process when the thread that started it ends; elsewhere, and besides, a thread looks for
    the parent twice a second. Ctrl-C is left to the parent, and SIGTERM ends a worker at once.

    parent : the parent's process id as the parent itself knows it: when it is gone already, this process ends here.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (os.getpid(), parent) in _followed:
        return
    _followed.add((os.getpid(), parent))
    killed_with_parent()
    if _left(parent):
        os._exit(1)
    _watch(lambda: _left(parent), lambda: os._exit(1))


def killed_with_parent() -> None:
    """On Linux, have SIGKILL sent to this process when the thread that started it ends; it survives an ``exec``."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, END)


def end_early() -> None:
    """``end_with`` for a worker that is starting; without effect elsewhere. ``otclib`` calls it before its imports."""
    if parent := os.environ.pop(WORKER_OF, None):
        if int(parent) == os.getppid() or os.name == "posix":
            end_with(int(parent))


def _left(parent: int) -> bool:
    """Whether the parent is gone. Windows keeps the number of a process that has ended."""
    if os.name == "posix":
        return os.getppid() != parent
    process = multiprocessing.parent_process()
    return process is not None and not process.is_alive()


def _watch(happened, then) -> None:
    def look() -> None:
        while not happened():
            time.sleep(POLL)
        then()

    threading.Thread(target=look, daemon=True, name="otclib-parent").start()


@contextmanager
def starting() -> Iterator[None]:
    """Start workers in this block: they do not hear Ctrl-C, and end with this process from their first import on.

    A Ctrl-C that comes within the block is delivered to this process at its end.
    """
    if masks := hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # its start would change the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if masks else None
    os.environ[WORKER_OF] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(WORKER_OF, None)
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(workers: Sequence[BaseProcess], seconds: float = 1.0) -> None:
    """Terminate workers and wait until they are gone; after ``seconds`` they are killed."""
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
    """Around a command's ``main``: Ctrl-C, SIGTERM and the end of ``make`` unwind it, and one line says so.

    The exit code is 130 after SIGINT and 143 after SIGTERM. A command that has not cleared up after ``PATIENCE``
    seconds, or is stopped a second time a second later, ends at once; its workers end with it.
    """
    stopped: list[tuple[int, float]] = []
    line = f"\n{name}: stopped; {then}\n".encode()

    def handle(number: int, _) -> None:
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
    gc.collect()  # what the unwound frames held, semaphores among it: or their tracker would warn of them
    sys.stdout.flush()
    os.write(2, line)
    os._exit(128 + (stopped[0][0] if stopped else signal.SIGINT))  # Python's own end may take many seconds


def _limit_patience(line: bytes) -> None:
    """End this process ``PATIENCE`` seconds after SIGINT or SIGTERM, whatever its main thread is in, and say so."""
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)

    def listen(mouth=mouth) -> None:  # which is kept open by this
        while (number := ears.recv(1)[0]) not in (signal.SIGINT, signal.SIGTERM):
            pass
        time.sleep(PATIENCE)
        os.write(2, line)
        os._exit(128 + number)

    threading.Thread(target=listen, daemon=True, name="otclib-patience").start()


def _follow_make() -> None:
    """End this process with the one that ``PARENT`` names, which is ``make``, or with what lies between them.

    It gets SIGTERM when one of them is gone, and SIGINT when ``make`` alone was interrupted, as by ``kill -INT``:
    ``make`` then waits for its children to end by themselves.
    """
    if os.name != "posix" or not os.environ.get(PARENT, "").isdigit():
        return
    parent, between = int(os.environ.pop(PARENT)), os.getppid()  # popped: it is not meant for what this one starts
    caught = _catches(parent, signal.SIGINT)

    def interrupted() -> bool:  # its handler ran: it resets the signal first
        return caught and not _catches(parent, signal.SIGINT)

    def gone() -> bool:
        return os.getppid() != between or not _exists(parent)

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM if gone() else signal.SIGINT)

    _watch(lambda: gone() or interrupted(), end)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for this signal, as Linux tells it; ``False`` where it is not told."""
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
