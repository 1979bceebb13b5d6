"""Classify texts with a quantised DistilBERT."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from agnews_fast._core import Matrix, ModelError
from agnews_fast.arguments import as_integer, as_integer_between, as_path, check_flag
from agnews_fast.cpu import usable_cpus
from agnews_fast.engine import LoadedModel, load, pack_ids
from agnews_fast.tokenizer import TextEncoder

# NumPy takes longer to import than all else on the way to a first label, so it is imported by what returns arrays.
if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

PACKAGED_MODEL = Path(__file__).with_name("model.safetensors")

# Texts, and tokens a thread, that are computed at a time: enough that every thread has work, few enough to bound memory
# and the time until a KeyboardInterrupt is seen (some seconds).
_BLOCK = 256
_BLOCK_TOKENS = 8192
_MOST_THREADS = 1024

Texts: TypeAlias = Iterable[str]
Floats: TypeAlias = "NDArray[np.float32]"


class Classifier:
    """A DistilBERT sequence classifier on the CPU, in int8.

    A text's result is the same, to the last bit, whatever other texts it comes with, in whatever order, on however many
    threads and on whatever instruction set. Any number of Python threads may share one classifier, and it survives
    ``fork``. It can be pickled while it is open: what is unpickled opens the same path with the same settings.

    Args:
        model: None for the packaged AG News model; the path of a model file made by `quantize`; or of a checkpoint
            folder in Hugging Face layout, which is then quantised first (some seconds). A model file in use is mapped,
            not copied: to change it, replace it (as `quantize` does) and never write into it.
        threads: CPUs that one call may use, 1 to 1024; None for all that this process may use (affinity, cgroup quota).
            More threads than CPUs gain nothing.
        max_length: most tokens of a text that count, [CLS] and [SEP] included; None for all that the model can take.

    Raises:
        FileNotFoundError: there is nothing at ``model``; OSError: it cannot be read.
        ModelError: what is there is no model, or is damaged. A subclass of ValueError.
        ValueError: threads or max_length is out of range, or the environment variable ``AGNEWS_FAST_ISA`` names an
            instruction set that is unknown or not supported by this CPU.
        TypeError: an argument has the wrong type.

    Example:
        >>> from agnews_fast import Classifier
        >>> classifier = Classifier(threads=1)
        >>> classifier.predict("Oil prices soar to all-time record, posing new menace to US economy")
        'Business'
        >>> classifier.logits(["one text", "another text"]).shape
        (2, 4)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        max_length: int | None = None,
    ) -> None:
        self._loaded: LoadedModel | None = None
        if threads is None:
            threads = min(usable_cpus(), _MOST_THREADS)
        threads = as_integer_between("threads", threads, 1, _MOST_THREADS)
        path = PACKAGED_MODEL if model is None else as_path("model", model).absolute()
        loaded = _load_checkpoint(path, threads) if path.is_dir() else load(path, threads=threads)
        positions: int = loaded.config["positions"]
        max_length = as_integer_between("max_length", positions if max_length is None else max_length, 2, positions)
        self._path = path
        try:
            self._encoder = TextEncoder(loaded.tokenizer_json, max_length)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self._loaded = loaded
        self._labels = loaded.labels
        self._columns: dict[str, int] = {name: loaded.config[name] for name in ("labels", "hidden")}
        self._isa = loaded.engine.isa
        self._threads = threads

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the columns of `logits`."""
        return list(self._labels)

    @property
    def classes_(self) -> NDArray[np.str_]:
        """The same as an array, under scikit-learn's name."""
        import numpy as np

        return np.array(self._labels)

    @property
    def max_length(self) -> int:
        """Most tokens of a text that count, [CLS] and [SEP] included."""
        return self._encoder.max_length

    @property
    def threads(self) -> int:
        """CPUs that one call may use."""
        return self._threads

    @property
    def isa(self) -> str:
        """The instruction set in use, one of `available_isas`."""
        return self._isa

    @property
    def path(self) -> Path:
        """The model file or checkpoint folder that this classifier was made from."""
        return self._path

    @overload
    def predict(self, texts: str, *, truncation: bool = True) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Texts, *, truncation: bool = True) -> list[str]: ...
    def predict(self, texts: str | Texts, *, truncation: bool = True) -> str | list[str]:
        """The most probable label of each text.

        Args:
            texts: one text, or any ordered iterable of texts (list, tuple, NumPy array, pandas Series, generator).
            truncation: cut texts of more than `max_length` tokens; otherwise they raise ValueError.

        Returns:
            A label for one text, a list of labels for several.

        Raises:
            TypeError: a text is not a ``str``, with its index and type in the message; or ``texts`` is no ordered
                iterable of one dimension.
            ValueError: a text is not valid Unicode, or too long while truncation is off, with its index in the message;
                the model's output is not finite; or the classifier is closed.

        Example:
            >>> Classifier(threads=1).predict(["Stocks fell on Wall Street", "NASA probe lands on Titan"])
            ['Business', 'Sci/Tech']
        """
        blocks = self._computed(texts, truncation)
        labels = [self._labels[i] for logits, _ in blocks for i in logits.argmax()]
        return labels[0] if isinstance(texts, str) else labels

    def predict_iter(self, texts: Texts, *, batch_size: int = _BLOCK, truncation: bool = True) -> Iterator[str]:
        """The labels of a stream of any length, in bounded memory.

        Args:
            texts: any ordered iterable of texts, of which at most ``batch_size`` are read ahead.
            batch_size: most texts that are computed at a time, 1 to 2**31. It changes speed, never results.
            truncation: as in `predict`.

        Returns:
            An iterator of labels, in the order of the texts.

        Raises:
            TypeError, ValueError: as `predict`, for the arguments at once, and for a text after the labels of all texts
                before it; indices count from the start of the stream.

        Example:
            >>> lines = (line for line in ["Stocks fell on Wall Street", "NASA probe lands on Titan"])
            >>> list(Classifier(threads=1).predict_iter(lines, batch_size=64))
            ['Business', 'Sci/Tech']
        """
        batch_size = as_integer_between("batch_size", batch_size, 1, 2**31)
        check_flag("truncation", truncation)
        blocks = self._blocks(self._several(texts), truncation, batch_size)
        return (self._labels[i] for logits, _ in blocks for i in logits.argmax())

    def predict_proba(self, texts: str | Texts, *, truncation: bool = True) -> Floats:
        """The probability of every label: the softmax of `logits`.

        Args:
            texts: as in `predict`.
            truncation: as in `predict`.

        Returns:
            float32 (texts, labels), or (labels,) for one text; columns in the order of `labels`, rows that sum to 1.

        Raises:
            TypeError, ValueError: as `predict`.

        Example:
            >>> Classifier(threads=1).predict_proba(["Stocks fell on Wall Street"]).shape
            (1, 4)
        """
        import numpy as np

        logits = self.logits(texts, truncation=truncation).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        probabilities: Floats = (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)
        return probabilities

    def logits(self, texts: str | Texts, *, truncation: bool = True) -> Floats:
        """The model's output before the softmax.

        Args:
            texts: as in `predict`.
            truncation: as in `predict`.

        Returns:
            float32 (texts, labels), or (labels,) for one text; columns in the order of `labels`.

        Raises:
            TypeError, ValueError: as `predict`.

        Example:
            >>> classifier = Classifier(threads=1)
            >>> int(classifier.logits("Stocks fell on Wall Street").argmax()) == classifier.labels.index("Business")
            True
        """
        return self._array(texts, truncation, 0)

    def embed(self, texts: str | Texts, *, truncation: bool = True) -> Floats:
        """Sentence embeddings: the last hidden state of the first token ([CLS]), not normalised.

        Args:
            texts: as in `predict`.
            truncation: as in `predict`.

        Returns:
            float32 (texts, hidden), or (hidden,) for one text.

        Raises:
            TypeError, ValueError: as `predict`.

        Example:
            >>> Classifier(threads=1).embed(["one text", "another text"]).shape
            (2, 768)
        """
        return self._array(texts, truncation, 1)

    def logits_from_ids(self, ids: Sequence[Sequence[int]]) -> Floats:
        """`logits` of texts that are already tokenised.

        Args:
            ids: the token ids of each text, special tokens included.

        Returns:
            float32 (texts, labels).

        Raises:
            TypeError: an id is not an integer.
            ValueError: a text has no tokens or more than the model has positions, or an id is not in its vocabulary.

        Example:
            >>> Classifier(threads=1).logits_from_ids([[101, 15768, 3062, 102]]).shape
            (1, 4)
        """
        import numpy as np

        config = self._open().config
        if isinstance(ids, np.ndarray):
            ids = ids.tolist()  # a single number, of an array without dimensions
        if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes, bytearray)):
            raise TypeError(f"ids: expected a sequence of sequences of int, got {type(ids).__name__}")
        texts = [_token_ids(text, f"ids[{i}]", config) for i, text in enumerate(ids)]
        return self._concatenated([np.asarray(logits) for logits, _ in self._run(texts, _BLOCK)], "labels")

    def __call__(self, texts: str | Texts, *, truncation: bool = True) -> list[dict[str, str | float]]:
        """Label and probability of each text, as a Hugging Face text-classification pipeline gives them.

        Args:
            texts: as in `predict`.
            truncation: as in `predict`.

        Returns:
            One ``{"label": ..., "score": ...}`` a text; for one text too, a list of one.

        Raises:
            TypeError, ValueError: as `predict`.

        Example:
            >>> Classifier(threads=1)("Stocks fell on Wall Street")[0]["label"]
            'Business'
        """
        import numpy as np

        probabilities = np.atleast_2d(self.predict_proba(texts, truncation=truncation))
        best = probabilities.argmax(axis=-1).tolist()
        return [{"label": self._labels[i], "score": float(row[i])} for i, row in zip(best, probabilities, strict=True)]

    def close(self) -> None:
        """Free the model and its threads, once calls in other threads have ended. Closing twice is harmless."""
        self._loaded = None

    def __enter__(self) -> Classifier:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._loaded is not None else ", closed"
        return (
            f"Classifier({str(self._path)!r}, labels={self._labels}, max_length={self.max_length}, "
            f"threads={self._threads}, isa={self._isa!r}{state})"
        )

    def __reduce__(self) -> Any:
        self._open()  # a closed one would come back open
        model = None if self._path == PACKAGED_MODEL else self._path
        return _unpickle, (type(self), model, self._threads, self.max_length)

    def _open(self) -> LoadedModel:
        loaded = self._loaded
        if loaded is None:
            raise ValueError("the classifier is closed")
        return loaded

    def _several(self, texts: Texts) -> Texts:
        self._open()
        if isinstance(texts, (str, bytes, bytearray, Mapping)) or not isinstance(texts, Iterable):
            raise TypeError(f"texts: expected an iterable of str, got {type(texts).__name__}")
        if isinstance(texts, (set, frozenset)):
            raise TypeError(f"texts: expected an iterable with an order, got {type(texts).__name__}")
        dimensions = getattr(texts, "ndim", 1)
        if dimensions != 1:  # an array or a DataFrame, which iterates over the names of its columns
            raise TypeError(f"texts: expected one dimension, got {type(texts).__name__} of {dimensions}")
        return texts

    def _computed(self, texts: str | Texts, truncation: bool) -> Iterator[tuple[Matrix, Matrix]]:
        """Logits and first-token states: one row for one text, some rows at a time for several."""
        check_flag("truncation", truncation)
        if isinstance(texts, str):
            return self._run([self._encode(texts, "text", truncation)], 1)
        return self._blocks(self._several(texts), truncation, _BLOCK)

    def _array(self, texts: str | Texts, truncation: bool, output: int) -> Floats:
        import numpy as np

        blocks: list[Floats] = [np.asarray(block[output]) for block in self._computed(texts, truncation)]
        if isinstance(texts, str):
            row: Floats = blocks[0][0]
            return row
        return self._concatenated(blocks, ("labels", "hidden")[output])

    def _concatenated(self, blocks: list[Floats], columns: str) -> Floats:
        import numpy as np

        # Not from the model, which may have been closed meanwhile.
        return np.concatenate([np.zeros((0, self._columns[columns]), np.float32), *blocks])

    def _blocks(self, texts: Texts, truncation: bool, size: int) -> Iterator[tuple[Matrix, Matrix]]:
        """Logits and first-token states of at most ``size`` texts at a time."""
        return self._run((self._encode(text, f"texts[{i}]", truncation) for i, text in enumerate(texts)), size)

    def _run(self, texts: Iterable[list[int]], size: int) -> Iterator[tuple[Matrix, Matrix]]:
        """Logits and first-token states of at most ``size`` texts at a time, and of all before one that fails."""
        engine = self._open().engine
        remaining = iter(texts)
        failure: Exception | None = None
        while failure is None:
            ids: list[list[int]] = []
            try:
                tokens = 0
                for text in islice(remaining, size):
                    ids.append(text)
                    tokens += len(text)
                    if tokens >= _BLOCK_TOKENS * self._threads:
                        break
            except Exception as error:
                failure = error
            if ids:
                logits, first_token = engine.run(*pack_ids(ids))
                # Both, since a state that is not finite may yet lead to finite logits.
                if not (logits.all_finite() and first_token.all_finite()):
                    raise ValueError("the model's output is not finite: its weights lead to values beyond float32")
                yield logits, first_token
            elif failure is None:
                return
        raise failure

    def _encode(self, text: str, where: str, truncation: bool) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"{where}: expected str, got {type(text).__name__}")
        text = str.__str__(text)  # of a subclass, the plain text
        try:
            text.encode("utf-8")  # tokenizers takes a lone surrogate for a value of another type
            ids = self._encoder.encode(text, truncation=truncation)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: expected valid Unicode, got the lone surrogate U+{ord(text[error.start]):04X} "
                f"at position {error.start}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not ids:
            raise ValueError(f"{where}: expected at least one token, got none (the tokenizer adds no special tokens)")
        return ids


