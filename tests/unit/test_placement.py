"""How much of the machine is ours: cores, and the quotas of a control group, read from a tree of plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whisperd.inference.placement import Placement, cpu_quota, prefer_wide_vectors, usable_cores


def tree(root: Path, groups: str, **quotas: str) -> Path:
    """A root folder with /proc/self/cgroup and files below /sys/fs/cgroup, whose names have "__" for "/"."""
    files = {"proc/self/cgroup": groups}
    files |= {f"sys/fs/cgroup/{name.replace('__', '/')}": text for name, text in quotas.items()}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_takes_the_tightest_quota_on_the_way_up(tmp_path: Path) -> None:
    """A group may have more than the one around it, which holds all the same."""
    quotas = {"a__b__cpu.max": "max 100000\n", "a__cpu.max": "150000 100000\n", "cpu.max": "800000 100000\n"}
    assert cpu_quota(tree(tmp_path, "0::/a/b\n", **quotas)) == 1.5


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """The path may be "/", that of the outside, or lead out of the tree."""
    for number, path in enumerate(["/", "/docker/1234", "/../../outside"]):
        root = tree(tmp_path / str(number), f"0::{path}\n", **{"cpu.max": "200000 100000"})
        assert cpu_quota(root) == 2.0, path


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_version_1_has_its_quota_in_two_files(tmp_path: Path, folder: str) -> None:
    """In the tree of its controller, wherever that is mounted."""
    root = tree(
        tmp_path,
        "4:memory:/x\n3:cpu,cpuacct:/job/1\n1:name=systemd:/\n0::/\n",
        **{
            f"{folder}__job__1__cpu.cfs_quota_us": "-1\n",
            f"{folder}__job__1__cpu.cfs_period_us": "100000\n",
            f"{folder}__job__cpu.cfs_quota_us": "50000\n",
            f"{folder}__job__cpu.cfs_period_us": "20000\n",
            "memory__x__cpu.cfs_quota_us": "1\n",
            "memory__x__cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu_quota(root) == 2.5


@pytest.mark.parametrize("text", ["max 100000\n", "", "100000\n", "100000 0\n", "a b\n"])
def test_no_quota_is_none(tmp_path: Path, text: str) -> None:
    """Also where the file says nothing that can be understood."""
    assert cpu_quota(tree(tmp_path, "0::/\n", **{"cpu.max": text})) is None


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    """Neither file is there, or only the first."""
    assert cpu_quota(tmp_path) is None
    assert cpu_quota(tree(tmp_path, "0::/\n")) is None


def test_a_quota_bounds_the_cores(tmp_path: Path) -> None:
    """Part of a core is rounded up, and nobody has less than one or more than the cores it may run on."""
    allowed = len(os.sched_getaffinity(0))
    for quota, cores in (("max", allowed), (20, 1), (100, 1), (120, min(2, allowed)), (100_000, allowed)):
        assert usable_cores(tree(tmp_path, "0::/\n", **{"cpu.max": f"{quota} 100"})) == cores


def test_what_is_left_open_is_one_lane_with_one_thread_for_each_core() -> None:
    """On a CPU; a GPU has one lane."""
    cores = usable_cores()
    assert Placement("auto", "auto", 0, 0).settled("cpu") == Placement("cpu", "int8", cores, 1)
    assert Placement("auto", "auto", 0, 0).settled("cuda") == Placement("cuda", "float16", 1, cores)


def test_what_is_set_is_kept() -> None:
    """Lanes and threads that somebody chose are not second-guessed."""
    assert Placement("auto", "float32", 3, 2).settled("cpu") == Placement("cpu", "float32", 3, 2)


@pytest.mark.parametrize(
    ("flags", "own", "expected"),
    [
        ("fpu avx2 avx512f avx512_vbmi2", {}, "AVX512"),
        ("fpu avx2 avx512f", {}, None),  # Skylake, which slows down for it
        ("fpu avx2 avx512f avx512_vbmi2", {"CT2_FORCE_CPU_ISA": "AVX2"}, "AVX2"),
    ],
)
def test_wide_vectors_are_for_processors_that_stay_fast_with_them(
    tmp_path: Path, flags: str, own: dict[str, str], expected: str | None
) -> None:
    """And what the user set is left alone."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nmodel name\t: any\nflags\t\t: {flags}\n\n")
    prefer_wide_vectors(own, tmp_path)
    assert own.get("CT2_FORCE_CPU_ISA") == expected


def test_without_proc_the_engine_chooses_its_vectors(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    prefer_wide_vectors(environ, tmp_path)
    assert not environ
