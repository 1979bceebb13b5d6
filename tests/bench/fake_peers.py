"""Peers that need no package: what the model says is the number of tokens, modulo four."""

import time

import numpy as np

from bench.backends.base import Backend, Ids, Logits, Setting, build_once

CALLS = "calls.txt"  # in the cache folder: a line a pass


class Reference(Backend):
    name = "fake-fp32"
    title = "Fake fp32"
    precision = "fp32"
    requires = ()

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.cache = setting.cache
        assert (self.cache / "built").read_text() == "once"

    @classmethod
    def build(cls, setting: Setting, sample: Ids) -> None:
        build_once(setting.cache / "built", lambda out: out.write_text("once"))

    def logits_from_ids(self, batch: Ids) -> Logits:
        labels = [len(ids) % 4 for ids in batch]
        return np.eye(4, dtype=np.float32)[labels]

    def run_ids(self, ids: Ids, batch_size: int) -> Logits:
        with (self.cache / CALLS).open("a") as calls:
            calls.write(f"{self.name} {len(ids)} {batch_size}\n")
        return super().run_ids(ids, batch_size)


class Int8(Reference):
    name = "fake-int8"
    title = "Fake int8"
    precision = "int8"


class Wrong(Int8):
    """Fast, but another model."""

    name = "fake-wrong"
    title = "Wrong int8"

    def logits_from_ids(self, batch: Ids) -> Logits:
        return np.roll(super().logits_from_ids(batch), 1, axis=1)


class Slip(Int8):
    """One label of a pass is wrong."""

    name = "fake-slip"

    def run_ids(self, ids: Ids, batch_size: int) -> Logits:
        logits = super().run_ids(ids, batch_size)
        logits[0] = np.roll(logits[0], 1)
        return logits


class Parallel(Int8):
    """Slow, unless it computes two batches at a time."""

    name = "fake-parallel"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.threads_a_stream == setting.threads // setting.streams
        self.seconds = 0.001 if setting.streams == 2 else 0.01

    def logits_from_ids(self, batch: Ids) -> Logits:
        time.sleep(self.seconds)
        return super().logits_from_ids(batch)


class Broken(Int8):
    name = "fake-broken"

    def logits_from_ids(self, batch: Ids) -> Logits:
        raise ValueError("no such kernel")


class Dying(Int8):
    name = "fake-dying"

    def logits_from_ids(self, batch: Ids) -> Logits:
        raise SystemExit(3)


class Absent(Int8):
    name = "fake-absent"
    requires = ("no_such_package",)


PEERS = (Reference, Int8, Wrong, Slip, Parallel, Broken, Dying, Absent)
