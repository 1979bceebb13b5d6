"""Precision, recall, f1-score and accuracy, as scikit-learn's ``classification_report`` defines and prints them.

Written here in NumPy so that ``agnews-fast evaluate`` needs no further dependency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Report", "Scores", "classification_report"]

_HEADINGS = ("precision", "recall", "f1-score", "support")


@dataclass(frozen=True)
class Scores:
    """Scores of one class, or an average over the classes. A score whose denominator is 0 is 0.0.

    Attributes:
        precision: share of the texts predicted as this class that are of this class.
        recall: share of the texts of this class that were predicted as such.
        f1: harmonic mean of the two.
        support: number of texts of this class.
    """

    precision: float
    recall: float
    f1: float
    support: int

    def as_dict(self) -> dict[str, float | int]:
        """The four values under the names that scikit-learn gives them."""
        return dict(zip(_HEADINGS, (self.precision, self.recall, self.f1, self.support), strict=True))


@dataclass(frozen=True)
class Report:
    """What :func:`classification_report` found. ``str(report)`` is the table, ``as_dict()`` is for JSON.

    Attributes:
        classes: the scores of each class, in the order of ``labels``.
        accuracy: share of the texts whose label was predicted.
        macro: mean over the classes, each counting the same.
        weighted: mean over the classes, each counting by its support.
    """

    classes: Mapping[str, Scores]
    accuracy: float
    macro: Scores
    weighted: Scores

    def as_dict(self) -> dict[str, Any]:
        """The report as ``sklearn.metrics.classification_report(..., output_dict=True)`` lays it out."""
        return {
            **{label: scores.as_dict() for label, scores in self.classes.items()},
            "accuracy": self.accuracy,
            "macro avg": self.macro.as_dict(),
            "weighted avg": self.weighted.as_dict(),
        }

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.classes, "weighted avg"))

        def row(name: str, *cells: str) -> str:
            return f"{name:>{width}s} " + "".join(f" {cell:>9}" for cell in cells)

        def scores_row(name: str, scores: Scores) -> str:
            values = (scores.precision, scores.recall, scores.f1)
            return row(name, *(f"{value:.4f}" for value in values), str(scores.support))

        return "\n".join(
            [
                row("", *_HEADINGS),
                "",
                *(scores_row(label, scores) for label, scores in self.classes.items()),
                "",
                row("accuracy", "", "", f"{self.accuracy:.4f}", str(self.macro.support)),
                scores_row("macro avg", self.macro),
                scores_row("weighted avg", self.weighted),
            ]
        )


def classification_report(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Report:
    """Compare predicted labels with the true ones.

    Args:
        true: the true label of each text.
        predicted: the predicted label of each text, in the same order.
        labels: all labels there are, in the order in which the report shall name them.

    Returns:
        The scores of each class, those without a text included, and their averages.

    Raises:
        ValueError: the lengths differ, there is no text, a label is listed twice or is not among ``labels``.

    Example:
        >>> report = classification_report(["a", "a", "b", "b"], ["a", "b", "b", "b"], ["a", "b"])
        >>> report.accuracy, report.classes["a"].recall
        (0.75, 0.5)
    """
    if len(true) != len(predicted):
        raise ValueError(f"expected as many predicted labels as true ones, got {len(predicted)} for {len(true)}")
    if len(true) == 0:
        raise ValueError("expected at least one text, got none")
    if len(set(labels)) != len(labels):
        raise ValueError(f"expected distinct labels, got {list(labels)}")
    count = len(labels)
    # confusion[t, p]: texts of class t that were predicted as class p.
    cells = _indices("true", true, labels) * count + _indices("predicted", predicted, labels)
    confusion = np.bincount(cells, minlength=count * count).reshape(count, count)

    hits = confusion.diagonal()
    support = confusion.sum(axis=1)
    claimed = confusion.sum(axis=0)
    # Columns: precision, recall, f1. f1 straight from the counts, 2 tp / (2 tp + fp + fn), is 0 where both are.
    scores = np.stack([_ratio(hits, claimed), _ratio(hits, support), _ratio(2 * hits, claimed + support)], axis=1)
    total = int(support.sum())

    def summary(values: NDArray[np.float64], texts: int) -> Scores:
        return Scores(float(values[0]), float(values[1]), float(values[2]), texts)

    return Report(
        classes={label: summary(scores[i], int(support[i])) for i, label in enumerate(labels)},
        accuracy=float(hits.sum() / total),
        macro=summary(scores.mean(axis=0), total),
        weighted=summary(support @ scores / total, total),
    )


def _indices(what: str, values: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """The position of each value in ``labels``, (values,)."""
    positions = {label: i for i, label in enumerate(labels)}
    unknown = next((i for i, value in enumerate(values) if value not in positions), None)
    if unknown is not None:
        raise ValueError(f"expected one of {list(labels)}, got {values[unknown]!r} - at {what}[{unknown}]")
    return np.fromiter((positions[value] for value in values), dtype=np.int64, count=len(values))


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """Element by element, 0.0 where the denominator is 0."""
    out = np.zeros(len(numerator))
    return np.divide(numerator, denominator, out=out, where=denominator != 0)
