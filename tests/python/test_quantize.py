"""From a checkpoint folder to a model file."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from agnews_fast import Classifier, ModelError, quantization, quantize
from reference.bits import assert_same_bits
from reference.checkpoint import copy_checkpoint, encode, read_tensors, write_tensors
from reference.model_file import ALIGNMENT, ModelFile
from reference.process import run_python
from reference.random_checkpoint import make_checkpoint
from safetensors import safe_open
from tokenizers import Tokenizer

TEXTS = ["Oil prices soar to all-time record", "a", "", "Red Sox beat the Yankees in extra innings to stay alive " * 20]

SIZES: dict[str, Any] = {"layers": 2, "hidden": 60, "heads": 3, "ffn": 100, "labels": 5, "vocabulary": 500}


def logits_of(model: Path) -> npt.NDArray[np.float32]:
    with Classifier(model, threads=1) as classifier:
        return classifier.logits(TEXTS)


@pytest.fixture
def copy(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint for a test to spoil."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))


# The file


def test_returns_the_path(small_checkpoint: Path, tmp_path: Path) -> None:
    assert quantize(small_checkpoint, tmp_path / "a.safetensors") == tmp_path / "a.safetensors"
    returned = quantize(str(small_checkpoint), str(tmp_path / "b.safetensors"))
    assert isinstance(returned, Path)
    assert returned.is_file()


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_of_few_channels(tmp_path: Path, layers: int) -> None:
    sizes = SIZES | {"layers": layers, "hidden": 8, "heads": 2, "ffn": 5}
    logits = logits_of(quantize(make_checkpoint(tmp_path / "tiny", **sizes, seed=2), tmp_path / "tiny.safetensors"))
    assert np.isfinite(logits).all()


def test_same_bytes_twice(small_checkpoint: Path, small_model: Path, tmp_path: Path) -> None:
    again = quantize(small_checkpoint, tmp_path / "again.safetensors")
    assert again.read_bytes() == small_model.read_bytes()


def test_same_bytes_in_another_process_on_another_isa(
    small_checkpoint: Path, small_model: Path, tmp_path: Path
) -> None:
    run_python(
        "import sys, agnews_fast; agnews_fast.quantize(sys.argv[1], sys.argv[2])",
        small_checkpoint,
        tmp_path / "other.safetensors",
        PYTHONHASHSEED="99",
        AGNEWS_FAST_ISA="scalar",
        OMP_NUM_THREADS="1",
    )
    assert (tmp_path / "other.safetensors").read_bytes() == small_model.read_bytes()


def test_replaces_an_older_file_under_a_running_classifier(small_checkpoint: Path, tmp_path: Path) -> None:
    """The file is mapped, so writing into it would change or crash who uses it."""
    model = quantize(small_checkpoint, tmp_path / "model.safetensors")
    other = make_checkpoint(tmp_path / "other", **SIZES, seed=2)
    with Classifier(model) as running:
        before = running.logits(TEXTS)
        quantize(other, model)
        assert_same_bits(running.logits(TEXTS), before, "while the file was replaced")
    assert not np.array_equal(logits_of(model), before)


def test_leaves_nothing_beside_the_file(small_checkpoint: Path, tmp_path: Path) -> None:
    quantize(small_checkpoint, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_failure_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError):
        quantize(copy, tmp_path / "out" / "model.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_opens_with_safetensors(small_model: Path, small_checkpoint: Path) -> None:
    with safe_open(small_model, framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    assert metadata["format"] == "agnews_fast"
    assert metadata["format_version"] == "5"
    assert len(metadata["source_sha256"]) == 64
    assert set(metadata["source_sha256"]) <= set("0123456789abcdef")
    sizes = json.loads(metadata["config"]).values()
    assert all(size in sizes for size in SIZES.values())
    from_file = Tokenizer.from_str(bytes(tensors["tokenizer"]).decode())
    assert [from_file.encode(text).ids for text in TEXTS[:3]] == encode(small_checkpoint, TEXTS[:3], 512)
    assert {tensor.dtype for tensor in tensors.values()} >= {np.dtype(np.int8), np.dtype(np.float32)}


def test_alignment(small_model: Path) -> None:
    (length,) = struct.unpack_from("<Q", small_model.read_bytes())
    model = ModelFile.read(small_model)
    assert model.tensors
    for name, entry in model.tensors.items():
        assert (8 + length + entry["data_offsets"][0]) % ALIGNMENT == 0, name


def test_source_sha256_is_the_checkpoints(small_model: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", **SIZES, seed=2)
    model = ModelFile.read(quantize(other, tmp_path / "model.safetensors"))
    assert model.metadata["source_sha256"] != ModelFile.read(small_model).metadata["source_sha256"]


def test_int8_makes_the_file_small(checkpoint: Path, tmp_path: Path) -> None:
    """A byte a weight and a third more, most of it first projections, where the fp16 checkpoint has two bytes.

    It is the packaged model.
    """
    model = quantize(checkpoint, tmp_path / "model.safetensors")
    weights = sum(tensor.size for tensor in read_tensors(checkpoint).values())
    assert model.stat().st_size < 1.33 * weights
    with Classifier() as packaged, Classifier(model) as ours:
        assert_same_bits(packaged.logits(TEXTS), ours.logits(TEXTS), "the packaged model")


# Checkpoints


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_dtypes_and_shards_of_equal_weights(stored: str, tmp_path: Path) -> None:
    """float32 and shards hold the same weights as the original file, so nothing may change."""
    source = make_checkpoint(tmp_path / "source", **SIZES, seed=4, dtype=stored)
    expected = logits_of(quantize(source, tmp_path / "source.safetensors"))
    for dtype, shards in ((stored, 2), ("float32", 1), ("float32", 5)):
        other = copy_checkpoint(source, tmp_path / f"{dtype}{shards}", dtype=dtype, shards=shards)
        got = logits_of(quantize(other, tmp_path / f"{dtype}{shards}.safetensors"))
        assert_same_bits(got, expected, f"{stored} as {dtype} in {shards}")


def test_shards_in_the_real_layout(small_checkpoint: Path, small_model: Path, tmp_path: Path) -> None:
    """A single shard with an index is how the project's own checkpoint lies in the repository."""
    folder = copy_checkpoint(small_checkpoint, tmp_path / "folder", dtype="float16")
    name = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(read_tensors(small_checkpoint), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    got = logits_of(quantize(folder, tmp_path / "model.safetensors"))
    assert_same_bits(got, logits_of(small_model), "one shard with an index")


def test_tokenizer_settings_for_padding_and_truncation_do_not_leak(
    copy: Path, small_checkpoint: Path, small_model: Path, tmp_path: Path
) -> None:
    """Training scripts often save a tokenizer that pads and truncates to their batch's length."""
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(copy / "tokenizer.json"))
    got = logits_of(quantize(copy, tmp_path / "model.safetensors"))
    assert_same_bits(got, logits_of(small_model), "padding and truncation in tokenizer.json")


