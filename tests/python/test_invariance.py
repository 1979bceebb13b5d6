"""A text's logits are the same bits whatever it is computed with: batch, order, threads, process, instruction set."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from agnews_fast import Classifier, available_isas, quantize
from reference.bits import assert_same_bits
from reference.checkpoint import encode
from reference.process import run_python
from reference.random_checkpoint import make_checkpoint

Float32 = npt.NDArray[np.float32]
Ids = list[list[int]]

OTHER_ISAS = [isa for isa in available_isas() if isa != "scalar"]
FORK_DEADLINE = 120.0  # seconds; a deadlock must fail the test, not hang it


@pytest.fixture(scope="module")
def texts(test_split: tuple[list[str], list[int]]) -> list[str]:
    """272 texts of the test split, and some that are shorter and longer than any."""
    some = test_split[0][::28]
    return [*some, "", "a", "Oil", " ".join(some[:4]), " ".join(some[:40])]


@pytest.fixture(scope="module")
def expected(classifier: Classifier, texts: list[str]) -> Float32:
    return classifier.logits(texts)


def in_batches(classifier: Classifier, texts: list[str], size: int) -> Float32:
    return np.concatenate([classifier.logits(texts[start : start + size]) for start in range(0, len(texts), size)])


@pytest.mark.parametrize("size", [1, 7, 32, 256])
def test_batch_size(classifier: Classifier, texts: list[str], expected: Float32, size: int) -> None:
    assert_same_bits(in_batches(classifier, texts, size), expected, f"batches of {size}")


def test_single_text(classifier: Classifier, texts: list[str], expected: Float32) -> None:
    got = np.stack([classifier.logits(text) for text in texts[-40:]])
    assert_same_bits(got, expected[-40:], "a str instead of a list")


def test_one_batch_of_ids(classifier: Classifier, checkpoint: Path, texts: list[str], expected: Float32) -> None:
    ids = encode(checkpoint, texts, classifier.max_length)
    assert_same_bits(classifier.logits_from_ids(ids), expected, "ids of the tokenizers library, in one batch")


def test_order(classifier: Classifier, texts: list[str], expected: Float32) -> None:
    order = np.random.default_rng(1).permutation(len(texts))
    assert_same_bits(classifier.logits([texts[i] for i in order]), expected[order], "shuffled")


def test_batch_mates(classifier: Classifier, texts: list[str], expected: Float32) -> None:
    """One text among copies of the longest, and of the shortest."""
    for mate in (texts[-1], ""):
        got = classifier.logits([mate] * 5 + texts[:1] + [mate] * 6)
        assert_same_bits(got[5:6], expected[:1], "among others")


def test_embeddings(classifier: Classifier, texts: list[str]) -> None:
    together = classifier.embed(texts[:40])
    alone = np.stack([classifier.embed(text) for text in texts[:40]])
    assert_same_bits(alone, together, "embeddings")


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads(texts: list[str], expected: Float32, threads: int) -> None:
    """A batch is divided by texts, a text alone by columns: both ways must give what one thread gives."""
    with Classifier(threads=threads) as classifier:
        assert_same_bits(classifier.logits(texts), expected, f"{threads} threads")
        some = [*texts[:20], *texts[-4:]]
        alone = np.concatenate([classifier.logits([text]) for text in some])
        assert_same_bits(alone, np.concatenate([expected[:20], expected[-4:]]), f"{threads} threads, texts alone")


def test_repeated_runs(classifier: Classifier, texts: list[str], expected: Float32) -> None:
    for _ in range(3):
        assert_same_bits(classifier.logits(texts[:64]), expected[:64], "run again")


def test_fresh_process(texts: list[str], expected: Float32, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts[:100]), encoding="utf-8")
    run_python(
        """
        import json, sys
        import numpy as np
        from agnews_fast import Classifier
        texts = json.load(open(sys.argv[1], encoding="utf-8"))
        np.save(sys.argv[2], Classifier(threads=2).logits(texts))
        """,
        tmp_path / "texts.json",
        tmp_path / "logits.npy",
        PYTHONHASHSEED="7",
    )
    assert_same_bits(np.load(tmp_path / "logits.npy"), expected[:100], "in a fresh process")


def in_fork(compute: Callable[[], Float32], out: Path) -> Float32:
    """What `compute` returns in a forked child. Kills the child and fails if it is not done in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            np.save(out, compute())
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + FORK_DEADLINE
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with wait status {status}"
            result: Float32 = np.load(out)
            return result
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the forked child did not finish")
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fork(texts: list[str], expected: Float32, threads: int, tmp_path: Path) -> None:
    some = [*texts[:20], texts[-1]]
    wanted = np.concatenate([expected[:20], expected[-1:]])
    with Classifier(threads=threads) as classifier:
        assert_same_bits(classifier.logits(some), wanted, "before the fork")
        assert_same_bits(in_fork(lambda: classifier.logits(some), tmp_path / "child.npy"), wanted, "in the child")
        assert_same_bits(classifier.logits(some), wanted, "in the parent afterwards")

        def grandchild() -> Float32:
            return in_fork(lambda: classifier.logits(some), tmp_path / "grandchild.npy")

        assert_same_bits(in_fork(grandchild, tmp_path / "child2.npy"), wanted, "in the child's child")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_fork_while_another_thread_computes(
    checkpoint: Path, texts: list[str], expected: Float32, tmp_path: Path
) -> None:
    """The child inherits no thread but its own, whatever the others held or waited for when they vanished."""
    with Classifier(threads=2) as classifier:
        ids = encode(checkpoint, texts[:24], classifier.max_length)
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                classifier.logits_from_ids(ids[:8])

        busy = threading.Thread(target=keep_busy)
        busy.start()
        try:
            for round_ in range(5):
                time.sleep(0.013 * round_)
                got = in_fork(lambda: classifier.logits_from_ids(ids), tmp_path / "child.npy")
                assert_same_bits(got, expected[:24], f"round {round_}")
        finally:
            stop.set()
            busy.join()


