"""Holds any library to AVX2 on a CPU that has more, by what it is told the CPU can do.

Runtimes ask the CPU through the `cpuid` instruction, most of them without a switch, and an unprivileged process can't
have that instruction trapped. So `mask.c` overwrites it wherever it stands in a peer's libraries, in memory, as they
are loaded, and answers in the CPU's place. Where it stands takes a disassembler: the same two bytes also occur inside
other instructions.

Nobody has to believe that it works: `check` says what a process that was to be held really ran.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from bench.backends.base import build_once

ISAS = ("avx2",)  # that a run can be held to
SOURCE = Path(__file__).with_name("mask.c")
TABLE = "BENCH_CPUID_TABLE"
# glibc asked the CPU before anything could be masked; its string functions would use AVX-512 too.
GLIBC = "glibc.cpu.hwcaps=" + ",".join(f"-AVX512{part}" for part in ("F", "VL", "BW", "CD", "DQ"))
OLDEST_GLIBC = (2, 35)  # before, an auditor slowed every call from one library into another
LEAST_SAMPLES = 20


class NotHeldError(Exception):
    """A process that was to be held to an instruction set was not, or it can't be shown."""


def missing() -> list[str]:
    """What the machine lacks."""
    wanted = {
        "Linux": platform.system() == "Linux",
        "an x86-64 CPU": platform.machine() == "x86_64",
        "glibc 2.35 or later": _glibc() >= OLDEST_GLIBC,
        "a C compiler (cc)": shutil.which("cc"),
        "objdump (binutils)": shutil.which("objdump"),
    }
    return [name for name, found in wanted.items() if not found]


def mask_environment(libraries: Iterable[Path], folder: Path) -> dict[str, str]:
    """Environment variables under which a new process sees no AVX-512. `folder` keeps what is built."""
    mask = folder / f"mask-{_checksum(SOURCE)}.so"
    build_once(mask, lambda out: subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", out, SOURCE], check=True))
    found = {path: queries(path, folder) for path in {path.resolve() for path in libraries}}
    table = "".join(f"{path}\t{' '.join(addresses)}\n" for path, addresses in sorted(found.items()) if addresses)
    path = folder / f"table-{hashlib.sha256(table.encode()).hexdigest()}.txt"
    build_once(path, lambda out: out.write_text(table))
    tunables = [value for value in (os.environ.get("GLIBC_TUNABLES"), GLIBC) if value]
    return {"LD_AUDIT": str(mask), TABLE: str(path), "GLIBC_TUNABLES": ":".join(tunables)}


def libraries_of(packages: Sequence[str]) -> Iterator[Path]:
    """The shared libraries of installed packages, by import name."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            # Wheels keep the libraries that they bundle in the package or in a folder next to it.
            for folder in (Path(location), Path(f"{location}.libs")):
                yield from (path for path in folder.rglob("*.so*") if path.is_file() and _is_elf(path))


def queries(library: Path, folder: Path) -> list[str]:
    """Hexadecimal addresses of the `cpuid` instructions of a library, kept in `folder` under its checksum."""
    known = folder / f"{_checksum(library)}.txt"
    build_once(known, lambda out: out.write_text(" ".join(_disassemble(library))))
    return known.read_text().split()


def active() -> bool:
    """Whether this process was started to be held; only then the functions below may be called."""
    return TABLE in os.environ


def answered() -> int:
    """How often a library of this process was told what the CPU can do. Without the mask this raises SIGILL."""
    return int(_mask().mask_queries())


def watch() -> None:
    """Begin to look, every few milliseconds of CPU time, at what this process runs."""
    _mask().mask_watch()


def unwatch() -> None:
    """Look no more."""
    _mask().mask_unwatch()


def check() -> str:
    """What `watch` saw, in words; raises unless it kept to AVX2."""
    samples, wide = _mask().mask_samples(), _mask().mask_samples_with_avx512()
    if wide:
        raise NotHeldError(f"AVX-512 was in use in {wide} of {samples} samples of what ran")
    if samples < LEAST_SAMPLES:
        raise NotHeldError(f"expected at least {LEAST_SAMPLES} samples of what ran, got {samples}")
    return f"AVX-512 in none of {samples} samples"


@cache
def _mask() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ["LD_AUDIT"])


def _disassemble(library: Path) -> Iterator[str]:
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"cpuid" in line and line.split()[1:] == [b"cpuid"]:
                yield line.split()[0].decode().rstrip(":")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        checksum = hashlib.sha256()
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()
