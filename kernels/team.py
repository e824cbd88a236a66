"""Threads that run a pass together. They start once and wait between passes; after a fork the child starts its own.

One pass runs at a time: it has all the threads, so a second one at its side would only slow both down. A leader takes
passes in turn and calls the others; it is never the main thread, so Ctrl-C, which Python raises there, cannot leave
half a team waiting for the rest.
"""

import os
import threading
from queue import SimpleQueue
from typing import Any, Protocol


class Pass(Protocol):
    """A piece of work for a team."""

    threads: int

    def begin(self) -> None:
        """Before, by the leader alone."""

    def run(self, number: int) -> None:
        """By all threads at once, numbered from 0 on."""

    def end(self) -> None:
        """Behind, by the leader alone."""


class Team:
    """Runs passes, one after the other."""

    def __init__(self) -> None:
        self._start_anew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self._starting = threading.Lock()
        self._led = False
        self._passes: SimpleQueue[tuple[Pass, SimpleQueue[BaseException | None]]] = SimpleQueue()
        self._others: list[SimpleQueue[Pass]] = []
        self._ended: SimpleQueue[None] = SimpleQueue()

    def run(self, work: Pass) -> None:
        """Wait until the pass is over. An interrupt ends the waiting, not the pass."""
        with self._starting:
            if not self._led:
                self._led = True
                threading.Thread(target=self._lead, name="gemma_np-0", daemon=True).start()
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self._passes.put((work, ended))
        error = ended.get()
        if error is not None:
            raise error

    def _lead(self) -> None:
        while True:
            work, ended = self._passes.get()
            try:
                work.begin()
                while len(self._others) < work.threads - 1:
                    self._others.append(SimpleQueue())
                    number = len(self._others)
                    name = f"gemma_np-{number}"
                    threading.Thread(target=self._follow, args=(number,), name=name, daemon=True).start()
                for queue in self._others[: work.threads - 1]:
                    queue.put(work)
                work.run(0)
                for _ in range(work.threads - 1):
                    self._ended.get()
                work.end()
            except BaseException as error:  # whatever it is, the caller must hear of it
                ended.put(error)
            else:
                ended.put(None)
            del work, ended  # not kept alive while there is nothing to do

    def _follow(self, number: int) -> None:
        queue: Any = self._others[number - 1]
        while True:
            queue.get().run(number)
            self._ended.put(None)


TEAM = Team()


def usable_cores() -> int:
    """How many cores this process may use: the affinity mask's, within the control group's quota; not the host's."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, count if quota is None else min(count, quota))


def _quota() -> int | None:
    """The control group's limit of processor time, in whole cores, rounded up; None where there is none."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # version 2
            limit, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:  # version 1
                limit = file.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read().strip()
        except OSError:
            return None
    try:
        cores = -(-int(limit) // int(period))
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return cores if cores > 0 else None
