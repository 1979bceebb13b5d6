"""Results as a Markdown page and as plots."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .backends import OURS
from .compare import WORKLOADS
from .stats import Summary, advantage, summarise

Results = dict[str, Any]
FP32_PEER = "ort-fp32"


def markdown(results: Results) -> str:
    """The whole page. With several rounds every figure is the median, with the lowest and the highest behind it."""
    machine, options = results["machine"], results["options"]
    lines = [
        "# Benchmark",
        "",
        f"    {results['command']}",
        "",
        f"{machine['cpu']}; {machine['cpus']} CPUs; {', '.join(machine['flags'])}; {machine['system']}, Python "
        f"{machine['python']}; load average before the run {machine['load_before']}.",
        f"{options['texts']} texts ({options['single_texts']} of them one at a time), {options['rounds']} rounds; the "
        f"peers take turns in each. Instruction set: {options['isa'] or 'whatever each peer chooses'}. Labels are "
        f"compared with those of `{options['reference']}`.",
        "",
        *_peers(results),
    ]
    if any(series["peer"] == OURS for series in results["series"]):
        lines += ["", *_headline(results)]
    for (workload, threads, case), series in _groups(results["series"]).items():
        title = f"({workload}) {WORKLOADS[workload]}, {threads} thread{'s' if threads > 1 else ''}"
        lines += ["", f"## {title}{f', {case}' if case else ''}", "", *_table(results, series)]
    return "\n".join(lines) + "\n"


def write_plots(results: Results, folder: Path) -> list[Path]:
    """throughput.png and latency.png, as far as there are figures for them."""
    import matplotlib  # noqa: PLC0415 (not needed for the table)

    matplotlib.use("Agg")
    from matplotlib import ticker  # noqa: PLC0415

    written = []
    groups = _groups(results["series"])
    bars = {key: value for key, value in groups.items() if key[0] == "a"}
    if bars:
        figure, panels = _panels(len(bars))
        for panel, ((_, threads, case), series) in zip(panels, bars.items(), strict=False):
            rates = _by_value([one for one in series if one["metric"] == "throughput"])[::-1]
            summaries = [summarise(one["rounds"]) for one in rates]
            panel.barh(
                [results["peers"][one["peer"]]["title"] for one in rates],
                [summary.median for summary in summaries],
                xerr=[[s.median - s.low for s in summaries], [s.high - s.median for s in summaries]],
                color=[_colour(results, one["peer"]) for one in rates],
            )
            panel.set_title(f"{threads} threads, {case}" if threads > 1 else f"1 thread, {case}")
            panel.set_xlabel("texts/s")
        written.append(_finish(figure, folder / "throughput.png"))
    lines = {key: value for key, value in groups.items() if key[0] == "c"}
    if lines:
        figure, panels = _panels(len(lines))
        colours = {peer: f"C{i}" for i, peer in enumerate(results["peers"])}  # the same in every panel
        colours[OURS] = _colour(results, OURS)
        for panel, ((_, threads, case), series) in zip(panels, lines.items(), strict=False):
            for peer in dict.fromkeys(one["peer"] for one in series):
                own = [one for one in series if one["peer"] == peer]
                tokens = [int(one["metric"].split()[0]) for one in own]
                medians = [summarise(one["rounds"]).median for one in own]
                width = 3 if peer == OURS else 1
                title = results["peers"][peer]["title"]
                panel.plot(tokens, medians, marker="o", label=title, linewidth=width, color=colours[peer])
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.set_title(f"{threads} threads, {case}" if threads > 1 else f"1 thread, {case}")
            panel.set_xlabel("tokens")
            panel.set_ylabel("ms a text")
            panel.legend(fontsize="small")
        written.append(_finish(figure, folder / "latency.png"))
    return written


def _peers(results: Results) -> list[str]:
    lines = ["| peer | status | versions | batch size (threads: size) |", "|---|---|---|---|"]
    for name, peer in results["peers"].items():
        versions = ", ".join(f"{package} {version}" for package, version in peer["versions"].items())
        sizes = ", ".join(
            f"{threads}: {size or 'all'}" + (f", {streams} at a time" if streams > 1 else "")
            for (threads, size), streams in zip(peer["batch_size"].items(), peer["streams"].values(), strict=True)
        )
        status = f"{peer['status']} ({peer['described']})" if peer["described"] else peer["status"]
        lines.append(f"| {peer['title']} (`{name}`) | {_cell(status)} | {versions} | {sizes} |")
    return lines


def _headline(results: Results) -> list[str]:
    """Ours against the best int8 peer and against ONNX Runtime fp32, one row for each figure."""
    lines = [
        f"How many times better `{OURS}` is: the median of the ratios in each round [lowest to highest].",
        "",
        "| workload | threads | figure | best int8 peer | over it | over ONNX Runtime fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for (workload, threads, case), series in _groups(results["series"]).items():
        for metric in dict.fromkeys(one["metric"] for one in series):
            own = [one for one in series if one["metric"] == metric]
            ours = next((one for one in own if one["peer"] == OURS), None)
            int8 = [one for one in own if one["counts"] and results["peers"][one["peer"]]["precision"] == "int8"]
            rivals = _by_value([one for one in int8 if one["peer"] != OURS])
            if ours is None or not ours["counts"] or ours["higher_is_better"] is None or not rivals:
                continue
            fp32 = next((one for one in own if one["peer"] == FP32_PEER), None)
            lines.append(
                f"| ({workload}) {case} | {threads} | {metric} | {results['peers'][rivals[0]['peer']]['title']} "
                f"| {_ratio(ours, rivals[0])} | {'' if fp32 is None else _ratio(ours, fp32)} |"
            )
    return lines


def _table(results: Results, series: list[dict[str, Any]]) -> list[str]:
    """A row a peer, best first, and a column a metric; in each cell also how many times better ours is.

    A peer that failed on the way has cells for as far as it came.
    """
    metrics = list(dict.fromkeys(one["metric"] for one in series))
    cells = {(one["peer"], one["metric"]): one for one in series}
    order = [one["peer"] for one in _by_value([one for one in series if one["metric"] == metrics[0]])]
    order += [peer for peer in dict.fromkeys(one["peer"] for one in series) if peer not in order]
    checked = any(one["agreement"] is not None for one in series)
    judged = any(one["accuracy"] is not None for one in series)
    units = {one["metric"]: f", {one['unit']}" if one["unit"] else "" for one in series}
    header = ["peer", *(f"{metric}{units[metric]}" for metric in metrics)]
    header += ["labels as fp32"] * checked + ["accuracy"] * judged
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for peer in order:
        first = next(cells[peer, metric] for metric in metrics if (peer, metric) in cells)
        row = [results["peers"][peer]["title"] + ("" if first["counts"] else " (does not count)")]
        for metric in metrics:
            one, ours = cells.get((peer, metric)), cells.get((OURS, metric))
            if one is None:  # the peer failed before it came to this
                row.append("")
                continue
            cell = _spread(summarise(one["rounds"]))
            if ours is not None and peer != OURS and one["higher_is_better"] is not None:
                cell += f" · {_ratio(ours, one, spread=False)}"
            row.append(cell)
        if checked:
            row.append("" if first["agreement"] is None else f"{first['agreement']:.2%}")
        if judged:
            row.append("" if first["accuracy"] is None else f"{first['accuracy']:.2%}")
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _groups(series: Iterable[dict[str, Any]]) -> dict[tuple[str, int, str], list[dict[str, Any]]]:
    """Series that share a table, tables in the order of the workloads."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for one in sorted(series, key=lambda one: one["workload"]):
        groups.setdefault((one["workload"], one["threads"], one["case"]), []).append(one)
    return groups


