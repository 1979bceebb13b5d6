"""Open a model file with the C++ core."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from agnews_fast import _core
from agnews_fast.cpu import requested_isa, usable_cpus
from agnews_fast.model_file import TOKENIZER, Header, open_regular, parse_json, read_model_header

SIZES = ("layers", "hidden", "heads", "ffn", "vocabulary", "positions", "labels", "levels", "depth")


class LoadedModel(NamedTuple):
    """A model that is ready to run, and what its file says about it."""

    engine: _core.Engine
    config: dict[str, Any]
    labels: list[str]
    tokenizer_json: str
    header: Header


def load(path: Path, *, threads: int) -> LoadedModel:
    """Map a model file and check it.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: the file is not a model of this version, or is damaged.
        ValueError: AGNEWS_FAST_ISA names an instruction set that is unknown or not supported here.
    """
    with open_regular(path) as file:
        header = read_model_header(path, file)
        config, labels = _described(path, header)
        tokenizer = _tokenizer(path, header, file)
        tensors = {
            name: (tensor.dtype, list(tensor.shape), tensor.begin, tensor.end)
            for name, tensor in header.tensors.items()
            if name != TOKENIZER
        }
        try:
            engine = _core.Engine(
                file.fileno(),
                config=config,
                tensors=tensors,
                threads=threads,
                isa=requested_isa(),
                largest_team=usable_cpus(),
            )
        except _core.ModelError as error:
            raise _core.ModelError(f"{path}: {error}") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return LoadedModel(engine, config, labels, tokenizer, header)


def _described(path: Path, header: Header) -> tuple[dict[str, Any], list[str]]:
    """Config and label names of the metadata."""
    for key in ("config", "label_names"):
        if key not in header.metadata:
            raise _core.ModelError(f"{path}: the metadata has no '{key}'")
    config = parse_json(header.metadata["config"], f"{path}: config")
    names = parse_json(header.metadata["label_names"], f"{path}: label_names")
    if not isinstance(config, dict):
        raise _core.ModelError(f"{path}: expected config to be a JSON object, got {type(config).__name__}")
    for name in SIZES:
        size = config.get(name)
        if type(size) is not int or not 0 <= size < 2**31:
            got = size if isinstance(size, (int, float, str)) else type(size).__name__
            raise _core.ModelError(f"{path}: config: {name}: expected an integer from 0 to {2**31 - 1}, got {got}")
    for name, kind in (("layer_norm_epsilon", float), ("activation", str)):
        if not isinstance(config.get(name), kind):
            got = type(config.get(name)).__name__
            raise _core.ModelError(f"{path}: config: {name}: expected {kind.__name__}, got {got}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _core.ModelError(f"{path}: label_names: expected a list of str")
    if len(names) != config["labels"]:
        raise _core.ModelError(f"{path}: label_names: expected {config['labels']}, got {len(names)}")
    return config, names


def _tokenizer(path: Path, header: Header, file: BinaryIO) -> str:
    """The tokenizer's JSON, which is a tensor: as a string of the header, of JSON too, it would be parsed twice."""
    where = f"{path}: tensor '{TOKENIZER}'"
    if TOKENIZER not in header.tensors:
        raise _core.ModelError(f"{where} is missing")
    dtype, shape, begin, end = header.tensors[TOKENIZER]
    if dtype != "U8" or shape != (end - begin,):
        raise _core.ModelError(f"{where}: expected U8 {(end - begin,)}, got {dtype} {shape}")
    file.seek(begin)
    try:
        return file.read(end - begin).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _core.ModelError(f"{where}: expected UTF-8, got {error.reason} at byte {error.start}") from None


def pack_ids(ids: Sequence[Sequence[int]]) -> tuple[array[int], array[int]]:
    """Token ids of several texts, one after the other, and where each text starts.

    Returns:
        int32 (tokens,) and int64 (texts + 1,).
    """
    # Through a list, whose length is known: an array that grows takes twice as long.
    return array("i", list(chain.from_iterable(ids))), array("q", accumulate(map(len, ids), initial=0))
