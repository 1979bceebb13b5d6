"""How many CPUs this process may use, and which instruction set to use on them."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")

ISA_VARIABLE = "AGNEWS_FAST_ISA"


def usable_cpus() -> int:
    """CPUs in this process's affinity mask, no more than its cgroup's quota allows (rounded up), at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        allowed = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _cgroup_quota() -> float | None:
    """CPU time a period that this process's cgroups allow, in CPUs; None if there is no limit.

    Version 2 and version 1: https://docs.kernel.org/admin-guide/cgroup-v2.html, under cpu.max;
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    try:
        lines = _OWN_CGROUPS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            # In a container the path may be that of the host, which is not there; the container's own is the root.
            inner = Path(path.lstrip("/"))
            for group in [inner, *inner.parents]:
                quotas.append(_quota_of(_CGROUPS / controllers / group, controllers == ""))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path, version_2: bool) -> float | None:
    try:
        if version_2:
            quota, period = (group / "cpu.max").read_text("ascii").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def requested_isa() -> str:
    """The instruction set that the environment asks for; empty for the best there is."""
    return os.environ.get(ISA_VARIABLE, "")
