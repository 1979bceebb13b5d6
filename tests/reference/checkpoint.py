"""Reading and writing Hugging Face checkpoint folders, apart from the package's own reader."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import deserialize
from tokenizers import Tokenizer

Float32 = npt.NDArray[np.float32]

SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Sizes:
    """What of `config.json` shapes the forward pass."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    labels: int
    vocabulary: int
    positions: int
    activation: str

    @property
    def head(self) -> int:
        return self.hidden // self.heads


def read_sizes(folder: Path) -> Sizes:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Sizes(
        layers=config["n_layers"],
        hidden=config["dim"],
        heads=config["n_heads"],
        ffn=config["hidden_dim"],
        labels=len(config["id2label"]),
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        activation=config["activation"],
    )


def read_label_names(folder: Path) -> list[str]:
    id2label = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    return [id2label[str(label)] for label in range(len(id2label))]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint: the shards the index names, or the single file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(shards))]
    return [folder / "model.safetensors"]


def read_tensors(folder: Path) -> dict[str, Float32]:
    """All tensors as float32, which holds every float16 and bfloat16 value exactly."""
    tensors: dict[str, Float32] = {}
    for path in weight_files(folder):
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            raw: bytes = tensor["data"]
            if tensor["dtype"] == "BF16":
                # NumPy has no bfloat16: it is the upper half of a float32.
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            elif tensor["dtype"] in ("F16", "F32"):
                values = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[tensor["dtype"]]).astype(np.float32)
            else:
                raise ValueError(f"{path}: {name} has dtype {tensor['dtype']}")
            tensors[name] = values.reshape(tensor["shape"])
    return tensors


def encode(folder: Path, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids with [CLS] and [SEP], truncated to `max_length`, never padded."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [list(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def digest(folder: Path) -> str:
    """sha256 over all that decides the model's answers."""
    total = hashlib.sha256()
    for path in [folder / "config.json", folder / "tokenizer.json", *weight_files(folder)]:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_tensors(
    folder: Path, tensors: Mapping[str, npt.NDArray[Any]], *, dtype: str = "float16", shards: int = 1
) -> None:
    """Write `model.safetensors`, or `shards` files and their index as `transformers` names them."""
    names = sorted(tensors)
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", {name: tensors[name] for name in names}, dtype)
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        members = names[shard::shards]
        weight_map.update(dict.fromkeys(members, file_name))
        _write_safetensors(folder / file_name, {name: tensors[name] for name in members}, dtype)
    total_size = sum(tensor.size for tensor in tensors.values()) * (4 if dtype == "float32" else 2)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def copy_checkpoint(source: Path, folder: Path, *, dtype: str, shards: int = 1) -> Path:
    """The same checkpoint stored another way."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(source / name, folder / name)
    write_tensors(folder, read_tensors(source), dtype=dtype, shards=shards)
    return folder


def round_to(values: npt.NDArray[Any], dtype: str) -> Float32:
    """`values` rounded to what a checkpoint of this dtype can hold."""
    return _from_bits(_to_bits(values, dtype), dtype)


def _write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], dtype: str) -> None:
    # Written by hand: the signature of safetensors' raw writer, which bfloat16 needs, differs between its releases.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        part = _to_bits(tensor, dtype).tobytes()
        header[name] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def _to_bits(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        bits += 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even, as every framework rounds
        return (bits >> 16).astype("<u2")
    return np.ascontiguousarray(values).astype({"float16": "<f2", "float32": "<f4"}[dtype])


def _from_bits(bits: npt.NDArray[Any], dtype: str) -> Float32:
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32)
