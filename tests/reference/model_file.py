"""Taking a model file apart and putting it together again, damaged where a test wants it."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
DTYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4"}


@dataclass
class ModelFile:
    """The header as a dictionary and everything behind it; `tensor` gives writable views into that."""

    header: dict[str, Any]
    payload: bytearray

    @staticmethod
    def read(path: Path) -> ModelFile:
        content = path.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        return ModelFile(json.loads(content[8 : 8 + length]), bytearray(content[8 + length :]))

    @property
    def metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = self.header["__metadata__"]
        return metadata

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in self.header.items() if name != "__metadata__"}

    def tensor(self, name: str) -> npt.NDArray[Any]:
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        return np.frombuffer(self.payload, np.uint8)[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def with_tokenizer(self, content: bytes, dtype: str = "U8") -> ModelFile:
        """Put another tokenizer in the place of this one, which is the last tensor."""
        entry = self.header["tokenizer"]
        begin, end = entry["data_offsets"]
        assert end == len(self.payload)
        self.payload[begin:] = content.ljust(-(-len(content) // ALIGNMENT) * ALIGNMENT)
        size = len(self.payload) - begin
        entry.update(dtype=dtype, shape=[size // np.dtype(DTYPES[dtype]).itemsize], data_offsets=[begin, begin + size])
        return self

    def seal(self) -> ModelFile:
        """Make the checksum right again, so that what a test damaged is met by the check behind it.

        It covers the header, and every tensor but the int8 matrices, which are checked against their sums.
        """
        described = {key: text for key, text in self.metadata.items() if key != "checksum"}
        header = json.dumps({"__metadata__": described, **self.tensors}, sort_keys=True, ensure_ascii=False)
        value = zlib.crc32(header.encode())
        for _, entry in sorted(self.tensors.items()):
            if entry["dtype"] != "I8":
                begin, end = entry["data_offsets"]
                value = zlib.crc32(self.payload[begin:end], value)
        self.metadata["checksum"] = f"{value:08x}"
        return self

    def content(self) -> bytes:
        text = json.dumps(self.header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return struct.pack("<Q", len(text)) + text + bytes(self.payload)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.content())
        return path
