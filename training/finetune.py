"""Fine-tune a DistilBERT checkpoint on AG News, on a CPU, for a fixed time or number of epochs.

    python training/finetune.py --init checkpoint --data train.jsonl.gz --out out --epochs 2 --learning-rate 5e-5

The recipe is plain supervised fine-tuning (Devlin et al. 2019, arXiv:1810.04805, appendix A.3): AdamW, a linear
warm-up and a linear decay to zero, gradient norm clipped at 1, no dropout (one or two passes do not overfit). Two
things make it fit a CPU: matrix products run in bfloat16 (``torch.autocast``; master weights stay float32), and the
last layer is computed for the first token alone, since only that row feeds the classifier.

A hold-out of the train rows is scored as training goes on; the best state by hold-out accuracy is saved, with what led
to it in ``training.json``. The test split is never read here.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import DistilBertForSequenceClassification

Example = tuple[list[int], int]
Facts = dict[str, Any]


@dataclasses.dataclass
class Config:
    """One training run. ``seconds`` and ``epochs`` both bound it; the learning rate is 0 at whichever ends first.

    Attributes:
        init: the checkpoint folder to start from (config.json, weights, tokenizer.json).
        data: the train rows, see :func:`read_rows`.
        out: the folder to write.
        epochs: passes over the train rows.
        seconds: time for the training, the scoring of the hold-out included.
        batch_size: texts a step.
        learning_rate: its peak, after the warm-up.
        warmup: share of the run in which the learning rate rises.
        weight_decay: of matrices; biases and LayerNorm have none.
        max_length: texts are cut to so many tokens.
        hold_out: rows of the file that are kept apart, those without a title included.
        evaluations: how often the hold-out is scored.
        label_smoothing: share of a label's probability that is spread over all labels.
        seed: of the order of the rows.
        threads: of torch.
        bfloat16: compute matrix products in bfloat16; master weights are float32 in any case.
    """

    init: Path
    data: Path
    out: Path
    epochs: float = 1.0
    seconds: float = float("inf")
    batch_size: int = 32
    learning_rate: float = 5e-5
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_length: int = 96
    hold_out: int = 2000
    evaluations: int = 8
    label_smoothing: float = 0.0
    seed: int = 0
    threads: int = 2
    bfloat16: bool = True


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows, in a fixed random order, the same for every run and stage, so that the hold-out is the same too.

    Rows are JSON objects, one a line, gzipped: ``text`` (str), ``label`` (0..3), ``form`` (``description-only`` rows
    lack the title).
    """
    with gzip.open(path, "rt", encoding="utf8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(1).shuffle(rows)
    return rows


def split(rows: Sequence[dict[str, Any]], hold_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train rows, hold-out rows): the first ``hold_out`` shuffled rows never train.

    Rows without a title are dropped from both parts, since the test split has none.
    """

    def complete(part: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in part if row.get("form") != "description-only"]

    return complete(rows[hold_out:]), complete(rows[:hold_out])


def encode(tokenizer: Tokenizer, rows: Sequence[dict[str, Any]]) -> list[Example]:
    """Token ids ([CLS] ... [SEP], truncated as the tokenizer is set) and labels."""
    encodings = tokenizer.encode_batch([row["text"] for row in rows])
    return [(e.ids, row["label"]) for e, row in zip(encodings, rows, strict=True)]


def batches(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """One pass in random order; within windows of 40 batches texts are sorted by length, so little is padding."""
    order = list(examples)
    rng.shuffle(order)
    window = 40 * size
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda example: len(example[0]))
        chunks = [part[i : i + size] for i in range(0, len(part), size)]
        rng.shuffle(chunks)
        yield from chunks


def collate(batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (batch, tokens), padded with 0; the mask of real tokens (batch, tokens), bool; labels (batch,)."""
    tokens = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), tokens, dtype=torch.long)
    mask = torch.zeros(len(batch), tokens, dtype=torch.bool)
    for i, (row, _) in enumerate(batch):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask, torch.tensor([label for _, label in batch])


