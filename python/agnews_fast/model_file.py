"""The container of a quantised model: a safetensors file whose tensors are aligned for mapping.

Format: https://github.com/huggingface/safetensors#format - eight bytes (little-endian u64) with the header's length,
the header (JSON: name -> dtype, shape, data_offsets; ``__metadata__``: str -> str), then the tensors without gaps. On
top of that every tensor starts on a 64-byte boundary, which the writer reaches by padding the header and by keeping
every tensor's size a multiple of 64 bytes.

The ``safetensors`` package would be one more run-time
dependency, and reads no bfloat16 into NumPy.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agnews_fast._core import ModelError

FORMAT = "agnews_fast"
FORMAT_VERSION = "1"
ALIGNMENT = 64

_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors package
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: ``begin`` and ``end`` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is no safetensors file, or its header contradicts itself or the file's size.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ModelError(f"{path}: expected a safetensors file, got {size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER, size - 8):
            raise ModelError(f"{path}: expected a header of at most {size - 8} bytes, got a length of {length}")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: the header is no JSON ({error})") from None
    except RecursionError:
        raise ModelError(f"{path}: the header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: expected the header to be a JSON object, got {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: expected __metadata__ to map strings to strings")
    tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise ModelError(f"{path}: tensor '{name}' starts at byte {tensor.begin}, expected {position}")
        position = tensor.end
    if position != size:
        raise ModelError(f"{path}: expected {position} bytes, got {size}")
    return Header(path, metadata, tensors)


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    def integers(value: Any) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)

    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            integers(shape) and integers([begin, end]) and begin <= end
        ):
            return Tensor(dtype, tuple(shape), start + begin, start + end)
    raise ModelError(f"{path}: tensor '{name}': expected dtype, shape and data_offsets, got {str(entry)[:200]}")


def read_model_header(path: str | os.PathLike[str]) -> Header:
    """`read_header` for a file that must be a quantised model of this package, with its checksum verified.

    The checksum covers everything but the int8 matrices, which the core checks against their column sums as it proves
    that they cannot overflow.

    Raises:
        FileNotFoundError, ModelError: as `read_header`; ModelError also for another format, another version or a wrong
            checksum.
    """
    header = read_header(path)
    found = header.metadata.get("format")
    if found != FORMAT:
        raise ModelError(f"{path}: expected a model file of format '{FORMAT}', got {found!r}; make one with quantize()")
    version = header.metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(f"{path}: expected format version '{FORMAT_VERSION}', got {version!r}")
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        checksum = _checksum((name, view[tensor.begin : tensor.end]) for name, tensor in header.tensors.items())
        view.release()
    if header.metadata.get("checksum") != checksum:
        raise ModelError(f"{path}: the file is damaged (checksum {checksum}, not {header.metadata.get('checksum')!r})")
    return header


def _checksum(tensors: Iterable[tuple[str, Any]]) -> str:
    value = 0
    for name, data in sorted(tensors, key=lambda item: item[0]):
        if not (name.startswith("layers.") and name.endswith(".weight")):
            value = zlib.crc32(data, value)
    return f"{value:08x}"


def write_model(path: str | os.PathLike[str], metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file. The same arguments give the same bytes; a reader never sees half a file.

    Every tensor's size must be a multiple of 64 bytes.
    """
    path = Path(path)
    names = {np.dtype("<f4"): "F32", np.dtype("<i4"): "I32", np.dtype("i1"): "I8"}
    entries: dict[str, Any] = {}
    position = 0
    for name, array in sorted(tensors.items()):
        assert array.nbytes % ALIGNMENT == 0, (name, array.shape)
        offsets = [position, position + array.nbytes]
        entries[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    checksum = _checksum((name, np.ascontiguousarray(array).data.cast("B")) for name, array in tensors.items())
    described = {"format": FORMAT, "format_version": FORMAT_VERSION, "checksum": checksum, **metadata}
    header = json.dumps({"__metadata__": described, **entries}, sort_keys=True, ensure_ascii=False).encode("utf-8")
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(struct.pack("<Q", len(header)))
            file.write(header)
            for _, array in sorted(tensors.items()):
                file.write(np.ascontiguousarray(array).data.cast("B"))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_float_tensor(header: Header, name: str) -> NDArray[np.float32]:
    """A float16, bfloat16 or float32 tensor as float32.

    Raises:
        ModelError: another dtype, a size that does not fit the shape, or a value that is not finite.
    """
    tensor = header.tensors[name]
    if tensor.dtype not in ("F16", "BF16", "F32"):
        raise ModelError(f"{header.path}: tensor '{name}': expected dtype F16, BF16 or F32, got {tensor.dtype}")
    dtype = _NUMPY_DTYPES[tensor.dtype]
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if tensor.end - tensor.begin != count * dtype.itemsize:
        raise ModelError(
            f"{header.path}: tensor '{name}': expected {count * dtype.itemsize} bytes for shape {tensor.shape}, "
            f"got {tensor.end - tensor.begin}"
        )
    raw = np.fromfile(header.path, dtype=dtype, count=count, offset=tensor.begin).reshape(tensor.shape)
    if tensor.dtype == "BF16":  # the upper half of a float32
        values: NDArray[np.float32] = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = raw.astype(np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"{header.path}: tensor '{name}' holds a value that is not finite")
    return values
