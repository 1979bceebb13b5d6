"""The container of a quantised model: a safetensors file whose tensors are aligned for mapping.

Format: https://github.com/huggingface/safetensors#format - eight bytes (little-endian u64) with the header's length,
the header (JSON: name -> dtype, shape, data_offsets; ``__metadata__``: str -> str), then the tensors without gaps. On
top of that every tensor starts on a 64-byte boundary, which the writer reaches by padding the header and by keeping
every tensor's size a multiple of 64 bytes.

The ``safetensors`` package would be one more run-time dependency, and reads no bfloat16 into NumPy.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import secrets
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from agnews_fast._core import ModelError

FORMAT = "agnews_fast"
FORMAT_VERSION = "3"
ALIGNMENT = 64

_MAX_HEADER = 16 << 20  # bytes: a vocabulary of 100,000 words takes 3 MB
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Refuses what is not a regular file, and does not wait for anyone to write to a pipe.

    Raises:
        OSError: it cannot be opened; FileNotFoundError if there is none.
        ModelError: it is a folder, a pipe, a device or a socket.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise ModelError(f"{path}: expected a regular file, got a socket or a device") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ModelError(f"{path}: expected a regular file, got a {_kind(mode)}")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """All of a file; errors as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "special file")


def parse_json(text: str | bytes, where: object) -> Any:
    """The value of a JSON text, of which ``where`` tells the place.

    Raises:
        ModelError: it is no JSON in UTF-8, is nested too deeply, or has strings that are not valid Unicode.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ModelError(f"{where}: expected strings of valid Unicode, got a lone surrogate") from None
    except ValueError as error:
        raise ModelError(f"{where}: expected JSON, got what is none ({error})") from None
    except RecursionError:
        raise _nested(where) from None
    return value


def _nested(where: object) -> ModelError:
    return ModelError(f"{where}: expected a few levels of JSON, got too deep a nesting")


def read_header(path: Path, file: BinaryIO) -> Header:
    """Read and check the header of a safetensors file, which is open at its beginning.

    Raises:
        ModelError: it is no safetensors file, or its header contradicts itself or the file's size.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ModelError(f"{path}: expected a safetensors file, got {size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    longest = min(_MAX_HEADER, size - 8)
    if length > longest:
        raise ModelError(f"{path}: expected a header of at most {longest} bytes, got a length of {length}")
    header = parse_json(file.read(length), f"{path}: the header")
    try:
        return _check_header(path, header, 8 + length, size)
    except RecursionError:  # a message with a value in it
        raise _nested(f"{path}: the header") from None


def _check_header(path: Path, header: Any, start: int, size: int) -> Header:
    if not isinstance(header, dict):
        raise ModelError(f"{path}: expected the header to be a JSON object, got {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: expected __metadata__ to map strings to strings")
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    position = start
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


def read_model_header(path: Path, file: BinaryIO) -> Header:
    """`read_header` for a file that must be a quantised model of this package, with its checksum verified.

    The checksum covers the header and all tensors but the layers' int8 matrices, which the core checks against the sums
    of their columns as it proves that they cannot overflow, or of their rows.

    Raises:
        ModelError: as `read_header`, and for another format, another version or a wrong checksum.
    """
    header = read_header(path, file)
    found = header.metadata.get("format")
    if found != FORMAT:
        raise ModelError(f"{path}: expected a model file of format '{FORMAT}', got {found!r}; make one with quantize()")
    version = header.metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(f"{path}: expected format version '{FORMAT_VERSION}', got {version!r}")
    start = min((tensor.begin for tensor in header.tensors.values()), default=0)
    entries = {
        name: _entry(tensor.dtype, tensor.shape, tensor.begin - start, tensor.end - start)
        for name, tensor in header.tensors.items()
    }
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        parts = ((name, view[tensor.begin : tensor.end]) for name, tensor in header.tensors.items())
        checksum = _checksum(header.metadata, entries, parts)
        view.release()
    if header.metadata.get("checksum") != checksum:
        raise ModelError(f"{path}: the file is damaged (checksum {checksum}, not {header.metadata.get('checksum')!r})")
    return header


def _entry(dtype: str, shape: Iterable[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def _header_json(metadata: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
    return json.dumps({"__metadata__": metadata, **entries}, sort_keys=True, ensure_ascii=False).encode("utf-8")


def _checksum(metadata: Mapping[str, str], entries: Mapping[str, Any], tensors: Iterable[tuple[str, Any]]) -> str:
    """CRC-32 of the header, itself left out, and of the tensors in the order of their names."""
    value = zlib.crc32(_header_json({key: text for key, text in metadata.items() if key != "checksum"}, entries))
    for name, data in sorted(tensors, key=lambda item: item[0]):
        if not (name.startswith("layers.") and name.endswith(".weight")):
            value = zlib.crc32(data, value)
    return f"{value:08x}"


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).data.cast("B")  # flat: no view of two dimensions may be empty


def check_writable(out: Path) -> None:
    """See to it, before the work is done, that `write_model` can write there.

    Raises:
        OSError: it cannot; FileNotFoundError if there is no such folder, FileExistsError if a pipe or device is there.
    """
    target = Path(os.path.realpath(out))
    try:
        if target.exists() and not target.is_file():
            kind = _kind(target.stat().st_mode)
            code = errno.EISDIR if kind == "folder" else errno.EEXIST
            raise OSError(code, f"expected a regular file or nothing, got a {kind}")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(out)) from None


def write_model(out: Path, metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file. The same arguments give the same bytes; a reader never sees half a file.

    Every tensor's size must be a multiple of 64 bytes. Where ``out`` is a link, its target is replaced.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(out))
    names = {np.dtype("<f4"): "F32", np.dtype("<i4"): "I32", np.dtype("i1"): "I8"}
    entries: dict[str, Any] = {}
    position = 0
    for name, array in sorted(tensors.items()):
        assert array.nbytes % ALIGNMENT == 0, (name, array.shape)
        entries[name] = _entry(names[array.dtype], array.shape, position, position + array.nbytes)
        position += array.nbytes
    described = {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}
    parts = ((name, _bytes(array)) for name, array in tensors.items())
    described["checksum"] = _checksum(described, entries, parts)
    header = _header_json(described, entries)
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