def test_cased_vocabulary(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "cased", **SIZES, seed=6, lowercase=False)
    with Classifier(checkpoint, threads=1) as classifier:
        lower, upper = classifier.logits(["red sox", "RED SOX"])
    assert not np.array_equal(lower, upper)


@pytest.mark.parametrize("missing", ["architectures", "id2label", "pad_token_id", "dtype"])
def test_config_keys_that_may_be_missing(copy: Path, tmp_path: Path, missing: str) -> None:
    """A folder says what it is by its tensors too; labels then have the names that transformers gives them."""
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    del config[missing]
    if missing == "id2label":
        config["num_labels"] = 5
        del config["label2id"]
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with Classifier(copy, threads=1) as classifier:
        assert len(classifier.labels) == 5


# Weights under the bound of the 16-bit sums


def test_lowering_is_the_best_there_is() -> None:
    """Against every choice of integers for windows of four."""
    rng = np.random.default_rng(31)
    limit = 6
    choices = np.array([c for c in itertools.product(range(limit + 1), repeat=4) if sum(c) <= limit])
    wanted = rng.uniform(-2, 5, (300, 4)).astype(np.float32)
    lowered, error = quantization._lower(wanted, limit)
    assert (lowered >= 0).all()
    assert (lowered.sum(axis=1) <= limit).all()
    positive = wanted > 0
    missed = np.where(positive, wanted - choices[:, None], 0.0)
    best = np.square(missed).sum(axis=2).min(axis=0)
    np.testing.assert_allclose(error, best, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.square(np.where(positive, wanted - lowered, 0)).sum(axis=1), error, rtol=1e-6)


