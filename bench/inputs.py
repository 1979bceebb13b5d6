"""The texts and token ids that every peer is given."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from .reference import reference_module

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
SEQUENCES = 32  # of each length: one batch


@dataclass(frozen=True)
class Dataset:
    """Texts in file order with their token ids, or ids alone where the length is made up."""

    ids: list[list[int]]
    texts: list[str] | None = None
    labels: list[int] | None = None

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()[:16]

    def every(self, count: int) -> "Dataset":
        """At most `count` texts, evenly spaced, in file order."""
        count = min(count, len(self.ids))
        chosen = [i * len(self.ids) // count for i in range(count)]
        return Dataset(
            [self.ids[i] for i in chosen],
            None if self.texts is None else [self.texts[i] for i in chosen],
            None if self.labels is None else [self.labels[i] for i in chosen],
        )


def read_test_split(checkpoint: Path) -> Dataset:
    """The AG News test split, tokenised."""
    data = reference_module("data")
    texts, labels = data.read_test_split(data.find_data())
    return make_dataset(checkpoint, texts, labels)


def make_dataset(checkpoint: Path, texts: list[str], labels: list[int]) -> Dataset:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_positions(checkpoint))
    return Dataset([encoding.ids for encoding in tokenizer.encode_batch(texts)], texts, labels)


def max_positions(checkpoint: Path) -> int:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return int(config["max_position_embeddings"])


def of_length(source: Dataset, tokens: int) -> Dataset:
    """Sequences of exactly `tokens` ids: text after text of `source` in a row, cut, between its [CLS] and [SEP]."""
    sequences = []
    for start in range(SEQUENCES):
        body: list[int] = []
        text = start
        while len(body) < tokens - 2:
            body += source.ids[text % len(source.ids)][1:-1]
            text += 1
        sequences.append([source.ids[0][0], *body[: tokens - 2], source.ids[0][-1]])
    return Dataset(sequences)


def write_inputs(path: Path, datasets: dict[str, Dataset]) -> None:
    path.write_text(json.dumps({name: asdict(dataset) for name, dataset in datasets.items()}), encoding="utf-8")


def read_inputs(path: Path) -> dict[str, Dataset]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: Dataset(**dataset) for name, dataset in content.items()}


def checkpoint_digest(checkpoint: Path) -> str:
    """Changes with anything that decides the model's answers; names the folder of built files."""
    total = hashlib.sha256()
    names: Sequence[Path] = [checkpoint / "config.json", checkpoint / "tokenizer.json"]
    for path in (*names, *sorted(checkpoint.glob("*.safetensors"))):
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]
