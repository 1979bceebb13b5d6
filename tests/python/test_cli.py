"""The ``agnews-fast`` command: with a stand-in classifier in this process, and as a user runs it, with the real one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from agnews_fast import __version__, cli
from numpy.typing import NDArray

LABELS = ["World", "Sports", "Business", "Sci/Tech"]
HEADLINE = "Oil prices soar to all-time record, posing new menace to US economy"


class KeywordClassifier:
    """What the command uses of ``Classifier``; a text that holds a label's first word is given that label."""

    labels = LABELS
    isa = "scalar"
    path = Path("some/model.safetensors")
    made: ClassVar[list[KeywordClassifier]] = []

    def __init__(self, model: object, *, threads: int | None, max_length: int | None) -> None:
        self.model, self.threads, self.max_length = model, threads, max_length
        self.batches: list[int] = []
        self.closed = False
        self.made.append(self)

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(len(texts))
        probabilities = np.full((len(texts), 4), 0.0089667, np.float32)
        for row, text in zip(probabilities, texts, strict=True):
            row[next((i for i, label in enumerate(LABELS) if label.split("/")[0] in text), 0)] = 0.9731
        return probabilities

    def predict_iter(self, texts: Iterable[str], *, batch_size: int) -> Iterator[str]:
        for text in texts:
            yield LABELS[int(self.predict_proba([text]).argmax())]

    def __enter__(self) -> KeywordClassifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[KeywordClassifier]:
    """The classifiers that the command made."""
    monkeypatch.setattr(KeywordClassifier, "made", [])
    monkeypatch.setattr(cli, "Classifier", KeywordClassifier)
    return KeywordClassifier.made


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes | io.BytesIO) -> None:
    """Make ``data`` the standard input."""
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))


# --- predict -----------------------------------------------------------------------------------------------------


def test_predict_arguments(stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["predict", "--threads", "3", "--max-length", "64", "--model", "m", "Business", "Sci-fi", "\n"]) == 0
    )
    assert capsys.readouterr() == ("Business\t0.9731\nSci/Tech\t0.9731\nWorld\t0.9731\n", "")
    (classifier,) = stand_in
    assert (classifier.model, classifier.threads, classifier.max_length) == ("m", 3, 64)
    assert classifier.batches == [3]
    assert classifier.closed


def test_predict_json(stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--json", "Business", "Sports"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "label": "Business",
        "score": 0.9731,
        "probabilities": {"World": 0.008967, "Sports": 0.008967, "Business": 0.9731, "Sci/Tech": 0.008967},
    }
    assert second["label"] == "Sports"


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (b"", []),
        (b"\n", ["World"]),
        (b"Sports", ["Sports"]),
        (b"Sports\n", ["Sports"]),
        (b"Sports\r\n\r\nBusiness\r\n", ["Sports", "World", "Business"]),
        (b"\xef\xbb\xbfSports\nBusiness", ["Sports", "Business"]),  # a byte order mark
        ("Sports\u2028a\x0bb\x1cc\x85d\x00e\rf\n".encode(), ["Sports"]),  # only \n ends a line
        (b"x" * 1_000_000 + b"Sports\nBusiness", ["Sports", "Business"]),  # longer than a read
        (b"Sports\n" * 1000, ["Sports"] * 1000),
    ],
)
def test_predict_standard_input(
    stand_in: list[KeywordClassifier],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    labels: list[str],
) -> None:
    feed(monkeypatch, data)
    assert cli.main(["predict"]) == 0
    assert capsys.readouterr() == ("".join(f"{label}\t0.9731\n" for label in labels), "")
    assert max(stand_in[0].batches, default=0) <= 256