def lane_fits(window: list[int], limit: int) -> bool:
    return max(sum(w for w in window if w > 0), sum(-w for w in window if w < 0)) <= limit


@pytest.mark.parametrize(("levels", "depth"), [(127, 8), (127, 4), (255, 8), (255, 4)])
@pytest.mark.parametrize("spread", [5.0, 18.0, 60.0])
def test_fitted_weights_keep_to_the_bound_and_lose_little(levels: int, depth: int, spread: float) -> None:
    """The windows of the 16-bit lanes are taken apart here by plain loops, as csrc/kernels/kernels.h describes them."""
    limit = 32767 // levels
    exact = np.random.default_rng(32).normal(0, spread, (6, 64)).astype(np.float32)
    exact[0, 5], exact[1, 7], exact[2, :32] = 900, -900, 126
    dense, integers = quantization._fit(exact, limit, depth)
    assert np.abs(dense).max() <= 127
    kept = 0
    for row, rounded in zip(dense.tolist(), np.rint(exact).astype(int).tolist(), strict=True):
        for first in range(0, 64, 4 * depth):
            for pair in (0, 2):
                lane = [first + 4 * group + pair + i for group in range(depth) for i in (0, 1)]
                window, before = [row[k] for k in lane], [rounded[k] for k in lane]
                assert lane_fits(window, limit)
                if lane_fits(before, limit) and max(map(abs, before)) <= 127:
                    assert window == before  # nothing but rounding happens
                    kept += 1
    assert kept > 0 or spread > 5
    outliers = dense != integers
    assert (dense[outliers] == 0).all()
    np.testing.assert_array_equal(integers[outliers], np.rint(exact)[outliers])
    assert outliers[0, 5]
    assert outliers[1, 7]
    changed = ~outliers & (integers != np.rint(exact))
    assert (np.abs(integers)[changed] < np.abs(exact)[changed]).all()  # a window is lowered, never raised


# The first layer's queries, keys and values of frequent words


def test_frequent_words_are_the_first_but_for_unused_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = {"c": 7, "[unused0]": 1, "[PAD]": 0, "[unused12]": 3, "unused": 4, "[UNK]": 2, "a": 5, "[unused]": 6}
    assert quantization._frequent_words(vocabulary) == [0, 2, 4, 5, 6, 7]
    monkeypatch.setattr(quantization, "_PROJECTED_WORDS", 3)
    assert quantization._frequent_words(vocabulary) == [0, 2, 4]
    assert quantization._frequent_words({}) == []


@pytest.mark.parametrize("words", [123, 500])
def test_first_projections(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int) -> None:
    """By the definition in float64: a LayerNorm of word + position, then the matrices."""
    monkeypatch.setattr(quantization, "_PROJECTED_WORDS", words)
    model = ModelFile.read(quantize(small_checkpoint, tmp_path / "model.safetensors"))
    heads, head, padded_head = 3, 20, 32
    weights = {name: tensor.astype(np.float64) for name, tensor in read_tensors(small_checkpoint).items()}

    def stored(name: str) -> npt.NDArray[np.float64]:
        """(rows, 3, heads, head)"""
        integers = model.tensor(f"layers.0.{name}.weight").astype(np.float64)
        assert (model.tensor(f"layers.0.{name}.row_sum") == integers.sum(axis=1)).all()
        assert np.abs(integers).max() == 127
        scale = model.tensor(f"layers.0.{name}.scale").astype(np.float64)
        rows = integers.reshape(-1, 3, heads, padded_head) * scale[:, :, None, None]
        assert not rows[..., head:].any()
        return rows[..., :head]

    row = model.tensor("layers.0.word_qkv.row")
    np.testing.assert_array_equal(row, np.where(np.arange(len(row)) < words, np.arange(len(row)), -1))
    bias = model.tensor("layers.0.word_qkv.bias").astype(np.float64).reshape(3, heads, padded_head)[..., :head]

    norm = "distilbert.embeddings.LayerNorm"
    ids, positions = np.arange(words), np.arange(words) * 7 % 128
    x = weights["distilbert.embeddings.word_embeddings.weight"][ids]
    x = x + weights["distilbert.embeddings.position_embeddings.weight"][positions]
    x = x - x.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-12)
    x = x * rstd * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
    got = rstd[:, :, None, None] * (stored("word_qkv")[ids] + stored("position_qkv")[positions]) + bias
    for part, name in enumerate("qkv"):
        linear = f"distilbert.transformer.layer.0.attention.{name}_lin"
        exact = x @ weights[f"{linear}.weight"].T + weights[f"{linear}.bias"]
        if name == "q":
            exact /= np.sqrt(head)
        exact = exact.reshape(words, heads, head)
        # Of 60 numbers of a row the largest is some 2.5 times their rms, and becomes 127: two roundings by a
        # sqrt(1 / 12) of that step each, the position's being smaller, are about 0.6 % of the rms.
        error = np.sqrt(np.mean((got[:, part] - exact) ** 2) / np.mean(exact**2))
        assert error < 0.01, name


