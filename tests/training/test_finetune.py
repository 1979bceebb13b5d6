"""training/finetune.py and training/evaluate.py on a tiny model and made-up rows."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import evaluate  # noqa: E402
import finetune  # noqa: E402
from transformers import DistilBertConfig, DistilBertForSequenceClassification  # noqa: E402

LABELS = ["World", "Sports", "Business", "Sci/Tech"]
# Each class has words of its own; the rest of a text is the same for all.
WORDS = [["war", "treaty"], ["match", "goal"], ["oil", "shares"], ["robot", "probe"]]
FILLER = ["the", "a", "of", "new", "says", "on"]


def make_rows(count: int, seed: int) -> list[dict[str, object]]:
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for i in range(count):
        label = i % len(LABELS)
        words = rng.choices(FILLER, k=rng.randrange(2, 12))
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS[label]))
        form = "description-only" if i % 16 == 15 else "title+description"
        rows.append({"text": " ".join(words), "label": label, "form": form})
    return rows


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of 2 layers, hidden 32, with a tokenizer that knows the words above."""
    folder = tmp_path_factory.mktemp("start")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *(word for words in WORDS for word in words)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=32,
        n_layers=2,
        n_heads=2,
        dim=32,
        hidden_dim=64,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf8") as file:
        file.writelines(json.dumps(row) + "\n" for row in make_rows(128, seed=1))
    return path


