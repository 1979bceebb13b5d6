"""What a new process needs before its first label: no NumPy, and the same results with and without it."""

from __future__ import annotations

import array
import itertools
from pathlib import Path
from typing import Any

import agnews_fast
import numpy as np
import pytest
from agnews_fast import Classifier, _core
from agnews_fast.engine import load, pack_ids
from reference.bits import assert_same_bits
from reference.process import run_python

IDS = [[2, 7, 9, 3], [2, 3], [2, 8, 3]]


@pytest.fixture(scope="module")
def engine(small_model: Path) -> _core.Engine:
    return load(small_model, threads=1).engine


def test_labels_come_without_numpy(small: Classifier, small_model: Path) -> None:
    printed = run_python(
        """
        import sys
        import agnews_fast
        assert "numpy" not in sys.modules, "by the import"
        classifier = agnews_fast.Classifier(sys.argv[1], threads=1)
        print(classifier.predict("a b"), classifier.predict(["c", "a b"]), list(classifier.predict_iter(["d"])))
        print(classifier.labels, "quantize" in dir(agnews_fast), repr(classifier) != "")
        assert "numpy" not in sys.modules, "by labels"
        print(classifier.logits(["c", "a b"]).tobytes().hex())
        assert "numpy" in sys.modules
        """,
        small_model,
    )
    c_and_ab = ["c", "a b"]
    assert printed.splitlines() == [
        f"{small.predict('a b')} {small.predict(c_and_ab)} {small.predict(['d'])}",
        f"{small.labels} True True",
        small.logits(c_and_ab).tobytes().hex(),
    ]


@pytest.mark.parametrize("first", ["agnews_fast.quantization", "agnews_fast.cli", "agnews_fast"])
def test_quantize_is_the_function_whatever_is_imported_first(first: str) -> None:
    printed = run_python(
        f"""
        import {first}
        import agnews_fast
        before = agnews_fast.quantize
        import agnews_fast.quantization
        from agnews_fast import quantize
        print(before is quantize is agnews_fast.quantize is agnews_fast.quantization.quantize, quantize.__name__)
        """
    )
    assert printed == "True quantize\n"


def test_no_other_attribute_is_made_up() -> None:
    with pytest.raises(AttributeError, match=r"'agnews_fast' has no attribute 'quantise'"):
        agnews_fast.quantise  # noqa: B018


def test_a_matrix_is_an_array_of_the_same_memory(engine: _core.Engine) -> None:
    logits, first_token = engine.run(*pack_ids(IDS))
    assert logits.shape == (3, 5)
    assert first_token.shape == (3, 60)
    values = np.asarray(logits)
    assert values.dtype == np.float32
    assert values.shape == (3, 5)
    assert values.flags.writeable
    assert values.flags.c_contiguous
    assert logits.argmax() == values.argmax(axis=1).tolist()
    kept = values.copy()
    np.asarray(logits)[0, 0] = 7
    assert values[0, 0] == 7
    values[0, 0] = kept[0, 0]
    del logits
    engine.run(*pack_ids(IDS))
    assert_same_bits(values, kept, "the matrix was freed")