def test_a_single_layer_has_no_first_projections(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "single", **SIZES | {"layers": 1}, seed=2)
    model = ModelFile.read(quantize(checkpoint, tmp_path / "single.safetensors"))
    assert not [name for name in model.tensors if "_qkv" in name]


@pytest.mark.parametrize("inputs", [1, 60, 768, 1024])
def test_products_of_fixed_point_numbers_are_exact(inputs: int) -> None:
    """In integers of any size; float64 then has no rounding that could depend on the order of a sum."""
    rng = np.random.default_rng(33)
    x, y = rng.normal(0, 3e-3, (4, inputs)), rng.normal(0, 50, (5, inputs)).astype(np.float32)
    x[0], y[0] = np.abs(x).max(), np.abs(y).max()
    (x_fixed, x_unit), (y_fixed, y_unit) = quantization._fixed_point(x), quantization._fixed_point(y)
    for values, fixed, unit in ((x, x_fixed, x_unit), (y, y_fixed, y_unit)):
        assert np.abs(values - fixed * unit).max() <= unit / 2 <= np.abs(values).max() / 2**19
    exact = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in as_integers_of(y_fixed)]
        for row in as_integers_of(x_fixed)
    ]
    product = quantization._product(x, y)
    assert (product / (x_unit * y_unit)).tolist() == exact
    assert not quantization._product(np.zeros((0, inputs)), y).size
    assert not quantization._product(np.zeros((2, inputs)), y).any()


def as_integers_of(fixed: npt.NDArray[np.float64]) -> list[list[int]]:
    return [[int(value) for value in row] for row in fixed.tolist()]


# Wide channels


def with_large_channels(tmp_path: Path, gain: float, **changes: npt.NDArray[np.float32]) -> Path:
    """A checkpoint of which the first layer's attention leaves channel 7 so many times, and 3 twice, as large."""
    checkpoint = make_checkpoint(tmp_path / "large", **SIZES, seed=5, outliers=False)
    tensors = read_tensors(checkpoint)
    norm = "distilbert.transformer.layer.0.sa_layer_norm.weight"
    tensors[norm][[7, 3]] = gain, 2.0
    write_tensors(checkpoint, tensors | changes, dtype="float32")
    return checkpoint


@pytest.mark.parametrize("gain", [5.0, 30.0, 1e4])
@pytest.mark.parametrize("levels", [127, 255])
def test_wide_channels_are_the_largest_and_keep_their_weights(tmp_path: Path, gain: float, levels: int) -> None:
    checkpoint = with_large_channels(tmp_path, gain)
    model = ModelFile.read(quantize(checkpoint, tmp_path / "large.safetensors", levels=levels))

    def part(name: str) -> npt.NDArray[Any]:
        return model.tensor(f"layers.0.ffn1.{name}")

    listed = part("wide_channel").tolist()
    channels = listed[:4]
    assert channels == sorted(set(channels))
    assert {3, 7} <= set(channels)
    assert listed[4:] == [-1] * 12
    divisor = 1 / part("inverse_divisor").astype(np.float64)
    assert divisor[7] == divisor.max() <= 128 * 8.001
    np.testing.assert_array_equal(np.delete(divisor, channels), 1)
    assert (divisor[channels] >= 127.99).all()
    dense = part("weight").transpose(0, 2, 1, 3).reshape(112, 64)  # of 100 x 60: (panels, k / 4, 16, 4)
    assert not dense[:, channels].any()
    assert not np.isin(part("outlier_k"), channels).any()
    wide = part("wide_weight").astype(np.float64).transpose(0, 2, 1, 3).reshape(112, 4)
    step = part("scale").astype(np.float64)[:, None] * 128 / divisor[channels]
    exact = read_tensors(checkpoint)["distilbert.transformer.layer.0.ffn.lin1.weight"][:, channels].astype(np.float64)
    assert (np.abs(wide * step - np.pad(exact, ((0, 12), (0, 0)))) <= 0.5001 * step).all()
    for name in ("layers.0.out", "layers.1.key"):
        assert (model.tensor(f"{name}.wide_channel") == -1).all()
        assert model.tensor(f"{name}.wide_weight").size == 0


