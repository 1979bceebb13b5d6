"""The container of a quantised model: a safetensors file whose tensors are aligned for mapping.

Format: https://github.com/huggingface/safetensors#format - eight bytes (little-endian u64) with the header's length,
the header (JSON: name -> dtype, shape, data_offsets; ``__metadata__``: str -> str), then the tensors without gaps. On
top of that every tensor starts on a 64-byte boundary, which the writer reaches by padding the header and by keeping
every tensor's size a multiple of 64 bytes.

Reading is enough for a first label, so it is here, without NumPy; writing is in ``tensors.py``.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from agnews_fast._core import ModelError

FORMAT = "agnews_fast"
FORMAT_VERSION = "5"
ALIGNMENT = 64
TOKENIZER = "tokenizer"  # the tensor (uint8) with the tokenizer's JSON, which spaces pad

_MAX_HEADER = 16 << 20  # bytes: 1,000 layers take 5 MB

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}


class Tensor(NamedTuple):
    """Where a tensor lies: ``begin`` and ``end`` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
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
        raise ModelError(f"{path}: expected a regular file, got a {kind_of(mode)}")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """All of a file; errors as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def kind_of(mode: int) -> str:
    """What a file of this mode is, for messages."""
    return _KINDS.get(stat.S_IFMT(mode), "special file")


def parse_json(text: str | bytes, where: object) -> Any:
    """The value of a JSON text, of which ``where`` tells the place.

    Raises:
        ModelError: it is no JSON in UTF-8, is nested too deeply, or has strings that are not valid Unicode.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # which a surrogate begins with
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
    return _read_header(path, file)[0]


def _read_header(path: Path, file: BinaryIO) -> tuple[Header, bytes]:
    """`read_header`, and the header's bytes."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ModelError(f"{path}: expected a safetensors file, got {size} bytes")
    length = int.from_bytes(prefix, "little")
    longest = min(_MAX_HEADER, size - 8)
    if length > longest:
        raise ModelError(f"{path}: expected a header of at most {longest} bytes, got a length of {length}")
    written = file.read(length)
    header = parse_json(written, f"{path}: the header")
    try:
        return _check_header(path, header, 8 + length, size), written
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

    The checksum covers the header and all tensors but the int8 matrices, which the core checks against the sums of
    their columns as it proves that they cannot overflow, or of their rows.

    Raises:
        ModelError: as `read_header`, and for another format, another version or a wrong checksum.
    """
    header, written = _read_header(path, file)
    kind = header.metadata.get("format")
    if kind != FORMAT:
        raise ModelError(f"{path}: expected a model file of format '{FORMAT}', got {kind!r}; make one with quantize()")
    version = header.metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(f"{path}: expected format version '{FORMAT_VERSION}', got {version!r}")
    found = header.metadata.get("checksum")
    # The bytes as `write_model` left them. Where another tool has written the same header in other words, its own form
    # is made again, which takes longer than to parse it.
    checksum = _checksum_of_file(header, file, written.rstrip(b" ").replace(_checksum_entry(found), b"", 1))
    if found != checksum:
        checksum = _checksum_of_file(header, file, _written_again(header))
    if found != checksum:
        raise ModelError(f"{path}: the file is damaged (checksum {checksum}, not {found!r})")
    return header


def _checksum_entry(checksum: str | None) -> bytes:
    return f'"checksum": "{checksum}", '.encode()


def _written_again(header: Header) -> bytes:
    start = min((tensor.begin for tensor in header.tensors.values()), default=0)
    entries = {
        name: header_entry(tensor.dtype, tensor.shape, tensor.begin - start, tensor.end - start)
        for name, tensor in header.tensors.items()
    }
    return header_json({key: text for key, text in header.metadata.items() if key != "checksum"}, entries)


def _checksum_of_file(header: Header, file: BinaryIO, described: bytes) -> str:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        parts = ((name, tensor.dtype, view[tensor.begin : tensor.end]) for name, tensor in header.tensors.items())
        return checksum_of(described, parts)


def header_entry(dtype: str, shape: Iterable[int], begin: int, end: int) -> dict[str, Any]:
    """What a header says of a tensor. Offsets count from the first tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def header_json(metadata: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
    """The header's bytes, the same for equal arguments."""
    return json.dumps({"__metadata__": metadata, **entries}, sort_keys=True, ensure_ascii=False).encode("utf-8")


def checksum_of(header: bytes, tensors: Iterable[tuple[str, str, Any]]) -> str:
    """CRC-32 of a header without its checksum, and of the tensors that it covers in the order of their names.

    tensors: name, dtype and bytes of each.
    """
    value = zlib.crc32(header)
    for _, dtype, data in sorted(tensors, key=lambda item: item[0]):
        if dtype != "I8":
            value = zlib.crc32(data, value)
    return f"{value:08x}"
