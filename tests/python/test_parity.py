"""How far the int8 model is from fp32: the whole test split against ONNX Runtime, random models against float64."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference.checkpoint
import reference.onnx_graph
from agnews_fast import Classifier, quantization
from reference.checkpoint import digest, encode, read_label_names
from reference.metrics import class_report, mcnemar_p
from reference.numpy_model import Float64, exact_linear, forward
from reference.onnx_graph import build_onnx, run_onnx
from reference.random_checkpoint import make_checkpoint

Float32 = npt.NDArray[np.float32]

REPORT_ORDER = ["Business", "Sci/Tech", "Sports", "World"]
EMBEDDED = slice(None, None, 15)  # 507 of the 7,600 texts


@dataclass(frozen=True, repr=False)
class Split:
    """One model's answers to the test split, next to the other's."""

    true: npt.NDArray[np.int64]
    ours: Float32
    reference: Float32
    reference_embeddings: Float32  # of the texts EMBEDDED

    @property
    def ours_right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.ours.argmax(axis=1) == self.true)

    @property
    def reference_right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.reference.argmax(axis=1) == self.true)

    @property
    def agreement(self) -> float:
        return float(np.mean(self.ours.argmax(axis=1) == self.reference.argmax(axis=1)))

    @property
    def differences(self) -> Float32:
        absolute: Float32 = np.abs(self.ours - self.reference)
        return absolute


def reference_answers(
    config: pytest.Config, checkpoint: Path, texts: list[str], scratch: Path
) -> tuple[Float32, Float32]:
    """Logits of all texts and first tokens of those EMBEDDED, by ONNX Runtime in fp32.

    They take minutes and depend on nothing under test, so they stay in pytest's cache under a name that changes with
    the checkpoint, the texts and the oracle's own code.
    """
    key = hashlib.sha256(digest(checkpoint).encode())
    key.update("\0".join(texts).encode())
    for module in (reference.checkpoint, reference.onnx_graph):
        key.update(Path(str(module.__file__)).read_bytes())
    cache = getattr(config, "cache", None)
    folder = cache.mkdir("agnews_fast_reference") if cache is not None else scratch
    cached = Path(folder) / f"{key.hexdigest()[:24]}.npz"
    if cached.is_file():
        with np.load(cached) as stored:
            return stored["logits"], stored["first_token"]
    graph = build_onnx(checkpoint, scratch / "reference.onnx")
    ids = encode(checkpoint, texts, max_length=512)
    logits, first_token = run_onnx(graph, ids, threads=len(os.sched_getaffinity(0)))
    first_token = first_token[EMBEDDED]
    unfinished = cached.with_suffix(f".{os.getpid()}.npz")
    np.savez(unfinished, logits=logits, first_token=first_token)
    unfinished.replace(cached)
    return logits, first_token


@pytest.fixture(scope="module")
def split(
    request: pytest.FixtureRequest,
    classifier: Classifier,
    checkpoint: Path,
    test_split: tuple[list[str], list[int]],
    tmp_path_factory: pytest.TempPathFactory,
    report: Callable[[str, str], None],
) -> Split:
    texts, labels = test_split
    logits, first_token = reference_answers(request.config, checkpoint, texts, tmp_path_factory.mktemp("reference"))
    result = Split(np.asarray(labels), classifier.logits(texts), logits, first_token)
    report(
        f"AG News test split, {len(texts):,} texts: int8 against ONNX Runtime fp32", table(result, classifier.labels)
    )
    return result


def table(split: Split, labels: list[str]) -> str:
    true = [labels[label] for label in split.true]
    predicted = [labels[label] for label in split.ours.argmax(axis=1)]
    ours, theirs = split.ours_right.tolist(), split.reference_right.tolist()
    return "\n".join(
        [
            f"accuracy                 {np.mean(ours):.4%} (fp32: {np.mean(theirs):.4%})",
            f"agreement                {split.agreement:.4%}",
            f"McNemar p                {mcnemar_p(ours, theirs):.3f}",
            f"mean |logit difference|  {split.differences.mean():.4f}",
            f"largest                  {split.differences.max():.4f}",
            "",
            class_report(true, predicted, REPORT_ORDER),
        ]
    )


def test_labels_are_those_of_the_checkpoint(classifier: Classifier, checkpoint: Path) -> None:
    assert classifier.labels == read_label_names(checkpoint)


def test_label_agreement(split: Split) -> None:
    assert split.agreement >= 0.997


def test_accuracy_is_that_of_fp32(split: Split) -> None:
    assert abs(split.ours_right.mean() - split.reference_right.mean()) <= 0.0010


def test_accuracy(split: Split) -> None:
    # What the pipeline that this package replaces reaches.
    assert split.ours_right.mean() >= 0.93


def test_mean_logit_difference(split: Split) -> None:
    assert split.differences.mean() <= 0.03


def test_difference_is_not_significant(split: Split) -> None:
    assert mcnemar_p(split.ours_right.tolist(), split.reference_right.tolist()) >= 0.05


def test_embeddings_point_the_same_way(
    split: Split, classifier: Classifier, test_split: tuple[list[str], list[int]]
) -> None:
    ours = classifier.embed(test_split[0][EMBEDDED]).astype(np.float64)
    theirs = split.reference_embeddings.astype(np.float64)
    cosine = np.sum(ours * theirs, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    # A quantised product errs by about 2 % of its size (the rounding of 7-bit activations and 8-bit weights, each a
    # step of some 6 % of their rms / sqrt(12)), and 12 residual additions collect as much: r = sqrt(12) * 2 % = 7 %
    # of the vector, cos = 1 - r^2 / 2 = 0.9976.
    assert cosine.mean() >= 0.9976
    assert np.quantile(cosine, 0.01) >= 0.99  # r of 14 %: twice the expected
    # On the border between two topics a small change of the input moves the state much further: r of 30 %.
    assert cosine.min() >= 0.955


RANDOM_MODELS: list[dict[str, Any]] = [
    {"layers": 3, "hidden": 128, "heads": 2, "ffn": 192, "labels": 7, "vocabulary": 1000},
    {"layers": 2, "hidden": 120, "heads": 3, "ffn": 200, "labels": 7, "vocabulary": 1000, "positions": 64},
    {"layers": 1, "hidden": 33, "heads": 3, "ffn": 77, "labels": 2, "vocabulary": 99, "positions": 70},
    {"layers": 2, "hidden": 100, "heads": 5, "ffn": 130, "labels": 17, "vocabulary": 333, "activation": "relu"},
    {"layers": 6, "hidden": 192, "heads": 3, "ffn": 768, "labels": 4, "vocabulary": 2000, "lowercase": False},
]


def quantised_linear(x: Float64, weight: Float64, bias: Float64) -> Float64:
    """The plainest form of the number format: 7-bit activations a row, 8-bit weights a column whose outliers are exact.

    A row's range includes 0, and 127 stands for 7 times a weight row's rms.
    """
    lowest = np.minimum(x.min(axis=1, keepdims=True), 0.0)
    step = (np.maximum(x.max(axis=1, keepdims=True), 0.0) - lowest) / 127
    zero = np.rint(-lowest / step)
    rounded_x = (np.clip(np.rint(x / step) + zero, 0, 127) - zero) * step
    scale = 7.0 * np.sqrt(np.mean(weight**2, axis=1, keepdims=True)) / 127
    return exact_linear(rounded_x, np.rint(weight / scale) * scale, bias)


@pytest.mark.parametrize("sizes", RANDOM_MODELS, ids=lambda sizes: f"hidden{sizes['hidden']}")
def test_random_model_errs_as_its_number_format_does(
    sizes: dict[str, Any], test_split: tuple[list[str], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fixed tolerance fits a random model; the float64 model with rounded products tells what each one's is."""
    # As in a large vocabulary, some words are looked up in the first layer and others computed.
    monkeypatch.setattr(quantization, "_PROJECTED_WORDS", 60)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **sizes, seed=sizes["hidden"])
    texts = [text[: 20 + 11 * number] for number, text in enumerate(test_split[0][:24])] + ["", "a"]
    with Classifier(checkpoint, threads=1) as classifier:
        ids = encode(checkpoint, texts, classifier.max_length)
        got = (classifier.logits(texts), classifier.embed(texts))
    exact = forward(checkpoint, ids)
    rounded = forward(checkpoint, ids, linear=quantised_linear)
    for name, ours, expected, simulated in zip(("logits", "embeddings"), got, exact, rounded, strict=True):
        error = float(np.sqrt(np.mean((ours - expected) ** 2)))
        allowed = float(np.sqrt(np.mean((simulated - expected) ** 2)))
        # The embeddings' own 8-bit rounding is not simulated, and two roundings of one model are as two throws of
        # dice: hundreds of values, yet correlated through the layers. A wrong term anywhere costs a factor of 10.
        assert error <= 2.0 * allowed, f"{name}: rms error {error}, the format's is {allowed}"
        # The simulation itself must stay far from the signal, or the bound above would bound nothing.
        assert allowed <= 0.2 * float(np.std(expected)), name