@pytest.fixture(scope="module")
def trained(start: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> finetune.Config:
    config = finetune.Config(
        init=start,
        data=data,
        out=tmp_path_factory.mktemp("out"),
        epochs=40,
        batch_size=8,
        learning_rate=5e-3,
        hold_out=64,
        evaluations=3,
        max_length=32,
        threads=1,
        bfloat16=False,
    )
    assert finetune.train(config) >= 0.9
    return config


def load(folder: Path) -> DistilBertForSequenceClassification:
    return DistilBertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def held_out(config: finetune.Config) -> list[finetune.Example]:
    tokenizer = tokenizers.Tokenizer.from_file(str(config.init / "tokenizer.json"))
    _, rows = finetune.split(finetune.read_rows(config.data), config.hold_out)
    return finetune.encode(tokenizer, rows)


def test_learns(start: Path, trained: finetune.Config) -> None:
    held = held_out(trained)
    labels = torch.tensor([label for _, label in held])
    losses, scores = [], []
    for folder in (start, trained.out):
        model = load(folder)
        loss = torch.nn.functional.cross_entropy(finetune.all_logits(model, held, bfloat16=False), labels)
        losses.append(float(loss))
        scores.append(finetune.accuracy(model, held, bfloat16=False))
    assert scores[0] < 0.6, "the untrained model should be near chance, 0.25"
    assert scores[1] >= 0.9
    assert losses[1] < losses[0] / 2


def test_output(start: Path, trained: finetune.Config) -> None:
    config = json.loads((trained.out / "config.json").read_text("utf8"))
    assert config["dtype"] == "float16"
    assert [config["id2label"][str(i)] for i in range(4)] == LABELS
    assert (trained.out / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    stored = DistilBertForSequenceClassification.from_pretrained(trained.out)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.float16}

    facts = json.loads((trained.out / "training.json").read_text("utf8"))
    _, held = finetune.split(finetune.read_rows(trained.data), trained.hold_out)
    assert facts["hold_out_rows"] == len(held) < trained.hold_out, "rows without a title are dropped"
    assert facts["train_rows"] + facts["hold_out_rows"] == 120
    assert facts["hold_out_accuracy"] >= 0.9
    assert 0 < facts["steps"] <= 40 * 8
    assert 0 < facts["texts_seen"] <= 40 * facts["train_rows"]
    assert facts["seconds"] is None
    assert facts["learning_rate"] == 5e-3
    assert not {"init", "data", "out", "continued_from"} & facts.keys()


def test_a_second_stage_remembers_the_first(trained: finetune.Config, tmp_path: Path) -> None:
    second = dataclasses.replace(trained, init=trained.out, out=tmp_path, epochs=0.5, evaluations=1, hold_out=32)
    finetune.train(second)
    first_facts = json.loads((trained.out / "training.json").read_text("utf8"))
    facts = json.loads((tmp_path / "training.json").read_text("utf8"))
    assert facts["continued_from"] == first_facts
    assert finetune.stages(facts)[0] == first_facts
    with pytest.raises(ValueError, match=r"hold_out: expected at most 32, as .* was trained, got 64"):
        finetune.train(dataclasses.replace(trained, init=tmp_path, hold_out=64))


def test_the_smallest_hold_out_of_all_stages_counts(
    trained: finetune.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first stage trained on rows that the second, which kept more apart, did not see."""
    init = Path(shutil.copytree(trained.out, tmp_path / "init"))
    facts = {"hold_out": 64, "continued_from": {"epochs": 1, "continued_from": {"hold_out": 32}}}
    (init / "training.json").write_text(json.dumps(facts), "utf8")
    with pytest.raises(ValueError, match=r"hold_out: expected at most 32, as .* was trained, got 33"):
        finetune.train(dataclasses.replace(trained, init=init, out=tmp_path / "out", hold_out=33))
    evaluate.main([str(init), "--data", str(trained.data), "--max-length", "32", "--threads", "1"])
    _, held = finetune.split(finetune.read_rows(trained.data), 32)
    assert capsys.readouterr().out.startswith(f"Hold-out ({len(held)} texts)")


@pytest.mark.parametrize("hold_out", [0, 128])
def test_refuses_an_empty_part(trained: finetune.Config, start: Path, hold_out: int) -> None:
    with pytest.raises(ValueError, match="expected more rows"):
        finetune.train(dataclasses.replace(trained, init=start, hold_out=hold_out))


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [(0.0, [1.0, 0.9, 0.5, 0.0]), (0.2, [0.005, 0.4545, 0.5, 0.0]), (1.0, [0.001, 0.0909, 0.2505, 0.0])],
)
def test_learning_rate(trained: finetune.Config, warmup: float, rates: list[float]) -> None:
    config = dataclasses.replace(trained, learning_rate=1.0, warmup=warmup)
    assert [finetune.learning_rate(config, progress) for progress in (0, 0.1, 0.5, 1)] == pytest.approx(rates)


def test_split_keeps_the_hold_out_apart(data: Path) -> None:
    rows = finetune.read_rows(data)
    assert rows == finetune.read_rows(data), "the order is fixed"
    for size in (16, 64):
        train_rows, held = finetune.split(rows, size)
        assert all(row["form"] != "description-only" for row in train_rows + held)
        assert not {id(row) for row in train_rows} & {id(row) for row in held}


def test_batches_hold_each_example_once() -> None:
    examples = [([0] * (i % 7 + 1), i) for i in range(101)]
    found = [label for batch in finetune.batches(examples, 8, random.Random(0)) for _, label in batch]
    assert sorted(found) == list(range(101))
    assert found != sorted(found)


def test_shards(trained: finetune.Config, tmp_path: Path) -> None:
    model = load(trained.out)
    sharded = dataclasses.replace(trained, out=tmp_path)
    finetune.save(model, model.state_dict(), sharded, {"hold_out": 64}, max_shard_size="10KB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    # A tensor is never divided, and a safetensors header comes on top.
    assert max(file.stat().st_size for file in files) < 16_000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text("utf8"))
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert not (tmp_path / "model.safetensors").exists()
    for name, tensor in load(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("lengths", [[1], [5, 5], [2, 31, 7, 1], [32, 3]])
def test_logits_are_those_of_transformers(trained: finetune.Config, lengths: list[int]) -> None:
    model = load(trained.out)
    rng = random.Random(len(lengths))
    batch = [([rng.randrange(1, model.config.vocab_size) for _ in range(length)], 0) for length in lengths]
    ids, mask, _ = finetune.collate(batch)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(finetune.logits(model, ids, mask), expected, rtol=1e-5, atol=1e-5)
    # The padding of a batch changes nothing but the last bits, and all_logits keeps the order.
    together = finetune.all_logits(model, batch, bfloat16=False)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


def test_calibration_error() -> None:
    # Probabilities 0.9 (right 3 times of 4) and 0.6 (right once of 1): (4 |0.75 - 0.9| + 1 |1 - 0.6|) / 5 = 0.2
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]])
    true = np.array([0, 0, 0, 1, 1])
    assert evaluate.calibration_error(np.log(probabilities), true) == pytest.approx(0.2)
    assert evaluate.calibration_error(np.array([[0.0, 2000.0]]), np.array([1])) == 0.0
    assert evaluate.calibration_error(np.array([[0.0, 2000.0]]), np.array([0])) == 1.0


def test_model_card(trained: finetune.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = tmp_path / "test.csv"
    test.write_text("".join(f'{row["label"] + 1},"the","{row["text"]}"\n' for row in make_rows(40, seed=2)), "utf8")  # type: ignore[operator]
    written = tmp_path / "README.md"
    evaluate.main(
        [
            *(str(trained.out), "--data", str(trained.data), "--test", str(test), "--card", str(written)),
            *("--base-model", "some/model", "--start", "a random model.", "--max-length", "32", "--threads", "1"),
        ]
    )
    printed = capsys.readouterr().out
    text = written.read_text("utf8")
    facts = json.loads((trained.out / "training.json").read_text("utf8"))
    assert text.startswith("---\nlanguage: en\nlicense: apache-2.0\n")
    assert "base_model: some/model\n" in text
    assert "Start: a random model.\n" in text
    assert "2 layers, hidden 32, 2 heads, vocabulary of 18; labels World, Sports, Business, Sci/Tech;" in text
    assert f"Hold-out ({facts['hold_out_rows']} texts), float32: accuracy **{facts['hold_out_accuracy']:.2%}**" in text
    assert "Test split (40 texts), float32: accuracy **" in text
    assert "| learning rate | 0.005 |\n" in text
    assert "| seconds | no limit |\n" in text
    classes = [line.split("|")[1].strip() for line in printed.splitlines() if line.count("|") == 6]
    assert classes == ["class", "---", "Business", "Sci/Tech", "Sports", "World"] * 2
    for line in printed.splitlines():
        assert line in text


def test_hold_out_must_be_known(start: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main([str(start), "--data", str(data)])
    assert "--hold-out is needed" in capsys.readouterr().err
