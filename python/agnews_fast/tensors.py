"""Tensors as NumPy arrays: those of a checkpoint are read, those of a model file are written.

The ``safetensors`` package would be one more run-time dependency, and reads no bfloat16 into NumPy.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agnews_fast._core import ModelError
from agnews_fast.model_file import (
    ALIGNMENT,
    FORMAT,
    FORMAT_VERSION,
    Header,
    checksum_of,
    header_entry,
    header_json,
    kind_of,
)

_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def check_writable(out: Path) -> None:
    """See to it, before the work is done, that `write_model` can write there.

    Raises:
        OSError: it cannot; FileNotFoundError if there is no such folder, FileExistsError if a pipe or device is there.
    """
    target = Path(os.path.realpath(out))
    try:
        if target.exists() and not target.is_file():
            kind = kind_of(target.stat().st_mode)
            code = errno.EISDIR if kind == "folder" else errno.EEXIST
            raise OSError(code, f"expected a regular file or nothing, got a {kind}")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(out)) from None


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).data.cast("B")  # flat: no view of two dimensions may be empty


def write_model(out: Path, metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file. The same arguments give the same bytes; a reader never sees half a file.

    Every tensor's size must be a multiple of 64 bytes. Where ``out`` is a link, its target is replaced.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(out))
    names = {np.dtype("<f4"): "F32", np.dtype("<i4"): "I32", np.dtype("<i2"): "I16"}
    names |= {np.dtype("i1"): "I8", np.dtype("u1"): "U8"}
    entries: dict[str, Any] = {}
    position = 0
    for name, array in sorted(tensors.items()):
        assert array.nbytes % ALIGNMENT == 0, (name, array.shape)
        entries[name] = header_entry(names[array.dtype], array.shape, position, position + array.nbytes)
        position += array.nbytes
    described = {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}
    parts = ((name, names[array.dtype], _bytes(array)) for name, array in tensors.items())
    described["checksum"] = checksum_of(header_json(described, entries), parts)
    header = header_json(described, entries)
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    unfinished = target.with_name(f".{secrets.token_hex(8)}.tmp")  # other processes may be writing to `out`
    try:
        with unfinished.open("xb") as file:
            file.write(struct.pack("<Q", len(header)))
            file.write(header)
            for _, array in sorted(tensors.items()):
                file.write(_bytes(array))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(out)) from None
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
