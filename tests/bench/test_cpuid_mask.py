"""Holding libraries to AVX2: with a small library of our own, and once with a peer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import backends, cpuid_mask
from bench.compare import ALWAYS_LOADED, Comparison, Options
from bench.environment import describe_machine, worker_environment
from bench.inputs import make_dataset
from bench.reference import REPOSITORY

pytestmark = pytest.mark.skipif(bool(cpuid_mask.missing()), reason=f"needs {', '.join(cpuid_mask.missing())}")

FAKES = Path(__file__).with_name("fake_peers.py")
FLAGS = describe_machine()["flags"]
PROBE = r"""
#include <cpuid.h>
#include <time.h>

void ask(unsigned leaf, unsigned subleaf, unsigned* out) {
  __cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
}

// Bytes of the instruction that are not the instruction.
unsigned decoy(void) {
  unsigned value;
  __asm__ volatile("movl $0xa20fa20f, %0" : "=r"(value));
  return value;
}

void trap(void) { __builtin_trap(); }

static int running(clock_t start) { return clock() - start < CLOCKS_PER_SEC / 2; }

void use_avx2(void) {
  for (clock_t start = clock(); running(start);)
    for (int i = 0; i < 100000; ++i) __asm__ volatile("vpaddd %%ymm1, %%ymm2, %%ymm1" ::: "xmm1");
}