@pytest.mark.parametrize("levels", [127, 255])
def test_weights_that_only_wide_channels_have_keep_to_32_bits(tmp_path: Path, levels: int) -> None:
    """The other weights' scale would be tiny: the core would refuse the file."""
    weight = np.zeros((100, 60), np.float32)
    weight[:, [3, 7]] = 1.0
    weight[5, 3] = -1e4
    checkpoint = with_large_channels(tmp_path, 1e4, **{"distilbert.transformer.layer.0.ffn.lin1.weight": weight})
    model = quantize(checkpoint, tmp_path / "large.safetensors", levels=levels)
    assert np.isfinite(logits_of(model)).all()
    wide = ModelFile.read(model).tensor("layers.0.ffn1.wide_weight").astype(np.int64)
    sums = np.abs(wide).sum(axis=(1, 3))
    assert 0 < sums.max() * (levels * 128 + 1) <= 2**29


def test_channels_that_are_all_zero() -> None:
    channels, inverse_divisor = quantization._wide("ffn1", np.zeros(16, np.float32))
    assert channels.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(inverse_divisor, [1 / 128] * 4 + [1] * 12)


# Where the file goes


def test_a_link_stays_a_link(small_checkpoint: Path, small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link.safetensors", tmp_path / "folder" / "target.safetensors"
    link.symlink_to(target)
    for _ in range(2):  # a link to nothing, and to a file
        assert quantize(small_checkpoint, link) == link
        assert link.is_symlink()
        assert target.read_bytes() == small_model.read_bytes()


def test_a_file_of_the_checkpoint_is_never_replaced(copy: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    (tmp_path / "link.safetensors").symlink_to(copy / "model.safetensors")
    outs = [copy / name for name in before] + [copy / "vocab.txt", tmp_path / "link.safetensors"]
    for out in outs:
        with pytest.raises(ValueError, match=r"out: .*none of the checkpoint's"):
            quantize(copy, out)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert quantize(copy, copy / "int8.safetensors").is_file()


def test_a_shard_of_the_checkpoint_is_never_replaced(small_checkpoint: Path, tmp_path: Path) -> None:
    sharded = copy_checkpoint(small_checkpoint, tmp_path / "sharded", dtype="float16", shards=2)
    for out in [*sharded.glob("*.safetensors"), sharded / "model.safetensors"]:  # the last would hide the shards
        with pytest.raises(ValueError, match="out: "):
            quantize(sharded, out)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("levels", 127.0, TypeError),
        ("levels", True, TypeError),
        ("levels", "127", TypeError),
        ("levels", 128, ValueError),
        ("depth", 8.0, TypeError),
        ("depth", np.array([4, 8]), TypeError),
        ("depth", 16, ValueError),
    ],
)
def test_options(small_checkpoint: Path, tmp_path: Path, option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{option}: expected"):
        quantize(small_checkpoint, tmp_path / "out", **{option: value})


def test_options_of_numpys_types(small_checkpoint: Path, small_model: Path, tmp_path: Path) -> None:
    out = quantize(small_checkpoint, tmp_path / "out", levels=np.int64(127), depth=np.uint8(8))  # type: ignore[arg-type]
    assert out.read_bytes() == small_model.read_bytes()


def test_permissions_follow_the_umask(small_checkpoint: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        out = quantize(small_checkpoint, tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


def test_out_that_cannot_be_written_is_noticed_before_the_work(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(quantization, "_unquantised_tensors", work)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for name, error in (
        ("pipe", FileExistsError),
        ("/dev/null", FileExistsError),
        ("", IsADirectoryError),
        ("no/folder/model.safetensors", FileNotFoundError),
        ("file/model.safetensors", NotADirectoryError),
    ):
        out = tmp_path / name
        with pytest.raises(error) as raised:
            quantize(small_checkpoint, out)
        assert raised.value.filename == str(out)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_many_may_write_the_same_file(small_checkpoint: Path, small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    with ThreadPoolExecutor(4) as pool:
        for written in pool.map(lambda _: quantize(small_checkpoint, out), range(8)):
            assert written.read_bytes() == small_model.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# vocab.txt


def with_vocabulary_alone(folder: Path, **settings: object) -> Path:
    """The checkpoint as it was before there were tokenizer.json files."""
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    (folder / "tokenizer.json").unlink()
    lines = "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


SPECIAL_TEXTS = [*TEXTS, "a [SEP] b [MASK][PAD] [unk] c", "[CLS]x", "Ünï 日本 [SEP"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
        {"unk_token": "[UNK]", "sep_token": {"__type": "AddedToken", "content": "[SEP]", "lstrip": False}},
    ],
    ids=["no settings", "settings", "AddedToken"],
)
def test_vocabulary_alone(copy: Path, small: Classifier, settings: dict[str, object]) -> None:
    with Classifier(with_vocabulary_alone(copy, **settings), threads=1) as classifier:
        assert_same_bits(classifier.logits(SPECIAL_TEXTS), small.logits(SPECIAL_TEXTS), "vocab.txt")


@pytest.mark.parametrize(
    ("key", "value"),
    [("do_lower_case", "yes"), ("strip_accents", 1), ("sep_token", ["[SEP]"]), ("cls_token", {"content": 3})],
)
def test_settings_that_make_no_sense(copy: Path, key: str, value: object) -> None:
    refuse(with_vocabulary_alone(copy, **{key: value}), rf"tokenizer_config\.json.*{key}")


@pytest.mark.parametrize(
    "content", [b"", b"no JSON", b"[]", b"\xff", b"[" * 100_000], ids=lambda value: repr(value[:9])
)
def test_settings_that_are_none(copy: Path, content: bytes) -> None:
    with_vocabulary_alone(copy)
    (copy / "tokenizer_config.json").write_bytes(content)
    refuse(copy, r"tokenizer_config\.json")


@pytest.mark.parametrize("special", ["[UNK]", "[CLS]", "[SEP]"])
def test_vocabulary_without_a_special_token(copy: Path, special: str) -> None:
    with_vocabulary_alone(copy)
    path = copy / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace(special, "other"), encoding="utf-8")
    refuse(copy, rf"vocab\.txt.*{re.escape(special)}")


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_settings_overrule_the_tokenizer(copy: Path, small: Classifier, files: str) -> None:
    """As in transformers: a cased model whose tokenizer.json says otherwise."""
    if files == "vocab.txt":
        with_vocabulary_alone(copy)
    texts = ["red sox", "RED SOX"]
    uncased = small.logits(texts)
    assert np.array_equal(uncased[0], uncased[1])
    (copy / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    with Classifier(copy, threads=1) as classifier:
        lower, upper = classifier.logits(texts)
    assert np.array_equal(lower, uncased[0])
    assert not np.array_equal(lower, upper)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_truncation_of_the_left_side_is_refused(copy: Path, files: str) -> None:
    if files == "vocab.txt":
        with_vocabulary_alone(copy)
    (copy / "tokenizer_config.json").write_text('{"truncation_side": "left"}', encoding="utf-8")
    refuse(copy, "truncation_side: expected 'right'")


@pytest.mark.parametrize(
    "settings",
    [
        {"additional_special_tokens": ["ab"]},
        {"additional_special_tokens": [{"content": "ab"}]},
        {"added_tokens_decoder": {"2": {"content": "[CLS]"}, "7": {"content": "ab"}}},
    ],
    ids=["names", "AddedToken", "decoder"],
)
def test_vocabulary_alone_with_added_tokens_is_refused(copy: Path, settings: dict[str, object]) -> None:
    refuse(with_vocabulary_alone(copy, **settings), "'ab'")


def test_added_tokens_beside_the_vocabulary_are_refused(copy: Path) -> None:
    with_vocabulary_alone(copy)
    (copy / "added_tokens.json").write_text('{"ab": 7}', encoding="utf-8")
    refuse(copy, r"added_tokens\.json")


def test_vocabulary_that_is_not_utf8(copy: Path) -> None:
    with_vocabulary_alone(copy)
    (copy / "vocab.txt").write_bytes(b"[UNK]\n[CLS]\n\xe9\n")
    refuse(copy, r"vocab\.txt.*UTF-8.*byte 12")


# Checkpoints that are refused


def refuse(checkpoint: Path, match: str | None) -> None:
    out = checkpoint.parent / "refused.safetensors"
    with pytest.raises(ModelError, match=match):
        quantize(checkpoint, out)
    assert not out.exists()
    with pytest.raises(ModelError, match=match):
        Classifier(checkpoint)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        quantize(tmp_path / "nowhere", tmp_path / "out.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Classifier(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refuse(copy, name)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", r"config\.json")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


@pytest.mark.parametrize(
    "architecture", ["BertForSequenceClassification", "DistilBertForMaskedLM", "RobertaForSequenceClassification"]
)
def test_other_architecture(copy: Path, architecture: str) -> None:
    change_config(copy, architectures=[architecture])
    refuse(copy, rf"DistilBertForSequenceClassification.*{architecture}")


def test_other_model_type(copy: Path) -> None:
    change_config(copy, model_type="bert", architectures=None)
    refuse(copy, "'bert'")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation", "tanh"),
        ("n_layers", 0),
        ("n_layers", "2"),
        ("n_layers", None),
        ("n_layers", 2**31 - 1),
        ("dim", -60),
        ("dim", 60.5),
        ("n_heads", 0),
        ("n_heads", 7),
        ("hidden_dim", [100]),
        ("vocab_size", 10**30),
        ("max_position_embeddings", 0),
        ("id2label", {"1": "a", "2": "b"}),
        ("id2label", 5),
        ("id2label", {}),
        ("id2label", {"0": "one"}),
        ("id2label", {"0": "a", "1": None}),
        ("id2label", {"0": "a", "1": ["b"]}),
        ("problem_type", "multi_label_classification"),
        ("problem_type", "regression"),
        ("problem_type", 5),
    ],
)
def test_config_that_makes_no_sense(copy: Path, key: str, value: object) -> None:
    change_config(copy, **{key: value})
    named = {"n_heads": "n_heads|heads", "vocab_size": "word_embeddings", "n_layers": "n_layers|layer.2"}
    refuse(copy, named.get(key, key))


def test_label_that_is_no_valid_unicode(copy: Path) -> None:
    change_config(copy, id2label={"0": "a", "1": "half a pair: \ud83d"})
    refuse(copy, r"config\.json.*surrogate")


@pytest.mark.parametrize("number", ["5", 5.0, 1, 4, -1, 2**31 - 1, True])
def test_num_labels_that_makes_no_sense(copy: Path, number: object) -> None:
    change_config(copy, id2label=None, num_labels=number)
    refuse(copy, "num_labels")


def test_problem_type_of_one_label_is_accepted(copy: Path, small_model: Path, tmp_path: Path) -> None:
    change_config(copy, problem_type="single_label_classification")
    assert_same_bits(logits_of(quantize(copy, tmp_path / "out")), logits_of(small_model), "problem_type")


def test_fewer_layers_than_there_are_tensors_for(copy: Path) -> None:
    """They would be left out without a word."""
    change_config(copy, n_layers=1)
    refuse(copy, r"transformer\.layer\.1\..*unknown")


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("distilbert.embeddings.position_ids", True),  # saved by older versions of transformers
        ("another_head.weight", True),
        ("distilbert.embeddings.token_type_embeddings.weight", False),
        ("distilbert.transformer.layer.0.attention.q_lin.lora_A.weight", False),
        ("classifier.dense.weight", False),
    ],
)
def test_tensors_that_are_unknown(copy: Path, small_model: Path, tmp_path: Path, name: str, accepted: bool) -> None:
    write_tensors(copy, read_tensors(copy) | {name: np.zeros((1, 4), np.float32)}, dtype="float16")
    if accepted:
        assert_same_bits(logits_of(quantize(copy, tmp_path / "out")), logits_of(small_model), name)
    else:
        refuse(copy, re.escape(name))