def _by_value(series: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first; without a better end, lowest first."""
    return sorted(
        series,
        key=lambda one: summarise(one["rounds"]).median * (-1 if one["higher_is_better"] else 1),
    )


def _ratio(ours: dict[str, Any], theirs: dict[str, Any], *, spread: bool = True) -> str:
    ratio = advantage(ours["rounds"], theirs["rounds"], higher_is_better=ours["higher_is_better"])
    text = f"{ratio.median:.2f}x"
    if spread and len(ours["rounds"]) > 1:
        text += f" [{ratio.low:.2f} to {ratio.high:.2f}]"
    return text


def _spread(summary: Summary) -> str:
    median, low, high = map(_number, summary)
    return median if low == high else f"{median} [{low} to {high}]"


def _number(value: float) -> str:
    """About three digits."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _colour(results: Results, peer: str) -> str:
    if peer == OURS:
        return "black"  # not among the colours that lines get by turns
    return "tab:blue" if results["peers"][peer]["precision"] == "int8" else "tab:grey"


def _panels(number: int) -> tuple[Any, list[Any]]:
    """A figure of two panels a row."""
    from matplotlib import pyplot  # noqa: PLC0415

    rows, columns = (number + 1) // 2, min(number, 2)
    figure, panels = pyplot.subplots(rows, columns, figsize=(6 * columns, 4.5 * rows), squeeze=False)
    for unused in panels.flat[number:]:
        unused.set_axis_off()
    return figure, list(panels.flat)


def _finish(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path