def logits(model: DistilBertForSequenceClassification, ids: Tensor, mask: Tensor) -> Tensor:
    """``model(ids, mask).logits`` without dropout, the last layer for the first token alone.

    Shapes: ids and mask (batch, tokens); result (batch, labels). The activation is GELU(erf), DistilBERT's default.
    """
    bert: Any = model.distilbert
    embeddings = bert.embeddings
    tokens = ids.shape[1]
    hidden = embeddings.word_embeddings(ids) + embeddings.position_embeddings.weight[:tokens]
    hidden = embeddings.LayerNorm(hidden)
    heads = model.config.n_heads

    def by_head(x: Tensor) -> Tensor:  # (batch, tokens, hidden) -> (batch, heads, tokens, hidden / heads)
        return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    layers = list(bert.transformer.layer)
    for layer in layers:
        attention = layer.attention
        rows = hidden[:, :1] if layer is layers[-1] else hidden
        context = functional.scaled_dot_product_attention(
            by_head(attention.q_lin(rows)),
            by_head(attention.k_lin(hidden)),
            by_head(attention.v_lin(hidden)),
            attn_mask=mask[:, None, None, :],
        )
        context = context.transpose(1, 2).flatten(2)
        rows = layer.sa_layer_norm(attention.out_lin(context) + rows)
        inner = functional.gelu(layer.ffn.lin1(rows))
        hidden = layer.output_layer_norm(layer.ffn.lin2(inner) + rows)
    pooled = functional.relu(model.pre_classifier(hidden[:, 0]))
    result: Tensor = model.classifier(pooled)
    return result


@torch.inference_mode()
def all_logits(model: DistilBertForSequenceClassification, examples: Sequence[Example], bfloat16: bool) -> Tensor:
    """Logits of all examples in their order, (examples, labels), float32; shorter texts are computed first."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    result = torch.empty(len(examples), model.classifier.out_features)
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        ids, mask, _ = collate([examples[i] for i in rows])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            result[rows] = logits(model, ids, mask).float()
    return result


def accuracy(model: DistilBertForSequenceClassification, examples: Sequence[Example], bfloat16: bool) -> float:
    """Share of examples whose largest logit is their label's."""
    labels = torch.tensor([label for _, label in examples])
    return float((all_logits(model, examples, bfloat16).argmax(-1) == labels).double().mean())


def learning_rate(config: Config, progress: float) -> float:
    """The learning rate where ``progress`` is the share of the run that is done."""
    # 1e-3 ahead, so that the first step changes something; a shorter warm-up, 0 included, is thus none.
    return config.learning_rate * min(1.0, (progress + 1e-3) / max(config.warmup, 1e-3)) * (1.0 - progress)


