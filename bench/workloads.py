"""What is timed. Runs in a peer's process; every function answers one request of the driver.

Results carry the labels of the very pass that was timed, so that the driver can check them.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.base import WHOLE_LIST, Backend, Ids
from .inputs import Dataset

Result = dict[str, Any]
WARM_UP_CALLS = 10
CALIBRATION_WINDOW = 64
CALIBRATION_PASSES = 3
CLOSE = 1.3  # times the fastest: what is slower than that is not tried again


def labels_of(logits: npt.NDArray[np.float32]) -> list[int]:
    return [int(label) for label in logits.argmax(axis=1)]


def logits(backend: Backend, dataset: Dataset) -> Result:
    """Untimed, for the reference."""
    return {"logits": backend.run_ids(dataset.ids, 32).tolist()}


def calibrate(backend: Backend, dataset: Dataset, batch_sizes: list[int]) -> Result:
    """Texts a second at each of these batch sizes, of which the fastest is then used.

    The sample is three runs of neighbours in the length-sorted split: what batches look like in the split itself.
    """
    by_length = sorted(dataset.ids, key=len)
    sample: list[list[int]] = []
    window = max(1, min(CALIBRATION_WINDOW, len(by_length) // 3))
    for sixth in (1, 3, 5):
        start = max(0, len(by_length) * sixth // 6 - window // 2)
        sample += by_length[start : start + window]
    sizes = [*batch_sizes, *([WHOLE_LIST] if backend.whole_list else [])]
    least: dict[int, float] = {}  # batch size -> seconds
    for _ in range(CALIBRATION_PASSES):  # over all sizes, so that what slows the machine for a while slows several
        close = [size for size in sizes if least.get(size, 0.0) <= CLOSE * min(least.values(), default=0.0)]
        for size in close:
            taken = _seconds(partial(backend.run_ids, sample, size))
            least[size] = min(taken, least.get(size, taken))
    return {"texts_per_second": {size: len(sample) / seconds for size, seconds in least.items()}}


def throughput(backend: Backend, dataset: Dataset, inputs: str, batch_size: int) -> Result:
    """All texts as fast as possible."""
    cpu = time.process_time()
    start = time.perf_counter()
    if inputs == "texts":
        assert dataset.texts is not None
        answers = backend.run_texts(dataset.texts, batch_size)
    else:
        answers = backend.run_ids(dataset.ids, batch_size)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "labels": labels_of(answers)}


def singles(backend: Backend, dataset: Dataset, inputs: str) -> Result:
    """One text a call, in file order."""
    call = _single_call(backend, dataset, inputs)
    for i in range(min(WARM_UP_CALLS, len(dataset.ids))):
        call(i)
    seconds = []
    labels = []
    for i in range(len(dataset.ids)):
        start = time.perf_counter()
        answer = call(i)
        seconds.append(time.perf_counter() - start)
        labels += labels_of(answer)
    return {"seconds": seconds, "labels": labels}


def batches(backend: Backend, dataset: Dataset, batch_size: int, sequences: int, at_least: float) -> Result:
    """Seconds a call for `sequences` ids in batches, over and over until `at_least` seconds are spent."""
    chosen = [dataset.ids[i : i + batch_size] for i in range(0, sequences, batch_size)]
    backend.logits_from_ids(chosen[0][:1])
    seconds: list[float] = []
    labels: list[int] = []
    while not seconds or sum(seconds) < at_least:
        labels = []
        for batch in chosen:
            start = time.perf_counter()
            answer = backend.logits_from_ids(batch)
            seconds.append(time.perf_counter() - start)
            labels += labels_of(answer)
    return {"seconds": seconds, "labels": labels}


def callers(backend: Backend, dataset: Dataset, count: int) -> Result:
    """`count` Python threads share the backend, each with its own part of the texts, one text a call."""
    call = _single_call(backend, dataset, "texts")
    seconds = [0.0] * len(dataset.ids)
    labels = [-1] * len(dataset.ids)
    errors: list[Exception] = []
    barrier = threading.Barrier(count + 1)

    def work(part: range) -> None:
        try:
            call(part[0])  # what a thread sets up on its first call
            barrier.wait()
            for i in part:
                start = time.perf_counter()
                answer = call(i)
                seconds[i] = time.perf_counter() - start
                labels[i] = labels_of(answer)[0]
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(range(k, len(seconds), count),)) for k in range(count)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):  # `errors` says why
        barrier.wait()
    cpu, begin = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.join()
    total, cpu = time.perf_counter() - begin, time.process_time() - cpu
    if errors:
        raise errors[0]
    return {"total_seconds": total, "cpu_seconds": cpu, "seconds": seconds, "labels": labels}


def idle(backend: Backend, dataset: Dataset, seconds: float, settle: float) -> Result:
    """CPU time of the whole process while nobody calls it, after some work and `settle` seconds of rest."""
    backend.run_ids(dataset.ids[:32], 8)
    time.sleep(settle)
    cpu = time.process_time()
    start = time.perf_counter()
    time.sleep(seconds)
    return {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - start}


def memory() -> Result:
    """Resident memory in bytes: now, and at its highest since the process began (Linux)."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.split()
    return {"steady": int(fields["VmRSS"][0]) * 1024, "peak": int(fields["VmHWM"][0]) * 1024}


def _single_call(backend: Backend, dataset: Dataset, inputs: str) -> Callable[[int], npt.NDArray[np.float32]]:
    if inputs == "texts":
        texts = dataset.texts
        assert texts is not None
        return lambda i: backend.logits([texts[i]])
    ids: Ids = dataset.ids
    return lambda i: backend.logits_from_ids([ids[i]])


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
