"""`python -m bench`, run in the repository root."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from . import cpuid_mask
from .compare import WORKLOADS, Comparison, Options, resolve, say
from .inputs import LENGTHS, read_test_split
from .report import Results, markdown, write_plots
from .stages import run_kernel_bench, stage_table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_compare(commands.add_parser("compare", help="measure all peers side by side"))
    report = commands.add_parser("report", help="write table and plots again from a results.json")
    report.add_argument("results", type=Path)
    report.set_defaults(run=lambda options: write_report(_read(options.results), options.results.parent))
    stages = commands.add_parser("stages", help="where a forward pass spends its time")
    stages.add_argument("--texts", type=int, default=500, metavar="N", help="(default: %(default)s)")
    stages.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    stages.set_defaults(run=_stages)
    kernels = commands.add_parser("kernels", help="MAC/cycle and values/cycle of each kernel (builds with CMake)")
    kernels.add_argument("--build", type=Path, default=Path("build/bench"), help="(default: %(default)s)")
    kernels.add_argument("arguments", nargs="*", help="for bench_kernels, after --: [--rounds N] [--isa NAME]")
    kernels.set_defaults(run=lambda options: sys.exit(run_kernel_bench(options.build, options.arguments)))
    options = parser.parse_args()
    options.run(options)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    letters = ", ".join(f"{letter}: {title}" for letter, title in WORKLOADS.items())
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("checkpoint"), help="Hugging Face folder (default: %(default)s)")
    add("--out", type=Path, default=Path("bench_results"), help="folder for the results (default: %(default)s)")
    add("--cache", type=Path, default=Path(".bench_cache"), help="folder for built models (default: %(default)s)")
    add("--threads", type=int, nargs="+", default=[1], metavar="N", help="thread counts (default: 1)")
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W", help=letters)
    add("--peers", nargs="+", default=[], metavar="PEER", help="names, or FILE:NAME (default: all)")
    add("--reference", default="ort-fp32", metavar="PEER", help="gives the labels to agree with (default: %(default)s)")
    add(
        "--inputs", nargs="+", choices=("ids", "texts"), default=["ids", "texts"], help="tokenised, raw (default: both)"
    )
    add("--texts", type=int, metavar="N", help="take N evenly spaced texts of the test split (default: all)")
    add("--single-texts", type=int, default=1000, metavar="N", help="texts for b and f (default: %(default)s)")
    add(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=list(Options.batch_sizes),
        metavar="N",
        help="of which each peer's fastest is used (default: 1 4 8 16 32 64)",
    )
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), metavar="N", help="tokens for c (default: 8 to 512)")
    add("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add("--memory-rounds", type=int, default=20, metavar="N", help="passes over the texts for e (default: %(default)s)")
    add("--idle-seconds", type=float, default=3.0, metavar="S", help="for g (default: %(default)s)")
    add("--isa", choices=cpuid_mask.ISAS, help="hold every peer to this instruction set")
    add("--least-agreement", type=float, default=0.95, metavar="SHARE", help="int8 labels (default: %(default)s)")
    parser.set_defaults(run=_compare)


def _stages(given: argparse.Namespace) -> None:
    split = read_test_split(Path("checkpoint")).every(given.texts)
    print(stage_table(split.texts or [], given.rounds))


def _compare(given: argparse.Namespace) -> None:
    try:
        resolve([*given.peers, given.reference])
    except LookupError as error:
        sys.exit(str(error))
    if given.isa and (missing := cpuid_mask.missing()):
        sys.exit(f"--isa needs {', '.join(missing)}")
    if not (given.checkpoint / "config.json").is_file():
        sys.exit(f"{given.checkpoint}: expected a checkpoint folder, there is no config.json")
    split = read_test_split(given.checkpoint)
    options = Options(
        checkpoint=given.checkpoint.resolve(),
        cache=given.cache,
        out=given.out,
        threads=tuple(given.threads),
        workloads=tuple(given.workloads),
        peers=tuple(given.peers),
        reference=given.reference,
        inputs=tuple(given.inputs),
        single_texts=given.single_texts,
        batch_sizes=tuple(given.batch_sizes),
        lengths=tuple(given.lengths),
        rounds=given.rounds,
        memory_rounds=given.memory_rounds,
        idle_seconds=given.idle_seconds,
        isa=given.isa,
        least_agreement={"fp32": 0.999, "int8": given.least_agreement},
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
    )
    write_report(Comparison(options, split if given.texts is None else split.every(given.texts)).run(), given.out)


def write_report(results: Results, folder: Path) -> None:
    """results.md and, where matplotlib is installed, the plots."""
    page = markdown(results)
    (folder / "results.md").write_text(page, encoding="utf-8")
    print(page)
    try:
        write_plots(results, folder)
    except ImportError:
        say("matplotlib is not installed: no plots")


def _read(path: Path) -> Results:
    content: Results = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main()
