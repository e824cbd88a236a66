"""How many cores a process may use, by its affinity mask and by control groups of both versions."""

import os
from pathlib import Path

import pytest
from gemma_np.kernels import cores
from gemma_np.kernels.cores import usable_cores

from gemma_np import EmbeddingGemma, GemmaWarning


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_default_is_what_affinity_allows() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cores() <= len(before)


def test_a_quota_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for quota, count, expected in ((None, 8, 8), (3, 8, 3), (16, 8, 8), (1, 1, 1)):
        monkeypatch.setattr(cores, "_quota", lambda quota=quota: quota)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: set(range(count)), raising=False)
        assert usable_cores() == expected


def test_more_threads_than_cores_do_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.too_many(usable_cores()) is None
    for threads in (usable_cores() + 1, 64, 10**6):
        with pytest.warns(GemmaWarning, match=f"threads = {threads}, but this process may use {usable_cores()} "):
            model = EmbeddingGemma("nano", threads=threads)
        assert model.threads == usable_cores()
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    assert [cores.too_many(threads) is None for threads in (1, 3, 4)] == [True, True, False]


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("0::/the/hosts\n", {"cpu.max": "400000 100000"}, 4),
        ("", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, 2),
        ("5:memory:/x\nbroken\n", {"memory/x/cpu.max": "100000 100000", "x/cpu.max": "100000 100000"}, None),
    ],
)
def test_control_groups_of_both_versions_are_read(
    own: str, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content)
    assert cores._quota(tmp_path / "root", tmp_path / "own") == expected