def _load_checkpoint(folder: Path, threads: int) -> LoadedModel:
    import tempfile

    from agnews_fast.quantization import quantize

    with tempfile.TemporaryDirectory() as temporary:  # the mapping outlives the file's name
        return load(quantize(folder, Path(temporary) / "model.safetensors"), threads=threads)


def _token_ids(text: object, where: str, config: Mapping[str, Any]) -> list[int]:
    import numpy as np

    if isinstance(text, np.ndarray):
        text = text.tolist()
    if not isinstance(text, Sequence) or isinstance(text, (str, bytes, bytearray)):
        raise TypeError(f"{where}: expected a sequence of int, got {type(text).__name__}")
    if not 1 <= len(text) <= config["positions"]:
        raise ValueError(f"{where}: expected 1 to {config['positions']} tokens, got {len(text)}")
    ids = []
    for i, token in enumerate(text):
        ids.append(as_integer(f"{where}[{i}]", token))
        if not 0 <= ids[i] < config["vocabulary"]:
            raise ValueError(f"{where}[{i}]: expected an id from 0 to {config['vocabulary'] - 1}, got {token}")
    return ids


def _unpickle(kind: type[Classifier], model: Path | None, threads: int, max_length: int) -> Classifier:
    return kind(model, threads=threads, max_length=max_length)
