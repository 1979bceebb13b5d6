"""What a caller of the Python API relies on."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agnews_fast
import numpy as np
import pytest
from agnews_fast import Classifier, cpu
from agnews_fast.engine import pack_ids
from reference.bits import assert_same_bits
from reference.checkpoint import encode
from reference.onnx_graph import build_onnx
from reference.process import run_python

HEADLINE = "Oil prices soar to all-time record, posing new menace to US economy"
TEXTS = [
    HEADLINE,
    "Red Sox beat the Yankees in extra innings to stay alive. The winning run came in the 14th inning on Monday night.",
    "New telescope finds water vapour on a distant planet",
    "Rebels and government sign a cease-fire after weeks of talks",
    "",
]


def test_headline(classifier: Classifier) -> None:
    assert classifier.predict(HEADLINE) == "Business"


def test_labels(classifier: Classifier) -> None:
    assert classifier.labels == ["World", "Sports", "Business", "Sci/Tech"]
    assert isinstance(classifier.classes_, np.ndarray)
    assert classifier.classes_.dtype.kind == "U"
    assert classifier.classes_.tolist() == classifier.labels


def test_labels_cannot_be_changed_from_outside(small: Classifier) -> None:
    small.labels.reverse()
    small.classes_[:] = "x"
    assert small.labels == [f"topic {label}" for label in range(5)]
    assert small.classes_.tolist() == small.labels


def test_outputs_of_a_list(classifier: Classifier) -> None:
    logits = classifier.logits(TEXTS)
    probabilities = classifier.predict_proba(TEXTS)
    predicted = classifier.predict(TEXTS)
    assert logits.shape == probabilities.shape == (5, 4)
    assert logits.dtype == probabilities.dtype == np.float32
    assert classifier.embed(TEXTS).shape == (5, 768)
    assert classifier.embed(TEXTS).dtype == np.float32
    assert isinstance(predicted, list)
    assert all(type(label) is str for label in predicted)
    assert predicted == [classifier.labels[best] for best in logits.argmax(axis=1)]
    assert predicted[:4] == ["Business", "Sports", "Sci/Tech", "World"]

    exponentials = np.exp(logits.astype(np.float64))
    # The probabilities are rounded to float32 once and computed with a few roundings before that.
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=0, atol=1e-6)


def test_call_gives_what_a_pipeline_gives(classifier: Classifier) -> None:
    answers = classifier(TEXTS)
    assert [set(answer) for answer in answers] == [{"label", "score"}] * 5
    assert [answer["label"] for answer in answers] == classifier.predict(TEXTS)
    assert [answer["score"] for answer in answers] == classifier.predict_proba(TEXTS).max(axis=1).tolist()
    assert json.loads(json.dumps(answers)) == answers  # plain str and float
    assert classifier(HEADLINE) == answers[:1]


def test_outputs_of_one_str(classifier: Classifier) -> None:
    together = classifier.logits(TEXTS)
    assert classifier.predict(HEADLINE) == "Business"
    assert classifier.logits(HEADLINE).shape == classifier.predict_proba(HEADLINE).shape == (4,)
    assert classifier.embed(HEADLINE).shape == (768,)
    assert_same_bits(classifier.logits(HEADLINE)[None], together[:1], "one str")
    assert_same_bits(classifier.embed(HEADLINE)[None], classifier.embed(TEXTS)[:1], "one str, embedding")
    assert_same_bits(classifier.predict_proba(HEADLINE)[None], classifier.predict_proba(TEXTS)[:1], "one str, softmax")


def test_no_texts(small: Classifier) -> None:
    assert small.predict([]) == []
    assert small([]) == []
    assert small.logits([]).shape == small.predict_proba([]).shape == small.logits_from_ids([]).shape == (0, 5)
    assert small.embed([]).shape == (0, 60)
    assert small.logits(iter(())).dtype == small.embed(()).dtype == np.float32
    assert list(small.predict_iter([])) == []


class Bag:
    """Iterable, and nothing else."""

    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)


class Text(str):
    """A str by inheritance, as NumPy's is."""


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: np.array([text for text in texts for _ in range(2)])[::2],
        lambda texts: (text for text in texts),
        lambda texts: dict.fromkeys(texts).keys(),
        lambda texts: map(Text, texts),
        lambda _: Bag(),
    ],
    ids=["list", "tuple", "iterator", "array", "objects", "strided", "generator", "keys", "subclass", "iterable"],
)
def test_kinds_of_texts(small: Classifier, make: Callable[[list[str]], Any]) -> None:
    assert_same_bits(small.logits(make(TEXTS)), small.logits(TEXTS), "another container")
    assert small.predict(make(TEXTS)) == small.predict(TEXTS)
    assert list(small.predict_iter(make(TEXTS))) == small.predict(TEXTS)


