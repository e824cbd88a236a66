"""One process at a time: a lock of the operating system on a file. It ends with its holder, however that ends."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a process forked meanwhile would hold it, too


BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what the two say while another process has the lock
PAUSE = 0.05  # seconds between two attempts: to ask instead of waiting lets Ctrl-C, greenlets and `patience` work
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def alone(path: Path, patience: float, waiting: Callable[[], object]) -> Iterator[None]:
    """Run a block while no other process runs one with the same path.

    path      a file, made for this and removed afterwards
    patience  seconds after which the block runs all the same: another's may hang
    waiting   called once if there is something to wait for

    Where nothing can be locked, in a read-only folder or on a network drive without locks, the block runs at once.
    """
    until, handle, waited = time.monotonic() + patience, None, False
    while True:
        handle = _taken(path)
        if handle != HELD or time.monotonic() >= until:
            break
        if not waited:
            waited = True
            waiting()
        time.sleep(PAUSE)
    try:
        yield
    finally:
        if handle >= 0:
            with suppress(OSError):
                path.unlink()  # before the lock ends; Windows removes no open file, there it stays, empty
            os.close(handle)


HELD, IMPOSSIBLE = -1, -2


def _taken(path: Path) -> int:
    """The open file with its lock, HELD if another process has it, IMPOSSIBLE if nobody can."""
    try:
        handle = os.open(path, FLAGS, 0o600)
    except OSError:
        return IMPOSSIBLE
    try:
        _lock(handle)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
        found = HELD  # its holder has just removed it: the next attempt makes another
    except OSError as error:
        found = HELD if error.errno in (*BUSY, errno.ENOENT) else IMPOSSIBLE
    os.close(handle)
    return found
