"""DistilBERT for sequence classification in float64 NumPy: one text at a time, no padding, nothing clever.

The equations are those of Devlin et al. 2018 (BERT) and Sanh et al. 2019 (DistilBERT): post-norm layers, exact GELU,
LayerNorm with epsilon 1e-12; the head is Linear, ReLU, Linear on the first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .checkpoint import read_sizes, read_tensors

Float64 = npt.NDArray[np.float64]
Linear = Callable[[Float64, Float64, Float64], Float64]

_erf = np.frompyfunc(math.erf, 1, 1)


def exact_linear(x: Float64, weight: Float64, bias: Float64) -> Float64:
    """x: (tokens, in), weight: (out, in), bias: (out,) -> (tokens, out)."""
    product: Float64 = x @ weight.T + bias
    return product


def forward(
    checkpoint: Path, ids: Sequence[Sequence[int]], *, linear: Linear = exact_linear
) -> tuple[Float64, Float64]:
    """Return the logits (texts, labels) and the last hidden state of the first token (texts, hidden).

    `linear` stands for every matrix product with a weight of the encoder; a test puts a quantised one in its place to
    learn how much error a number format makes by itself.
    """
    sizes = read_sizes(checkpoint)
    weights = {name: tensor.astype(np.float64) for name, tensor in read_tensors(checkpoint).items()}
    logits = np.empty((len(ids), sizes.labels))
    first_token = np.empty((len(ids), sizes.hidden))
    for text, text_ids in enumerate(ids):
        tokens = len(text_ids)
        x = weights["distilbert.embeddings.word_embeddings.weight"][np.asarray(text_ids)]
        x = x + weights["distilbert.embeddings.position_embeddings.weight"][:tokens]
        x = _layer_norm(x, weights, "distilbert.embeddings.LayerNorm")
        for layer in range(sizes.layers):
            prefix = f"distilbert.transformer.layer.{layer}"
            attended = _attention(x, weights, f"{prefix}.attention", sizes.heads, linear)
            x = _layer_norm(x + attended, weights, f"{prefix}.sa_layer_norm")
            wide = _linear(x, weights, f"{prefix}.ffn.lin1", linear)
            wide = _gelu(wide) if sizes.activation == "gelu" else np.maximum(wide, 0.0)
            narrow = _linear(wide, weights, f"{prefix}.ffn.lin2", linear)
            x = _layer_norm(x + narrow, weights, f"{prefix}.output_layer_norm")
        first_token[text] = x[0]
        pooled = np.maximum(_linear(x[:1], weights, "pre_classifier", exact_linear), 0.0)
        logits[text] = _linear(pooled, weights, "classifier", exact_linear)[0]
    return logits, first_token


def _attention(x: Float64, weights: dict[str, Float64], name: str, heads: int, linear: Linear) -> Float64:
    tokens, hidden = x.shape
    size = hidden // heads
    query = _linear(x, weights, f"{name}.q_lin", linear).reshape(tokens, heads, size)
    key = _linear(x, weights, f"{name}.k_lin", linear).reshape(tokens, heads, size)
    value = _linear(x, weights, f"{name}.v_lin", linear).reshape(tokens, heads, size)
    context = np.empty_like(query)
    for head in range(heads):
        scores = query[:, head] @ key[:, head].T / math.sqrt(size)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        context[:, head] = powers / powers.sum(axis=1, keepdims=True) @ value[:, head]
    return _linear(context.reshape(tokens, hidden), weights, f"{name}.out_lin", linear)


def _linear(x: Float64, weights: dict[str, Float64], name: str, linear: Linear) -> Float64:
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _layer_norm(x: Float64, weights: dict[str, Float64], name: str) -> Float64:
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.mean(centred * centred, axis=1, keepdims=True)
    scaled: Float64 = centred / np.sqrt(variance + 1e-12) * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return scaled


def _gelu(x: Float64) -> Float64:
    erf = np.asarray(_erf(x / math.sqrt(2.0)), np.float64)
    product: Float64 = 0.5 * x * (1.0 + erf)
    return product
