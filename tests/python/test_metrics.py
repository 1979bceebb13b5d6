"""agnews_fast.metrics against hand-computed values and against scikit-learn."""

from __future__ import annotations

import json
import random

import pytest
from agnews_fast.metrics import Scores, classification_report

AG_NEWS = ["Business", "Sci/Tech", "Sports", "World"]


def test_hand_computed() -> None:
    #        predicted: a  b  c
    # true a (4 texts): 3  1  0
    # true b (3 texts): 1  2  0
    # true c (1 text):  0  1  0
    true = ["a"] * 4 + ["b"] * 3 + ["c"]
    predicted = ["a", "a", "a", "b", "a", "b", "b", "b"]
    report = classification_report(true, predicted, ["a", "b", "c"])
    assert report.accuracy == 5 / 8
    assert report.classes["a"] == Scores(3 / 4, 3 / 4, 3 / 4, 4)
    assert report.classes["b"] == Scores(2 / 4, 2 / 3, 4 / 7, 3)
    assert report.classes["c"] == Scores(0.0, 0.0, 0.0, 1)  # never predicted: precision is 0 / 0
    assert report.macro.precision == pytest.approx((3 / 4 + 2 / 4) / 3)
    assert report.macro.support == 8
    assert report.weighted.precision == pytest.approx((4 * 3 / 4 + 3 * 2 / 4) / 8)
    assert report.weighted.recall == pytest.approx(report.accuracy)
    assert report.weighted.f1 == pytest.approx((4 * 3 / 4 + 3 * 4 / 7) / 8)


def test_table() -> None:
    report = classification_report(["World", "World", "Sports"], ["World", "Business", "Sports"], AG_NEWS)
    assert str(report) == (
        "              precision    recall  f1-score   support\n"
        "\n"
        "    Business     0.0000    0.0000    0.0000         0\n"
        "    Sci/Tech     0.0000    0.0000    0.0000         0\n"
        "      Sports     1.0000    1.0000    1.0000         1\n"
        "       World     1.0000    0.5000    0.6667         2\n"
        "\n"
        "    accuracy                         0.6667         3\n"
        "   macro avg     0.5000    0.3750    0.4167         3\n"
        "weighted avg     1.0000    0.6667    0.7778         3"
    )


def test_as_dict_is_json() -> None:
    report = classification_report(["b", "a"], ["b", "b"], ["a", "b"])
    read_back = json.loads(json.dumps(report.as_dict()))
    assert list(read_back) == ["a", "b", "accuracy", "macro avg", "weighted avg"]
    assert read_back["b"] == {"precision": 0.5, "recall": 1.0, "f1-score": pytest.approx(2 / 3), "support": 1}


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize(
    ("labels", "used"),
    [
        (AG_NEWS, 4),
        (AG_NEWS, 2),  # classes without a text, and never predicted
        (["no", "yes"], 2),
        ([f"a label of some length, {i:02}" for i in range(20)], 17),
    ],
)
def test_against_scikit_learn(labels: list[str], used: int, rows: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(rows)
    true = rng.choices(labels[:used], k=rows)
    predicted = [label if rng.random() < 0.7 else rng.choice(labels[:used]) for label in true]
    report = classification_report(true, predicted, labels)
    options = {"labels": labels, "digits": 4, "zero_division": 0.0}
    assert str(report) + "\n" == metrics.classification_report(true, predicted, **options)
    expected = metrics.classification_report(true, predicted, output_dict=True, **options)
    got = report.as_dict()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize(
    ("true", "predicted", "labels", "message"),
    [
        (["a"], [], ["a"], r"expected as many predicted labels as true ones, got 0 for 1"),
        ([], [], ["a"], r"expected at least one text, got none"),
        (["a"], ["a"], ["a", "a"], r"expected distinct labels"),
        (["a", "x"], ["a", "a"], ["a", "b"], r"expected one of \['a', 'b'\], got 'x' - at true\[1\]"),
        (["a", "b"], ["y", "a"], ["a", "b"], r"got 'y' - at predicted\[0\]"),
    ],
)
def test_refuses(true: list[str], predicted: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_report(true, predicted, labels)
