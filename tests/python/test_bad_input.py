"""Bad texts, bad arguments, bad model files: one clear exception each, and the process lives on."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agnews_fast import Classifier, ModelError, available_isas, quantize
from reference.bits import assert_same_bits
from reference.checkpoint import encode, read_tensors, write_tensors
from reference.model_file import ModelFile
from reference.process import run_python
from reference.random_checkpoint import make_checkpoint

SURROGATE = "half a pair: \ud83d"


def methods(classifier: Classifier) -> list[Callable[[Any], Any]]:
    return [
        classifier.predict,
        classifier.predict_proba,
        classifier.logits,
        classifier.embed,
        classifier,
        lambda texts: list(classifier.predict_iter(texts, batch_size=2)),
    ]


# Texts


@pytest.mark.parametrize(
    ("wrong", "type_name"),
    [
        (None, "NoneType"),
        (b"bytes", "bytes"),
        (bytearray(b"bytes"), "bytearray"),
        (7, "int"),
        (1.5, "float"),
        (["nested"], "list"),
        (("nested",), "tuple"),
        ({"text": "x"}, "dict"),
        (np.array(["x"]), "ndarray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_type_in_a_list_is_named(small: Classifier, wrong: object, type_name: str) -> None:
    for method in methods(small):
        with pytest.raises(TypeError, match=rf"texts\[3\].*str.*\b{type_name}\b"):
            method(["a", "b", "c", wrong, None])


@pytest.mark.parametrize(
    "wrong",
    [None, b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), 7, 1.5, {"a": 1}, {"a"}, frozenset("a"), object()],
    ids=lambda value: type(value).__name__,
)
def test_wrong_type_instead_of_texts(small: Classifier, wrong: Any) -> None:
    for method in methods(small):
        with pytest.raises(TypeError):
            method(wrong)


@pytest.mark.parametrize(
    "array", [np.array([["a", "b"], ["c", "d"]]), np.array("a"), np.array([1, 2]), np.array([b"a"])]
)
def test_wrong_array(small: Classifier, array: Any) -> None:
    for method in methods(small):
        with pytest.raises(TypeError):
            method(array)


def test_data_frame(small: Classifier) -> None:
    """It would be taken for the names of its columns."""
    pandas = pytest.importorskip("pandas")
    for method in methods(small):
        with pytest.raises(TypeError, match=r"one dimension.*DataFrame"):
            method(pandas.DataFrame({"text": ["a", "b"]}))


def test_predict_iter_refuses_a_single_str(small: Classifier) -> None:
    """It would be taken letter by letter."""
    with pytest.raises(TypeError, match="str"):
        list(small.predict_iter("one text"))


def test_index_counts_from_the_start_of_a_stream(small: Classifier) -> None:
    with pytest.raises(TypeError, match=r"texts\[1000\].*int"):
        small.predict([*["a"] * 1000, 5])  # type: ignore[list-item]
    texts: list[Any] = [*["a"] * 50, None]
    with pytest.raises(TypeError, match=r"texts\[50\].*NoneType"):
        list(small.predict_iter(iter(texts), batch_size=7))


def test_lone_surrogate(small: Classifier) -> None:
    for method in methods(small):
        with pytest.raises(ValueError, match=r"texts\[1\].*surrogate"):
            method(["fine", SURROGATE])
    with pytest.raises(ValueError, match="surrogate"):
        small.predict(SURROGATE)


def test_an_error_of_the_source_passes_through(small: Classifier) -> None:
    def source() -> Any:
        yield "a"
        raise KeyError("of the source")

    for method in methods(small):
        with pytest.raises(KeyError, match="of the source"):
            method(source())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 256])
def test_a_stream_gives_all_labels_before_a_bad_text(small: Classifier, batch_size: int) -> None:
    texts: list[Any] = ["one", "two", "three", "four", "five", None, "seven"]
    stream, got = small.predict_iter(texts, batch_size=batch_size), []
    with pytest.raises(TypeError, match=r"texts\[5\].*NoneType"):
        got.extend(stream)  # extends as far as the stream comes
    assert got == small.predict(texts[:5])
    assert list(stream) == []


def test_a_streams_arguments_are_checked_at_once(small: Classifier, small_model: Path) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        small.predict_iter(["a"], batch_size=0)
    with pytest.raises(TypeError, match="texts"):
        small.predict_iter(None)  # type: ignore[arg-type]
    closed = Classifier(small_model)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        closed.predict_iter(["a"])


class Shouting(str):
    """A str that is not what it says."""

    def __str__(self) -> str:
        return "other"

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        return b"other"

    def __getitem__(self, _: Any) -> str:
        raise KeyError


def test_subclasses_of_str_are_taken_for_their_text(small: Classifier) -> None:
    texts = ["a text", "a longer text " * 500]
    assert_same_bits(small.logits([Shouting(text) for text in texts]), small.logits(texts), "a subclass")
    with pytest.raises(ValueError, match=r"texts\[1\].*surrogate"):
        small.predict(["a", Shouting(SURROGATE)])


def test_still_usable_after_an_error(small: Classifier) -> None:
    before = small.logits(["a text"])
    for wrong in ([None], [SURROGATE], ["a", 5]):
        with pytest.raises((TypeError, ValueError)):
            small.predict(wrong)  # type: ignore[arg-type]
    assert_same_bits(small.logits(["a text"]), before, "after errors")


UNUSUAL = [
    "",
    " ",
    " \t\r\n\u00a0\u2003",
    "\0",
    "a\0b",
    "\x01\x7f\x9f",
    "\ufeff\u200b\u200e",
    "\ufffd",
    "Ünïcödé, ÀÉÎ",
    "e\u0301\u0300\u0302" * 50,
    "日本語のニュース",
    "العربية",
    "🙂🏳️‍🌈",
    "\U0010ffff",
    "x" * 5000,
    "#39;\\\\ &lt;b&gt;",
    "[CLS] [SEP] [PAD] [MASK] [UNK]",
    "##ing ##",
    "I" * 99 + " " + "J" * 100 + " " + "K" * 101,
    "ß \u0130 \u0131 Σ ς ǅ",
]


def test_unusual_texts(small: Classifier, small_checkpoint: Path) -> None:
    """Valid all the same: tokenised as the tokenizers library does."""
    expected = small.logits_from_ids(encode(small_checkpoint, UNUSUAL, small.max_length))
    assert_same_bits(small.logits(UNUSUAL), expected, "unusual texts")


def test_unusual_texts_on_the_packaged_model(classifier: Classifier, checkpoint: Path) -> None:
    expected = classifier.logits_from_ids(encode(checkpoint, UNUSUAL, classifier.max_length))
    assert_same_bits(classifier.logits(UNUSUAL), expected, "unusual texts")


def test_empty_and_blank_texts_are_only_special_tokens(small: Classifier, small_checkpoint: Path) -> None:
    (ids,) = encode(small_checkpoint, [""], 16)
    assert len(ids) == 2
    expected = np.repeat(small.logits_from_ids([ids]), 4, axis=0)
    assert_same_bits(small.logits(["", " ", "\n\t \u3000", "\0"]), expected, "blank texts")


@pytest.mark.parametrize("unit", ["word after word, ", "x", "日", "\n", ".", "é", "\u0301", "\u200d"])
def test_text_of_5_mb(small: Classifier, small_checkpoint: Path, unit: str) -> None:
    text = unit * (5_000_000 // len(unit.encode()))
    # What decides lies in the first 128 tokens: far fewer characters, save for one word, which is [UNK] at any length.
    (ids,) = encode(small_checkpoint, [unit * 5000], small.max_length)
    assert_same_bits(small.logits([text, "a"])[:1], small.logits_from_ids([ids]), "a text of 5 MB")


def test_text_of_5_mb_without_truncation(small: Classifier) -> None:
    with pytest.raises(ValueError, match=r"texts\[1\].*at most 128.*at least \d+"):
        small.predict(["a", "a " * 1_000_000], truncation=False)


PIECES = [
    *["word", "unaffable", "é", "e\u0301", "\u0301", "\u200d", "日", ".", "...", "'s", "-", "\n", "\0", "x" * 90],
    *["[SEP]", "[CLS]", "[SE", "P]", "[", "]", "[MASK]", "##ing", "ß", "\u2028", "\ufffd", "🙂", " ", "  ", "\u3000"],
]


def test_long_texts_have_the_tokens_that_the_whole_text_begins_with(small_model: Path, small_checkpoint: Path) -> None:
    """Only as much of a text is tokenised as counts; where it is cut must not be seen."""
    rng = np.random.default_rng(21)
    with Classifier(small_model, threads=1, max_length=8) as short:
        texts = []
        for length in range(20, 620, 2):
            kinds = rng.choice(len(PIECES), size=int(rng.integers(1, len(PIECES))), replace=False)
            texts.append("".join(PIECES[i] for i in rng.choice(kinds, size=length)))
        assert sum(len(text) > 1000 for text in texts) > 50
        got, wanted = short.logits(texts), short.logits_from_ids(encode(small_checkpoint, texts, 8))
        assert_same_bits(got, wanted, "long texts")


def spoilt_tokenizer(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    copy = Path(shutil.copytree(checkpoint, folder))
    described = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps(described | changes), encoding="utf-8")
    return copy


def test_a_text_without_tokens_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = spoilt_tokenizer(small_checkpoint, tmp_path / "copy", post_processor=None)
    with Classifier(checkpoint, threads=1) as classifier:
        assert classifier.logits(["a"]).shape == (1, 5)
        for method in methods(classifier):
            with pytest.raises(ValueError, match=r"texts\[300\].*at least one token"):
                method(["a"] * 300 + [""])


def test_a_text_that_the_tokenizer_fails_on_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "[CLS]": 2, "[SEP]": 3, "a": 5}, "unk_token": "nowhere"}
    checkpoint = spoilt_tokenizer(small_checkpoint, tmp_path / "copy", model=model, added_tokens=[])
    with Classifier(checkpoint, threads=1) as classifier:
        for method in methods(classifier):
            with pytest.raises(ValueError, match=r"texts\[1\]: the tokenizer fails"):
                method(["a", "unknown"])


def test_max_length_without_room_for_the_special_tokens(small_checkpoint: Path, tmp_path: Path) -> None:
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (("[CLS]", 2), ("[SEP]", 3))}
    template = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]", "[SEP]")]
    template.insert(1, {"Sequence": {"id": "A", "type_id": 0}})
    post_processor = {"type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": special}
    checkpoint = spoilt_tokenizer(small_checkpoint, tmp_path / "copy", post_processor=post_processor)
    model = quantize(checkpoint, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"max_length: expected at least 3.*got 2"):
        Classifier(model, max_length=2)
    with Classifier(model, max_length=3) as classifier:
        assert classifier.logits(["a text"]).shape == (1, 5)


# Ids


@pytest.mark.parametrize(
    "wrong",
    [[[2, 500, 3]], [[2, -1, 3]], [[2, 3], [2**31 - 1]], [[2**31]], [[2**70]], [[]], [[2, 3], []], [[2] * 129]],
    ids=["vocabulary", "negative", "large", "int32", "huge", "no tokens", "a text without", "positions"],
)
def test_ids_out_of_range(small: Classifier, wrong: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=rf"ids\[{len(wrong) - 1}\]"):
        small.logits_from_ids(wrong)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (None, "ids: "),
        (5, "ids: "),
        (np.array(5), "ids: expected a sequence of sequences of int, got int"),
        ("ab", "ids: "),
        ({2: [3]}, "ids: "),
        ([5], "ids[0]: "),
        (np.array([2, 3]), "ids[0]: "),
        ([[2], None], "ids[1]: "),
        (["ab"], "ids[0]: "),
        ([{2, 3}], "ids[0]: "),
        ([(token for token in [2])], "ids[0]: "),
        ([np.array(2)], "ids[0]: "),
        ([[2, None]], "ids[0][1]: "),
        ([["a"]], "ids[0][0]: "),
        ([[1.5]], "ids[0][0]: "),
        ([[True]], "ids[0][0]: "),
        ([[5, [6]]], "ids[0][1]: "),
        ([np.array([[2, 3]])], "ids[0][0]: "),
        ([np.array([2, "a"], object)], "ids[0][1]: "),
    ],
    ids=repr,
)
def test_ids_of_wrong_type(small: Classifier, wrong: Any, where: str) -> None:
    with pytest.raises(TypeError, match=re.escape(where)):
        small.logits_from_ids(wrong)


def test_ids_of_any_integers(small: Classifier) -> None:
    wanted = small.logits_from_ids([[2, 5, 3]])
    for text in (
        np.array([2, 5, 3], np.uint16),
        np.array([2, 5, 3], object),
        (np.int64(2), 5, np.uint8(3)),
        range(2, 4),
    ):
        got = small.logits_from_ids([text])  # type: ignore[list-item]
        assert_same_bits(got, small.logits_from_ids([[2, 3]]) if isinstance(text, range) else wanted, "ids")
    assert_same_bits(small.logits_from_ids(np.array([[2, 5, 3]])), wanted, "ids")  # type: ignore[arg-type]
    assert small.logits_from_ids([]).shape == (0, 5)


def test_every_valid_id_and_length_is_taken(small: Classifier) -> None:
    assert np.isfinite(small.logits_from_ids([[0], [499], [499] * 128])).all()


# Arguments


@pytest.mark.parametrize("threads", [0, -1, 10**9, -(10**30)])
def test_threads_out_of_range(small_model: Path, threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        Classifier(small_model, threads=threads)


@pytest.mark.parametrize("threads", ["2", True, 1.0, [1]])
def test_threads_of_wrong_type(small_model: Path, threads: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="threads"):
        Classifier(small_model, threads=threads)


@pytest.mark.parametrize("max_length", [10**9, 129, 1, 0, -5])
def test_max_length_out_of_range(small_model: Path, max_length: int) -> None:
    with pytest.raises(ValueError, match=r"max_length.*128"):
        Classifier(small_model, max_length=max_length)


def test_max_length_beyond_the_packaged_model() -> None:
    with pytest.raises(ValueError, match=r"max_length.*512"):
        Classifier(max_length=10**9)


@pytest.mark.parametrize("max_length", ["16", True, 16.0])
def test_max_length_of_wrong_type(small_model: Path, max_length: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_length"):
        Classifier(small_model, max_length=max_length)


@pytest.mark.parametrize("batch_size", [0, -1, "8", 1.5, True])
def test_batch_size(small: Classifier, batch_size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="batch_size"):
        list(small.predict_iter(["a"], batch_size=batch_size))


@pytest.mark.parametrize("truncation", ["False", 1, None, np.array([True, False])], ids=repr)
def test_truncation_of_wrong_type(small: Classifier, truncation: Any) -> None:
    for method in (small.predict, small.predict_proba, small.logits, small.embed, small, small.predict_iter):
        for texts in (["a"], []):
            with pytest.raises(TypeError, match="truncation: expected a bool"):
                method(texts, truncation=truncation)


def test_options_are_keywords(small: Classifier, small_model: Path) -> None:
    with pytest.raises(TypeError):
        Classifier(small_model, 1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        small.predict(["a"], False)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["avx1024", "SCALAR ", "neon", "scalar,avx2"])
def test_isa_that_is_not_there(small_model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name in available_isas():
        pytest.skip(f"{name} is supported here")
    monkeypatch.setenv("AGNEWS_FAST_ISA", name)
    with pytest.raises(ValueError, match=re.escape(name)) as raised:
        Classifier(small_model)
    assert not isinstance(raised.value, ModelError)
    for isa in available_isas():
        assert isa in str(raised.value)


# Model files


@pytest.fixture
def model(small_model: Path) -> ModelFile:
    return ModelFile.read(small_model)


def refuse(path: Path, match: str | None = None) -> None:
    """The file is refused, by name, in the constructor."""
    with pytest.raises(ModelError, match=match) as raised:
        Classifier(path, threads=1)
    assert path.name in str(raised.value)


@pytest.mark.parametrize("name", ["nothing.safetensors", "no/folder/model.safetensors"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=Path(name).name):
        Classifier(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", FileNotFoundError),
        ("a\0b", ValueError),
        ("\ud800", ValueError),
        (b"/tmp", TypeError),
        (5, TypeError),
        (["a"], TypeError),
    ],
    ids=["empty", "NUL", "surrogate", "bytes", "int", "list"],
)
def test_paths_that_are_none(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any, error: type[Exception]
) -> None:
    monkeypatch.chdir(small_checkpoint)  # which Path("") stands for
    with pytest.raises(error, match="model: expected"):
        Classifier(path)
    with pytest.raises(error, match="checkpoint: expected"):
        quantize(path, tmp_path / "out")
    with pytest.raises(error, match="out: expected"):
        quantize(small_checkpoint, path)


def test_what_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes to must not be waited for."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the path of a socket may have 107 bytes at most
        listening.bind("socket")
        for name, kind in (("pipe", "named pipe"), ("socket", "socket"), ("/dev/null", "device")):
            refuse(Path(name), f"expected a regular file, got a {kind}")


def test_a_path_that_is_not_utf8(small: Classifier, small_model: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"mod\xe8le.safetensors")
    try:
        path.write_bytes(small_model.read_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    with Classifier(path) as classifier:
        assert_same_bits(classifier.logits(["a text"]), small.logits(["a text"]), "a copy")
        assert "udce8" in repr(classifier)
    path.write_bytes(b"damaged")
    refuse(path)


def test_an_untouched_copy_is_accepted(model: ModelFile, small: Classifier, tmp_path: Path) -> None:
    """What all the following tests rest on: taking apart, sealing and putting together does no damage by itself."""
    copy = model.seal().write(tmp_path / "copy.safetensors")
    with Classifier(copy) as classifier:
        assert_same_bits(classifier.logits(["a text"]), small.logits(["a text"]), "the copy")


def test_truncated(small_model: Path, tmp_path: Path) -> None:
    content = small_model.read_bytes()
    (header,) = struct.unpack_from("<Q", content)
    ends = {0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 8 + header + 1, len(content) - 64}
    ends |= {len(content) - 1, *range(0, len(content), len(content) // 23)}
    for end in sorted(ends):
        path = tmp_path / f"{end}.safetensors"
        path.write_bytes(content[:end])
        refuse(path)


def test_more_bytes_than_tensors(small_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "longer.safetensors"
    path.write_bytes(small_model.read_bytes() + b"\0" * 64)
    refuse(path)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32 + 100, 2**62, 2**63, 2**64 - 1, 2**64 - 8])
def test_header_length(small_model: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + small_model.read_bytes()[8:])
    refuse(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not JSON",
        b"[]",
        b"3",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b"{",
        b"{}",
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {}}',
    ],
    ids=lambda header: header[:10].decode("latin-1"),
)
def test_header_that_is_no_header(model: ModelFile, tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(model.payload))
    refuse(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"\0" * 100, b"text\n" * 50, b"\0" * 4096, b"\xff" * 4096])
def test_other_kinds_of_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refuse(path)


def test_foreign_safetensors(small_checkpoint: Path) -> None:
    refuse(small_checkpoint / "model.safetensors", "format")


@pytest.mark.parametrize("version", ["0", "1", "99", "2.1", "", "two"])
def test_other_version(model: ModelFile, tmp_path: Path, version: str) -> None:
    model.metadata["format_version"] = version
    refuse(model.write(tmp_path / "model.safetensors"), "version")


@pytest.mark.parametrize("key", ["format", "format_version", "config", "label_names"])
def test_metadata_is_needed(model: ModelFile, tmp_path: Path, key: str) -> None:
    del model.metadata[key]
    refuse(model.seal().write(tmp_path / "model.safetensors"), key.partition("_")[0])


def test_no_metadata(model: ModelFile, tmp_path: Path) -> None:
    del model.header["__metadata__"]
    refuse(model.write(tmp_path / "model.safetensors"))


NO_SENSE = pytest.mark.parametrize(
    "value",
    ["", "no JSON", "null", "[]", "{}", "7", '{"model": 5}', "[" * 100_000, '["a", "b", "c", "d", "\\ud83d"]'],
    ids=lambda value: value[:10],
)


@pytest.mark.parametrize("key", ["config", "label_names"])
@NO_SENSE
def test_metadata_that_makes_no_sense(model: ModelFile, tmp_path: Path, key: str, value: str) -> None:
    model.metadata[key] = value
    refuse(model.seal().write(tmp_path / "model.safetensors"), key)


@NO_SENSE
def test_tokenizer_that_makes_no_sense(model: ModelFile, tmp_path: Path, value: str) -> None:
    refuse(model.with_tokenizer(value.encode()).seal().write(tmp_path / "model.safetensors"), "tokenizer")


def test_tokenizer_is_needed_in_utf_8(model: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = bytes(model.tensor("tokenizer"))
    with Classifier(model.with_tokenizer(content.rstrip()).seal().write(path)) as classifier:
        assert classifier.predict("word 5") in classifier.labels
    refuse(model.with_tokenizer(content.replace(b"[UNK]", b"[UN\xff]")).seal().write(path), "UTF-8")
    refuse(model.with_tokenizer(content, dtype="I8").seal().write(path), r"expected U8 \(\d+,\), got I8 \(\d+,\)")
    refuse(model.with_tokenizer(content, dtype="F32").seal().write(path), r"expected U8 \(\d+,\), got F32 ")
    del model.with_tokenizer(b"").header["tokenizer"]
    refuse(model.seal().write(path), "'tokenizer' is missing")


def test_any_change_of_the_header_is_seen(model: ModelFile, tmp_path: Path) -> None:
    for key in model.metadata:
        changed = ModelFile(json.loads(json.dumps(model.header)), model.payload)
        changed.metadata[key] += " "
        refuse(changed.write(tmp_path / "model.safetensors"), "format|damaged")
    labels = json.loads(model.metadata["label_names"])
    model.metadata["label_names"] = json.dumps(labels[::-1])
    refuse(model.write(tmp_path / "model.safetensors"), "damaged")
    with Classifier(model.seal().write(tmp_path / "model.safetensors")) as classifier:
        assert classifier.labels == labels[::-1]


MISSING = object()


@pytest.mark.parametrize("value", [0, -1, 10**6, 2**31, 2**63, 2**64, 10**40, 1.5, "8", None, [], True, MISSING])
def test_config_sizes(model: ModelFile, tmp_path: Path, value: object) -> None:
    """Every size of the config, changed to what the tensors do not fit, or left out."""
    config = json.loads(model.metadata["config"])
    sizes = [name for name, size in config.items() if type(size) is int]
    assert len(sizes) >= 7
    for name in sizes:
        changed = {key: size for key, size in config.items() if key != name}
        if value is not MISSING:
            changed[name] = value
        model.metadata["config"] = json.dumps(changed)
        with pytest.raises(ModelError) as raised:
            Classifier(model.seal().write(tmp_path / "model.safetensors"))
        assert "model.safetensors: " in str(raised.value)
        assert "damaged" not in str(raised.value)


Entry = dict[str, Any]


def shift(entry: Entry, begin: Any, end: Any) -> None:
    entry["data_offsets"] = [begin, end]


ENTRIES: dict[str, Callable[[Entry, int], Any]] = {
    "beyond the end": lambda entry, size: shift(
        entry, size, size + entry["data_offsets"][1] - entry["data_offsets"][0]
    ),
    "end beyond the end": lambda entry, size: shift(entry, entry["data_offsets"][0], size + 64),
    "near 2^64": lambda entry, _: shift(entry, 2**64 - 64, 2**64 - 1),
    "beyond 2^64": lambda entry, _: shift(entry, 2**64, 2**64 + 64),
    "negative": lambda entry, _: shift(entry, -64, 64),
    "reversed": lambda entry, _: shift(entry, entry["data_offsets"][1], entry["data_offsets"][0]),
    "fractions": lambda entry, _: shift(entry, 0.5, 64.5),
    "strings": lambda entry, _: shift(entry, "0", "64"),
    "overlapping": lambda entry, _: shift(entry, entry["data_offsets"][0] - 64, entry["data_offsets"][1] - 64),
    "too short": lambda entry, _: shift(entry, entry["data_offsets"][0], entry["data_offsets"][1] - 64),
    "one offset": lambda entry, _: entry.update(data_offsets=[0]),
    "no offsets": lambda entry, _: entry.pop("data_offsets"),
    "unknown dtype": lambda entry, _: entry.update(dtype="F17"),
    "other dtype": lambda entry, _: entry.update(
        dtype={"F32": "I32", "I32": "F32", "I8": "U8", "U8": "I8", "I16": "F16"}[entry["dtype"]]
    ),
    "wider dtype": lambda entry, _: entry.update(dtype="F64"),
    "dtype of no type": lambda entry, _: entry.update(dtype=3),
    "flat shape": lambda entry, _: entry.update(shape=[1, *entry["shape"]]),
    "larger shape": lambda entry, _: entry.update(shape=[entry["shape"][0] + 1, *entry["shape"][1:]]),
    "shape that overflows": lambda entry, _: entry.update(shape=[2**32, 2**32, *entry["shape"]]),
    "negative shape": lambda entry, _: entry.update(shape=[-size for size in entry["shape"]]),
    "no shape": lambda entry, _: entry.pop("shape"),
    "null": lambda entry, _: entry.clear(),
}


@pytest.mark.parametrize("damage", list(ENTRIES))
def test_tensor_entries(model: ModelFile, tmp_path: Path, damage: str) -> None:
    """One of each dtype, so that kernels' and norms' readers both meet it."""
    by_dtype = {entry["dtype"]: name for name, entry in model.tensors.items() if entry["data_offsets"][0] > 0}
    assert {"I8", "F32"} <= by_dtype.keys()
    for dtype, name in by_dtype.items():
        damaged = ModelFile(json.loads(json.dumps(model.header)), model.payload)
        ENTRIES[damage](damaged.header[name], len(model.payload))
        if damaged.header[name].get("data_offsets") == model.header[name]["data_offsets"]:
            damaged.seal()
        refuse(damaged.write(tmp_path / f"{dtype}.safetensors"))


def test_every_tensor_is_needed(model: ModelFile, tmp_path: Path) -> None:
    """Its name is changed: the bytes stay, and so does everything that only counts them."""
    for number, name in enumerate(model.tensors):
        header = {f"{key}_" if key == name else key: entry for key, entry in model.header.items()}
        damaged = ModelFile(json.loads(json.dumps(header)), model.payload)
        refuse(damaged.seal().write(tmp_path / f"{number}.safetensors"), re.escape(name))


def test_misaligned(model: ModelFile, tmp_path: Path) -> None:
    text = json.dumps(model.header).encode()
    text += b" " * (-(8 + len(text)) % 64 + 4)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(model.payload))
    refuse(path)


def test_changed_bytes(model: ModelFile, tmp_path: Path) -> None:
    """One bit anywhere in the tensors, and in each of them: found by the checksum or by the sums."""
    rng = np.random.default_rng(11)
    inside = [rng.integers(*entry["data_offsets"]) for entry in model.tensors.values() if 0 not in entry["shape"]]
    for number, position in enumerate([*rng.integers(0, len(model.payload), 60), *inside]):
        damaged = ModelFile(model.header, bytearray(model.payload))
        damaged.payload[position] ^= 1 << int(rng.integers(8))
        refuse(damaged.write(tmp_path / f"{number}.safetensors"))


def matrices(model: ModelFile) -> list[str]:
    """The packed int8 matrices: panels of 16 columns, groups of 4 inputs."""
    names = [name for name, entry in model.tensors.items() if entry["dtype"] == "I8" and len(entry["shape"]) == 4]
    assert len(names) >= 8
    return names


def test_weights_that_break_the_overflow_bound(model: ModelFile, tmp_path: Path) -> None:
    for name in matrices(model):
        damaged = ModelFile(model.header, bytearray(model.payload))
        flat = damaged.tensor(name).reshape(-1)
        flat[: min(4096, flat.size)] = 127
        refuse(damaged.seal().write(tmp_path / f"{name}.safetensors"), re.escape(name.rpartition(".")[0]))


@pytest.mark.parametrize(("value", "accepted"), [(0, True), (1, True), (127, False), (-127, False), (-128, False)])
def test_overflow_bound_itself(model: ModelFile, tmp_path: Path, value: int, accepted: bool) -> None:
    """One column of a matrix whose column sum, and the file's checksum, agree with the change.

    127 in every place adds up to 127 * 127 * 2 * depth in a 16-bit lane, beyond 32767 for any depth from 2; 0 and 1
    do not, and are accepted, so it is the bound that refuses the others.
    """
    for name in matrices(model):
        damaged = ModelFile(json.loads(json.dumps(model.header)), bytearray(model.payload))
        column = damaged.tensor(name)[0, :, 3, :]
        sums = damaged.tensor(f"{name.rpartition('.')[0]}.column_sum")
        sums[3] += value * column.size - int(column.sum(dtype=np.int64))
        column[:] = value
        path = damaged.seal().write(tmp_path / f"{name}.safetensors")
        if accepted:
            with Classifier(path, threads=1) as classifier:
                assert np.isfinite(classifier.logits(["a text"])).all()
        else:
            refuse(path, re.escape(name.rpartition(".")[0]))


@pytest.mark.parametrize("name", ["word_qkv", "position_qkv"])
def test_first_projections_are_checked_against_their_sums(model: ModelFile, tmp_path: Path, name: str) -> None:
    for number, part in enumerate(("weight", "row_sum")):
        damaged = ModelFile(json.loads(json.dumps(model.header)), bytearray(model.payload))
        damaged.tensor(f"layers.0.{name}.{part}").reshape(-1)[-1] += 1
        refuse(damaged.seal().write(tmp_path / f"{number}.safetensors"), rf"layers\.0\.{name}\.weight, row")


@pytest.mark.parametrize(("value", "accepted"), [(-1, True), (0, True), (-2, False), (512, False), (2**31 - 1, False)])
def test_words_with_no_first_projection_and_beyond_them(
    model: ModelFile, tmp_path: Path, value: int, accepted: bool
) -> None:
    """Of 500 words, padded to 512, in any place."""
    for place in (0, 250, -1):
        damaged = ModelFile(json.loads(json.dumps(model.header)), bytearray(model.payload))
        damaged.tensor("layers.0.word_qkv.row")[place] = value
        path = damaged.seal().write(tmp_path / f"{place}.safetensors")
        if accepted:
            with Classifier(path, threads=1) as classifier:
                assert np.isfinite(classifier.logits(["a text"])).all()
        else:
            refuse(path, r"layers\.0\.word_qkv\.row\[\d+\]: expected -1 to 511, got ")


def test_values_that_are_not_finite(model: ModelFile, tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf):
        for name, entry in model.tensors.items():
            if entry["dtype"] != "F32":
                continue
            damaged = ModelFile(json.loads(json.dumps(model.header)), bytearray(model.payload))
            damaged.tensor(name).reshape(-1)[-1] = value
            refuse(damaged.seal().write(tmp_path / "model.safetensors"), re.escape(name))


@pytest.mark.parametrize(
    ("name", "scale"),
    [("distilbert.transformer.layer.1.sa_layer_norm.weight", 1e38), ("pre_classifier.weight", 1e39)],
    ids=["first token", "logits"],
)
def test_output_that_is_not_finite(tmp_path: Path, name: str, scale: float) -> None:
    """Weights that are finite, but lead to values beyond float32: no label, number or state may come of them."""
    sizes = {"layers": 2, "hidden": 60, "heads": 3, "ffn": 100, "labels": 5, "vocabulary": 500, "positions": 128}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **sizes, seed=1, outliers=False)
    tensors = read_tensors(checkpoint)
    tensors[name] = (tensors[name] * np.float64(scale)).clip(-3e38, 3e38).astype(np.float32)
    write_tensors(checkpoint, tensors, dtype="float32")
    with Classifier(quantize(checkpoint, tmp_path / "model.safetensors"), threads=1) as classifier:
        for method in methods(classifier):
            with pytest.raises(ValueError, match="the model's output is not finite"):
                method(["a text", "another text"])


def test_integers_out_of_range_never_crash(model: ModelFile, tmp_path: Path) -> None:
    """Indices and sums beyond all sense under a right checksum: refused or harmless, and never a read outside."""
    names = [name for name, entry in model.tensors.items() if entry["dtype"] == "I32"]
    assert names
    for number, name in enumerate(names):
        for pattern in (0xFF, 0x7F, 0x80, 0x01):
            damaged = ModelFile(json.loads(json.dumps(model.header)), bytearray(model.payload))
            damaged.tensor(name).reshape(-1).view(np.uint8)[:] = pattern
            damaged.seal().write(tmp_path / f"{number}_{pattern}.safetensors")
    refused = run_python(
        """
        import pathlib, sys
        import agnews_fast
        refused = 0
        for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
            try:
                classifier = agnews_fast.Classifier(path, threads=1)
            except agnews_fast.ModelError:
                refused += 1
                continue
            try:
                classifier.logits_from_ids([[2, 5, 7, 3], [2, 3]])
            except ValueError:
                pass
        print(refused)
        """,
        tmp_path,
    )
    assert int(refused) >= len(names)


def damaged_headers(content: bytes) -> Iterator[bytes]:
    """The file with some bytes of its header changed, and again with the checksum made right where that can be done."""
    (length,) = struct.unpack_from("<Q", content)
    rng = random.Random(5)
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(8 + length)] = rng.choice([rng.randrange(256), *b'0129-"{}[],:'])
        yield bytes(damaged)
        try:
            sealed = ModelFile(json.loads(damaged[8 : 8 + length]), bytearray(content[8 + length :])).seal()
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        yield sealed.content()


def test_random_damage_to_the_header_never_crashes(small_model: Path, tmp_path: Path) -> None:
    for number, content in enumerate(damaged_headers(small_model.read_bytes())):
        (tmp_path / f"{number}.safetensors").write_bytes(content)
    refused, accepted = run_python(
        """
        import pathlib, sys
        import agnews_fast
        refused = accepted = 0
        for path in pathlib.Path(sys.argv[1]).iterdir():
            try:
                classifier = agnews_fast.Classifier(path, threads=1)
                accepted += 1
            except agnews_fast.ModelError:
                refused += 1
                continue
            finally:
                path.unlink()
            try:
                classifier.logits(["a text", ""])
            except ValueError:
                pass
        print(refused, accepted)
        """,
        tmp_path,
    ).split()
    assert int(refused) > 400
    assert int(accepted) > 0  # a change of a label, say, under a right checksum
