"""The oracles against each other: three forward passes that share no code, and the metrics against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.checkpoint import copy_checkpoint, encode, read_sizes, read_tensors, round_to
from reference.metrics import class_report, mcnemar_p
from reference.numpy_model import forward
from reference.onnx_graph import build_onnx, run_onnx
from reference.random_checkpoint import make_checkpoint

# Roundoff of float32: a sum of K products errs by about 2^-24 sqrt(K) of its terms' norm, for K = 3072 by 3e-6. A layer
# has four such sums in a row, LayerNorm brings their result back to unit size, and the errors of 6 layers add up as a
# random walk does: sqrt(24) * 3e-6 = 1.6e-5.
TOLERANCE = 2e-5

SIZES: list[dict[str, Any]] = [
    {"layers": 3, "hidden": 128, "heads": 2, "ffn": 192, "labels": 7, "vocabulary": 1000, "positions": 200},
    {"layers": 2, "hidden": 120, "heads": 3, "ffn": 200, "labels": 7, "vocabulary": 1000, "positions": 64},
    {"layers": 1, "hidden": 33, "heads": 3, "ffn": 77, "labels": 2, "vocabulary": 99, "dtype": "bfloat16", "shards": 3},
    {"layers": 2, "hidden": 48, "heads": 4, "ffn": 50, "labels": 3, "vocabulary": 200, "activation": "relu"},
]


@pytest.fixture(scope="module", params=SIZES, ids=lambda sizes: f"hidden{sizes['hidden']}")
def random_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("random") / "checkpoint", **request.param, seed=7)


def some_ids(checkpoint: Path, texts: list[str]) -> list[list[int]]:
    return encode(checkpoint, [*texts, "", "a"], read_sizes(checkpoint).positions)


def run_transformers(checkpoint: Path, ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.DistilBertForSequenceClassification.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    logits, first_token = [], []
    with torch.inference_mode():
        for text in ids:
            result = model(torch.tensor([text]), output_hidden_states=True)
            logits.append(result.logits[0].numpy())
            first_token.append(result.hidden_states[-1][0, 0].numpy())
    return np.stack(logits), np.stack(first_token)


def test_onnx_equals_numpy(random_checkpoint: Path, test_split: tuple[list[str], list[int]], tmp_path: Path) -> None:
    ids = some_ids(random_checkpoint, test_split[0][:12])
    graph = build_onnx(random_checkpoint, tmp_path / "graph.onnx")
    logits, first_token = run_onnx(graph, ids, threads=1)
    expected_logits, expected_first_token = forward(random_checkpoint, ids)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(first_token, expected_first_token, rtol=0, atol=TOLERANCE)


def test_numpy_equals_transformers(random_checkpoint: Path, test_split: tuple[list[str], list[int]]) -> None:
    ids = some_ids(random_checkpoint, test_split[0][:12])
    logits, first_token = run_transformers(random_checkpoint, ids)
    expected_logits, expected_first_token = forward(random_checkpoint, ids)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(first_token, expected_first_token, rtol=0, atol=TOLERANCE)


def test_onnx_equals_transformers_on_the_real_checkpoint(
    checkpoint: Path, test_split: tuple[list[str], list[int]], tmp_path: Path
) -> None:
    ids = some_ids(checkpoint, test_split[0][:6])
    expected_logits, expected_first_token = run_transformers(checkpoint, ids)
    logits, first_token = run_onnx(build_onnx(checkpoint, tmp_path / "graph.onnx"), ids, threads=2)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(first_token, expected_first_token, rtol=0, atol=TOLERANCE)


def test_onnx_on_padding_equals_alone(random_checkpoint: Path, tmp_path: Path) -> None:
    """A text must not see the padding that a longer one in its batch brings."""
    ids = encode(random_checkpoint, ["short", "a text that is longer than the other by quite some words"], 64)
    graph = build_onnx(random_checkpoint, tmp_path / "graph.onnx")
    together, _ = run_onnx(graph, ids, threads=1)
    alone, _ = run_onnx(graph, ids[:1], threads=1)
    np.testing.assert_allclose(together[:1], alone, rtol=0, atol=TOLERANCE)


def test_random_checkpoints_separate_texts(random_checkpoint: Path, test_split: tuple[list[str], list[int]]) -> None:
    """A model whose answer hardly depends on the text would pass any comparison."""
    logits, first_token = forward(random_checkpoint, some_ids(random_checkpoint, test_split[0][:12]))
    assert logits.std(axis=0).min() > 0.1
    assert 0.5 < np.sqrt(np.mean(first_token**2)) < 5.0


def test_random_checkpoint_has_outliers(tmp_path: Path) -> None:
    sizes = SIZES[0]
    with_outliers = read_tensors(make_checkpoint(tmp_path / "with", **sizes, seed=3))
    without = read_tensors(make_checkpoint(tmp_path / "without", **sizes, seed=3, outliers=False))
    name = "distilbert.transformer.layer.1.ffn.lin2.weight"
    # The rms is the median row's: an outlier of 30 raises that of its own row.
    rms = float(np.median(np.sqrt(np.mean(without[name] ** 2, axis=1))))
    assert np.abs(with_outliers[name]).max() > 15 * rms
    assert np.abs(without[name]).max() < 8 * rms


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 4])
def test_copied_checkpoint_holds_the_same_weights(tmp_path: Path, dtype: str, shards: int) -> None:
    source = make_checkpoint(tmp_path / "source", **SIZES[1], seed=5)
    tensors = read_tensors(source)
    copied = read_tensors(copy_checkpoint(source, tmp_path / "copy", dtype=dtype, shards=shards))
    assert copied.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(copied[name], round_to(tensor, dtype))


def test_rounding_to_bfloat16() -> None:
    # 1 + 2^-8 lies midway between 1 and 1 + 2^-7: ties go to the even one; 1 + 3 * 2^-8 midway to 1 + 2^-6.
    values = np.array([1.0, 1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8, -3.0], np.float32)
    np.testing.assert_array_equal(round_to(values, "bfloat16"), np.array([1, 1, 1 + 2**-7, 1 + 2**-6, -3], np.float32))


def test_metrics_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    order = ["Business", "Sci/Tech", "Sports", "World"]
    true = rng.choice(order, 300, p=[0.1, 0.2, 0.3, 0.4]).tolist()
    predicted = [t if rng.random() < 0.7 else str(rng.choice(order)) for t in true]
    expected = metrics.classification_report(true, predicted, labels=order, output_dict=True)
    lines = [line.rsplit(maxsplit=4) for line in class_report(true, predicted, order).splitlines()[1:]]
    assert [line[0].strip() for line in lines] == [*order, "macro avg", "weighted avg"]
    for name, *values in lines:
        row = expected[name.strip()]
        columns = [row["precision"], row["recall"], row["f1-score"], row["support"]]
        np.testing.assert_allclose([float(value) for value in values], columns, rtol=0, atol=0.5001e-4)


def test_mcnemar() -> None:
    right = [True] * 10
    assert mcnemar_p(right, right) == 1.0
    # 0 against 5 heads in 5 throws of a coin, on either side: 2 / 2^5.
    assert mcnemar_p(right, [False] * 5 + [True] * 5) == pytest.approx(2 / 32)
    # 1 against 3: 2 (1 + 4) / 2^4.
    assert mcnemar_p([True, False, False, False], [False, True, True, True]) == pytest.approx(10 / 16)