def test_argmax_is_the_first_of_equals(engine: _core.Engine) -> None:
    logits, _ = engine.run(*pack_ids(IDS))
    values = np.asarray(logits)
    values[:] = [[0, 3, 3, 1, 3], [-1, -1, -1, -1, -1], [-0.0, 0.0, -5, -5, -5]]
    assert logits.argmax() == values.argmax(axis=1).tolist() == [1, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_all_finite(engine: _core.Engine, value: float) -> None:
    logits, _ = engine.run(*pack_ids(IDS))
    assert logits.all_finite()
    np.asarray(logits)[2, 4] = value
    assert not logits.all_finite()


def test_no_texts(engine: _core.Engine) -> None:
    logits, first_token = engine.run(*pack_ids([]))
    assert np.asarray(logits).shape == (0, 5)
    assert np.asarray(first_token).shape == (0, 60)
    assert logits.argmax() == []
    assert logits.all_finite()


def test_kinds_of_buffers(engine: _core.Engine) -> None:
    ids, offsets = pack_ids(IDS)
    wanted = np.asarray(engine.run(ids, offsets)[0])
    read_only = np.array(ids, np.int32)
    read_only.flags.writeable = False
    kinds: list[tuple[Any, Any]] = [
        (np.array(ids, np.int32), np.array(offsets, np.int64)),
        (read_only, memoryview(offsets).toreadonly()),
        (memoryview(ids), np.array(offsets, np.longlong)),
        (memoryview(bytes(ids)).cast("i"), memoryview(bytes(offsets)).cast("q")),
    ]
    for kind in kinds:
        assert_same_bits(np.asarray(engine.run(*kind)[0]), wanted, "another kind of buffer")


def test_buffers_that_do_not_fit(engine: _core.Engine) -> None:
    ids, offsets = (np.array(buffer) for buffer in pack_ids(IDS))
    strided = np.repeat(ids, 2)[::2]
    unaligned = memoryview(b"\0" + ids.tobytes())[1:].cast("i")
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (ids.astype(np.int64), offsets, TypeError, "ids: expected a contiguous buffer of int32.*format 'l'"),
        (ids.astype(np.uint32), offsets, TypeError, "int32.*'I'"),
        (ids.astype(np.float32), offsets, TypeError, "int32.*'f'"),
        (ids.astype(">i4"), offsets, TypeError, "int32.*'>i'"),
        (bytes(ids), offsets, TypeError, "int32.*'B'"),
        (ids, offsets.astype(np.int32), TypeError, "offsets: expected a contiguous buffer of int64.*'i'"),
        (ids.tolist(), offsets, TypeError, "incompatible function arguments"),
        (ids.reshape(3, 3), offsets, ValueError, "ids: .*got 2 dimensions"),
        (np.array(1, np.int32), offsets, ValueError, "ids: .*got 0 dimensions"),
        (strided, offsets, ValueError, "ids: .*strided"),
        (ids[::-1], offsets, ValueError, "ids: .*strided"),
        (unaligned, offsets, ValueError, "ids: .*aligned"),
        (ids, offsets[:0], ValueError, "offsets: expected at least one"),
        (ids, offsets[:-1], ValueError, "offsets: expected to run from 0 to 9, got 0 to 6"),
        (ids, offsets[1:], ValueError, "offsets: expected to run from 0 to 9, got 4 to 9"),
        (ids, offsets[[0, 2, 1, 3]], ValueError, "offsets: expected not to decrease"),
        (ids, offsets[[0, 0, 1, 3]], ValueError, "text 0: expected 1 to 128 tokens, got 0"),
        (-ids, offsets, ValueError, "text 0, token 0: expected an id from 0 to 499, got -2"),
    ]
    for method, (some_ids, some_offsets, error, message) in itertools.product(
        (engine.run, engine.channel_maxima, engine.stage_seconds), cases
    ):
        with pytest.raises(error, match=message):
            method(some_ids, some_offsets)


def test_buffers_are_given_back(engine: _core.Engine) -> None:
    """Of an array that somebody looks into, `append` raises BufferError."""
    ids, offsets = pack_ids(IDS)
    engine.run(ids, offsets)
    with pytest.raises(ValueError, match="not to decrease"):
        engine.run(ids, array.array("q", [0, 4, 2, 9]))
    ids.append(0)
    offsets.append(0)


def test_pack_ids() -> None:
    ids, offsets = pack_ids(IDS)
    assert ids.tolist() == [2, 7, 9, 3, 2, 3, 2, 8, 3]
    assert offsets.tolist() == [0, 4, 6, 9]
    assert (ids.itemsize, offsets.itemsize) == (4, 8)
    assert [buffer.tolist() for buffer in pack_ids([])] == [[], [0]]