inherited: dict[str, Classifier] = {}


def logits_of_inherited(texts: list[str]) -> Float32:
    return inherited["classifier"].logits(texts)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_multiprocessing_fork(classifier: Classifier, texts: list[str], expected: Float32) -> None:
    inherited["classifier"] = classifier
    chunks = [texts[start : start + 16] for start in range(0, 64, 16)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        got = pool.map_async(logits_of_inherited, chunks).get(timeout=FORK_DEADLINE)
    assert_same_bits(np.concatenate(got), expected[:64], "in a pool's workers")


def test_python_threads_share_a_classifier(classifier: Classifier, texts: list[str], expected: Float32) -> None:
    """Five threads at once, each with batches of its own sizes, each over every text."""
    start = threading.Barrier(5)

    def compute(worker: int) -> Float32:
        start.wait()
        return in_batches(classifier, texts[:100], 1 + 9 * worker)

    with ThreadPoolExecutor(5) as executor:
        for worker, got in enumerate(executor.map(compute, range(5))):
            assert_same_bits(got, expected[:100], f"thread {worker}")


@pytest.fixture
def force_isa(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Classifier]]:
    """Make a classifier that runs on the named instruction set."""
    made: list[Classifier] = []

    def make(isa: str, *arguments: Any, **options: Any) -> Classifier:
        monkeypatch.setenv("AGNEWS_FAST_ISA", isa)
        classifier = Classifier(*arguments, **options)
        made.append(classifier)
        assert classifier.isa == isa
        return classifier

    yield make
    for classifier in made:
        classifier.close()


def ids_of_length(stream: list[int], lengths: list[int]) -> Ids:
    """Consecutive pieces of `stream`, each between [CLS] and [SEP] as the stream's first text has them."""
    first, last = stream[0], stream[-1]
    body = [token for token in stream if token not in (first, last)]
    position = 0
    pieces: Ids = []
    for length in lengths:
        piece = [body[(position + i) % len(body)] for i in range(length - 2)]
        pieces.append([first, *piece, last])
        position += length
    return pieces


# The scalar code is slow, so long texts are few: every length to 64, those around powers of two, the longest; the rest
# of the 300 are as long as a headline.
LENGTHS = [*range(2, 65), 95, 127, 128, 129, 180, 255, 256, 257, 333, 511, 512]
LENGTHS += [8 + i % 24 for i in range(300 - len(LENGTHS))]


