"""OpenVINO: fp32, and int8 weights and activations by NNCF's post-training quantisation."""
# A peer may be missing, and cold start counts its import: both want it inside functions.
# ruff: noqa: PLC0415

import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.backends.base import Backend, Ids, Logits, Setting, build_once, pad, version
from bench.backends.onnx_runtime import build_fp32_graph, fp32_graph

CALIBRATION_TEXTS = 128


class OpenVino(Backend):
    hints: ClassVar[dict[str, str]] = {}

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import openvino

        config = {"INFERENCE_NUM_THREADS": setting.threads, "NUM_STREAMS": setting.streams, **self.hints}
        self.model = openvino.Core().compile_model(str(self.model_file(setting)), "CPU", config)
        self.local = threading.local()

    @classmethod
    def model_file(cls, setting: Setting) -> Path:
        return fp32_graph(setting)

    def logits_from_ids(self, batch: Ids) -> Logits:
        # A request serves one caller at a time, so every Python thread has its own.
        if not hasattr(self.local, "request"):
            self.local.request = self.model.create_infer_request()
        input_ids, mask = pad(batch)
        results = self.local.request.infer({"input_ids": input_ids, "attention_mask": mask})
        return np.array(results["logits"])


class Fp32(OpenVino):
    name = "openvino-fp32"
    title = "OpenVINO fp32"
    precision = "fp32"
    requires = ("openvino", "onnx", "safetensors")
    hints: ClassVar[dict[str, str]] = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise bf16 on CPUs that have it

    @classmethod
    def build(cls, setting: Setting, sample: Ids) -> None:
        build_fp32_graph(setting)


class Int8(OpenVino):
    name = "openvino-int8"
    title = "OpenVINO int8 (NNCF)"
    precision = "int8"
    requires = ("openvino", "nncf", "onnx", "safetensors")

    @classmethod
    def model_file(cls, setting: Setting) -> Path:
        # A folder, since an IR is two files.
        return setting.cache / f"openvino-int8-{version('openvino')}-{version('nncf')}" / "model.xml"

    @classmethod
    def build(cls, setting: Setting, sample: Ids) -> None:
        def quantise(out: Path) -> None:
            import nncf
            import openvino

            def feed(ids: list[int]) -> dict[str, Any]:
                input_ids, mask = pad([ids])
                return {"input_ids": input_ids, "attention_mask": mask}

            model = openvino.Core().read_model(str(fp32_graph(setting)))
            quantised = nncf.quantize(
                model,
                nncf.Dataset(list(sample[:CALIBRATION_TEXTS]), feed),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=CALIBRATION_TEXTS,
            )
            out.mkdir()
            openvino.save_model(quantised, str(out / "model.xml"), compress_to_fp16=False)

        build_fp32_graph(setting)
        build_once(cls.model_file(setting).parent, quantise)


PEERS = (Fp32, Int8)
