"""pytest-benchmark over the public API: `python -m pytest tests/bench/test_speed.py --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest
from agnews_fast import Classifier

HEADLINE = "Oil prices soar to all-time record, posing new menace to US economy"


@pytest.fixture(scope="module")
def one_thread() -> Classifier:
    return Classifier(threads=1)


def test_predict_one(benchmark: Any, one_thread: Classifier) -> None:
    assert benchmark(one_thread.predict, HEADLINE) == "Business"


def test_predict_batch(benchmark: Any, one_thread: Classifier) -> None:
    assert benchmark(one_thread.predict, [HEADLINE] * 32) == ["Business"] * 32


def test_predict_long(benchmark: Any, one_thread: Classifier) -> None:
    assert benchmark(one_thread.predict, " ".join([HEADLINE] * 40)) == "Business"


def test_embed(benchmark: Any, one_thread: Classifier) -> None:
    assert benchmark(one_thread.embed, [HEADLINE]).shape == (1, 768)


def test_open(benchmark: Any) -> None:
    assert benchmark(lambda: Classifier(threads=1).labels)[2] == "Business"