@pytest.mark.parametrize("index", [range(5), [30, 10, 20, 0, 7], list("abcde")], ids=["default", "numbers", "names"])
@pytest.mark.parametrize("dtype", ["object", "string"])
def test_pandas_series(small: Classifier, index: Any, dtype: str) -> None:
    """By position, whatever the index says."""
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(TEXTS, index=index, dtype=dtype)
    assert_same_bits(small.logits(series), small.logits(TEXTS), "a Series")
    assert small.predict(series) == small.predict(TEXTS)


def test_pandas_missing_value_is_named(small: Classifier) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"texts\[1\].*float"):
        small.predict(pandas.Series(["a", float("nan"), "b"], dtype="object"))


def test_ids_equal_texts(small: Classifier, small_checkpoint: Path) -> None:
    ids = encode(small_checkpoint, TEXTS, small.max_length)
    forms: list[Any] = [ids, [tuple(text) for text in ids], [np.array(text) for text in ids]]
    for form in forms:
        assert_same_bits(small.logits_from_ids(form), small.logits(TEXTS), "ids")


class Counting:
    """Endless texts that tell how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        for number in itertools.count():
            self.taken += 1
            yield f"text number {number}"


def test_predict_iter_is_lazy(small: Classifier) -> None:
    source = Counting()
    predictions = small.predict_iter(source, batch_size=8)
    assert source.taken == 0
    first = list(itertools.islice(predictions, 20))
    # Three batches of 8 hold 20; one more may have been read ahead.
    assert source.taken <= 32
    assert first == small.predict([f"text number {number}" for number in range(20)])


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_predict_iter_yields_all_in_order(small: Classifier, batch_size: int) -> None:
    assert list(small.predict_iter((text for text in TEXTS), batch_size=batch_size)) == small.predict(TEXTS)


def test_predict_iter_needs_bounded_memory(small_model: Path) -> None:
    """20 MB of texts stream through without 20 MB being held. Measured in a process of its own, after a warm-up."""
    grown = run_python(
        """
        import resource, sys
        from agnews_fast import Classifier
        classifier = Classifier(sys.argv[1], threads=1, max_length=8)
        def texts(count):
            return (f"text {number} " + "x " * 5_000 for number in range(count))
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert sum(1 for _ in classifier.predict_iter(texts(200), batch_size=16)) == 200
        before = peak()
        assert sum(1 for _ in classifier.predict_iter(texts(2000), batch_size=16)) == 2000
        print(peak() - before)
        """,
        small_model,
    )
    assert int(grown) < 8_000  # KiB


def test_max_length_truncates(small_model: Path, small_checkpoint: Path) -> None:
    text = " ".join(TEXTS)
    with Classifier(small_model, max_length=16) as short:
        assert short.max_length == 16
        ids = encode(small_checkpoint, [text], 16)
        assert len(ids[0]) == 16
        assert_same_bits(short.logits([text]), short.logits_from_ids(ids), "truncated")


def test_smallest_max_length_leaves_the_special_tokens(small_model: Path) -> None:
    with Classifier(small_model, max_length=2) as shortest:
        assert_same_bits(shortest.logits([HEADLINE]), shortest.logits([""]), "[CLS] [SEP]")


def test_max_length_by_default_is_the_models(classifier: Classifier, small: Classifier) -> None:
    assert classifier.max_length == 512
    assert small.max_length == 128


def test_truncation_off(small_model: Path, small_checkpoint: Path) -> None:
    long = "one two three four five six seven eight nine ten"
    (ids,) = encode(small_checkpoint, [long], 1000)
    with Classifier(small_model, max_length=12) as short:
        allowed = ["", "a b c"]
        assert_same_bits(short.logits(allowed, truncation=False), short.logits(allowed), "nothing to truncate")
        for method in (short.predict, short.predict_proba, short.logits, short.embed, short):
            with pytest.raises(ValueError, match=rf"texts\[1\].*12.*{len(ids)}"):
                method(["a", long], truncation=False)
            with pytest.raises(ValueError, match=rf"12.*{len(ids)}"):
                method(long, truncation=False)


def test_threads_by_default_are_the_usable_cpus(classifier: Classifier) -> None:
    assert 1 <= classifier.threads <= len(os.sched_getaffinity(0))


def test_threads_follow_the_affinity(small_model: Path) -> None:
    threads = run_python(
        """
        import os, sys
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import agnews_fast
        print(agnews_fast.Classifier(sys.argv[1]).threads)
        """,
        small_model,
    )
    assert int(threads) == 1


def test_threads_follow_the_quotas_of_all_groups_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 (one tree) and version 1 (one a controller), from the process's own group up to the root."""
    groups, own = tmp_path / "cgroup", tmp_path / "self"
    monkeypatch.setattr(cpu, "_CGROUPS", groups)
    monkeypatch.setattr(cpu, "_OWN_CGROUPS", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    def write(name: str, text: str) -> None:
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text, encoding="ascii")

    assert cpu.usable_cpus() == 64  # no groups at all
    own.write_text("0::/a/b\n", encoding="ascii")
    assert cpu.usable_cpus() == 64
    write("a/b/cpu.max", "max 100000\n")
    assert cpu.usable_cpus() == 64
    write("a/cpu.max", "250000 100000\n")
    assert cpu.usable_cpus() == 3
    write("a/b/cpu.max", "20000 100000\n")
    assert cpu.usable_cpus() == 1
    own.write_text("0::/the/hosts/name\n", encoding="ascii")  # in a container: its root is the host's folder
    assert cpu.usable_cpus() == 64
    write("cpu.max", "400000 100000\n")
    assert cpu.usable_cpus() == 4
    own.write_text("12:cpuset:/\n4:cpu,cpuacct:/c\n0::/\n", encoding="ascii")
    write("cpu,cpuacct/c/cpu.cfs_quota_us", "-1\n")
    write("cpu,cpuacct/c/cpu.cfs_period_us", "100000\n")
    assert cpu.usable_cpus() == 4
    write("cpu,cpuacct/c/cpu.cfs_quota_us", "150000\n")
    assert cpu.usable_cpus() == 2
    for damaged in ("", "1\n", "x y\n", "5 0\n"):
        write("cpu.max", damaged)
        assert cpu.usable_cpus() == 2


