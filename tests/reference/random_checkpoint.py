"""Random DistilBertForSequenceClassification checkpoints of any size, with the statistics trained ones have."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .checkpoint import round_to, write_tensors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALLEST_VOCABULARY = 64  # the special tokens, the letters, and letters that continue a word


def make_checkpoint(
    folder: Path,
    *,
    layers: int,
    hidden: int,
    heads: int,
    ffn: int,
    labels: int,
    vocabulary: int,
    positions: int = 512,
    seed: int,
    dtype: str = "float16",
    shards: int = 1,
    outliers: bool = True,
    lowercase: bool = True,
    activation: str = "gelu",
) -> Path:
    """Write config.json, tokenizer.json and the weights into the new folder `folder`; the seed decides every byte.

    With `outliers`, ffn.lin2 has single weights up to 55 times the rms of their row and LayerNorm a few large gains:
    what makes trained BERT models hard to quantise.
    """
    if hidden % heads:
        raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
    if vocabulary < SMALLEST_VOCABULARY:
        raise ValueError(f"vocabulary: expected at least {SMALLEST_VOCABULARY}, got {vocabulary}")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.float64]] = {}

    def normal(name: str, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float64]:
        tensors[name] = rng.normal(0.0, std, shape)
        return tensors[name]

    def linear(name: str, rows: int, columns: int, gain: float = 1.0) -> npt.NDArray[np.float64]:
        # Inputs are near unit variance, so this keeps outputs near `gain`; 768 columns give 0.036, as trained models.
        normal(f"{name}.bias", (rows,), 0.1)
        return normal(f"{name}.weight", (rows, columns), gain / np.sqrt(columns))

    def layer_norm(name: str) -> None:
        gamma = rng.normal(1.0, 0.1, hidden)
        beta = rng.normal(0.0, 0.1, hidden)
        if outliers:
            large = rng.choice(hidden, size=max(1, hidden // 128), replace=False)
            gamma[large] *= rng.uniform(3.0, 5.0, large.size)
            beta[large] -= 1.0
        tensors[f"{name}.weight"] = gamma
        tensors[f"{name}.bias"] = beta

    normal("distilbert.embeddings.word_embeddings.weight", (vocabulary, hidden), 0.05)
    normal("distilbert.embeddings.position_embeddings.weight", (positions, hidden), 0.02)
    layer_norm("distilbert.embeddings.LayerNorm")
    for layer in range(layers):
        prefix = f"distilbert.transformer.layer.{layer}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            linear(f"{prefix}.attention.{name}", hidden, hidden)
        layer_norm(f"{prefix}.sa_layer_norm")
        linear(f"{prefix}.ffn.lin1", ffn, hidden)
        lin2 = linear(f"{prefix}.ffn.lin2", hidden, ffn)
        if outliers:
            rows = rng.choice(hidden, size=max(1, hidden // 128), replace=False)
            columns = rng.choice(ffn, size=rows.size)
            signs = rng.choice([-1.0, 1.0], size=rows.size)
            lin2[rows, columns] = signs * rng.uniform(20.0, 55.0, rows.size) / np.sqrt(ffn)
        layer_norm(f"{prefix}.output_layer_norm")
    linear("pre_classifier", hidden, hidden)
    linear("classifier", labels, hidden, gain=2.0)

    write_tensors(
        folder, {name: round_to(tensor, dtype) for name, tensor in tensors.items()}, dtype=dtype, shards=shards
    )
    names = [f"topic {label}" for label in range(labels)]
    config = {
        "activation": activation,
        "architectures": ["DistilBertForSequenceClassification"],
        "attention_dropout": 0.1,
        "dim": hidden,
        "dropout": 0.1,
        "dtype": dtype,
        "hidden_dim": ffn,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "initializer_range": 0.02,
        "label2id": {name: label for label, name in enumerate(names)},
        "max_position_embeddings": positions,
        "model_type": "distilbert",
        "n_heads": heads,
        "n_layers": layers,
        "pad_token_id": 0,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": False,
        "tie_word_embeddings": True,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _make_tokenizer(vocabulary, lowercase).save(str(folder / "tokenizer.json"))
    return folder


def _make_tokenizer(vocabulary: int, lowercase: bool) -> Tokenizer:
    """WordPiece as BERT sets it up, with English text in mind: few words of it become [UNK]."""
    tokens = list(itertools.islice(_tokens(lowercase), vocabulary))
    ids = {token: position for position, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _tokens(lowercase: bool) -> Iterator[str]:
    """The special tokens, single characters, then ever longer runs of letters: at a word's start and within it."""
    yield from SPECIAL
    letters = string.ascii_lowercase if lowercase else string.ascii_letters
    for character in letters + string.digits:
        yield character
        yield f"##{character}"
    yield from string.punctuation
    for length in itertools.count(2):
        for run in itertools.product(letters, repeat=length):
            yield "".join(run)
            yield f"##{''.join(run)}"
