"""Fixtures of all tests: the checkpoint, the data, classifiers, and a place for what the tests measured.

pytest puts this folder on `sys.path`, so tests import their oracles as `reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from reference.data import REPOSITORY, find_data, read_test_split
from reference.random_checkpoint import make_checkpoint

if TYPE_CHECKING:
    from agnews_fast import Classifier  # imported by the fixtures that need it: the oracles' tests run without it

SECTIONS = pytest.StashKey[list[tuple[str, str]]]()

# Every size differs from every other, and few are a multiple of a vector's lanes.
SMALL: dict[str, Any] = {
    "layers": 2,
    "hidden": 60,
    "heads": 3,
    "ffn": 100,
    "labels": 5,
    "vocabulary": 500,
    "positions": 128,
}


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The folder that the packaged model is made from."""
    for folder in (REPOSITORY / "checkpoint", REPOSITORY.parent / "shared" / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError("there is neither checkpoint/ nor ../shared/model")


@pytest.fixture(scope="session")
def test_split() -> tuple[list[str], list[int]]:
    """The 7,600 texts of the AG News test split and their labels."""
    return read_test_split(find_data())


@pytest.fixture(scope="session")
def classifier() -> Iterator[Classifier]:
    """The packaged model, with everything at its default."""
    from agnews_fast import Classifier  # noqa: PLC0415

    with Classifier() as packaged:
        yield packaged


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint that takes milliseconds to quantise and run."""
    return make_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", **SMALL, seed=1)


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file of `small_checkpoint`. Tests that damage it write a copy."""
    from agnews_fast import quantize  # noqa: PLC0415

    return quantize(small_checkpoint, tmp_path_factory.mktemp("small_model") / "small.safetensors")


@pytest.fixture(scope="session")
def small(small_model: Path) -> Iterator[Classifier]:
    from agnews_fast import Classifier  # noqa: PLC0415

    with Classifier(small_model) as classifier:
        yield classifier


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Call with a title and a text to show both after the run, whether tests pass or fail."""

    def show(title: str, text: str) -> None:
        request.config.stash.setdefault(SECTIONS, []).append((title, text))

    return show


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, text in terminalreporter.config.stash.get(SECTIONS, []):
        terminalreporter.section(title)
        terminalreporter.write_line(text)
