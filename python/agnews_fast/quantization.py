"""Quantise a DistilBERT checkpoint to int8, once, into a file that the core maps.

The scheme (why, and what it costs and gives, is in csrc/README.md):

* activations are quantised per token at run time, to 0..``levels``;
* a weight row's scale comes from its root mean square, not from its largest value: a few rows of BERT-like models hold
  single weights 55 times the rest, which would crush them. Weights that would overflow 16-bit sums of ``depth``
  products are lowered a little; what lies outside -127..127, or would lose too much, is kept as an exact integer in a
  sparse list (FBGEMM's acc16 does this for speed: Khudia et al. 2021, arXiv:2101.05615);
* a few input channels are far larger than the rest and would set the scale of the whole activation row. They are kept
  in 16 bits (as LLM.int8() keeps them in float: Dettmers et al. 2022, arXiv:2208.07339). Which channels, the quantised
  model itself tells, run over pseudo-random tokens;
* the first layer's queries, keys and values of frequent words are computed here, so that they need only be looked up.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agnews_fast._core import ModelError
from agnews_fast.arguments import as_integer, as_path
from agnews_fast.engine import load, pack_ids
from agnews_fast.model_file import ALIGNMENT, TOKENIZER, Header, open_regular, parse_json, read_header, read_regular
from agnews_fast.tensors import check_writable, read_float_tensor, write_model
from agnews_fast.tokenizer import TextEncoder, read_tokenizer

_PANEL = 16  # as in csrc/kernels/kernels.h
_GROUP = 4
_K_BLOCK = 32

_RMS_RANGE = 7.5  # a weight of so many root mean squares becomes 127
# A window that overflows is lowered to fit while this sum of squares, in steps, is not exceeded; else its largest
# weight becomes an outlier.
_LARGEST_ERROR = 150.0
_PROJECTED_WORDS = 6000  # whose first queries, keys and values are kept, at 2.3 KB each
_PROJECTED_BLOCK = 64 * _PANEL  # words at a time, in float64
_UNUSED_TOKEN = re.compile(r"\[unused\d+\]")
_WIDE_CHANNELS = 4
_WIDE_LIST = 16  # the length of their list; this and the next as in the core
_WIDE_STEPS = 128
_LARGEST_WIDE_STEP = 8
_CALIBRATION_TEXTS = 64
_CALIBRATION_TOKENS = 64

_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json"),
    *("model.safetensors", "model.safetensors.index.json"),
)
# position_ids, 0, 1, 2, ..., is saved by some versions of transformers.
_KNOWN_TENSOR = re.compile(
    r"distilbert\.embeddings\.(((word|position)_embeddings\.weight)|LayerNorm\.(weight|bias)|position_ids)"
    r"|(pre_classifier|classifier)\.(weight|bias)"
)
_KNOWN_LAYER_TENSOR = re.compile(
    r"distilbert\.transformer\.layer\.(0|[1-9][0-9]{0,8})"
    r"\.(attention\.(q|k|v|out)_lin|sa_layer_norm|ffn\.lin[12]|output_layer_norm)\.(weight|bias)"
)

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


def quantize(
    checkpoint: str | os.PathLike[str], out: str | os.PathLike[str], *, levels: int = 127, depth: int = 8
) -> Path:
    """Quantise a ``DistilBertForSequenceClassification`` checkpoint into one model file.

    Args:
        checkpoint: folder in Hugging Face layout: ``config.json``, ``tokenizer.json`` (or ``vocab.txt``), and
            ``model.safetensors`` or shards with ``model.safetensors.index.json``; float16, bfloat16 or float32.
        out: the file to write, or replace as a whole: who has an older one open keeps that. Where it is a link, its
            target is replaced. None of the checkpoint's own files. The same checkpoint gives the same bytes.
        levels: largest quantised activation, 127 or 255. 255 halves the rounding of activations, but more weights
            overflow the 16-bit sums and go to the sparse list.
        depth: how many products the AVX2 kernel adds in 16 bits, 4 or 8. 8 is faster.

    Returns:
        The path of the file written.

    Raises:
        FileNotFoundError: the checkpoint folder, a shard that its index names, or the folder of ``out`` does not exist.
        OSError: ``out`` cannot be written, or is a folder, a pipe or a device; it is tried before the work is done.
        ModelError: the checkpoint is of another architecture or for another problem than choosing one of several
            labels, its tokenizer cannot be used, or a tensor is missing, unknown, has a wrong shape or dtype, or is not
            finite.
        TypeError: an argument has the wrong type.
        ValueError: levels or depth is none of the values above, or ``out`` is a file of the checkpoint.

    Example:
        >>> quantize("checkpoint", "model.safetensors")  # doctest: +SKIP
        PosixPath('model.safetensors')
    """
    levels = _one_of("levels", levels, (127, 255))
    depth = _one_of("depth", depth, (4, 8))
    checkpoint, out = as_path("checkpoint", checkpoint), as_path("out", out)
    source = Checkpoint(checkpoint)
    if os.path.realpath(out) in source.files():
        raise ValueError(f"out: expected a file that is none of the checkpoint's, got {out}")
    check_writable(out)
    config = source.config | {"levels": levels, "depth": depth}
    metadata = {
        "config": json.dumps(config, sort_keys=True),
        "label_names": json.dumps(source.labels, ensure_ascii=False),
        "source_sha256": source.sha256,
        "scheme": f"u8 activations 0..{levels} per row, int8 weights per column, outliers exact, wide channels 16 bits",
    }
    tensors = _unquantised_tensors(source)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "calibration.safetensors"
        # With no words' projections, so that the first layer's maxima are those of all tokens.
        narrow = _first_projection(source, []) | _quantised_tensors(source, config, maxima=None)
        write_model(first, metadata, tensors | narrow)
        maxima = _channel_maxima(first, source.special)
    tensors |= _first_projection(source, _frequent_words(source.vocabulary))
    write_model(out, metadata, tensors | _quantised_tensors(source, config, maxima))
    return out


def _one_of(name: str, value: object, choices: tuple[int, int]) -> int:
    integer = as_integer(name, value)
    if integer not in choices:
        raise ValueError(f"{name}: expected {choices[0]} or {choices[1]}, got {value}")
    return integer


class Checkpoint:
    """A checkpoint folder: its sizes, labels, tokenizer, and tensors by name (float32, read when asked for)."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a checkpoint folder")
        self.folder = folder
        try:
            self._read()
        except RecursionError:  # a message with a value in it
            raise ModelError(f"{folder}: expected a few levels of JSON, got too deep a nesting") from None

    def _read(self) -> None:
        folder = self.folder
        described = self._read_config()
        self.config: dict[str, int | float | str] = {
            "layers": described["n_layers"],
            "hidden": described["dim"],
            "heads": described["n_heads"],
            "ffn": described["hidden_dim"],
            "vocabulary": described["vocab_size"],
            "positions": described["max_position_embeddings"],
            "activation": described["activation"],
            "layer_norm_epsilon": 1e-12,  # fixed in DistilBERT's code
        }
        self._tensors = self._find_tensors()
        self._refuse_unknown_tensors()
        self.labels = self._read_labels(described)
        self.config["labels"] = len(self.labels)
        self.tokenizer = read_tokenizer(folder)
        try:
            self.special = TextEncoder(self.tokenizer, described["max_position_embeddings"]).encode("")
        except ValueError as error:
            positions = described["max_position_embeddings"]
            raise ModelError(f"{folder}: the tokenizer does not fit {positions} positions ({error})") from None
        self.vocabulary = Tokenizer.from_str(self.tokenizer).get_vocab()
        largest = max([*self.vocabulary.values(), *self.special], default=-1)
        if largest >= described["vocab_size"]:
            raise ModelError(
                f"{folder}: the tokenizer gives ids up to {largest}, the model has {described['vocab_size']} embeddings"
            )

    def files(self) -> set[str]:
        """Every file that the checkpoint is read from, or would be if it were there."""
        names = [*_FILES, *(header.path.name for header in self._tensors.values())]
        return {os.path.realpath(self.folder / name) for name in names}

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        if not path.exists():
            raise ModelError(f"{self.folder}: expected config.json")
        described = parse_json(read_regular(path), path)
        if not isinstance(described, dict):
            raise ModelError(f"{path}: expected a JSON object, got {type(described).__name__}")
        expected = "DistilBertForSequenceClassification"
        architectures = described.get("architectures") or [expected]
        if described.get("model_type", "distilbert") != "distilbert" or architectures != [expected]:
            raise ModelError(
                f"{path}: expected architecture {expected}, got {described.get('architectures')} "
                f"(model_type {described.get('model_type')!r})"
            )
        problem = described.get("problem_type")
        if problem not in (None, "single_label_classification"):
            raise ModelError(f"{path}: problem_type: expected 'single_label_classification', got {problem!r}")
        described.setdefault("activation", "gelu")
        if described["activation"] not in ("gelu", "relu"):
            raise ModelError(f"{path}: activation: expected 'gelu' or 'relu', got {described['activation']!r}")
        for key in ("n_layers", "dim", "n_heads", "hidden_dim", "vocab_size", "max_position_embeddings"):
            value = described.get(key)
            if type(value) is not int or value < 1:
                raise ModelError(f"{path}: {key}: expected a positive integer, got {value!r}")
        if described["dim"] % described["n_heads"]:
            raise ModelError(
                f"{path}: expected dim to be a multiple of n_heads, got {described['dim']} and {described['n_heads']}"
            )
        return described

    def _read_labels(self, described: dict[str, Any]) -> list[str]:
        path = self.folder / "config.json"
        names = described.get("id2label")
        if names is None:
            number = described.get("num_labels", 2)
            outputs = self._shape("classifier.bias")
            if type(number) is not int or number < 2 or (number,) != outputs:
                raise ModelError(
                    f"{path}: num_labels: expected an integer, 2 or more, and as many as 'classifier.bias' has "
                    f"(shape {outputs}), got {str(number)[:200]}"
                )
            return [f"LABEL_{i}" for i in range(number)]
        if not isinstance(names, dict) or names.keys() != {str(i) for i in range(len(names))}:
            raise ModelError(f"{path}: id2label: expected names for 0, 1, ..., got {str(names)[:200]}")
        for number, name in names.items():
            if not isinstance(name, (str, int)) or isinstance(name, bool):
                raise ModelError(f"{path}: id2label: {number}: expected a name, got {str(name)[:200]}")
        if len(names) < 2:
            raise ModelError(f"{path}: id2label: expected at least 2 labels, got {len(names)}")
        return [str(names[str(i)]) for i in range(len(names))]

    def _find_tensors(self) -> dict[str, Header]:
        index = self.folder / "model.safetensors.index.json"
        single = self.folder / "model.safetensors"
        if single.exists():
            files = [single]
        elif index.exists():
            described = parse_json(read_regular(index), index)
            names = described.get("weight_map") if isinstance(described, dict) else None
            if not isinstance(names, dict) or not all(_is_file_name(name) for name in names.values()):
                raise ModelError(f"{index}: expected a weight_map from tensors to files of this folder")
            files = sorted({self.folder / name for name in names.values()})
        else:
            raise ModelError(f"{self.folder}: expected model.safetensors or model.safetensors.index.json")
        headers = []
        for path in files:
            with open_regular(path) as file:
                headers.append(read_header(path, file))
        digest = hashlib.sha256()
        for path in [self.folder / "config.json", *files]:
            with open_regular(path) as file:
                digest.update(
                    hashlib.file_digest(file, "sha256").digest()
                    if hasattr(hashlib, "file_digest")
                    else hashlib.sha256(file.read()).digest()
                )
        self.sha256 = digest.hexdigest()
        return {name: header for header in headers for name in header.tensors}

    def _refuse_unknown_tensors(self) -> None:
        """Where config.json and the tensors disagree, a part of the model would be left out without a word."""
        for name in sorted(self._tensors):
            layer = _KNOWN_LAYER_TENSOR.fullmatch(name)
            if layer is not None:
                known = int(layer[1]) < int(self.config["layers"])
            else:
                known = _KNOWN_TENSOR.fullmatch(name) is not None
            if not known and name.startswith(("distilbert.", "pre_classifier.", "classifier.")):
                raise ModelError(
                    f"{self.folder}: tensor '{name}' is unknown in a model of {self.config['layers']} layers"
                )

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise ModelError(f"{self.folder}: tensor '{name}' is missing")
        return self._tensors[name].tensors[name].shape

    def tensor(self, name: str, shape: tuple[int, ...]) -> Floats:
        """One tensor; raises ModelError if it is missing or has another shape."""
        found = self._shape(name)
        if found != shape:
            raise ModelError(f"{self.folder}: tensor '{name}': expected shape {shape}, got {found}")
        return read_float_tensor(self._tensors[name], name)

    def linear(self, name: str, outputs: int, inputs: int) -> tuple[Floats, Floats]:
        """Weight (outputs, inputs) and bias (outputs,)."""
        return self.tensor(f"{name}.weight", (outputs, inputs)), self.tensor(f"{name}.bias", (outputs,))


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & set(name)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _pad(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.pad(array, [(0, to - size) for size, to in zip(array.shape, shape, strict=True)])


def _unquantised_tensors(source: Checkpoint) -> dict[str, NDArray[Any]]:
    """Tokenizer, embeddings (words in int8, one scale a row), norms and the classification head."""
    config: Mapping[str, Any] = source.config
    hidden, padded = config["hidden"], _round_up(config["hidden"], _PANEL)
    labels = _round_up(config["labels"], _PANEL)
    rows = _round_up(config["vocabulary"], _PANEL)
    tokenizer = source.tokenizer.encode("utf-8")

    word = source.tensor("distilbert.embeddings.word_embeddings.weight", (config["vocabulary"], hidden))
    scale = np.abs(word).max(axis=1) / np.float32(127)
    scale[scale == 0] = 1
    integers = _pad(np.rint(word / scale[:, None]).astype(np.int8), (rows, padded))
    position = source.tensor("distilbert.embeddings.position_embeddings.weight", (config["positions"], hidden))
    tensors: dict[str, NDArray[Any]] = {
        "embeddings.word.weight": integers,
        "embeddings.word.scale": _pad(scale, (rows,)),
        "embeddings.word.row_sum": integers.sum(axis=1, dtype=np.int32),
        "embeddings.position": _pad(position, (config["positions"], padded)),
        TOKENIZER: np.frombuffer(tokenizer.ljust(_round_up(len(tokenizer), ALIGNMENT)), np.uint8),
    }

    def norm(name: str, source_name: str) -> None:
        for mine, theirs in (("gamma", "weight"), ("beta", "bias")):
            tensors[f"{name}.{mine}"] = _pad(source.tensor(f"{source_name}.{theirs}", (hidden,)), (padded,))

    norm("embeddings.norm", "distilbert.embeddings.LayerNorm")
    for i in range(config["layers"]):
        layer = f"distilbert.transformer.layer.{i}"
        norm(f"layers.{i}.attention_norm", f"{layer}.sa_layer_norm")
        norm(f"layers.{i}.output_norm", f"{layer}.output_layer_norm")
    for name, outputs, columns in (("pre_classifier", hidden, padded), ("classifier", config["labels"], labels)):
        weight, bias = source.linear(name, outputs, hidden)
        panels = _pad(weight, (columns, hidden)).reshape(columns // _PANEL, _PANEL, hidden)
        tensors[f"{name}.weight"] = np.ascontiguousarray(panels.transpose(0, 2, 1))
        tensors[f"{name}.bias"] = _pad(bias, (columns,))
    return tensors


def _quantised_tensors(
    source: Checkpoint, config: Mapping[str, Any], maxima: list[Floats] | None
) -> dict[str, NDArray[Any]]:
    """Every matrix of the encoder. maxima: the largest input of each channel of each, or None for no wide ones."""
    tensors: dict[str, NDArray[Any]] = {}
    for index, (layer, name) in enumerate(_linears(config["layers"])):
        weight, bias = _encoder_matrix(source, layer, name)
        wide = _no_wide(weight.shape[1]) if maxima is None else _wide(name, maxima[index])
        for part, array in _quantise_matrix(weight, bias, wide, config["levels"], config["depth"]).items():
            tensors[f"layers.{layer}.{name}.{part}"] = array
    return tensors


def _linears(layers: int) -> list[tuple[int, str]]:
    """Layer and name of every matrix of the encoder, in the order of Model::linears() in csrc/model/model.h."""
    attention = [["qkv"]] * (layers - 1) + [["query", "key", "value"]]
    return [(i, name) for i in range(layers) for name in [*attention[i], "out", "ffn1", "ffn2"]]


def _encoder_matrix(source: Checkpoint, layer: int, name: str) -> tuple[Floats, Floats]:
    """Weight (outputs, inputs) and bias (outputs,) as the core lays them out: padded, heads one by one, q scaled."""
    config: Mapping[str, Any] = source.config
    hidden, heads = config["hidden"], config["heads"]
    head = hidden // heads
    padded_head, padded_hidden = _round_up(head, _PANEL), _round_up(hidden, _PANEL)
    padded_ffn = _round_up(config["ffn"], _PANEL)
    prefix = f"distilbert.transformer.layer.{layer}"

    def projection(part: str) -> tuple[Floats, Floats]:
        """Weight (heads, padded head, padded hidden) and bias (heads, padded head) of q, k or v."""
        weight, bias = source.linear(f"{prefix}.attention.{part}_lin", hidden, hidden)
        if part == "q":
            weight, bias = weight / np.float32(np.sqrt(head)), bias / np.float32(np.sqrt(head))
        by_head = _pad(weight.reshape(heads, head, hidden), (heads, padded_head, padded_hidden))
        return by_head, _pad(bias.reshape(heads, head), (heads, padded_head))

    if name in ("qkv", "query", "value"):
        weights, biases = zip(
            *(projection(part) for part in {"qkv": "qkv", "query": "q", "value": "v"}[name]), strict=True
        )
        return np.concatenate(weights).reshape(-1, padded_hidden), np.concatenate(biases).reshape(-1)
    if name == "key":  # in the last layer, from a head's query to the hidden states: see csrc/model/model.h
        transposed = projection("k")[0].transpose(0, 2, 1).reshape(-1, padded_head)
        return np.ascontiguousarray(transposed), np.zeros(len(transposed), np.float32)
    if name == "out":
        weight, bias = source.linear(f"{prefix}.attention.out_lin", hidden, hidden)
        by_head = _pad(weight.reshape(hidden, heads, head), (padded_hidden, heads, padded_head))
        return by_head.reshape(padded_hidden, -1), _pad(bias, (padded_hidden,))
    if name == "ffn1":
        weight, bias = source.linear(f"{prefix}.ffn.lin1", config["ffn"], hidden)
        return _pad(weight, (padded_ffn, padded_hidden)), _pad(bias, (padded_ffn,))
    weight, bias = source.linear(f"{prefix}.ffn.lin2", hidden, config["ffn"])
    return _pad(weight, (padded_hidden, padded_ffn)), _pad(bias, (padded_hidden,))


def _frequent_words(vocabulary: Mapping[str, int]) -> list[int]:
    """Whose first projections are kept: BERT's vocabularies begin with the frequent words, but for unused ids."""
    used = sorted(number for token, number in vocabulary.items() if _UNUSED_TOKEN.fullmatch(token) is None)
    return used[:_PROJECTED_WORDS]


def _first_projection(source: Checkpoint, words: list[int]) -> dict[str, NDArray[Any]]:
    """The first layer's q, k and v of these words and of all positions: FirstProjection in csrc/model/model.h.

    A LayerNorm of word + position comes before the matrix A, so that

        q, k, v = A ((word + position - mean) * rstd * gamma + beta) + bias
                = rstd * (C word + C position) + (A beta + bias)

    where C is A gamma less the mean of each of its rows. The words are the checkpoint's, before they become int8.
    """
    config: Mapping[str, Any] = source.config
    if config["layers"] == 1:  # the only layer is the last, which has no qkv
        return {}
    hidden = config["hidden"]
    weight, bias = _encoder_matrix(source, 0, "qkv")
    gamma, beta = (source.tensor(f"distilbert.embeddings.LayerNorm.{part}", (hidden,)) for part in ("weight", "bias"))
    matrix = weight[:, :hidden].astype(np.float64)
    integers, unit = _fixed_point(matrix * gamma)  # of which any order of adding gives the same sums
    centred = (integers - integers.sum(axis=1, keepdims=True) / hidden) * unit
    numbers = np.full(_round_up(config["vocabulary"], _PANEL), -1, np.int32)
    numbers[words] = np.arange(len(words))
    word = source.tensor("distilbert.embeddings.word_embeddings.weight", (config["vocabulary"], hidden))[words]
    position = source.tensor("distilbert.embeddings.position_embeddings.weight", (config["positions"], hidden))
    tensors = {"layers.0.word_qkv.row": numbers}
    tensors["layers.0.word_qkv.bias"] = (_product(beta[None], matrix)[0] + bias).astype(np.float32)
    for name, rows in (("word_qkv", word), ("position_qkv", position)):
        blocks = [
            _quantise_rows(_product(rows[i : i + _PROJECTED_BLOCK], centred))
            for i in range(0, max(1, len(rows)), _PROJECTED_BLOCK)
        ]
        for part in blocks[0]:
            tensors[f"layers.0.{name}.{part}"] = np.concatenate([block[part] for block in blocks])
    return tensors


def _quantise_rows(qkv: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Rows of q, k and v in int8, each of the three with its own scale."""
    rows, columns = qkv.shape
    parts = _pad(qkv, (_round_up(rows, _PANEL), columns)).reshape(-1, 3, columns // 3)
    scale = (np.abs(parts).max(axis=2) / 127).astype(np.float32)
    scale[scale == 0] = 1
    integers = np.clip(np.rint(parts / scale[:, :, None]), -127, 127).astype(np.int8).reshape(-1, columns)
    return {"weight": integers, "scale": scale, "row_sum": integers.sum(axis=1, dtype=np.int32)}


def _product(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """The product of x (rows, k) and y (columns, k) in fixed point: exact, so that any BLAS gives the same bits."""
    (x, x_unit), (y, y_unit) = _fixed_point(x), _fixed_point(y)
    product: NDArray[np.float64] = x @ y.T * (x_unit * y_unit)
    return product


def _fixed_point(x: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Integers for the values of x (rows, k), so small that sums of k products are exact, and their unit."""
    bits = (53 - x.shape[1].bit_length()) // 2
    _, exponent = np.frexp(np.abs(x).max(initial=0))
    unit = float(np.ldexp(1.0, int(exponent) - bits))
    return np.rint(x.astype(np.float64) / unit), unit


Wide = tuple[Integers, Floats]  # wide channels; 1 / divisor of every channel


def _no_wide(inputs: int) -> Wide:
    return np.zeros(0, np.int32), np.ones(inputs, np.float32)


def _wide(name: str, maxima: Floats) -> Wide:
    """The channels with the largest maxima; what remains sets the rows' range.

    The attention's queries and output have no channels that stand out.
    """
    if name in ("key", "out"):
        return _no_wide(len(maxima))
    order = np.argsort(-maxima, kind="stable")
    channels, next_largest = np.sort(order[:_WIDE_CHANNELS]).astype(np.int32), maxima[order[_WIDE_CHANNELS]]
    # A wide channel's steps are `step` times those of the others, those of its weights so much smaller. The larger the
    # channel, the more its weights' rounding counts against its own.
    ratio = maxima[channels] / next_largest if next_largest > 0 else np.ones(len(channels), np.float32)
    step = np.sqrt(np.minimum(ratio, np.float32(_LARGEST_WIDE_STEP**2)))
    inverse_divisor = np.ones(len(maxima), np.float32)
    inverse_divisor[channels] = 1 / (_WIDE_STEPS * step)
    return channels, inverse_divisor


def _quantise_matrix(weight: Floats, bias: Floats, wide: Wide, levels: int, depth: int) -> dict[str, NDArray[Any]]:
    channels, inverse_divisor = wide
    outputs, inputs = weight.shape
    # Wide activations are integers in units of scale / _WIDE_STEPS.
    wide_weight = weight[:, channels] / (inverse_divisor[channels] * np.float32(_WIDE_STEPS))
    scale = _row_scales(weight, wide_weight, levels)
    wide_integers = np.rint(wide_weight / scale[:, None]).astype(np.int16)
    exact = _pad(weight / scale[:, None], (outputs, _round_up(inputs, _K_BLOCK)))
    exact[:, channels] = 0
    dense, integers = _fit(exact, (2**15 - 1) // levels, depth)
    k = dense.shape[1]

    panels = outputs // _PANEL
    row, position = np.nonzero(integers != dense)
    order = np.lexsort((position, row // _PANEL))
    row, position = row[order], position[order]
    begin = np.searchsorted(row // _PANEL, np.arange(_round_up(panels + 1, _PANEL))).astype(np.int32)
    padded = (_round_up(len(row), _PANEL),)
    packed = dense.astype(np.int8).reshape(panels, _PANEL, k // _GROUP, _GROUP).transpose(0, 2, 1, 3)
    packed_wide = wide_integers.reshape(panels, _PANEL, -1, 2).transpose(0, 2, 1, 3)
    return {
        "weight": np.ascontiguousarray(packed),
        "scale": scale,
        "bias": bias,
        "column_sum": integers.sum(axis=1, dtype=np.int32),
        "outlier_begin": begin,
        "outlier_k": _pad(position.astype(np.int32), padded),
        "outlier_column": _pad((row % _PANEL).astype(np.int32), padded),
        "outlier_value": _pad((integers - dense)[row, position], padded),
        "inverse_divisor": inverse_divisor,
        "wide_channel": np.append(channels, np.full(_WIDE_LIST - len(channels), -1, np.int32)),
        "wide_weight": np.ascontiguousarray(packed_wide),
    }


def _row_scales(weight: Floats, wide_weight: Floats, levels: int) -> Floats:
    """One scale an output row: _RMS_RANGE times its root mean square becomes 127.

    That is coarser than the largest value needs in most rows (3.8 times the root mean square in BERT-like models), and
    has to be: with less room the 16-bit sums would overflow so often that the sparse list grows to 5 % of the weights.
    """
    # In float64 and rounded once, so that the order in which NumPy adds does not show.
    rms = np.sqrt(np.square(weight, dtype=np.float64).mean(axis=1))
    largest = np.abs(weight).max(axis=1).astype(np.float64)
    scale = np.maximum(_RMS_RANGE * rms / 127, largest / (2**15 - 1))  # outliers are 16-bit
    # The wide channels' products have 29 bits. Each of their weights may be rounded up.
    most_wide = 2**29 // (levels * _WIDE_STEPS + 1) - wide_weight.shape[1]
    scale = np.maximum(scale, np.abs(wide_weight, dtype=np.float64).sum(axis=1) / most_wide)
    return np.where(scale < 1e-30, 1.0, scale).astype(np.float32)


def _windows(k: int, depth: int) -> Integers:
    """Positions (k / (2 * depth), 2 * depth) in a row of the weights that meet in one 16-bit lane.

    That is neighbours 2p, 2p + 1 of each of depth consecutive groups of four.
    """
    blocks = np.arange(k, dtype=np.int32).reshape(-1, depth, _GROUP // 2, 2)
    windows: Integers = blocks.transpose(0, 2, 1, 3).reshape(-1, 2 * depth)
    return windows


def _fit(exact: Floats, limit: int, depth: int) -> tuple[Integers, Integers]:
    """Round weights to integers of which no 16-bit sum of ``depth`` products can overflow.

    Neither the positive nor the negative weights of a window may add up to more than ``limit``.

    Returns:
        Two arrays like ``exact``: the dense weights, which are int8 and keep to the limit, and the weights that the
        product is to have. They differ at the outliers, where the dense weight is 0.
    """
    positions = _windows(exact.shape[1], depth)
    windows = exact[:, positions].reshape(-1, 2 * depth)
    integers = np.rint(windows).astype(np.int32)
    dense = np.where(np.abs(integers) > 127, 0, integers)
    for sign in (1, -1):
        while True:
            over = np.flatnonzero(np.maximum(sign * dense, 0).sum(axis=1) > limit)
            if len(over) == 0:
                break
            wanted = sign * np.where(dense[over] == 0, 0, windows[over])
            lowered, error = _lower(wanted, limit)
            lost = error > _LARGEST_ERROR
            near = over[~lost]
            kept = np.where(sign * dense[near] > 0, sign * lowered[~lost], dense[near])
            integers[near] = np.where(dense[near] == integers[near], kept, integers[near])
            dense[near] = kept
            far = over[lost]
            dense[far, np.argmax(sign * dense[far], axis=1)] = 0

    def back(array: Integers) -> Integers:
        rows = np.empty(exact.shape, np.int32)
        rows[:, positions] = array.reshape(-1, *positions.shape)
        return rows

    return back(dense), back(integers)


def _lower(wanted: Floats, limit: int) -> tuple[Integers, NDArray[np.float64]]:
    """Integers near the positive ones of ``wanted`` that add up to at most ``limit`` a row, by least squares.

    Returns them, and the sum of squares of what they miss in each row. Taking one off where that costs least, again and
    again, gives the least sum of squares, since a weight's cost is convex.
    """
    lowered = np.maximum(np.rint(wanted), 0).astype(np.int32)
    excess = lowered.sum(axis=1) - limit
    rows = np.flatnonzero(excess > 0)
    while len(rows) > 0:
        cost = np.where(lowered[rows] > 0, wanted[rows] - lowered[rows], np.inf)
        lowered[rows, np.argmin(cost, axis=1)] -= 1
        excess[rows] -= 1
        rows = rows[excess[rows] > 0]
    positive = wanted > 0
    return lowered, np.square(np.where(positive, wanted - lowered, 0), dtype=np.float64).sum(axis=1)


def _channel_maxima(model: Path, special: list[int]) -> list[Floats]:
    """The largest input of every channel, over texts of pseudo-random tokens between the ``special`` ones.

    The channels that stand out do so for any text. The core computes them, with the same bits on every machine.
    """
    loaded = load(model, threads=1)
    vocabulary, positions = loaded.config["vocabulary"], loaded.config["positions"]
    body = max(0, min(_CALIBRATION_TOKENS, positions) - len(special))
    # Knuth's multiplicative hash: evenly spread, and the same everywhere for ever.
    numbers = np.arange(1, _CALIBRATION_TEXTS * body + 1, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    tokens = (numbers * np.uint64(vocabulary) >> np.uint64(32)).reshape(_CALIBRATION_TEXTS, body).tolist()
    texts = [(special[:1] + text + special[1:])[:positions] or [0] for text in tokens]
    return [np.asarray(row)[0] for row in loaded.engine.channel_maxima(*pack_ids(texts))]
