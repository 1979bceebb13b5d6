"""CTranslate2 int8: its encoder, with the classification head applied in NumPy to the first token."""
# A peer may be missing, and cold start counts its import: both want it inside functions.
# ruff: noqa: PLC0415

from pathlib import Path

import numpy as np

from bench.backends.base import Backend, Ids, Logits, Setting, build_once, version


def model_folder(setting: Setting) -> Path:
    return setting.cache / f"ctranslate2-int8-{version('ctranslate2')}"


class Int8(Backend):
    name = "ct2-int8"
    title = "CTranslate2 int8"
    precision = "int8"
    requires = ("ctranslate2", "transformers", "torch")
    # From 256 tokens on it dies of a corrupted heap; it seems to write below its stack pointer.
    survives_signals = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import ctranslate2

        folder = model_folder(setting)
        self.encoder = ctranslate2.Encoder(
            str(folder),
            compute_type="int8",
            inter_threads=setting.streams,
            intra_threads=setting.threads_a_stream,
        )
        self.head = dict(np.load(folder / "head.npz"))

    @classmethod
    def build(cls, setting: Setting, sample: Ids) -> None:
        def convert(out: Path) -> None:
            import ctranslate2
            import transformers

            ctranslate2.converters.TransformersConverter(str(setting.checkpoint)).convert(str(out), quantization="int8")
            model = transformers.DistilBertForSequenceClassification.from_pretrained(setting.checkpoint)
            head = {
                name: tensor.float().numpy()
                for name, tensor in model.state_dict().items()
                if name.startswith(("pre_classifier", "classifier"))
            }
            np.savez(out / "head.npz", **head)

        build_once(model_folder(setting), convert)

    def logits_from_ids(self, batch: Ids) -> Logits:
        # Token lists, not a padded array: CTranslate2 then leaves the padding out of its matrices.
        hidden = np.asarray(self.encoder.forward_batch(batch).last_hidden_state)  # (n, tokens, hidden), not copied
        pooled = hidden[:, 0] @ self.head["pre_classifier.weight"].T + self.head["pre_classifier.bias"]
        logits: Logits = np.maximum(pooled, 0) @ self.head["classifier.weight"].T + self.head["classifier.bias"]
        return logits

    def describe(self) -> str:
        return f"compute type {self.encoder.compute_type}"


PEERS = (Int8,)