def test_predict_answers_what_has_arrived(
    stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    class Terminal(io.BytesIO):
        lines = iter([b"Sports\n", b"Busi", b"ness\nSci\n", b""])

        def isatty(self) -> bool:
            return True

        def read1(self, size: int | None = -1, /) -> bytes:
            printed.append(capsys.readouterr().out)
            return next(self.lines)

    feed(monkeypatch, Terminal())
    assert cli.main(["predict"]) == 0
    assert printed == ["", "Sports\t0.9731\n", "", "Business\t0.9731\nSci/Tech\t0.9731\n"]


@pytest.mark.parametrize("before", [0, 3, 256, 700])
def test_predict_invalid_utf8(
    stand_in: list[KeywordClassifier],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    before: int,
) -> None:
    feed(monkeypatch, b"Sports\n" * before + b"caf\xe9 \nBusiness\n")
    assert cli.main(["predict"]) == 1
    out, err = capsys.readouterr()
    assert out == "Sports\t0.9731\n" * before  # what came before is answered
    where = f"standard input, line {before + 1}"
    assert err == f"agnews-fast: error: {where}: expected UTF-8, got invalid continuation byte - at byte 3\n"


def test_interrupted(
    stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KeywordClassifier, "predict_proba", interrupt)
    assert cli.main(["predict", "x"]) == 130
    assert capsys.readouterr() == ("", "")
    assert stand_in[0].closed


# --- evaluate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        '"3","a","Business"\n2,Sports\nWorld,Sports\n\n',
        "\ufeffClass,text\n3,Business\n2,Sports\n01,Sports",
        "\ufeff\n\r\nlabel,text\n\n3,Business\n2,Sports\n1,Sports",
    ],
)
def test_evaluate(
    stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str], tmp_path: Path, rows: str
) -> None:
    (tmp_path / "rows.csv").write_text(rows, "utf8")
    assert cli.main(["evaluate", str(tmp_path / "rows.csv")]) == 0
    assert capsys.readouterr().out == (
        "              precision    recall  f1-score   support\n"
        "\n"
        "    Business     1.0000    1.0000    1.0000         1\n"
        "    Sci/Tech     0.0000    0.0000    0.0000         0\n"
        "      Sports     0.5000    1.0000    0.6667         1\n"
        "       World     0.0000    0.0000    0.0000         1\n"
        "\n"
        "    accuracy                         0.6667         3\n"
        "   macro avg     0.3750    0.5000    0.4167         3\n"
        "weighted avg     0.5000    0.6667    0.5556         3\n"
    )