@pytest.fixture(scope="module")
def ids_of_all_lengths(checkpoint: Path, test_split: tuple[list[str], list[int]]) -> Ids:
    tokens = [token for text in encode(checkpoint, test_split[0][:400], 512) for token in text]
    return ids_of_length(tokens, LENGTHS)


@pytest.fixture(scope="module")
def scalar_results(ids_of_all_lengths: Ids, texts: list[str]) -> tuple[Float32, Float32]:
    """What the specification gives: logits of all lengths, embeddings of some texts."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AGNEWS_FAST_ISA", "scalar")
        with Classifier() as classifier:
            assert classifier.isa == "scalar"
            return classifier.logits_from_ids(ids_of_all_lengths), classifier.embed(texts[:10])


def test_scalar_is_there() -> None:
    assert "scalar" in available_isas()


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_isa(
    isa: str,
    force_isa: Callable[..., Classifier],
    scalar_results: tuple[Float32, Float32],
    ids_of_all_lengths: Ids,
    texts: list[str],
) -> None:
    classifier = force_isa(isa)
    assert len(ids_of_all_lengths) >= 300
    assert_same_bits(classifier.logits_from_ids(ids_of_all_lengths), scalar_results[0], f"{isa} against scalar")
    assert_same_bits(classifier.embed(texts[:10]), scalar_results[1], f"{isa} against scalar, embeddings")


def test_default_isa_is_one_of_the_compared(classifier: Classifier) -> None:
    assert classifier.isa in available_isas()


RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "narrow": {"layers": 3, "hidden": 128, "heads": 2, "ffn": 192, "labels": 7, "vocabulary": 1000, "positions": 200},
    "odd": {"layers": 2, "hidden": 120, "heads": 3, "ffn": 200, "labels": 7, "vocabulary": 1000, "positions": 64},
    "odder": {"layers": 1, "hidden": 33, "heads": 3, "ffn": 77, "labels": 2, "vocabulary": 99, "positions": 70},
    "relu": {"layers": 2, "hidden": 100, "heads": 5, "ffn": 130, "labels": 17, "vocabulary": 333, "activation": "relu"},
    "every length": {"layers": 2, "hidden": 32, "heads": 2, "ffn": 48, "labels": 3, "vocabulary": 100},
}


@pytest.fixture(scope="module", params=list(RANDOM_MODELS))
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ids]:
    """A model file and texts of ids: of every length for one of the models, of 60 lengths for the others."""
    sizes = RANDOM_MODELS[request.param]
    folder = tmp_path_factory.mktemp("random")
    checkpoint = make_checkpoint(folder / "checkpoint", **sizes, seed=len(request.param))
    positions = sizes.get("positions", 512)
    rng = np.random.default_rng(3)
    if request.param == "every length":
        lengths = list(range(1, positions + 1))
    else:
        lengths = [*range(1, 41), *rng.integers(41, positions + 1, 18).tolist(), positions, positions - 1]
    ids = [rng.integers(0, sizes["vocabulary"], length).tolist() for length in lengths]
    return quantize(checkpoint, folder / "model.safetensors"), ids


def test_random_model(random_model: tuple[Path, Ids], force_isa: Callable[..., Classifier]) -> None:
    """Every instruction set, one and three threads, together and alone."""
    model, ids = random_model
    expected = force_isa("scalar", model, threads=1).logits_from_ids(ids)
    for isa in available_isas():
        for threads in (3,) if isa == "scalar" else (1, 3):
            classifier = force_isa(isa, model, threads=threads)
            assert_same_bits(classifier.logits_from_ids(ids), expected, f"{isa}, {threads} threads")
        some = [0, 7, 17, 33, len(ids) - 1]
        alone = np.concatenate([classifier.logits_from_ids([ids[i]]) for i in some])
        assert_same_bits(alone, expected[some], f"{isa}, texts alone")


def test_random_model_tells_texts_apart(random_model: tuple[Path, Ids]) -> None:
    """Equality of bits means nothing between constants."""
    model, ids = random_model
    with Classifier(model) as classifier:
        logits = classifier.logits_from_ids(ids)
    assert len(np.unique(logits, axis=0)) == len(ids)
