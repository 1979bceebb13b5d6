"""The driver: starts a process a peer, lets them take turns, checks their labels and collects the figures."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import backends, cpuid_mask
from .backends.base import Backend
from .environment import describe_machine, versions, worker_environment
from .inputs import SEQUENCES, Dataset, checkpoint_digest, max_positions, of_length, write_inputs
from .reference import REPOSITORY
from .stats import agreement, chance_of_errors, percentiles

WORKLOADS = {
    "a": "throughput",
    "b": "one text at a time",
    "c": "fixed lengths",
    "d": "cold start",
    "e": "memory",
    "f": "several Python threads, one classifier",
    "g": "idle CPU after work",
}
CALLERS = 4
LONG = 128  # from this length on a batch of one is timed on fewer sequences
SETTLE_SECONDS = 0.5
CHANCE = 0.01
ALWAYS_LOADED = ("numpy", "tokenizers")

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What `python -m bench compare` was asked for."""

    checkpoint: Path
    cache: Path
    out: Path
    threads: tuple[int, ...] = (1,)
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    peers: tuple[str, ...] = ()  # names or FILE:NAME; all of bench/backends when empty
    reference: str = "ort-fp32"
    inputs: tuple[str, ...] = ("ids", "texts")
    single_texts: int = 1000
    batch_sizes: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    rounds: int = 5
    memory_rounds: int = 20
    idle_seconds: float = 3.0
    batch_seconds: float = 0.25
    isa: str | None = None
    # Below these a peer's times do not count: what it computed is not this model any more.
    least_agreement: dict[str, float] = field(default_factory=lambda: {"fp32": 0.999, "int8": 0.95})
    command: str = ""


@dataclass
class Series:
    """One figure of one peer: a value a round."""

    workload: str
    threads: int
    case: str  # what else tells this table from others of the workload
    metric: str
    unit: str
    higher_is_better: bool | None  # None: no ratio is meant
    peer: str
    rounds: list[float]
    agreement: float | None = None  # with the fp32 reference's labels, worst round
    accuracy: float | None = None
    counts: bool = True


class WorkerError(Exception):
    """A peer failed; the message is its traceback."""