@pytest.mark.parametrize("content", ["", "no JSON", "[]", "null", "3", '{"dim": ', "[" * 100_000])
def test_config_that_is_no_config(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content, encoding="utf-8")
    refuse(copy, r"config\.json")


@pytest.mark.parametrize(
    "content",
    [
        *["", "no JSON", "{}", "[]", '{"model": {"type": "WordPiece"}}', "[" * 100_000],
        '{"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "max_input_chars_per_word": 100, '
        '"continuing_subword_prefix": "##"}}',  # its unknown token is not in the vocabulary
    ],
    ids=lambda content: content[:50],
)
def test_tokenizer_that_is_none(copy: Path, content: str) -> None:
    (copy / "tokenizer.json").write_text(content, encoding="utf-8")
    refuse(copy, "tokenizer")


def test_tokenizer_with_more_tokens_than_embeddings(copy: Path, tmp_path: Path) -> None:
    """Its ids would read behind the table."""
    larger = make_checkpoint(tmp_path / "larger", **SIZES | {"vocabulary": 600}, seed=1)
    shutil.copyfile(larger / "tokenizer.json", copy / "tokenizer.json")
    refuse(copy, "token")


def test_tokenizer_with_an_id_beyond_the_embeddings(copy: Path) -> None:
    """As few tokens as there are embeddings, but with a gap in their numbers."""
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"] = 500
    del vocabulary["z"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    refuse(copy, "token")


def test_tokenizer_with_a_special_id_beyond_the_embeddings(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 50000], "cls": ["[CLS]", 2]}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    refuse(copy, "copy: the tokenizer gives ids up to 50000")


