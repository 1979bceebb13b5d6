"""The ``agnews-fast`` command: classify, evaluate, quantise, describe.

Results go to standard output, messages to standard error. The exit code is 0, or 1 after a failure at run time, 2
after a usage error, 130 after Ctrl-C and 141 when the reader of the output has gone: the codes a shell reports for
other tools.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from agnews_fast import Classifier, __version__, available_isas, quantize
from agnews_fast.arguments import as_path
from agnews_fast.metrics import classification_report
from agnews_fast.model_file import FORMAT, FORMAT_VERSION

__all__ = ["main", "read_labelled"]

_PROG = "agnews-fast"
_BATCH = 256
_READ = 1 << 16
_UTF8_MARK = b"\xef\xbb\xbf"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments, without the program's name; ``sys.argv[1:]`` when None.

    Returns:
        The exit code (see the module's description).

    Raises:
        SystemExit: with code 2 for a usage error, 0 after ``--help`` and ``--version``.

    Example:
        >>> main(["predict", "Oil prices soar to all-time record"])  # doctest: +SKIP
        Business	0.9731
        0
    """
    options = _parser().parse_args(argv)
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed")
        options.run(options)
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not in the interpreter's shutdown
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        _tell(f"error: {_message(error)}")
        return 1
    finally:
        _drop_unwritable_output()
    return 0


