"""DistilBERT text classification on a CPU: int8, hand-written SIMD kernels, the same bits everywhere.

Example:
    >>> import agnews_fast
    >>> agnews_fast.Classifier().predict(["Stocks fell on Wall Street"])
    ['Business']
"""

from importlib.metadata import PackageNotFoundError, version

from agnews_fast._core import ModelError, available_isas
from agnews_fast.classifier import Classifier
from agnews_fast.quantize import quantize

try:
    __version__ = version("agnews-fast")
except PackageNotFoundError:  # run from a build folder
    __version__ = "0+unknown"

__all__ = ["Classifier", "ModelError", "__version__", "available_isas", "quantize"]
