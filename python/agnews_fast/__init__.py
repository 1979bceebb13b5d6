"""DistilBERT text classification on a CPU: int8, hand-written SIMD kernels, the same bits everywhere.

Example:
    >>> import agnews_fast
    >>> agnews_fast.Classifier().predict(["Stocks fell on Wall Street"])
    ['Business']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agnews_fast._core import ModelError, __version__, available_isas
from agnews_fast.classifier import Classifier

if TYPE_CHECKING:
    from agnews_fast.quantization import quantize

__all__ = ["Classifier", "ModelError", "__version__", "available_isas", "quantize"]


def __getattr__(name: str) -> object:
    """`quantize`, which needs NumPy, whose import takes longer than all else on the way to a first label."""
    if name != "quantize":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agnews_fast.quantization import quantize  # noqa: PLC0415

    return quantize


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
