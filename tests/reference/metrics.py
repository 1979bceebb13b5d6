"""What the parity test reports, from its definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mcnemar_p(first_right: Sequence[bool], second_right: Sequence[bool]) -> float:
    """Exact two-sided McNemar test: the chance of so uneven a split of the texts only one of the two gets right."""
    only_first = sum(a and not b for a, b in zip(first_right, second_right, strict=True))
    only_second = sum(b and not a for a, b in zip(first_right, second_right, strict=True))
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**total))


def class_report(true: Sequence[str], predicted: Sequence[str], order: Sequence[str]) -> str:
    """Precision, recall, f1-score and support of each class in this order, then macro and weighted averages."""
    rows: list[tuple[str, float, float, float, int]] = []
    for name in order:
        right = sum(t == p == name for t, p in zip(true, predicted, strict=True))
        precision = _ratio(right, sum(p == name for p in predicted))
        recall = _ratio(right, sum(t == name for t in true))
        f1 = _ratio(2 * precision * recall, precision + recall)
        rows.append((name, precision, recall, f1, sum(t == name for t in true)))
    total = sum(row[4] for row in rows)
    macro = [sum(row[column] for row in rows) / len(rows) for column in (1, 2, 3)]  # type: ignore[misc]
    weighted = [sum(row[column] * row[4] for row in rows) / total for column in (1, 2, 3)]  # type: ignore[misc]
    lines = [f"{'':<14}{'precision':>10}{'recall':>10}{'f1-score':>10}{'support':>10}"]
    lines += [f"{name:<14}{p:>10.4f}{r:>10.4f}{f:>10.4f}{support:>10}" for name, p, r, f, support in rows]
    lines.append(f"{'macro avg':<14}{macro[0]:>10.4f}{macro[1]:>10.4f}{macro[2]:>10.4f}{total:>10}")
    lines.append(f"{'weighted avg':<14}{weighted[0]:>10.4f}{weighted[1]:>10.4f}{weighted[2]:>10.4f}{total:>10}")
    return "\n".join(lines)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
