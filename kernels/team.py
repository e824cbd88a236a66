"""Threads that run a pass together. They start once and wait between passes; after a fork the child starts its own.

One pass runs at a time: it has all the threads, and a second one would only slow both down. A leader takes passes in
turn and calls the others. It is never the main thread, so Ctrl-C, which Python raises there, cannot leave half a team
waiting for the rest.
"""

import os
from typing import Protocol

from .native import Queue, allocate_lock, start_thread


class Work(Protocol):
    """What a team does together."""

    threads: int

    def begin(self) -> None:
        """Called once, by the leader, before all threads run."""

    def run(self, number: int) -> None:
        """Called by all threads at once, with their numbers from 0 on."""

    def end(self) -> None:
        """Called once, by the leader, after all have finished."""


class Call:
    """Work, and the caller who waits for it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.given_up = False
        self.ended: Queue[BaseException | None] = Queue()


class Team:
    """Runs work, one piece after the other."""

    def __init__(self) -> None:
        self._start_anew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self._starting, self._leading = allocate_lock(), allocate_lock()
        self._led = False
        self._calls: Queue[Call | None] = Queue()
        self._others: list[Queue[Work | None]] = []
        self._ended: Queue[BaseException | None] = Queue()

    def run(self, work: Work) -> None:
        """Wait until the pass is over. An interrupt ends the waiting; a pass that runs already goes on."""
        call = Call(work)
        try:
            with self._starting:
                if not self._led:
                    start_thread(self._lead, (self._calls,))
                    self._led = True
                self._calls.put(call)
            error = call.ended.get()
        except BaseException:
            call.given_up = True
            raise
        if error is not None:
            raise error

    def stop(self) -> None:
        """End the threads when the calls before have run; the next call starts others."""
        with self._starting:
            if self._led:
                self._calls.put(None)
                self._calls, self._led = Queue(), False

    def _lead(self, calls: "Queue[Call | None]") -> None:
        with self._leading:  # an interrupt right after start_thread can bring about a second leader: it waits here
            while (call := calls.get()) is not None:
                if not call.given_up:
                    call.ended.put(self._error_of(call.work))
                del call  # not kept alive while there is nothing to do
            for queue in self._others:
                queue.put(None)
            self._others.clear()

    def _error_of(self, work: Work) -> BaseException | None:
        """Run a pass; what went wrong, whatever it is: the caller must hear of it."""
        try:
            work.begin()
            while len(self._others) < work.threads - 1:
                queue: Queue[Work | None] = Queue()
                start_thread(self._follow, (queue, len(self._others) + 1))
                self._others.append(queue)  # now that it runs: where there are too many threads, start_thread raises
            for queue in self._others[: work.threads - 1]:
                queue.put(work)
            errors = [_error_of(work, 0), *(self._ended.get() for _ in range(work.threads - 1))]
            error = next((error for error in errors if error is not None), None)
            if error is None:
                work.end()
            return error
        except BaseException as error:
            return error

    def _follow(self, queue: "Queue[Work | None]", number: int) -> None:
        while (work := queue.get()) is not None:
            self._ended.put(_error_of(work, number))
            del work


def _error_of(work: Work, number: int) -> BaseException | None:
    try:
        work.run(number)
    except BaseException as error:
        return error
    return None


TEAM = Team()