def recipe(config: Config) -> Facts:
    """The settings of a run that another machine can repeat: all but the paths; null stands for no limit."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        name: None if isinstance(value, float) and math.isinf(value) else value
        for name, value in settings.items()
        if not isinstance(value, Path)
    }


def read_facts(checkpoint: Path) -> Facts | None:
    """What ``training.json`` in a checkpoint folder says, None where there is none."""
    path = checkpoint / "training.json"
    facts: Facts | None = json.loads(path.read_text("utf8")) if path.exists() else None
    return facts


def stages(facts: Facts | None) -> list[Facts]:
    """The training stages that ``training.json`` tells of, the first one first."""
    found: list[Facts] = []
    while facts is not None:
        found.insert(0, {name: value for name, value in facts.items() if name != "continued_from"})
        facts = facts.get("continued_from")
    return found


def untrained_rows(facts: Facts | None) -> int | None:
    """The smallest hold-out of all stages, whose rows none has trained on; None where no stage tells of one."""
    return min((stage["hold_out"] for stage in stages(facts) if "hold_out" in stage), default=None)


def save(
    model: DistilBertForSequenceClassification,
    state: dict[str, Tensor],
    config: Config,
    facts: Facts,
    max_shard_size: str = "94MB",
) -> None:
    """Write a checkpoint folder.

    Args:
        model: gives the architecture.
        state: the weights; written as float16, in several files where they exceed ``max_shard_size``.
        config: names the folder, and the checkpoint whose tokenizer files go there too.
        facts: written to ``training.json``.
        max_shard_size: such as "94MB", which stays under the limits of common Git hosts.
    """
    half = {name: tensor.half() for name, tensor in state.items()}
    model.save_pretrained(config.out, state_dict=half, max_shard_size=max_shard_size)
    settings = config.out / "config.json"
    described = json.loads(settings.read_text("utf8"))
    described["dtype"] = "float16"
    settings.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", "utf8")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (config.init / name).exists():
            (config.out / name).write_bytes((config.init / name).read_bytes())
    (config.out / "training.json").write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", "utf8")


def train(config: Config) -> float:
    """Run the whole recipe.

    Returns:
        The best hold-out accuracy; the weights that reached it are in ``config.out``.

    Raises:
        ValueError: there is no row to train on or to hold out, or an earlier stage trained on the hold-out.
    """
    before = read_facts(config.init)
    untrained = untrained_rows(before)
    if untrained is not None and untrained < config.hold_out:
        raise ValueError(
            f"hold_out: expected at most {untrained}, as {config.init} was trained, got {config.hold_out}: "
            "the rest of the hold-out has been trained on"
        )
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    tokenizer = Tokenizer.from_file(str(config.init / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.max_length)
    train_rows, held_rows = split(read_rows(config.data), config.hold_out)
    if not train_rows or not held_rows:
        raise ValueError(
            f"{config.data}: expected more rows, got {len(train_rows)} to train, {len(held_rows)} held out"
        )
    examples, held = encode(tokenizer, train_rows), encode(tokenizer, held_rows)

    model = DistilBertForSequenceClassification.from_pretrained(config.init, dtype=torch.float32)
    model.train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=True,
    )
    total = max(1, int(config.epochs * -(-len(examples) // config.batch_size)))
    print(f"{len(examples)} train rows, {len(held)} hold-out rows, at most {total} steps", flush=True)

    start, step, seen, smoothed, evaluated, best = time.monotonic(), 0, 0, 0.0, 0, -1.0
    progress = 0.0
    while progress < 1.0:
        for batch in batches(examples, config.batch_size, rng):
            progress = max(step / total, (time.monotonic() - start) / config.seconds)
            if progress * config.evaluations >= evaluated + 1 or progress >= 1.0:
                evaluated += 1
                score = accuracy(model, held, config.bfloat16)
                print(f"step {step}: hold-out accuracy {score:.4f}", flush=True)
                if score >= best:
                    best = score
                    facts = recipe(config) | {
                        "steps": step,
                        "texts_seen": seen,
                        "train_rows": len(examples),
                        "hold_out_rows": len(held),
                        "hold_out_accuracy": score,
                    }
                    if before is not None:
                        facts["continued_from"] = before
                    save(model, model.state_dict(), config, facts)
            if progress >= 1.0:
                break
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, progress)
            ids, mask, labels = collate(batch)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bfloat16):
                outputs = logits(model, ids, mask)
            loss = functional.cross_entropy(outputs.float(), labels, label_smoothing=config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            seen += len(batch)
            smoothed += (loss.item() - smoothed) * max(0.01, 1 / step)
            if step % 50 == 0:
                rate = step * config.batch_size / (time.monotonic() - start)
                print(f"step {step}: loss {smoothed:.4f}, {rate:.1f} texts/s, {progress:.1%} done", flush=True)
    return best


def main() -> None:
    """Run the recipe with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        if field.default is dataclasses.MISSING:
            parser.add_argument(flag, type=Path, required=True)
        elif isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    config = Config(**vars(parser.parse_args()))
    print(f"best hold-out accuracy {train(config):.4f}; saved to {config.out}")


if __name__ == "__main__":
    main()