def test_evaluate_json(stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,World\n2,World\n")
    assert cli.main(["evaluate", "--json", str(tmp_path / "rows.csv")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["Business", "Sci/Tech", "Sports", "World", "accuracy", "macro avg", "weighted avg"]
    assert report["World"] == {"precision": 0.5, "recall": 1.0, "f1-score": pytest.approx(2 / 3), "support": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ": expected at least one row, got none"),
        (b"1,a\n2\n", ", row 2: expected class,title,description or class,text, got 1 field(s)"),
        (b"1,a,b,c\n", ", row 1: expected class,title,description or class,text, got 4 field(s)"),
        (
            b"1,a\n5,b\n",
            ", row 2: expected a class from 1 to 4 or one of ['World', 'Sports', 'Business', 'Sci/Tech'], got '5'",
        ),
        (b"0,a\n", ", row 1: expected a class from 1 to 4"),
        (b"1,a\nclass,text\n", ", row 2: expected a class from 1 to 4"),
        (b"1,a\n" + b"9" * 5000 + b",b\n", ", row 2: expected a class from 1 to 4"),
        (b"Politics,a\n", ", row 1: expected a class from 1 to 4"),
        ("\u00b2,a\n".encode(), ", row 1: expected a class from 1 to 4"),  # a digit to str.isdigit, not to int
        (b'1,"two\nlines"\n2,caf\xe9\n', ", line 3: expected UTF-8, got"),
        (b'1,a\n2,"b\n', ", row 2: unexpected end of data"),
        (b'1,"a"b\n', ", row 1: ',' expected after '\"'"),
    ],
)
def test_evaluate_refuses(
    stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str], tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    assert cli.main(["evaluate", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"agnews-fast: error: {path}{message}")


def test_read_labelled_keeps_texts_as_they_are(tmp_path: Path) -> None:
    long = "x" * 5_000_000
    (tmp_path / "rows.csv").write_text(f'1, a ,"b ""c"" \\d #39;"\n4,"{long}"\n', "utf8")
    rows = list(cli.read_labelled(tmp_path / "rows.csv", LABELS))
    assert rows == [("World", ' a  b "c" \\d #39;'), ("Sci/Tech", long)]


def test_read_labelled_label_names_come_before_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,a\n2,b\n")
    assert list(cli.read_labelled(tmp_path / "rows.csv", ["0", "1"])) == [("1", "a"), ("1", "b")]


# --- quantize, info, usage, failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["predict", "--model", "", "a"], "model"),
        (["evaluate", ""], "csv"),
        (["quantize", "", "out"], "checkpoint"),
        (["quantize", ".", ""], "out"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    arguments: list[str],
    name: str,
    small_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unset variable of a shell."""
    monkeypatch.chdir(small_checkpoint)
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"agnews-fast: error: {name}: expected a path, got an empty one\n"
    assert not (small_checkpoint / "out").exists()


def test_quantize(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def write(checkpoint: str, out: str) -> Path:
        assert checkpoint == "folder"
        Path(out).write_bytes(bytes(1_250_000))
        return Path(out)

    monkeypatch.setattr(cli, "quantize", write)
    assert cli.main(["quantize", "folder", str(tmp_path / "m")]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'm'}: 1.2 MB\n", "")


def test_info(stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--threads", "2", "--max-length", "128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"version:    {__version__}"
    assert lines[1].startswith("ISA:        scalar (available: scalar")
    assert lines[2:] == [
        "threads:    2",
        "model:      some/model.safetensors",
        "format:     agnews_fast 5",
        "labels:     World, Sports, Business, Sci/Tech",
        "max length: 128 tokens",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["classify"],
        ["predict", "--threads", "0", "x"],
        ["predict", "--threads", "two", "x"],
        ["predict", "--max-length", "-1", "x"],
        ["evaluate"],
        ["quantize", "only-one"],
        ["info", "x"],
    ],
)
def test_usage_error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: agnews-fast")


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["--version"]])
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 0
    assert "agnews-fast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "some.csv"), "some.csv: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("not a model"), "not a model"),
        (ValueError("expected a, got b"), "expected a, got b"),
        (RuntimeError("no ISA"), "no ISA"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "Classifier", fail)
    assert cli.main(["predict", "x"]) == 1
    assert capsys.readouterr() == ("", f"agnews-fast: error: {message}\n")


def test_closed_standard_error(
    stand_in: list[KeywordClassifier], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages must not get among the results."""

    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", None)
    feed(monkeypatch, Terminal(b"Sports\ncaf\xe9\n"))
    assert cli.main(["predict"]) == 1
    assert capsys.readouterr().out == "Sports\t0.9731\n"


# --- as a user runs it -----------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "agnews_fast"]


def run(*arguments: str, data: bytes = b"", timeout: float = 60) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    done = subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, timeout=timeout, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_process_predict() -> None:
    code, out, err = run("predict", HEADLINE)
    assert (code, err) == (0, "")
    label, probability = out.removesuffix("\n").split("\t")
    assert label == "Business"
    assert 0.5 < float(probability) <= 1
    assert len(probability) == 6
    assert run("predict", data=f"{HEADLINE}\n".encode()) == (0, out, "")


def test_process_info() -> None:
    code, out, err = run("info", "--threads", "1")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "version",
        "ISA",
        "threads",
        "model",
        "format",
        "labels",
        "max length",
    ]
    assert "labels:     World, Sports, Business, Sci/Tech\n" in out


def test_process_failures(tmp_path: Path) -> None:
    code, out, err = run("predict", "--model", str(tmp_path / "none"), "x")
    assert (code, out) == (1, "")
    assert err.startswith("agnews-fast: error: ")
    assert str(tmp_path / "none") in err
    assert "Traceback" not in err
    code, out, err = run("predict", "--max-length", "1000000000", "x")
    assert (code, out) == (1, "")
    assert err.startswith("agnews-fast: error: ")
    assert run("predict")[:2] == (0, "")
    assert run("predict", "--threads", "0", "x")[0] == 2


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell's pipes")
def test_process_reader_gone() -> None:
    with subprocess.Popen(
        [*COMMAND, "predict"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Oil\n")
        process.stdin.flush()
        assert process.stdout.readline()  # answered while the input is still open
        process.stdout.close()
        process.stdin.write(b"Oil\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_process_interrupted() -> None:
    with subprocess.Popen(
        [*COMMAND, "predict"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts its background jobs with SIGINT ignored, and so would be what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Oil\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_process_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, "predict", "x"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"agnews-fast: error: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell's redirections")
def test_process_closed_streams() -> None:
    command = " ".join(COMMAND)
    for redirection, message in [("<&-", "standard input is closed"), ("x >&-", "standard output is closed")]:
        done = subprocess.run(["sh", "-c", f"{command} predict {redirection}"], stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1
        assert done.stderr.decode().startswith(f"agnews-fast: error: {message}")
    done = subprocess.run(
        ["sh", "-c", f"{command} predict --model /dev/null x 2>&-"], stdout=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
