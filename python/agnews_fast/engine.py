"""Open a model file with the C++ core."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agnews_fast import _core
from agnews_fast.cpu import requested_isa
from agnews_fast.model_file import Header, read_model_header

SIZES = ("layers", "hidden", "heads", "ffn", "vocabulary", "positions", "labels", "levels", "depth")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, and what its file says about it."""

    engine: _core.Engine
    config: dict[str, Any]
    labels: list[str]
    tokenizer_json: str
    header: Header


def load(path: str | os.PathLike[str], *, threads: int) -> LoadedModel:
    """Map a model file and check it.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: the file is not a model of this version, or is damaged.
        ValueError: AGNEWS_FAST_ISA names an instruction set that is unknown or not supported here.
    """
    path = Path(path)
    header = read_model_header(path)

    def described(key: str) -> str:
        if key not in header.metadata:
            raise _core.ModelError(f"{path}: the metadata has no '{key}'")
        return header.metadata[key]

    try:
        config = json.loads(described("config"))
        label_names = json.loads(described("label_names"))
    except ValueError as error:
        if isinstance(error, _core.ModelError):
            raise
        raise _core.ModelError(f"{path}: the metadata is no JSON ({error})") from None
    if not isinstance(config, dict) or not all(
        type(config.get(name)) is int and 0 <= config[name] < 2**31 for name in SIZES
    ):
        raise _core.ModelError(f"{path}: expected config to give {', '.join(SIZES)}, got {str(config)[:200]}")
    if not isinstance(config.get("layer_norm_epsilon"), float) or not isinstance(config.get("activation"), str):
        raise _core.ModelError(f"{path}: expected config to give layer_norm_epsilon and activation")
    if (
        not isinstance(label_names, list)
        or len(label_names) != config["labels"]
        or not all(isinstance(label, str) for label in label_names)
    ):
        raise _core.ModelError(f"{path}: expected {config['labels']} label names, got {str(label_names)[:200]}")
    tensors = {
        name: (tensor.dtype, list(tensor.shape), tensor.begin, tensor.end) for name, tensor in header.tensors.items()
    }
    try:
        engine = _core.Engine(str(path), config=config, tensors=tensors, threads=threads, isa=requested_isa())
    except _core.ModelError as error:
        raise _core.ModelError(f"{path}: {error}") from None
    return LoadedModel(engine, config, label_names, described("tokenizer"), header)


def pack_ids(ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token ids of several texts, one after the other, and where each text starts: (tokens,) and (texts + 1,)."""
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(text) for text in ids], out=offsets[1:])
    flat = np.fromiter((token for text in ids for token in text), np.int32, int(offsets[-1]))
    return flat, offsets
