"""How many processor cores this process may use: what its affinity mask and its control groups allow."""

import os
from pathlib import Path, PurePosixPath


def usable_cores() -> int:
    """How many cores this process may use: the affinity mask's, within the control group's quota; not the host's."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, count if quota is None else min(count, quota))


def too_many(threads: int) -> str | None:
    """What to say of more threads than cores, which wait for each other: 64 on 2 cores took 13 times as long as 2."""
    cores = usable_cores()
    if threads <= cores:
        return None
    return f"threads = {threads}, but this process may use {cores} of this machine's cores: {cores} will compute"


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The control groups' limit of processor time, in whole cores, rounded up; None where there is none.

    A group's limit holds for all groups below it. `own` names this process's group; in a container the path may be the
    host's, which is not to be seen there, and the container's own group is the root.
    """
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        groups = []
    found = [_limit(root)]
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        bases = [root] if not controllers else [root / "cpu", root / controllers]
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            found += [_limit(base / folder.relative_to("/")) for base in bases]
    found += [_limit(root / "cpu")]
    return min((cores for cores in found if cores is not None), default=None)


def _limit(group: Path) -> int | None:
    """One group's limit: `cpu.max` of version 2, the two `cpu.cfs` files of version 1."""
    try:
        limit, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        cores = -(-int(limit) // int(period))
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return cores if cores > 0 else None
