"""The fp32 reference: DistilBERT for sequence classification as an ONNX graph, made from a checkpoint folder alone.

Neither `agnews_fast` nor torch takes part. The graph has the shape that exporters give BERT, so that ONNX Runtime's
own fusions (attention, GELU, LayerNorm with the residual) find it: it is the benchmark's fp32 peer too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from .checkpoint import Float32, read_sizes, read_tensors

OPSET = 17  # the first with LayerNormalization
EPSILON = 1e-12
BATCH = 32
# Any finite value far below the scores gives exp(...) == 0 in float32, thus exactly no weight on padding.
MASKED = -10000.0


class _Graph:
    """Collects nodes and initializers; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output


def build_onnx(checkpoint: Path, out: Path) -> Path:
    """Write the graph of the DistilBertForSequenceClassification folder `checkpoint` to `out` and return `out`.

    Inputs: `input_ids` and `attention_mask`, int64 (batch, tokens). Outputs: `logits`, float32 (batch, labels), and
    `first_token`, float32 (batch, hidden), the last hidden state of the first token.
    """
    sizes = read_sizes(checkpoint)
    weights = read_tensors(checkpoint)
    graph = _Graph()
    int64 = np.int64
    # Reshape copies a dimension whose size is given as 0.
    split_heads = graph.constant("split_heads", np.array([0, 0, sizes.heads, sizes.head], int64))
    merge_heads = graph.constant("merge_heads", np.array([0, 0, sizes.hidden], int64))
    constants: dict[str, npt.NDArray[Any]] = {
        "axis_0": np.array([0], int64),
        "axis_1": np.array([1], int64),
        "axis_2": np.array([2], int64),
        "first": np.array(0, int64),
        "one": np.array(1.0, np.float32),
        "sqrt_head": np.array(math.sqrt(sizes.head), np.float32),
        "masked": np.array(MASKED, np.float32),
    }
    if sizes.activation == "gelu":
        constants |= {"half": np.array(0.5, np.float32), "sqrt_2": np.array(math.sqrt(2.0), np.float32)}
    for name, values in constants.items():
        graph.constant(name, values)

    def linear(x: str, name: str, output: str) -> str:
        weight = graph.constant(f"{name}.weight", weights[f"{name}.weight"].T)
        bias = graph.constant(f"{name}.bias", weights[f"{name}.bias"])
        return graph.add("Add", [graph.add("MatMul", [x, weight], f"{output}.product"), bias], output)

    def layer_norm(x: str, name: str, output: str) -> str:
        scale = graph.constant(f"{name}.weight", weights[f"{name}.weight"])
        shift = graph.constant(f"{name}.bias", weights[f"{name}.bias"])
        return graph.add("LayerNormalization", [x, scale, shift], output, axis=-1, epsilon=EPSILON)

    def heads_of(x: str, name: str, output: str, order: list[int]) -> str:
        parts = graph.add("Reshape", [linear(x, name, f"{output}.linear"), split_heads], f"{output}.split")
        return graph.add("Transpose", [parts], output, perm=order)

    # (batch, tokens) of ones and zeros -> (batch, 1, 1, tokens), 0 for a token and MASKED for padding
    by_text = graph.add("Unsqueeze", ["attention_mask", "axis_1"], "mask.by_text")
    by_head = graph.add("Unsqueeze", [by_text, "axis_2"], "mask.by_head")
    kept = graph.add("Cast", [by_head], "mask.kept", to=TensorProto.FLOAT)
    mask = graph.add("Mul", [graph.add("Sub", ["one", kept], "mask.padding"), "masked"], "mask")

    words = graph.constant("word_embeddings", weights["distilbert.embeddings.word_embeddings.weight"])
    positions = graph.constant("position_embeddings", weights["distilbert.embeddings.position_embeddings.weight"])
    shape = graph.add("Shape", ["input_ids"], "ids.shape")
    tokens = graph.add("Gather", [shape, "axis_1"], "ids.tokens", axis=0)
    summed = graph.add(
        "Add",
        [
            graph.add("Gather", [words, "input_ids"], "embeddings.words", axis=0),
            graph.add("Slice", [positions, "axis_0", tokens, "axis_0"], "embeddings.positions"),
        ],
        "embeddings.sum",
    )
    x = layer_norm(summed, "distilbert.embeddings.LayerNorm", "embeddings")

    for layer in range(sizes.layers):
        source = f"distilbert.transformer.layer.{layer}"
        here = f"layer.{layer}"
        query = heads_of(x, f"{source}.attention.q_lin", f"{here}.query", [0, 2, 1, 3])
        key = heads_of(x, f"{source}.attention.k_lin", f"{here}.key", [0, 2, 3, 1])
        value = heads_of(x, f"{source}.attention.v_lin", f"{here}.value", [0, 2, 1, 3])
        scores = graph.add("MatMul", [query, key], f"{here}.scores")
        scaled = graph.add("Div", [scores, "sqrt_head"], f"{here}.scaled")
        masked = graph.add("Add", [scaled, mask], f"{here}.masked")
        probabilities = graph.add("Softmax", [masked], f"{here}.probabilities", axis=-1)
        context = graph.add("MatMul", [probabilities, value], f"{here}.context")
        joined = graph.add("Transpose", [context], f"{here}.joined", perm=[0, 2, 1, 3])
        merged = graph.add("Reshape", [joined, merge_heads], f"{here}.merged")
        attended = linear(merged, f"{source}.attention.out_lin", f"{here}.attended")
        residual = graph.add("Add", [attended, x], f"{here}.attention_residual")
        x = layer_norm(residual, f"{source}.sa_layer_norm", f"{here}.attention_norm")

        inner = linear(x, f"{source}.ffn.lin1", f"{here}.inner")
        if sizes.activation == "gelu":
            erf = graph.add("Erf", [graph.add("Div", [inner, "sqrt_2"], f"{here}.gelu.scaled")], f"{here}.gelu.erf")
            gate = graph.add("Add", [erf, "one"], f"{here}.gelu.gate")
            wide = graph.add("Mul", [graph.add("Mul", [inner, gate], f"{here}.gelu.twice"), "half"], f"{here}.gelu")
        else:
            wide = graph.add("Relu", [inner], f"{here}.relu")
        outer = linear(wide, f"{source}.ffn.lin2", f"{here}.outer")
        residual = graph.add("Add", [outer, x], f"{here}.ffn_residual")
        x = layer_norm(residual, f"{source}.output_layer_norm", f"{here}.output_norm")

    first_token = graph.add("Gather", [x, "first"], "first_token", axis=1)
    pooled = graph.add("Relu", [linear(first_token, "pre_classifier", "pooled")], "pooled.relu")
    linear(pooled, "classifier", "logits")

    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", sizes.labels]),
        helper.make_tensor_value_info("first_token", TensorProto.FLOAT, ["batch", sizes.hidden]),
    ]
    # Shape inference can't tell that the sliced positions are as many as the tokens; fusions need to know.
    known = [helper.make_tensor_value_info(summed, TensorProto.FLOAT, ["batch", "tokens", sizes.hidden])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "distilbert", inputs, outputs, graph.initializers, value_info=known),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,  # what opset 17 came with, so older runtimes read it too
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(out))
    return out


def run_onnx(path: Path, ids: Sequence[Sequence[int]], threads: int) -> tuple[Float32, Float32]:
    """Logits and first tokens of the texts, in their order; run in batches of 32 of like length, padded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = {output.name: output.shape[1] for output in session.get_outputs()}
    logits = np.empty((len(ids), outputs["logits"]), np.float32)
    first_token = np.empty((len(ids), outputs["first_token"]), np.float32)
    by_length = sorted(range(len(ids)), key=lambda text: len(ids[text]))
    for start in range(0, len(ids), BATCH):
        members = by_length[start : start + BATCH]
        longest = len(ids[members[-1]])
        padded = np.zeros((len(members), longest), np.int64)
        mask = np.zeros((len(members), longest), np.int64)
        for row, text in enumerate(members):
            padded[row, : len(ids[text])] = ids[text]
            mask[row, : len(ids[text])] = 1
        feed = {"input_ids": padded, "attention_mask": mask}
        logits[members], first_token[members] = session.run(["logits", "first_token"], feed)
    return logits, first_token
