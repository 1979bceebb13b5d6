"""How many CPUs this process may use, and which instruction set to use on them."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")

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
    """CPU time a period that the container may use, in CPUs; None if there is no limit."""
    try:
        if _CGROUP_V2.exists():
            quota, period = _CGROUP_V2.read_text("ascii").split()[:2]
            return None if quota == "max" else int(quota) / int(period)
        v1_quota = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text("ascii"))
        return None if v1_quota <= 0 else v1_quota / int((_CGROUP_V1 / "cpu.cfs_period_us").read_text("ascii"))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def requested_isa() -> str:
    """The instruction set that the environment asks for; empty for the best there is."""
    return os.environ.get(ISA_VARIABLE, "")
