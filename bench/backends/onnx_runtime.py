"""ONNX Runtime: fp32, and dynamic int8 (per channel) with weights of seven and of eight bits.

All graph optimisations are on, which is the default and fuses attention, GELU and LayerNorm with the residual. For int8
the offline optimiser of `onnxruntime.transformers` has to do so before the graph is quantised, as its documentation
says: queries, keys and values then are one product (QAttention), which is 1 to 2 % faster. In fp32 it is no faster.
"""
# A peer may be missing, and cold start counts its import: both want it inside functions.
# ruff: noqa: PLC0415

import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.backends.base import Backend, Ids, Logits, Setting, build_once, pad
from bench.reference import reference_module


def fp32_graph(setting: Setting) -> Path:
    return setting.cache / "fp32.onnx"


def fused_graph(setting: Setting) -> Path:
    return setting.cache / "fused.onnx"


def build_fp32_graph(setting: Setting) -> None:
    """Also the source of other peers' models."""
    build_once(fp32_graph(setting), lambda out: reference_module("onnx_graph").build_onnx(setting.checkpoint, out))


def build_fused_graph(setting: Setting) -> None:
    """The same with attention, GELU and LayerNorm as one operator each."""
    from onnxruntime.transformers.optimizer import optimize_model

    config = json.loads((setting.checkpoint / "config.json").read_text(encoding="utf-8"))

    def fuse(out: Path) -> None:
        fused = optimize_model(
            str(fp32_graph(setting)),
            model_type="bert",
            num_heads=config["n_heads"],
            hidden_size=config["dim"],
            opt_level=0,
        )
        operators = fused.get_fused_operator_statistics()
        if operators["Attention"] != config["n_layers"]:
            raise RuntimeError(f"expected one fused attention a layer, got {operators}")
        fused.save_model_to_file(str(out))

    build_fp32_graph(setting)
    build_once(fused_graph(setting), fuse)


class OnnxRuntime(Backend):
    requires = ("onnxruntime", "onnx", "safetensors")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads_a_stream
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        path = self.model_file(setting)
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @classmethod
    def model_file(cls, setting: Setting) -> Path:
        return fp32_graph(setting)

    def logits_from_ids(self, batch: Ids) -> Logits:
        input_ids, mask = pad(batch)
        return np.asarray(self.session.run(["logits"], {"input_ids": input_ids, "attention_mask": mask})[0])


class Fp32(OnnxRuntime):
    name = "ort-fp32"
    title = "ONNX Runtime fp32"
    precision = "fp32"

    @classmethod
    def build(cls, setting: Setting, sample: Ids) -> None:
        build_fp32_graph(setting)


class Int8(OnnxRuntime):
    name = "ort-int8-full"
    title = "ONNX Runtime int8, 8-bit weights"
    precision = "int8"
    reduce_range: ClassVar[bool] = False

    @classmethod
    def model_file(cls, setting: Setting) -> Path:
        import onnxruntime  # which knows its version; importlib.metadata would count in a cold start

        return setting.cache / f"{cls.name}-fused-{onnxruntime.__version__}.onnx"

    @classmethod
    def build(cls, setting: Setting, sample: Ids) -> None:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        def quantise(out: Path) -> None:
            quantize_dynamic(
                fused_graph(setting),
                out,
                per_channel=True,
                reduce_range=cls.reduce_range,
                weight_type=QuantType.QInt8,
                # Shape inference does not know the fused operators.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )

        build_fused_graph(setting)
        build_once(cls.model_file(setting), quantise)


class Int8ReducedRange(Int8):
    """What ONNX Runtime advises where int8 products may saturate, that is on AVX2 and AVX-512 without VNNI."""

    name = "ort-int8"
    title = "ONNX Runtime int8, reduce_range"
    reduce_range = True


PEERS = (Fp32, Int8ReducedRange, Int8)
