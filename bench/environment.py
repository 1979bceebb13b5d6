"""The machine, and the environment variables that hold every peer to the same number of threads."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Instruction sets that decide int8 speed.
NOTED_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")


def worker_environment(threads: int, streams: int, limits: Mapping[str, str]) -> dict[str, str]:
    """The driver's environment with the number of threads and other limits on top, for a peer's process."""
    count = str(threads // streams)
    return {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "RAYON_NUM_THREADS": str(threads),  # the tokenizer's pool
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        **limits,
    }


def describe_machine() -> dict[str, Any]:
    model, flags = _cpu()
    return {
        "cpu": model,
        "flags": [flag for flag in NOTED_FLAGS if flag in flags],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # Of other work, if the benchmark is alone this is about 0.
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those packages whose import name is that of a distribution too."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> tuple[str, set[str]]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor(), set()
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    # Cloud machines often hide the marketing name; family and model still tell the generation.
    name = f"{fields.get('model name', platform.processor())}"
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name, set(fields.get("flags", "").split())