class Process:
    """The driver's end of a peer's process."""

    def __init__(
        self, peer: "Peer", options: Options, cache: Path, threads: int, streams: int, inputs: Path, log: Path
    ) -> None:
        self.peer = peer
        self.streams = streams
        self.log = log.open("a", encoding="utf-8")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.worker", peer.spec, "--checkpoint", options.checkpoint),
                *("--cache", cache, "--threads", str(threads), "--streams", str(streams), "--inputs", inputs),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=REPOSITORY,
            env=worker_environment(threads, streams, peer.limits),
        )

    def ask(self, operation: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended (exit status {self.process.wait()}); see {self.log.name}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"].strip())
        return reply["result"]

    def run(self, workload: str, dataset: str, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.ask("run", workload=workload, dataset=dataset, **arguments)
        return result

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@dataclass
class Peer:
    """A peer that takes part."""

    spec: str
    backend: type[Backend]
    status: str = "ran"
    described: str = ""
    limits: dict[str, str] = field(default_factory=dict)  # environment variables that hold it to an instruction set
    # threads -> what is fastest
    batch_size: dict[int, int] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=dict)
    # threads -> streams -> batch size -> texts a second
    calibration: dict[int, dict[int, dict[int, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def running(self) -> bool:
        return self.status == "ran"


class Comparison:
    """One run. `run` returns what goes into results.json, and writes it there after every workload."""

    def __init__(self, options: Options, split: Dataset) -> None:
        self.options = options
        self.cache = options.cache.resolve() / checkpoint_digest(options.checkpoint)
        self.split = split
        self.datasets = {"split": split, "singles": split.every(options.single_texts)}
        for length in options.lengths:
            if length <= max_positions(options.checkpoint):
                self.datasets[str(length)] = of_length(split, length)
        self.series: list[Series] = []
        self.machine = describe_machine()
        self.peers = [Peer(spec, backends.find(spec)) for spec in resolve(options.peers)]

    def run(self) -> dict[str, Any]:
        self.options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            self.inputs = Path(scratch) / "inputs.json"
            write_inputs(self.inputs, self.datasets)
            self.texts_only = Path(scratch) / "texts.json"
            write_inputs(self.texts_only, {"split": Dataset([], self.split.texts)})
            self._build()
            self._compute_reference()
            chosen = self.options.workloads
            for threads in self.options.threads:
                if set(chosen) & set("abcfg"):
                    self._run_side_by_side(threads)
                if "d" in chosen:
                    self._cold_start(threads)
                if "e" in chosen:
                    self._memory(threads)
        return self._save()

    # Preparation

    def _build(self) -> None:
        """Built files are made in processes of their own: the timed ones should not carry a converter's memory."""
        for peer in self.peers:
            missing = backends.missing_packages(peer.backend)
            if missing:
                peer.status = f"absent: {', '.join(missing)} not installed"
                say(f"{peer.name}: {peer.status}")
                continue
            with self._guard(peer):
                self._in_process(peer, 1, self.inputs, lambda process: process.ask("build", sample="split"))
                if self.options.isa:
                    # What was built does not depend on it; nor does the reference.
                    say(f"{peer.name}: looking for what asks the CPU; the first time takes a minute or two")
                    libraries = cpuid_mask.libraries_of([*peer.backend.requires, *ALWAYS_LOADED])
                    peer.limits = cpuid_mask.mask_environment(libraries, self.options.cache.resolve() / "cpuid")
                    # Loading shows whether it can be held, so that a refusal comes before anything is measured.
                    self._in_process(peer, 1, self.inputs, lambda process: process.ask("load"))

    def _compute_reference(self) -> None:
        """The fp32 labels of every dataset, kept in the cache."""
        (spec,) = resolve((self.options.reference,))
        peer = Peer(spec, backends.find(spec))
        missing = backends.missing_packages(peer.backend)
        if missing:
            raise SystemExit(f"the fp32 reference {peer.name} needs {', '.join(missing)}: not installed")
        folder = self.cache / f"reference-{peer.name}"
        folder.mkdir(parents=True, exist_ok=True)
        unknown = {
            name: path
            for name, dataset in self.datasets.items()
            if not (path := folder / f"{dataset.digest()}.npy").is_file()
        }

        def compute(process: Process) -> None:
            process.ask("build", sample="split")
            process.ask("load")
            for name, path in unknown.items():
                np.save(path, np.asarray(process.run("logits", name)["logits"], np.float32))

        if unknown:
            say(f"computing the fp32 reference with {peer.name}")
            self._in_process(peer, max(self.options.threads), self.inputs, compute)
        self.reference = {
            name: [int(label) for label in np.load(folder / f"{dataset.digest()}.npy").argmax(axis=1)]
            for name, dataset in self.datasets.items()
        }

    # Workloads whose processes stay alive and take turns

    def _run_side_by_side(self, threads: int) -> None:
        with ExitStack() as started:
            # All threads on one batch, which is what a single call waits for; and what gives most texts a second.
            together: list[Process] = []
            fastest: list[Process] = []
            for peer in self._running():
                candidates: list[Process] = []
                with self._guard(peer):
                    for streams in (1, threads) if threads > 1 and peer.backend.takes_streams else (1,):
                        candidates.append(self._start(peer, threads, streams, self.inputs))
                        started.callback(candidates[-1].close)
                        self._calibrate(candidates[-1], threads)
                    together.append(candidates[0])
                    fastest.append(self._choose(peer, candidates, threads))
            workloads: dict[str, tuple[list[Process], Callable[[list[Process], int], None]]] = {
                "a": (fastest, self._throughput),
                "b": (together, self._singles),
                "c": (together, self._fixed_lengths),
                "f": (fastest, self._callers),
                "g": (together, self._idle),
            }
            for letter, (processes, workload) in workloads.items():
                if letter in self.options.workloads:
                    say(f"{threads} threads, ({letter}) {WORKLOADS[letter]}")
                    workload(processes, threads)
                    self._save()

    def _calibrate(self, process: Process, threads: int) -> None:
        process.peer.described = process.ask("load")
        rates = process.run("calibrate", "split", batch_sizes=self.options.batch_sizes)["texts_per_second"]
        by_streams = process.peer.calibration.setdefault(threads, {})
        by_streams[process.streams] = {int(size): rate for size, rate in rates.items()}

    def _choose(self, peer: Peer, candidates: list[Process], threads: int) -> Process:
        """The fastest of a peer's processes; the others end, but for the first."""
        rates = peer.calibration[threads]
        chosen = max(candidates, key=lambda process: max(rates[process.streams].values()))
        for process in candidates[1:]:
            if process is not chosen:
                process.close()
        own = rates[chosen.streams]
        peer.streams[threads], peer.batch_size[threads] = chosen.streams, max(own, key=own.__getitem__)
        size = peer.batch_size[threads] or "all"
        say(f"{threads} threads, {peer.name}: best batch size {size}, {chosen.streams} at a time")
        return chosen

    def _throughput(self, processes: list[Process], threads: int) -> None:
        for inputs in self.options.inputs:
            results = self._take_turns(
                processes,
                "throughput",
                "split",
                lambda peer: {"batch_size": peer.batch_size[threads]},
                inputs=inputs,
            )
            for peer, rounds in results:
                checked = self._check(peer, "split", [r["labels"] for r in rounds])
                rates = [len(self.split.ids) / r["seconds"] for r in rounds]
                cores = [r["cpu_seconds"] / r["seconds"] for r in rounds]
                case = f"from {inputs}"
                self._add("a", threads, case, "throughput", "texts/s", True, peer, rates, checked)
                self._add("a", threads, case, "CPUs in use", "", None, peer, cores, checked)

    def _singles(self, processes: list[Process], threads: int) -> None:
        for inputs in self.options.inputs:
            results = self._take_turns(processes, "singles", "singles", inputs=inputs)
            for peer, rounds in results:
                checked = self._check(peer, "singles", [r["labels"] for r in rounds])
                points = [percentiles(r["seconds"], (50, 95, 99)) for r in rounds]
                for metric, seconds in zip(("p50", "p95", "p99"), zip(*points, strict=True), strict=True):
                    self._add("b", threads, f"from {inputs}", metric, "ms", False, peer, _ms(seconds), checked)

    def _fixed_lengths(self, processes: list[Process], threads: int) -> None:
        lengths = [length for length in self.options.lengths if str(length) in self.datasets]
        for batch_size in (1, SEQUENCES):
            found: dict[str, tuple[Peer, list[tuple[int, list[dict[str, Any]]]]]] = {}
            for length in lengths:
                sequences = 8 if batch_size == 1 and length >= LONG else SEQUENCES
                results = self._take_turns(
                    processes,
                    "batches",
                    str(length),
                    batch_size=batch_size,
                    sequences=sequences,
                    at_least=self.options.batch_seconds,
                )
                for peer, rounds in results:
                    found.setdefault(peer.name, (peer, []))[1].append((length, rounds))
            for peer, by_length in found.values():
                # One verdict over all lengths: a few sequences alone say little.
                labels = [
                    [label for _, rounds in by_length for label in rounds[turn]["labels"]]
                    for turn in range(self.options.rounds)
                ]
                reference = [
                    label
                    for length, rounds in by_length
                    for label in self.reference[str(length)][: len(rounds[0]["labels"])]
                ]
                checked = self._judge(peer, labels, reference, None)
                for length, rounds in by_length:
                    medians = [percentiles(r["seconds"], (50,))[0] / batch_size for r in rounds]
                    case = f"batch {batch_size}"
                    self._add("c", threads, case, f"{length} tokens", "ms/text", False, peer, _ms(medians), checked)

    def _callers(self, processes: list[Process], threads: int) -> None:
        results = self._take_turns(processes, "callers", "singles", count=CALLERS)
        for peer, rounds in results:
            checked = self._check(peer, "singles", [r["labels"] for r in rounds])
            rates = [len(r["labels"]) / r["total_seconds"] for r in rounds]
            p50s = [percentiles(r["seconds"], (50,))[0] for r in rounds]
            cores = [r["cpu_seconds"] / r["total_seconds"] for r in rounds]
            case = f"{CALLERS} callers"
            self._add("f", threads, case, "throughput", "texts/s", True, peer, rates, checked)
            self._add("f", threads, case, "p50", "ms", False, peer, _ms(p50s), checked)
            self._add("f", threads, case, "CPUs in use", "", None, peer, cores, checked)

    def _idle(self, processes: list[Process], threads: int) -> None:
        results = self._take_turns(processes, "idle", "split", seconds=self.options.idle_seconds, settle=SETTLE_SECONDS)
        for peer, rounds in results:
            shares = [1000 * r["cpu_seconds"] / r["seconds"] for r in rounds]
            self._add("g", threads, "", "CPU time", "ms/s", None, peer, shares)

    def _take_turns(
        self,
        processes: list[Process],
        workload: str,
        dataset: str,
        own: Callable[[Peer], dict[str, Any]] = lambda peer: {},
        **shared: Any,
    ) -> list[tuple[Peer, list[dict[str, Any]]]]:
        """All rounds, A B C B C A. A peer that fails drops out, and so do its earlier rounds."""
        results: dict[str, list[dict[str, Any]]] = {}
        for turn in range(self.options.rounds):
            first = turn % max(1, len(processes))
            for process in processes[first:] + processes[:first]:
                if process.peer.running:
                    with self._guard(process.peer):
                        results.setdefault(process.peer.name, []).append(
                            process.run(workload, dataset, **own(process.peer), **shared)
                        )
        return [(p.peer, results[p.peer.name]) for p in processes if p.peer.running]

    # Workloads with fresh processes

    def _cold_start(self, threads: int) -> None:
        say(f"{threads} threads, (d) {WORKLOADS['d']}")
        assert self.split.texts is not None
        text, expected = self.split.texts[0], self.reference["split"][0]
        times: dict[str, list[tuple[float, float, int]]] = {}
        # The round before the first is for the files, which come from the page cache afterwards.
        for turn in range(-1, self.options.rounds):
            for peer in self._running():
                with self._guard(peer):
                    result = self._cold_process(peer, threads, text)
                    if turn >= 0:
                        times.setdefault(peer.name, []).append(result)
        for peer in self._running():
            to_label, total, labels = zip(*times[peer.name], strict=True)
            # One text is too few to judge by: shown, but never held against the time.
            checked = {"agreement": agreement(labels, [expected] * len(labels))}
            self._add("d", threads, "", "to first label", "s", False, peer, to_label, checked)
            self._add("d", threads, "", "whole process", "s", False, peer, total, checked)
        self._save()

    def _cold_process(self, peer: Peer, threads: int, text: str) -> tuple[float, float, int]:
        command = [
            *(sys.executable, "-m", "bench.cold", peer.spec),
            *(str(self.options.checkpoint), str(self.cache), str(threads), text),
        ]
        with self._log(peer).open("a") as log:
            start = time.perf_counter()
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=REPOSITORY,
                env=worker_environment(threads, 1, peer.limits),
            ) as process:
                assert process.stdout is not None
                label = process.stdout.readline()
                to_label = time.perf_counter() - start
                process.wait()
                total = time.perf_counter() - start
        if process.returncode or not label:
            raise WorkerError(f"exit status {process.returncode}; see {self._log(peer)}")
        return to_label, total, int(label)

    def _memory(self, threads: int) -> None:
        say(f"{threads} threads, (e) {WORKLOADS['e']}, {self.options.memory_rounds} rounds")
        for peer in self._running():

            def measure(process: Process, peer: Peer = peer) -> None:
                process.ask("load")
                labels, steady = [], []
                for _ in range(self.options.memory_rounds):
                    size = peer.batch_size.get(threads, 32)
                    labels.append(process.run("throughput", "split", inputs="texts", batch_size=size)["labels"])
                    now = process.ask("memory")
                    steady.append(now["steady"] / 2**20)
                checked = self._check(peer, "split", labels)
                last = steady[-max(1, len(steady) // 4) :]
                case = f"{self.options.memory_rounds} rounds, from texts"
                self._add("e", threads, case, "peak", "MiB", False, peer, [now["peak"] / 2**20], checked)
                self._add("e", threads, case, "steady (last quarter)", "MiB", False, peer, last, checked)
                self._add(
                    "e", threads, case, "growth, first round to last", "MiB", None, peer, [steady[-1] - steady[0]]
                )

            with self._guard(peer):
                self._in_process(peer, threads, self.texts_only, measure)
        self._save()

    # Helpers

    def _check(self, peer: Peer, dataset: str, labels: Sequence[Sequence[int]]) -> dict[str, Any]:
        return self._judge(peer, labels, self.reference[dataset], self.datasets[dataset].labels)

    def _judge(
        self,
        peer: Peer,
        labels: Sequence[Sequence[int]],
        reference: Sequence[int],
        truth: Sequence[int] | None,
    ) -> dict[str, Any]:
        """How good the labels of the timed passes are, by the worst round.

        Fewer than wanted are held against a peer's times unless chance may be to blame: of 8 labels, one is 12 %.
        """
        worst = min(agreement(one_round, reference) for one_round in labels)
        least = self.options.least_agreement[peer.backend.precision]
        errors = round((1 - worst) * len(reference))
        counts = worst >= least or chance_of_errors(errors, len(reference), 1 - least) >= CHANCE
        if not counts:
            say(f"{peer.name}: agrees on {worst:.2%}, {least:.2%} wanted: its times do not count")
        return {
            "agreement": worst,
            "accuracy": None if truth is None else min(agreement(one_round, truth) for one_round in labels),
            "counts": counts,
        }

    def _add(
        self,
        workload: str,
        threads: int,
        case: str,
        metric: str,
        unit: str,
        higher_is_better: bool | None,
        peer: Peer,
        rounds: Sequence[float],
        checked: dict[str, Any] | None = None,
    ) -> None:
        self.series.append(
            Series(workload, threads, case, metric, unit, higher_is_better, peer.name, list(rounds), **(checked or {}))
        )

    def _running(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.running]

    def _start(self, peer: Peer, threads: int, streams: int, inputs: Path) -> Process:
        return Process(peer, self.options, self.cache, threads, streams, inputs, self._log(peer))

    def _in_process(self, peer: Peer, threads: int, inputs: Path, work: Callable[[Process], T]) -> T:
        process = self._start(peer, threads, peer.streams.get(threads, 1), inputs)
        try:
            return work(process)
        finally:
            process.close()

    def _log(self, peer: Peer) -> Path:
        return self.options.out.resolve() / f"{peer.name}.log"

    @contextmanager
    def _guard(self, peer: Peer) -> Iterator[None]:
        """Turn a peer's failure into its status, so that the others go on."""
        try:
            yield
        except WorkerError as error:
            peer.status = f"failed: {str(error).splitlines()[-1]}"
            say(f"{peer.name} failed: {error}")

    def _save(self) -> dict[str, Any]:
        results = {
            "command": self.options.command,
            "machine": self.machine,
            "options": {
                "checkpoint": checkpoint_digest(self.options.checkpoint),
                "texts": len(self.split.ids),
                "single_texts": len(self.datasets["singles"].ids),
                "rounds": self.options.rounds,
                "isa": self.options.isa,
                "reference": self.options.reference,
                "least_agreement": self.options.least_agreement,
            },
            "peers": {
                peer.name: {
                    "title": peer.backend.title,
                    "precision": peer.backend.precision,
                    "status": peer.status,
                    "described": peer.described,
                    "versions": versions(peer.backend.requires),
                    "batch_size": peer.batch_size,
                    "streams": peer.streams,
                    "calibration": peer.calibration,
                }
                for peer in self.peers
            },
            "series": [asdict(series) for series in self.series],
        }
        # Through text, so that a caller gets what a reader of the file gets (keys are strings).
        text = json.dumps(results, indent=1)
        (self.options.out / "results.json").write_text(text + "\n", encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        return content


def resolve(peers: Sequence[str]) -> list[str]:
    """Specifications `FILE:NAME` of what the user named, of all peers if nothing."""
    known = backends.discover()
    unknown = [peer for peer in peers if ":" not in peer and peer not in known]
    if unknown:
        raise LookupError(f"unknown peer {', '.join(unknown)}; there are {', '.join(known)}, or FILE:NAME")
    return [known[peer] if peer in known else str(Path(peer).resolve()) for peer in peers] or list(known.values())


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _ms(seconds: Sequence[float]) -> list[float]:
    return [1000 * value for value in seconds]
