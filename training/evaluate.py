"""Measure a checkpoint, in float32 and without quantisation, and write its model card.

    python training/evaluate.py CHECKPOINT --data train.jsonl.gz
    python training/evaluate.py CHECKPOINT --data train.jsonl.gz --test test.csv --card CHECKPOINT/README.md

The hold-out is what ``finetune.py`` kept apart in every stage (``training.json`` in the checkpoint folder says how
large it is, ``--hold-out`` where there is no such file). The test split is read only with ``--test``, which is for the
end, when the checkpoint has been chosen. What is measured is printed as Markdown; ``--card`` puts it into a whole model
card. Its numbers are all measured, given on the command line or found in ``training.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from agnews_fast.cli import read_labelled
from agnews_fast.metrics import Report, classification_report
from finetune import Facts, all_logits, read_facts, read_rows, split, stages, untrained_rows
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import DistilBertForSequenceClassification

BINS = 15


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a checkpoint does on labelled texts. ``calibration`` is the expected calibration error."""

    name: str
    report: Report
    calibration: float

    def markdown(self) -> str:
        """One sentence and a table of the classes, sorted by name."""
        rows = [
            f"| {name} | {scores.precision:.4f} | {scores.recall:.4f} | {scores.f1:.4f} | {scores.support} |"
            for name, scores in self.report.classes.items()
        ]
        return "\n".join(
            [
                f"{self.name} ({self.report.macro.support:,} texts), float32: accuracy **{self.report.accuracy:.2%}**, "
                f"expected calibration error {self.calibration:.4f} ({BINS} bins of equal width).",
                "",
                "| class | precision | recall | f1-score | support |",
                "|---|---|---|---|---|",
                *rows,
            ]
        )


