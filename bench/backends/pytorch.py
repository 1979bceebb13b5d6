"""PyTorch through `transformers`: fp32, and dynamic int8 (per channel) with each engine for x86."""
# A peer may be missing, and cold start counts its import: both want it inside functions.
# ruff: noqa: PLC0415

from typing import ClassVar

import numpy as np

from bench.backends.base import Backend, Ids, Logits, Setting, pad


class PyTorch(Backend):
    requires = ("torch", "transformers")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import torch
        from transformers import DistilBertForSequenceClassification

        torch.set_num_threads(setting.threads_a_stream)
        torch.set_num_interop_threads(1)
        self.torch = torch
        self.model = DistilBertForSequenceClassification.from_pretrained(
            setting.checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.model.train(False)

    def logits_from_ids(self, batch: Ids) -> Logits:
        input_ids, mask = map(self.torch.from_numpy, pad(batch))
        with self.torch.inference_mode():
            return np.asarray(self.model(input_ids=input_ids, attention_mask=mask).logits.numpy())

    def describe(self) -> str:
        return f"kernels for {self.torch.backends.cpu.get_cpu_capability()}"


class Fp32(PyTorch):
    name = "torch-fp32"
    title = "PyTorch fp32"
    precision = "fp32"


class DynamicInt8(PyTorch):
    precision = "int8"
    engine: ClassVar[str]

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        from torch.ao import quantization

        # The engine packs the weights, so it is set before they are quantised.
        self.torch.backends.quantized.engine = self.engine
        linear = {self.torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
        self.model = quantization.quantize_dynamic(self.model, linear)  # type: ignore[no-untyped-call,unused-ignore]


class Fbgemm(DynamicInt8):
    name = "torch-int8-fbgemm"
    title = "PyTorch dynamic int8, fbgemm"
    engine = "fbgemm"


class X86(DynamicInt8):
    name = "torch-int8-x86"
    title = "PyTorch dynamic int8, x86"
    engine = "x86"


class OneDnn(DynamicInt8):
    name = "torch-int8-onednn"
    title = "PyTorch dynamic int8, onednn"
    engine = "onednn"


PEERS = (Fp32, Fbgemm, X86, OneDnn)