def test_fewer_positions_than_special_tokens(tmp_path: Path) -> None:
    refuse(make_checkpoint(tmp_path / "short", **SIZES, positions=1, seed=1), "short: the tokenizer does not fit 1 pos")


EVERY_KIND = [
    "distilbert.embeddings.word_embeddings.weight",
    "distilbert.embeddings.position_embeddings.weight",
    "distilbert.embeddings.LayerNorm.bias",
    "distilbert.transformer.layer.0.attention.q_lin.weight",
    "distilbert.transformer.layer.1.attention.k_lin.bias",
    "distilbert.transformer.layer.0.attention.v_lin.weight",
    "distilbert.transformer.layer.1.attention.out_lin.bias",
    "distilbert.transformer.layer.0.sa_layer_norm.weight",
    "distilbert.transformer.layer.1.ffn.lin1.weight",
    "distilbert.transformer.layer.0.ffn.lin2.weight",
    "distilbert.transformer.layer.1.output_layer_norm.weight",
    "pre_classifier.weight",
    "pre_classifier.bias",
    "classifier.weight",
    "classifier.bias",
]


@pytest.mark.parametrize("name", EVERY_KIND)
def test_missing_tensor_is_named(copy: Path, name: str) -> None:
    tensors = read_tensors(copy)
    del tensors[name]
    write_tensors(copy, tensors)
    refuse(copy, name.replace(".", r"\."))


