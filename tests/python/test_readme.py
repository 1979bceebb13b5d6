"""The examples in README.md and in the docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib

import pytest
from reference.data import REPOSITORY


def test_readme() -> None:
    failed, tried = doctest.testfile(str(REPOSITORY / "README.md"), module_relative=False)
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("name", ["agnews_fast", "agnews_fast._core", "agnews_fast.classifier", "agnews_fast.metrics"])
def test_docstrings(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