def calibration_error(logits: NDArray[np.float64], true: NDArray[np.int64], bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    Args:
        logits: (texts, labels).
        true: the label of each text, (texts,).
        bins: number of bins of equal width into which the probabilities of the predicted labels fall.

    Returns:
        The distance of a bin's accuracy from its mean probability, averaged over the texts.

    Example:
        >>> calibration_error(np.zeros((4, 2)), np.array([0, 0, 1, 1]))
        0.0
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = powers.max(axis=1) / powers.sum(axis=1)
    right = logits.argmax(axis=1) == true
    # Bin b holds the probabilities in (b / bins, (b + 1) / bins].
    position = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(position, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(true))


class Checkpoint:
    """A checkpoint folder, loaded in float32, and its tokenizer, cutting texts to ``max_length`` tokens."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self.model = DistilBertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        self.labels = [label for _, label in sorted((self.model.config.id2label or {}).items())]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)
        self.max_length = max_length

    def measure(self, name: str, texts: Sequence[str], labels: Sequence[str]) -> Measured:
        """Classify ``texts`` and compare with their true ``labels``."""
        true = np.array([self.labels.index(label) for label in labels])
        encodings = self.tokenizer.encode_batch(list(texts))
        examples = [(encoding.ids, int(label)) for encoding, label in zip(encodings, true, strict=True)]
        logits = all_logits(self.model, examples, bfloat16=False).double().numpy()
        predicted = [self.labels[i] for i in logits.argmax(axis=1)]
        return Measured(
            name, classification_report(labels, predicted, sorted(self.labels)), calibration_error(logits, true)
        )


def stage_table(facts: Facts | None) -> str:
    """A Markdown table with a row for each fact and a column for each stage."""

    def cell(stage: Facts, name: str) -> str:
        value = stage.get(name)
        if name not in stage:
            return ""
        if value is None:
            return "no limit"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if name.endswith("accuracy"):
            return f"{value:.2%}"
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    columns = stages(facts)
    names = dict.fromkeys(name for stage in columns for name in stage)
    return "\n".join(
        [
            "| | " + " | ".join(f"stage {i}" for i, _ in enumerate(columns, 1)) + " |",
            "|---|" + "---|" * len(columns),
            *(
                f"| {name.replace('_', ' ').replace('hold out', 'hold-out')} | "
                + " | ".join(cell(stage, name) for stage in columns)
                + " |"
                for name in names
            ),
        ]
    )


def card(
    checkpoint: Checkpoint,
    facts: Facts | None,
    measured: Sequence[Measured],
    base_model: str | None,
    start: str | None,
) -> str:
    """The model card.

    Args:
        checkpoint: gives the architecture.
        facts: of ``training.json``.
        measured: the hold-out and the test split, those that were measured.
        base_model: name of the published model that the weights derive from.
        start: what the first stage started from, a sentence.
    """
    config = checkpoint.model.config
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    head = [
        "language: en",
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        *([f"base_model: {base_model}"] if base_model else []),
        "datasets: [ag_news]",
    ]
    training = [
        *([f"Start: {start}", ""] if start else []),
        "Fine-tuning with cross-entropy and AdamW, gradient norm clipped at 1, no dropout; the learning rate rises "
        "linearly during the warm-up and falls linearly to 0. The weights kept are those with the best hold-out "
        "accuracy. `training/finetune.py` of this project repeats it.",
        *(["", stage_table(facts)] if facts else []),
    ]
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "# DistilBERT, AG News",
            "",
            f"`DistilBertForSequenceClassification`, {config.n_layers} layers, hidden {config.dim}, "
            f"{config.n_heads} heads, vocabulary of {config.vocab_size:,}; labels {', '.join(checkpoint.labels)}; "
            f'{parameters / 1e6:.2f} M parameters, fp16. Input: title + " " + description, raw; at most '
            f"{config.max_position_embeddings} tokens.",
            "",
            "## Data",
            "",
            "Rows of the AG News train split that have a title and a description, without those that match or nearly "
            "match a row of the test split. The hold-out is a part of these rows, drawn at random, that never trains; "
            "everything was chosen on it. The test split is read once, at the end.",
            "",
            "## Training",
            "",
            *training,
            "",
            "## Accuracy",
            "",
            f"Texts cut to {checkpoint.max_length} tokens.",
            "",
            "\n\n".join(part.markdown() for part in measured),
            "",
            "## Use",
            "",
            "The AG News corpus is provided for research and other non-commercial use. It is English news of the "
            "2000s; on other texts the labels and probabilities mean less.",
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write what the command line asks for (``sys.argv[1:]`` when ``argv`` is None)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder as finetune.py writes it")
    parser.add_argument("--data", type=Path, required=True, help="the rows that finetune.py was given")
    parser.add_argument("--hold-out", type=int, help="rows kept apart (default: what training.json says)")
    parser.add_argument("--test", type=Path, help="the test split, CSV rows class,title,description")
    parser.add_argument("--card", type=Path, help="write the model card to this file")
    parser.add_argument("--base-model", help="for the card: the published model that the weights derive from")
    parser.add_argument("--start", help="for the card: what the first stage started from")
    parser.add_argument("--max-length", type=int, default=512, help="cut texts to so many tokens (default: 512)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    facts = read_facts(options.checkpoint)
    hold_out = options.hold_out or untrained_rows(facts)
    if hold_out is None:
        parser.error(f"{options.checkpoint} has no training.json that gives hold_out: --hold-out is needed")
    checkpoint = Checkpoint(options.checkpoint, options.max_length)
    _, held = split(read_rows(options.data), hold_out)
    measured = [
        checkpoint.measure("Hold-out", [row["text"] for row in held], [checkpoint.labels[row["label"]] for row in held])
    ]
    print(measured[0].markdown(), flush=True)
    if options.test:
        labels, texts = zip(*read_labelled(options.test, checkpoint.labels), strict=True)
        measured.append(checkpoint.measure("Test split", texts, labels))
        print("\n" + measured[1].markdown())
    if options.card:
        options.card.write_text(card(checkpoint, facts, measured, options.base_model, options.start), "utf8")


if __name__ == "__main__":
    main()
