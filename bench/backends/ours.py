"""agnews_fast itself: no sorting, no padding, texts in the order they come."""
# A peer may be missing, and cold start counts its import: both want it inside functions; NumPy too.
# ruff: noqa: PLC0415

import zlib
from collections.abc import Sequence
from pathlib import Path

from bench.backends.base import Backend, Ids, Logits, Setting, build_once


def model_file(setting: Setting) -> Path:
    """The quantised model, named after the installed code: while that is worked on, its version says nothing."""
    import agnews_fast
    import agnews_fast._core

    code = zlib.crc32(Path(agnews_fast._core.__file__).read_bytes())
    for path in sorted(Path(agnews_fast.__file__).parent.glob("*.py")):
        code = zlib.crc32(path.read_bytes(), code)
    return setting.cache / f"agnews_fast-{code:08x}.safetensors"


class AgnewsFast(Backend):
    name = "agnews-fast"
    title = "agnews_fast"
    precision = "int8"
    requires = ("agnews_fast",)
    whole_list = True  # how the package is meant to be used
    takes_streams = False  # it shares the texts of a call among its threads by itself

    def __init__(self, setting: Setting) -> None:
        from agnews_fast import Classifier

        # Not Backend's constructor: the classifier brings its own tokenizer.
        self.classifier = Classifier(model_file(setting), threads=setting.threads)

    @classmethod
    def build(cls, setting: Setting, sample: Ids) -> None:
        import agnews_fast

        build_once(model_file(setting), lambda out: agnews_fast.quantize(setting.checkpoint, out))

    def logits_from_ids(self, batch: Ids) -> Logits:
        return self.classifier.logits_from_ids(batch)

    def logits(self, texts: Sequence[str]) -> Logits:
        return self.classifier.logits(texts)

    def label(self, text: str) -> int:
        return self.classifier.labels.index(self.classifier.predict(text))

    def run_ids(self, ids: Ids, batch_size: int) -> Logits:
        import numpy as np

        size = batch_size or len(ids)
        return np.concatenate([self.logits_from_ids(ids[i : i + size]) for i in range(0, len(ids), size)])

    def run_texts(self, texts: Sequence[str], batch_size: int) -> Logits:
        import numpy as np

        size = batch_size or len(texts)
        return np.concatenate([self.logits(texts[i : i + size]) for i in range(0, len(texts), size)])

    def describe(self) -> str:
        return f"ISA {self.classifier.isa}"


PEERS = (AgnewsFast,)