def read_labelled(path: Path, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The rows of a CSV file, ``class,title,description`` or ``class,text``, as (label, text).

    A class is the number of a label, from 1 on, or its name. The text is title + " " + description, as they stand.
    Blank lines are skipped, and so is a first row whose first field reads ``class``, ``class index`` or ``label``.

    Args:
        path: a CSV file in UTF-8.
        labels: the labels in the order of their numbers.

    Returns:
        An iterator; the file is read as it advances.

    Raises:
        ValueError: a row or its encoding is not as described; the message names the file and the row or line.
        OSError: the file can't be read.

    Example:
        >>> rows = read_labelled(Path("test.csv"), ["World", "Sports", "Business", "Sci/Tech"])  # doctest: +SKIP
        >>> next(rows)  # doctest: +SKIP
        ('Business', "Fears for T N pension after talks Unions representing workers at Turner   Newall say ...")
    """
    # One text may be longer than the 128 KiB that the csv module allows a field.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    with path.open("rb") as file:
        rows = csv.reader(_decoded(file, str(path)), strict=True)
        number = 0
        may_be_header = True
        while True:
            number += 1
            try:
                fields = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"{path}, row {number}: {error}") from error
            if fields is None:
                return
            if not fields:
                continue
            is_header = may_be_header and fields[0].strip().lower() in {"class", "class index", "label"}
            may_be_header = False
            if is_header:
                continue
            if len(fields) not in {2, 3}:
                raise ValueError(
                    f"{path}, row {number}: expected class,title,description or class,text, got {len(fields)} field(s)"
                )
            yield _label(fields[0].strip(), labels, f"{path}, row {number}"), " ".join(fields[1:])


def _label(name: str, labels: Sequence[str], where: str) -> str:
    if name in labels:
        return name
    # Numbers are compared as text, since int() takes no more than 4300 digits.
    for number, label in enumerate(labels, 1):
        if name.lstrip("0") == str(number):
            return label
    raise ValueError(f"{where}: expected a class from 1 to {len(labels)} or one of {list(labels)}, got {name!r}")


def _decoded(lines: Iterable[bytes], source: str, first: int = 1) -> Iterator[str]:
    """``lines`` as text. ``first`` is the number of the first one in ``source``, for error messages."""
    for number, line in enumerate(lines, first):
        try:
            yield (line.removeprefix(_UTF8_MARK) if number == 1 else line).decode("utf8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{source}, line {number}: expected UTF-8, got {error.reason} - at byte {error.start}"
            ) from error


def _arriving_lines(stream: BufferedIOBase) -> Iterator[list[bytes]]:
    """The lines of ``stream``, in lists of those that have arrived, without their line ends.

    A read returns what is there, so a person at a terminal is answered line by line and a file comes in large lists.
    """
    pending: list[bytes] = []
    while chunk := stream.read1(_READ):
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield [line.removesuffix(b"\r") for line in b"".join([*pending, head]).split(b"\n")]
            pending.clear()
        pending.append(tail)
    if rest := b"".join(pending):
        yield [rest.removesuffix(b"\r")]


def _batches_of_input() -> Iterator[list[str]]:
    """The texts of standard input, one a line, in batches; those before a line that is not UTF-8 come before it."""
    if sys.stdin is None:
        raise ValueError("standard input is closed; give the texts as arguments")
    if sys.stdin.isatty():
        _tell("one text a line, please; end with Ctrl-D")
    first = 1
    for lines in _arriving_lines(cast(BufferedIOBase, sys.stdin.buffer)):
        for start in range(0, len(lines), _BATCH):
            batch: list[str] = []
            try:
                batch.extend(_decoded(lines[start : start + _BATCH], "standard input", first))
            except ValueError:
                yield batch
                raise
            yield batch
            first += len(batch)


def _predict(options: argparse.Namespace) -> None:
    with _classifier(options) as classifier:
        labels = classifier.labels
        for texts in [options.text] if options.text else _batches_of_input():
            for row in classifier.predict_proba(texts):
                best = int(row.argmax())
                label, score = labels[best], float(row[best])
                if options.json:
                    probabilities = {name: round(float(p), 6) for name, p in zip(labels, row, strict=True)}
                    print(json.dumps({"label": label, "score": round(score, 6), "probabilities": probabilities}))
                else:
                    print(f"{label}\t{score:.4f}")
            sys.stdout.flush()


def _evaluate(options: argparse.Namespace) -> None:
    path = as_path("csv", options.csv)
    true: list[str] = []

    def texts(labels: Sequence[str]) -> Iterator[str]:
        for label, text in read_labelled(path, labels):
            true.append(label)
            yield text

    with _classifier(options) as classifier:
        predicted = list(classifier.predict_iter(texts(classifier.labels), batch_size=_BATCH))
        if not true:
            raise ValueError(f"{path}: expected at least one row, got none")
        report = classification_report(true, predicted, sorted(classifier.labels))
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)


def _quantize(options: argparse.Namespace) -> None:
    path = quantize(options.checkpoint, options.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _info(options: argparse.Namespace) -> None:
    with _classifier(options) as classifier:
        facts = {
            "version": __version__,
            "ISA": f"{classifier.isa} (available: {', '.join(available_isas())})",
            "threads": classifier.threads,
            "model": classifier.path,
            "format": f"{FORMAT} {FORMAT_VERSION}",
            "labels": ", ".join(classifier.labels),
            "max length": f"{classifier.max_length} tokens",
        }
    for name, value in facts.items():
        print(f"{name + ':':<12}{value}")


def _classifier(options: argparse.Namespace) -> Classifier:
    return Classifier(options.model, threads=options.threads, max_length=options.max_length)


def _message(error: Exception) -> str:
    """What to tell the user: ``FILE: No such file or directory`` rather than ``[Errno 2] ...``."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _tell(message: str) -> None:
    """Print to standard error; nowhere if that is closed, since ``print`` takes None for standard output."""
    if sys.stderr is not None:
        print(f"{_PROG}: {message}", file=sys.stderr)


def _drop_unwritable_output() -> None:
    """Flush, and where that fails let the rest go nowhere, so that the interpreter's shutdown does not complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _positive(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {value!r}")
    return int(value)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", help="a model file or a checkpoint folder (default: the packaged model)")
    common.add_argument("--threads", type=_positive, help="default: the CPUs this process may use")
    common.add_argument("--max-length", type=_positive, help="cut texts to so many tokens (default: the model's limit)")

    parser = argparse.ArgumentParser(prog=_PROG, description="Classify news texts on the CPU.")
    parser.add_argument("--version", action="version", version=f"{_PROG} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict = commands.add_parser(
        "predict", parents=[common], help="print the label of each text", description="Print label, tab, probability."
    )
    predict.add_argument("text", nargs="*", metavar="TEXT", help="default: standard input, one text a line")
    predict.add_argument("--json", action="store_true", help="a JSON object a line, with all probabilities")
    predict.set_defaults(run=_predict)

    evaluate = commands.add_parser(
        "evaluate",
        parents=[common],
        help="score the model on labelled texts",
        description="Print precision, recall and f1-score of each class, accuracy and averages.",
    )
    evaluate.add_argument(
        "csv", metavar="CSV", help="rows class,title,description or class,text; class 1, 2, ... or a label"
    )
    evaluate.add_argument("--json", action="store_true", help="the report as a JSON object")
    evaluate.set_defaults(run=_evaluate)

    to_file = commands.add_parser(
        "quantize",
        help="make a model file from a checkpoint",
        description="Make an int8 model file from a Hugging Face DistilBertForSequenceClassification folder.",
    )
    to_file.add_argument("checkpoint", metavar="CHECKPOINT", help="the folder with config.json")
    to_file.add_argument("out", metavar="OUT", help="the model file to write")
    to_file.set_defaults(run=_quantize)

    info = commands.add_parser(
        "info", parents=[common], help="describe version, CPU and model", description="Describe version, CPU and model."
    )
    info.set_defaults(run=_info)
    return parser


if __name__ == "__main__":
    sys.exit(main())
