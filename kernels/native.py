"""The interpreter's own modules, whatever has been patched since: gevent and eventlet replace threads by greenlets.

Threads that compute must be the operating system's: a greenlet that waits at the barrier waits for others that only run
once it gives way. Libraries patch the attributes of the modules that are there, so a copy of a module that is loaded
now has the originals. Nothing here asks which library it was.

What waits by these locks stops every greenlet of its thread, as any call of C code does. So none may be held where
greenlets can change: while files are read, a process is waited for, or a patched lock is taken.
"""

from collections import deque
from contextlib import suppress
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Generic, TypeVar


def unpatched() -> ModuleType:
    """The module _thread, loaded once more."""
    spec = find_spec("_thread")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_thread = unpatched()
allocate_lock = _thread.allocate_lock
start_thread = _thread.start_new_thread

Item = TypeVar("Item")


class Queue(Generic[Item]):
    """A queue that any threads fill and one empties."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._filled = allocate_lock()
        self._filled.acquire()

    def put(self, item: Item) -> None:
        self._items.append(item)
        with suppress(RuntimeError):  # it is open already: nobody has looked since the last item
            self._filled.release()

    def get(self) -> Item:
        """Wait for an item. In the main thread an interrupt ends the waiting."""
        while not self._items:
            self._filled.acquire()
        return self._items.popleft()
