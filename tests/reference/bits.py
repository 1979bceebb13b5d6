"""Comparing results to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def assert_same_bits(actual: npt.NDArray[Any], expected: npt.NDArray[Any], what: str) -> None:
    """Fail, naming the first rows that differ, unless both float32 arrays hold the same bits (-0.0 is not 0.0)."""
    assert actual.dtype == expected.dtype == np.float32, what
    assert actual.shape == expected.shape, what
    assert np.isfinite(expected).all(), what
    unequal = np.ascontiguousarray(actual).view(np.uint32) != np.ascontiguousarray(expected).view(np.uint32)
    rows = np.flatnonzero(unequal.reshape(len(unequal), -1).any(axis=1))
    largest = float(np.abs(actual - expected).max(initial=0.0))
    assert rows.size == 0, (
        f"{what}: {rows.size} of {len(unequal)} rows differ, by up to {largest}: {rows[:10].tolist()}"
    )