@pytest.mark.parametrize("name", EVERY_KIND)
def test_wrong_shape_is_named(copy: Path, name: str) -> None:
    original = read_tensors(copy)
    tensor = original[name]
    wrong = [tensor[1:], np.concatenate([tensor, tensor[:1]]), tensor[..., None], tensor[:0]]
    if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]:
        wrong.append(np.ascontiguousarray(tensor.T))
    for values in wrong:
        write_tensors(copy, {**original, name: values})
        refuse(copy, name.replace(".", r"\."))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", EVERY_KIND[::4])
def test_weight_that_is_not_finite_is_named(copy: Path, name: str, value: float) -> None:
    tensors = read_tensors(copy)
    tensors[name].reshape(-1)[-1] = value
    write_tensors(copy, tensors)
    refuse(copy, name.replace(".", r"\."))


def cut(content: bytes) -> bytes:
    return content[: len(content) - 1000]


def as_integers(content: bytes) -> bytes:
    return content.replace(b'"dtype": "F16"', b'"dtype": "I16"')


@pytest.mark.parametrize(
    "damage",
    [cut, as_integers, lambda content: content[:4], lambda content: b"\xff" * 8 + content[8:]],
    ids=["cut", "integers", "4 bytes", "header length"],
)
def test_damaged_weights(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refuse(copy, "safetensors")


def test_missing_shard_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(small_checkpoint, tmp_path / "sharded", dtype="float16", shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    for use in (Classifier, lambda path: quantize(path, tmp_path / "out.safetensors")):
        with pytest.raises((ModelError, FileNotFoundError), match=shard.name):
            use(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_index_that_makes_no_sense(small_checkpoint: Path, tmp_path: Path, content: str) -> None:
    folder = copy_checkpoint(small_checkpoint, tmp_path / "sharded", dtype="float16", shards=2)
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises((ModelError, FileNotFoundError)):
        quantize(folder, tmp_path / "out.safetensors")
