"""A peer's process. Requests come as JSON lines on standard input and are answered one by one.

Between requests the process blocks on reading, so peers that wait for their turn cost no CPU time.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import backends, cpuid_mask, workloads
from .backends.base import Backend, Setting
from .inputs import read_inputs

# What a peer computes before it counts as held to an instruction set.
CHECKED_IDS = [[0] * length for length in (8, 32, 32)]
CHECKED_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="One peer's process; started by `python -m bench compare`.")
    parser.add_argument("peer", help="FILE:NAME")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    options = parser.parse_args()
    # Libraries print on standard output; the answers need a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(work: Callable[[], Any]) -> None:
        try:
            reply = {"result": work()}
        except Exception:
            reply = {"error": traceback.format_exc()}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    setting = Setting(options.checkpoint, options.cache, options.threads, options.streams)
    worker = Worker(options.peer, setting, options.inputs)
    for line in sys.stdin:
        request = json.loads(line)
        answer(partial(getattr(worker, request.pop("operation")), **request))


class Worker:
    """The requests a driver may make: a method each."""

    backend: Backend

    def __init__(self, spec: str, setting: Setting, inputs: Path) -> None:
        self.peer = backends.find(spec)
        self.setting = setting
        self.datasets = read_inputs(inputs)

    def build(self, sample: str) -> None:
        self.peer.build(self.setting, self.datasets[sample].ids)

    def load(self) -> str:
        if cpuid_mask.active():
            seen = self._load_and_check()
            return f"{self.backend.describe()}; {seen}".lstrip("; ")
        self.backend = self.peer(self.setting)
        return self.backend.describe()

    def run(self, workload: str, dataset: str, **arguments: Any) -> workloads.Result:
        work: Callable[..., workloads.Result] = getattr(workloads, workload)
        result = work(self.backend, self.datasets[dataset], **arguments)
        if cpuid_mask.active() and self.peer.survives_signals:
            cpuid_mask.check()
        return result

    def memory(self) -> workloads.Result:
        return workloads.memory()

    def _load_and_check(self) -> str:
        cpuid_mask.watch()
        before = cpuid_mask.answered()
        self.backend = self.peer(self.setting)
        if cpuid_mask.answered() == before:
            raise cpuid_mask.NotHeldError("no library of this peer asked what the CPU can do")
        end = time.process_time() + CHECKED_SECONDS
        while time.process_time() < end:
            for batch_size in (1, len(CHECKED_IDS)):
                self.backend.run_ids(CHECKED_IDS, batch_size)
        seen = cpuid_mask.check()
        if not self.peer.survives_signals:
            cpuid_mask.unwatch()
        return seen


if __name__ == "__main__":
    main()
