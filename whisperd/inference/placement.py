"""Where a model runs: what "auto" and 0 come to on this machine.

A container is often given less of the machine than it sees: its control group has a quota of processor time, spread
over all cores. Lanes beyond that quota would only be stopped in turn, in the middle of their work. The processor may
also have wider vectors than CTranslate2 takes by itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# CTranslate2's own choice is never more than AVX2; AVX-512 gives 10 % on short clips. Processors that have this part of
# it (Ice Lake, Zen 4 and later) do not slow down for it, as those before them did.
_ISA_VARIABLE, _WIDE_ISA, _WIDE_FLAG = "CT2_FORCE_CPU_ISA", "AVX512", "avx512_vbmi2"

# Below /sys/fs/cgroup. Those of version 1 are usually links to one another; "unified" is version 2 beside version 1.
_V1_PARENTS: tuple[str, ...] = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
_V2_PARENTS: tuple[str, ...] = ("", "unified")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs and how: lanes are batches side by side, each with so many threads."""

    device: str  # auto | cpu | cuda
    compute_type: str  # auto, or one of CTranslate2's
    lanes: int  # 0: as many as suit
    threads: int
    express: int = 0  # lanes besides, for short work beside long; -1: as many as suit

    @property
    def workers(self) -> int:
        """Batches that may be decoded at the same time."""
        return self.lanes + self.express

    def settled(self, device: str) -> Placement:
        """With this device in place of "auto", and what suits it in place of the rest.

        On a CPU one thread for each of several batches gives more throughput than several threads for one; a GPU
        is filled by a single batch. One batch more than there are cores keeps short work from waiting behind long
        work, at the price of a little speed of each; on a GPU batches end soon enough.
        """
        cores = usable_cores()
        lanes = self.lanes or (1 if device == "cuda" else cores)
        compute_type = self.compute_type
        if compute_type == "auto":
            compute_type = "float16" if device == "cuda" else "int8"
        express = self.express if self.express >= 0 else int(device == "cpu")
        return Placement(device, compute_type, lanes, self.threads or max(1, cores // lanes), express)


def prefer_wide_vectors(environ: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Has CTranslate2 use AVX-512 where that costs nothing; to be called before it first looks at the processor. What
    the user set is left alone."""
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "").split()
    except OSError:
        return  # no /proc: then by CTranslate2's own choice
    if _WIDE_FLAG in flags:
        environ.setdefault(_ISA_VARIABLE, _WIDE_ISA)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: those it may run on, and no more than its quota pays for."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return allowed if quota is None else min(allowed, max(1, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time by the tightest quota of our control group and those around it; None: no quota."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # a kernel without control groups has no quotas
    quotas = [quota for line in groups for quota in _quotas(root / "sys/fs/cgroup", line)]
    return min(quotas, default=None)


def _quotas(mount: Path, line: str) -> Iterator[float]:
    """The quotas on the way up from a group, given as a line of /proc/self/cgroup: "number:controllers:path"."""
    _, controllers, path = line.split(":", 2)
    files: tuple[str, ...]
    if not controllers:
        parents, files = _V2_PARENTS, ("cpu.max",)
    elif "cpu" in controllers.split(","):
        parents, files = _V1_PARENTS, ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    else:
        return
    # ".." leads out of what a container sees of the tree
    own = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
    for group in (own, *own.parents):
        for parent in parents:
            quota = _quota(mount / parent / group, files)
            if quota is not None:
                yield quota


def _quota(group: Path, files: tuple[str, ...]) -> float | None:
    """Quota by period of one group: "max 100000" in one file, or -1 and 100000 in two, stand for none."""
    try:
        figures = " ".join((group / name).read_text(encoding="ascii") for name in files).split()
    except OSError:
        return None  # the root group has none, and inside a container the path may be that of the outside
    if len(figures) != 2 or not all(figure.isdigit() for figure in figures) or not int(figures[1]):
        return None
    return int(figures[0]) / int(figures[1])
