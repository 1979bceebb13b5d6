"""DistilBERT text classification on a CPU: int8, hand-written SIMD kernels, the same bits everywhere.

Example:
    >>> import agnews_fast
    >>> agnews_fast.Classifier().predict(["Stocks fell on Wall Street"])
    ['Business']
"""

from agnews_fast._core import ModelError, __version__, available_isas
from agnews_fast.classifier import Classifier
from agnews_fast.quantize import quantize

__all__ = ["Classifier", "ModelError", "__version__", "available_isas", "quantize"]