void use_avx512(void) {
  for (clock_t start = clock(); running(start);)
    for (int i = 0; i < 100000; ++i) __asm__ volatile("vpaddd %%zmm1, %%zmm2, %%zmm1" ::: "xmm1");
}
"""
# Bits of leaf 7 that stand for nothing later than AVX2: FSGSBASE, BMI1, AVX2, BMI2, ERMS, ADX; GFNI, VAES, VPCLMULQDQ.
KEPT = {1: 1 << 0 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 19, 2: 1 << 8 | 1 << 9 | 1 << 10}
AVX512 = {1: 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31, 2: 1 << 1 | 1 << 11 | 1 << 14, 3: 1 << 23 | 1 << 24 | 1 << 25}
SETUP = """
import ctypes, json, sys
from bench import cpuid_mask
probe = ctypes.CDLL(sys.argv[1])
def ask(leaf, subleaf):
    registers = (ctypes.c_uint32 * 4)()
    probe.ask(leaf, subleaf, registers)
    return list(registers)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the mask builds, where the benchmark looks for it when its cache is the folder above."""
    return tmp_path_factory.mktemp("cache") / "cpuid"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a probe")
    (folder / "probe.c").write_text(PROBE)
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", folder / "libprobe.so.1", folder / "probe.c"]
    subprocess.run(command, check=True)
    return folder / "libprobe.so.1"


@pytest.fixture(scope="module")
def masked(probe: Path, folder: Path) -> dict[str, str]:
    # NumPy is there as soon as anything of `bench` is, and would leave the marks of its own AVX-512.
    return cpuid_mask.mask_environment([probe, *cpuid_mask.libraries_of(ALWAYS_LOADED)], folder)


def run(code: str, probe: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SETUP + code, str(probe)],
        env=worker_environment(1, 1, environment),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def answer(code: str, probe: Path, environment: dict[str, str]) -> object:
    done = run(f"print(json.dumps({code}))", probe, environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestQueries:
    def test_only_the_instruction_is_found(self, probe: Path, folder: Path) -> None:
        assert probe.read_bytes().count(b"\x0f\xa2") >= 3
        assert len(cpuid_mask.queries(probe, folder)) == 1

    def test_a_library_is_disassembled_once(self, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = cpuid_mask.queries(probe, tmp_path)
        monkeypatch.setenv("PATH", "")
        assert cpuid_mask.queries(probe, tmp_path) == found
        other = tmp_path / "other.so"
        other.write_bytes(probe.read_bytes() + b"\0")
        with pytest.raises(FileNotFoundError, match="objdump"):
            cpuid_mask.queries(other, tmp_path)

    def test_libraries_of_a_package_and_next_to_it(
        self, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for path in ("some_peer/__init__.py", "some_peer/lib/a.so.1", "some_peer.libs/b-1.so", "other_peer.libs/c.so"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"" if path.endswith("py") else probe.read_bytes())
        (tmp_path / "some_peer" / "notes.so.txt").write_text("not a library")
        monkeypatch.syspath_prepend(tmp_path)
        found = cpuid_mask.libraries_of(["some_peer", "no_such_peer"])
        assert sorted(path.name for path in found) == ["a.so.1", "b-1.so"]


class TestMask:
    def test_hides_avx512_and_nothing_else(self, probe: Path, masked: dict[str, str]) -> None:
        code = "[ask(7, 0), ask(7, 1), ask(0, 0), ask(1, 0)]"
        real, seen = answer(code, probe, {}), answer(code, probe, masked)
        assert isinstance(real, list)
        assert isinstance(seen, list)
        for register in (1, 2, 3):
            assert seen[0][register] & AVX512[register] == 0
            assert seen[0][register] & ~real[0][register] == 0  # nothing is made up
        for register, bits in KEPT.items():
            assert seen[0][register] & bits == real[0][register] & bits
        assert seen[1][0] & (1 << 4 | 1 << 5) == 0  # AVX_VNNI, AVX512_BF16
        assert seen[2] == real[2]
        # Leaf 1 also says which CPU runs this and whether the system uses XSAVE.
        assert seen[3][0] == real[3][0]
        assert seen[3][2:] == real[3][2:]

    def test_counts_answers_and_leaves_the_file_and_other_bytes(self, probe: Path, masked: dict[str, str]) -> None:
        before = probe.read_bytes()
        assert answer("-cpuid_mask.answered() + len(ask(7, 0)) + cpuid_mask.answered()", probe, masked) == 4 + 1
        assert answer("probe.decoy() & 0xffffffff", probe, masked) == 0xA20FA20F
        assert probe.read_bytes() == before

    def test_other_illegal_instructions_still_kill(self, probe: Path, masked: dict[str, str]) -> None:
        assert run("ask(7, 0); probe.trap()", probe, masked).returncode == -signal.SIGILL

    def test_another_library_than_was_disassembled_ends_the_process(
        self, probe: Path, masked: dict[str, str], tmp_path: Path
    ) -> None:
        table = tmp_path / "table.txt"
        table.write_text(f"{probe.resolve()}\t40\n")
        done = run("", probe, {**masked, cpuid_mask.TABLE: str(table)})
        assert done.returncode == -signal.SIGABRT
        assert f"{probe.resolve()}: not the library that was disassembled" in done.stderr

    def test_a_process_without_the_mask_does_not_pass_for_held(self, probe: Path, masked: dict[str, str]) -> None:
        library = masked["LD_AUDIT"]
        done = run(f"ctypes.CDLL({library!r}).mask_queries()", probe, {})
        assert done.returncode == -signal.SIGILL


class TestCheck:
    def test_avx2_passes(self, probe: Path, masked: dict[str, str]) -> None:
        if "avx2" not in FLAGS:
            pytest.skip("the CPU has no AVX2")
        assert "in none of" in str(
            answer("[cpuid_mask.watch(), probe.use_avx2(), cpuid_mask.check()][-1]", probe, masked)
        )

    def test_avx512_is_refused(self, probe: Path, masked: dict[str, str]) -> None:
        if "avx512f" not in FLAGS:
            pytest.skip("the CPU has no AVX-512")
        done = run("cpuid_mask.watch(); probe.use_avx512(); cpuid_mask.check()", probe, masked)
        assert "NotHeldError: AVX-512 was in use in" in done.stderr

    def test_too_few_samples_are_refused(self, probe: Path, masked: dict[str, str]) -> None:
        done = run("cpuid_mask.watch(); cpuid_mask.unwatch(); probe.use_avx2(); cpuid_mask.check()", probe, masked)
        assert "expected at least" in done.stderr
        done = run("cpuid_mask.watch(); cpuid_mask.check()", probe, masked)
        assert "NotHeldError: expected at least 20 samples" in done.stderr

    def test_peers(self, small_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
        """agnews_fast chooses AVX2 by itself; a peer that never asks what the CPU can do can't be shown to be held."""
        if "avx2" not in FLAGS:
            pytest.skip("the CPU has no AVX2")
        options = Options(
            checkpoint=small_checkpoint,
            cache=folder.parent,
            out=tmp_path / "out",
            workloads=("a",),
            peers=(backends.OURS, f"{FAKES}:fake-int8"),
            reference=f"{FAKES}:fake-fp32",
            lengths=(),
            rounds=1,
            isa="avx2",
        )
        results = Comparison(options, make_dataset(small_checkpoint, ["ab c", "c"], [0, 0])).run()
        ours, fake = results["peers"][backends.OURS], results["peers"]["fake-int8"]
        assert ours["status"] == "ran"
        assert ours["described"].startswith("ISA avx2; AVX-512 in none of ")
        assert fake["status"].endswith("NotHeldError: no library of this peer asked what the CPU can do")
        assert {series["peer"] for series in results["series"]} == {backends.OURS}
