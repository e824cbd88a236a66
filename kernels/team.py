"""Threads that run a pass together. They start once and wait between passes; after a fork the child starts its own.

One pass runs at a time: it has all the threads, so a second one at its side would only slow both down. A leader takes
passes in turn and calls the others; it is never the main thread, so Ctrl-C, which Python raises there, cannot leave
half a team waiting for the rest.
"""

import os
import threading
from queue import SimpleQueue
from typing import Protocol


class Pass(Protocol):
    """A piece of work for a team."""

    threads: int

    def begin(self) -> None:
        """Before, by the leader alone."""

    def run(self, number: int) -> None:
        """By all threads at once, numbered from 0 on."""

    def end(self) -> None:
        """Behind, by the leader alone."""


class Call:
    """A pass, and the one who waits for it."""

    def __init__(self, work: Pass) -> None:
        self.work = work
        self.given_up = False
        self.ended: SimpleQueue[BaseException | None] = SimpleQueue()


class Team:
    """Runs passes, one after the other."""

    def __init__(self) -> None:
        self._start_anew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self._starting, self._leading = threading.Lock(), threading.Lock()
        self._leader: threading.Thread | None = None
        self._calls: SimpleQueue[Call] = SimpleQueue()
        self._others: list[SimpleQueue[Pass]] = []
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(self, work: Pass) -> None:
        """Wait until the pass is over. An interrupt ends the waiting; a pass that runs already goes on."""
        with self._starting:
            if self._leader is None or not self._leader.is_alive():
                self._leader = threading.Thread(target=self._lead, name="gemma_np-0", daemon=True)
                self._leader.start()
        call = Call(work)
        try:
            self._calls.put(call)
            error = call.ended.get()
        except BaseException:
            call.given_up = True
            raise
        if error is not None:
            raise error

    def _lead(self) -> None:
        with self._leading:  # an interrupt in the middle of start() can bring about a second leader: it waits here
            while True:
                call = self._calls.get()
                if not call.given_up:
                    call.ended.put(self._error_of(call.work))
                del call  # not kept alive while there is nothing to do

    def _error_of(self, work: Pass) -> BaseException | None:
        """Run a pass; what went wrong, whatever it is: the caller must hear of it."""
        try:
            work.begin()
            while len(self._others) < work.threads - 1:
                queue: SimpleQueue[Pass] = SimpleQueue()
                number = len(self._others) + 1
                name = f"gemma_np-{number}"
                threading.Thread(target=self._follow, args=(queue, number), name=name, daemon=True).start()
                self._others.append(queue)  # now that it runs: where there are too many threads, start() raises
            for queue in self._others[: work.threads - 1]:
                queue.put(work)
            errors = [_error_of(work, 0), *(self._ended.get() for _ in range(work.threads - 1))]
            error = next((error for error in errors if error is not None), None)
            if error is None:
                work.end()
            return error
        except BaseException as error:
            return error

    def _follow(self, queue: SimpleQueue[Pass], number: int) -> None:
        while True:
            self._ended.put(_error_of(queue.get(), number))


def _error_of(work: Pass, number: int) -> BaseException | None:
    try:
        work.run(number)
    except BaseException as error:
        return error
    return None


TEAM = Team()