def test_threads_as_asked(small_model: Path) -> None:
    for threads in (1, 3):
        with Classifier(small_model, threads=threads) as classifier:
            assert classifier.threads == threads
    with Classifier(small_model, threads=np.int64(2), max_length=np.int32(16)) as classifier:  # type: ignore[arg-type]
        assert (type(classifier.threads), type(classifier.max_length)) == (int, int)


def test_isa(classifier: Classifier) -> None:
    isas = agnews_fast.available_isas()
    assert "scalar" in isas
    assert len(set(isas)) == len(isas)
    assert classifier.isa in isas


@pytest.mark.parametrize("isa", agnews_fast.available_isas())
def test_isa_is_forced(small_model: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    monkeypatch.setenv("AGNEWS_FAST_ISA", isa)
    with Classifier(small_model) as classifier:
        assert classifier.isa == isa


def test_repr(small_model: Path) -> None:
    classifier = Classifier(small_model, threads=3, max_length=77)
    text = repr(classifier)
    assert text.startswith("Classifier(")
    for part in ("threads=3", "max_length=77", classifier.isa, "topic 4", small_model.name):
        assert part in text
    classifier.close()
    assert repr(classifier) != text


def test_close(small_model: Path) -> None:
    classifier = Classifier(small_model)
    kept = classifier.logits(TEXTS)
    copied = kept.copy()
    with classifier as entered:
        assert entered is classifier
    classifier.close()  # a second time
    uses: list[Callable[[], object]] = [
        lambda: classifier.predict("a"),
        lambda: classifier.predict([]),
        lambda: classifier.predict_proba(["a"]),
        lambda: classifier.logits(["a"]),
        lambda: classifier.embed(["a"]),
        lambda: classifier(["a"]),
        lambda: classifier.logits_from_ids([[1, 2]]),
        lambda: next(iter(classifier.predict_iter(["a"]))),
        classifier.__enter__,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()
    assert_same_bits(kept, copied, "results outlive the classifier")


def test_a_call_that_runs_while_another_thread_closes_ends_well(small_model: Path, small: Classifier) -> None:
    classifier = Classifier(small_model, threads=1)

    def texts() -> Iterator[str]:
        yield from TEXTS
        classifier.close()
        yield from TEXTS * 100

    for method in ("predict", "predict_proba", "logits", "embed", "__call__"):
        classifier = Classifier(small_model, threads=1)
        assert len(getattr(classifier, method)(texts())) == 101 * len(TEXTS)
    classifier = Classifier(small_model, threads=1)
    assert list(classifier.predict_iter(texts(), batch_size=3)) == small.predict(TEXTS) * 101
    with pytest.raises(ValueError, match="closed"):
        classifier.logits([])


def test_closed_by_an_error(small_model: Path) -> None:
    with pytest.raises(ZeroDivisionError), Classifier(small_model) as classifier:
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="closed"):
        classifier.predict("a")


def test_results_are_the_callers(small: Classifier) -> None:
    first = small.logits(TEXTS)
    wanted = first.copy()
    second = small.logits(TEXTS)
    second[:] = 0.0
    assert_same_bits(first, wanted, "another result was overwritten")
    assert_same_bits(small.logits(TEXTS), wanted, "a result was overwritten")


def test_model_from_a_folder_and_from_a_file(small_checkpoint: Path, small_model: Path) -> None:
    with Classifier(small_checkpoint) as folder, Classifier(str(small_model)) as file:
        assert folder.labels == file.labels
        assert_same_bits(folder.logits(TEXTS), file.logits(TEXTS), "folder and file")


def test_pickle(small: Classifier) -> None:
    copy = pickle.loads(pickle.dumps(small))
    assert_same_bits(copy.logits(TEXTS), small.logits(TEXTS), "unpickled")


class Subclass(Classifier):
    pass


def test_pickle_keeps_a_subclass(small: Classifier, small_model: Path) -> None:
    with Subclass(small_model, threads=2, max_length=16) as original:
        copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is Subclass
    assert (copy.threads, copy.max_length) == (2, 16)
    assert copy.predict("a text") == small.predict("a text")


def test_a_closed_one_is_not_pickled(small_model: Path) -> None:
    classifier = Classifier(small_model)
    classifier.close()
    with pytest.raises(ValueError, match="the classifier is closed"):
        pickle.dumps(classifier)


def test_pickle_finds_the_model_from_another_folder(
    small: Classifier, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_model.parent)
    with Classifier(small_model.name) as relative:
        monkeypatch.chdir(tmp_path)
        copy = pickle.loads(pickle.dumps(relative))
    assert_same_bits(copy.logits(TEXTS), small.logits(TEXTS), "unpickled")


def test_long_texts_are_computed_in_small_blocks(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt is seen between them; 256 texts of 512 tokens would take most of a minute."""
    texts = [HEADLINE * 20] * 150 + TEXTS
    with Classifier(small_model, threads=1) as classifier:
        blocks: list[list[list[int]]] = []

        def counting(ids: list[list[int]]) -> Any:
            blocks.append(ids)
            return pack_ids(ids)

        monkeypatch.setattr("agnews_fast.classifier.pack_ids", counting)
        logits = classifier.logits(texts)
        assert sum(len(ids) for ids in blocks) == len(texts)
        assert max(sum(map(len, ids)) for ids in blocks) < 8192 + 128
        ids = [text for block in blocks for text in block]
        blocks.clear()
        assert_same_bits(classifier.logits_from_ids(ids), logits, "from ids")
        assert len(blocks) > 2
        assert_same_bits(logits[:150], np.repeat(logits[:1], 150, axis=0), "equal texts")


def test_the_interpreter_ends_while_a_daemon_thread_computes(small_model: Path) -> None:
    """In the core's computation the thread holds no GIL; Python must not be gone when it asks for it again."""
    ended = run_python(
        """
        import os, sys, threading, time
        from agnews_fast import Classifier
        classifier = Classifier(sys.argv[1], threads=2)
        def work():
            while True:
                classifier.predict(["text " * 100] * 50)
        class SlowEnd:
            def __del__(self, sleep=time.sleep, write=os.write):
                sleep(0.5)  # other threads may run, of an interpreter that is no more
                write(1, b"ended")
        sys.slow_end = SlowEnd()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """,
        small_model,
    )
    assert ended == "ended"


def test_idle_threads_use_no_cpu(small_model: Path) -> None:
    with Classifier(small_model, threads=2) as classifier:
        classifier.predict(TEXTS)
        time.sleep(0.05)  # workers may spin for a moment before they block
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.05


def test_import_needs_numpy_and_tokenizers_only() -> None:
    foreign = run_python(
        """
        import sys
        import numpy, tokenizers
        before = set(sys.modules)
        import agnews_fast
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        known = set(sys.stdlib_module_names) | {"numpy", "tokenizers"}
        # The import hook of an editable install carries the package's name.
        print(*sorted(name for name in new - known if "agnews_fast" not in name))
        heavy = {"torch", "onnxruntime", "onnx", "transformers", "safetensors", "pandas", "sklearn", "scipy"}
        print(*sorted(heavy & set(sys.modules)))
        """
    )
    assert foreign.split() == []


def test_beside_onnxruntime_in_one_process(small_checkpoint: Path, small_model: Path, tmp_path: Path) -> None:
    """Two thread pools, either import order, use in turns and a clean exit."""
    graph = build_onnx(small_checkpoint, tmp_path / "graph.onnx")
    code = """
        import sys
        import numpy as np
        if sys.argv[3] == "first":
            import onnxruntime
        import agnews_fast
        import onnxruntime
        classifier = agnews_fast.Classifier(sys.argv[1], threads=2)
        alone = classifier.logits_from_ids([[2, 7, 9, 3]])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
        ids = np.array([[2, 7, 9, 3]])
        for _ in range(5):
            theirs = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
            ours = classifier.logits_from_ids(ids.tolist())
            assert ours.tobytes() == alone.tobytes()
            assert np.abs(ours - theirs).max() < 0.5
        print("done")
        """
    for order in ("first", "second"):
        assert run_python(code, small_model, graph, order).strip() == "done"


def test_version() -> None:
    assert agnews_fast.__version__ == importlib.metadata.version("agnews-fast")


def test_public_names() -> None:
    for name in ("Classifier", "ModelError", "available_isas", "quantize"):
        assert name in agnews_fast.__all__
        assert getattr(agnews_fast, name).__doc__ or name == "ModelError"
    assert issubclass(agnews_fast.ModelError, ValueError)
