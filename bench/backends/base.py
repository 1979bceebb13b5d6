"""What a peer is: the interface that every file of this folder implements.

The cold-start workload pays for what is imported at the top: nothing that a peer may do without, NumPy included.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import numpy as np
    import numpy.typing as npt

Ids: TypeAlias = Sequence[Sequence[int]]
Logits: TypeAlias = "npt.NDArray[np.float32]"

WHOLE_LIST = 0  # as a batch size: hand the peer all texts in one call


class Setting(NamedTuple):
    """What a peer is given."""

    checkpoint: Path  # Hugging Face folder
    cache: Path  # holds what was built from this very checkpoint
    threads: int
    streams: int = 1  # batches that are computed at a time, each on its share of the threads

    @property
    def threads_a_stream(self) -> int:
        return self.threads // self.streams


class Backend(ABC):
    """A loaded peer, which the constructor loads.

    Nothing may run on more than `setting.threads` threads, and no batch on more than `setting.threads_a_stream`. Where
    there are several streams, as many Python threads call `logits_from_ids` at a time.
    """

    name: ClassVar[str]  # on the command line and in the reports
    title: ClassVar[str]
    precision: ClassVar[Literal["fp32", "int8"]]
    # Top-level imports. One that is missing makes the peer absent; their libraries are what `--isa` holds.
    requires: ClassVar[tuple[str, ...]]
    # Whether it computes right when signals come. Otherwise `--isa` looks at what it runs once it is loaded, but not at
    # what is timed.
    survives_signals: ClassVar[bool] = True
    whole_list: ClassVar[bool] = False  # whether one call with all texts competes with the batch sizes
    # Whether it may get several batches at a time. The calibration tries that too where there are several threads.
    takes_streams: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        config = json.loads((setting.checkpoint / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(setting.checkpoint / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(config["max_position_embeddings"])
        self.pool: Executor | None = None
        if setting.streams > 1:
            from concurrent.futures import ThreadPoolExecutor

            self.pool = ThreadPoolExecutor(setting.streams)

    @classmethod  # noqa: B027 (peers that read the checkpoint itself build nothing)
    def build(cls, setting: Setting, sample: Ids) -> None:
        """Make the files that the constructor needs, unless they are there; `sample` serves static calibration."""

    @abstractmethod
    def logits_from_ids(self, batch: Ids) -> Logits:
        """Logits (n, labels) of one batch of token ids with [CLS] and [SEP], in its order; pads as it needs."""

    def logits(self, texts: Sequence[str]) -> Logits:
        """Logits (n, labels) of one batch of raw texts."""
        return self.logits_from_ids(self.tokenise(texts))

    def label(self, text: str) -> int:
        """The number of a text's label, by the shortest way that the peer offers from a text to a label."""
        return int(self.logits([text]).argmax())

    def run_ids(self, ids: Ids, batch_size: int) -> Logits:
        """Logits of any number of tokenised texts: by default batches of neighbours in length, so padding is small."""
        import numpy as np

        # The longest first: then those that are computed at a time end at about the same time.
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        batches = [[ids[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
        computed = (
            map(self.logits_from_ids, batches) if self.pool is None else self.pool.map(self.logits_from_ids, batches)
        )
        logits = np.concatenate(list(computed))
        logits[order] = logits.copy()
        return logits

    def run_texts(self, texts: Sequence[str], batch_size: int) -> Logits:
        """Logits of any number of raw texts. Lengths are known after tokenising, so that comes first, in one call."""
        return self.run_ids(self.tokenise(texts), batch_size)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) == 1:
            return [self.tokenizer.encode(texts[0]).ids]
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def describe(self) -> str:
        """What this peer says of itself once loaded, such as the instruction set in use."""
        return ""


def pad(batch: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`input_ids` and `attention_mask` (n, tokens of the longest)."""
    import numpy as np

    shape = (len(batch), max(len(ids) for ids in batch))
    input_ids = np.zeros(shape, np.int64)
    mask = np.zeros(shape, np.int64)
    for row, ids in enumerate(batch):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return input_ids, mask


def build_once(path: Path, build: Callable[[Path], Any]) -> None:
    """Let `build` write the file or folder `path`, unless it is there; an interrupted build leaves nothing behind."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: OpenVINO and NumPy look at it.
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    try:
        build(partial)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            import shutil

            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def version(distribution: str) -> str:
    """For the names of built files, so that another release builds its own."""
    from importlib import metadata

    return metadata.version(distribution)
