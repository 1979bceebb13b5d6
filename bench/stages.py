"""Where a forward pass spends its time (`bench stages`), and the kernels by themselves (`bench kernels`)."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def stage_table(texts: Sequence[str], rounds: int) -> str:
    """Milliseconds a text and share of each stage on one thread: the core's, tokenisation, and the rest of Python.

    Each figure is the median over the rounds; the rest is what the fastest call of `predict` took more than the fastest
    pass of the core and of the tokenizer, for noise is larger than that. GELU is part of ffn1's product:
    `python -m bench kernels` shows what it costs.
    """
    from agnews_fast import Classifier  # noqa: PLC0415
    from agnews_fast.engine import pack_ids  # noqa: PLC0415

    with Classifier(threads=1) as classifier:
        loaded = classifier._open()
        encode = classifier._encoder.encode
        packed = pack_ids([encode(text) for text in texts])
        loaded.engine.run(*packed)
        measured: dict[str, list[float]] = {}
        core: list[float] = []
        predicting: list[float] = []
        for _ in range(rounds):
            stages = loaded.engine.stage_seconds(*packed)
            core.append(sum(stages.values()))
            stages["tokenisation"] = _seconds(lambda: [encode(text) for text in texts])
            predicting.append(_seconds(lambda: classifier.predict(texts)))
            for name, seconds in stages.items():
                measured.setdefault(name, []).append(seconds)
        isa = classifier.isa
    medians = {name: statistics.median(seconds) for name, seconds in measured.items()}
    medians["rest of Python"] = max(0.0, min(predicting) - min(core) - min(measured["tokenisation"]))
    total = sum(medians.values())
    lines = [f"| stage ({isa}, {len(packed[0]) / len(texts):.0f} tokens a text) | ms a text | share |", "|---|---|---|"]
    for name, seconds in medians.items():
        lines.append(f"| {name} | {1000 * seconds / len(texts):.3f} | {100 * seconds / total:.1f} % |")
    products = sum(medians[name] for name in ("qkv", "out", "ffn1+gelu", "ffn2"))
    rest = total - products
    lines.append(f"| all but the products | {1000 * rest / len(texts):.3f} | {100 * rest / total:.1f} % |")
    return "\n".join(lines)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run_kernel_bench(build: Path, arguments: Sequence[str]) -> int:
    """Build csrc's kernel benchmark with CMake and run it; its exit status."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is needed to build the kernel benchmark: pip install cmake ninja")
    options = ["-DAGNEWS_FAST_BUILD_PYTHON=OFF", "-DAGNEWS_FAST_BUILD_BENCH=ON", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(
        ["cmake", "-G", "Ninja", "-S", REPOSITORY, "-B", build, *options], check=True, stdout=subprocess.DEVNULL
    )
    subprocess.run(["ninja", "-C", build, "bench_kernels"], check=True, stdout=subprocess.DEVNULL)
    return subprocess.run([build / "bench" / "kernels" / "bench_kernels", *arguments], check=False).returncode
