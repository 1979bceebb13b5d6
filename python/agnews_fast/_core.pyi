import numpy as np
from numpy.typing import NDArray

__version__: str

class ModelError(ValueError): ...

def available_isas() -> list[str]: ...

class Engine:
    def __init__(
        self,
        file: int,
        *,
        config: dict[str, int | float | str],
        tensors: dict[str, tuple[str, list[int], int, int]],
        threads: int,
        isa: str,
        largest_team: int,
    ) -> None: ...
    def run(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    def channel_maxima(self, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> list[NDArray[np.float32]]: ...
    def stage_seconds(self, ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> dict[str, float]: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
