"""The benchmark's own arithmetic, its reports, and one run from end to end with peers that need no package."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.random_checkpoint import make_checkpoint

from bench import backends
from bench.__main__ import write_report
from bench.backends.base import build_once, pad
from bench.compare import WORKLOADS, Comparison, Options, resolve
from bench.environment import worker_environment
from bench.inputs import Dataset, checkpoint_digest, make_dataset, of_length
from bench.report import Results, markdown, write_plots
from bench.stats import Summary, advantage, agreement, chance_of_errors, percentiles, summarise

FAKES = Path(__file__).with_name("fake_peers.py")
REFERENCE, INT8, WRONG, BROKEN, DYING, ABSENT = (
    f"{FAKES}:fake-{name}" for name in ("fp32", "int8", "wrong", "broken", "dying", "absent")
)
TEXTS = 12
ROUNDS = 2


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder; the fake peers use its tokenizer and its number of positions."""
    sizes = {"layers": 1, "hidden": 8, "heads": 1, "ffn": 8, "labels": 4, "vocabulary": 64, "positions": 32}
    return make_checkpoint(tmp_path_factory.mktemp("bench") / "checkpoint", **sizes, seed=1)


@pytest.fixture(scope="session")
def split(tiny: Path) -> Dataset:
    texts = ["ab " * (i % 5) + "c" for i in range(TEXTS)]
    return make_dataset(tiny, texts, [0] * TEXTS)


class TestStatistics:
    def test_ratios_are_taken_round_by_round(self) -> None:
        # Both were slowed down in the second round: the medians alone would say 1.5, no round does.
        ratio = advantage([1.0, 9.0, 2.0], [2.0, 18.0, 4.0], higher_is_better=False)
        assert ratio == Summary(2.0, 2.0, 2.0)
        assert advantage([300.0, 100.0], [100.0, 100.0], higher_is_better=True) == Summary(2.0, 1.0, 3.0)

    def test_ratios_need_the_same_rounds(self) -> None:
        with pytest.raises(ValueError, match="got 2 and 1"):
            advantage([1.0, 2.0], [1.0], higher_is_better=True)

    def test_summary_percentiles_and_agreement(self) -> None:
        assert summarise([3.0, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0)
        assert percentiles(range(101), (50, 95, 99)) == [50.0, 95.0, 99.0]
        assert agreement([0, 1, 2, 3], [0, 1, 2, 2]) == 0.75

    def test_few_errors_may_be_chance(self) -> None:
        assert chance_of_errors(0, 8, 0.05) == pytest.approx(1.0)
        assert chance_of_errors(1, 8, 0.05) == pytest.approx(1 - 0.95**8)
        assert chance_of_errors(2, 2, 0.05) == pytest.approx(0.05**2)
        assert [chance_of_errors(errors, 8, 0.0) for errors in (0, 1)] == [1.0, 0.0]  # all labels are wanted
        assert chance_of_errors(456, 7600, 0.05) < 1e-4
        assert 0.4 < chance_of_errors(380, 7600, 0.05) < 0.6


class TestInputs:
    @pytest.mark.parametrize("tokens", [8, 32])
    def test_fixed_lengths_are_exact(self, split: Dataset, tokens: int) -> None:
        sequences = of_length(split, tokens).ids
        assert {len(ids) for ids in sequences} == {tokens}
        assert {(ids[0], ids[-1]) for ids in sequences} == {(split.ids[0][0], split.ids[0][-1])}

    def test_part_of_the_texts_keeps_order_and_labels(self) -> None:
        whole = Dataset([[i] for i in range(10)], [str(i) for i in range(10)], list(range(10)))
        assert whole.every(4) == Dataset([[0], [2], [5], [7]], ["0", "2", "5", "7"], [0, 2, 5, 7])
        assert whole.every(100) == whole

    def test_digest_follows_the_weights(self, tiny: Path, tmp_path: Path) -> None:
        other = tmp_path / "checkpoint"
        other.mkdir()
        for path in tiny.iterdir():
            (other / path.name).write_bytes(path.read_bytes())
        assert checkpoint_digest(other) == checkpoint_digest(tiny)
        weights = other / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
        assert checkpoint_digest(other) != checkpoint_digest(tiny)


class TestBackends:
    def test_every_peer_is_found_and_well_formed(self) -> None:
        found = backends.discover()
        assert backends.OURS in found
        for name, spec in found.items():
            peer = backends.find(spec)
            assert peer.name == name
            assert peer.precision in ("fp32", "int8")
            assert peer.title
            assert peer.takes_streams == (name != backends.OURS)
        assert [name for name, spec in found.items() if backends.find(spec).whole_list] == [backends.OURS]

    def test_unknown_names_are_refused(self) -> None:
        with pytest.raises(LookupError, match="unknown peer nobody"):
            resolve(["nobody"])
        with pytest.raises(LookupError, match="expected a peer named 'nobody'"):
            backends.find(f"{FAKES}:nobody")
        with pytest.raises(LookupError, match="expected a Python file"):
            backends.find("nowhere.py:nobody")

    def test_padding(self) -> None:
        ids, mask = pad([[5, 6, 7], [8]])
        assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
        assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]

    def test_a_failed_build_leaves_nothing(self, tmp_path: Path) -> None:
        def fail(out: Path) -> None:
            out.mkdir()
            raise ValueError("half way")

        with pytest.raises(ValueError, match="half way"):
            build_once(tmp_path / "model", fail)
        assert list(tmp_path.iterdir()) == []

    def test_results_come_back_in_file_order(self, tiny: Path, split: Dataset, tmp_path: Path) -> None:
        peer = backends.find(REFERENCE)
        peer.build(backends.base.Setting(tiny, tmp_path, 1), split.ids)
        expected = np.eye(4, dtype=np.float32)[[len(ids) % 4 for ids in split.ids]]
        for streams in (1, 2):
            backend = peer(backends.base.Setting(tiny, tmp_path, 2, streams))
            for batch_size in (1, 5, 64):
                np.testing.assert_array_equal(backend.run_ids(split.ids, batch_size), expected)
            assert split.texts is not None
            np.testing.assert_array_equal(backend.run_texts(split.texts, 5), expected)

    def test_streams_compute_at_the_same_time(self, tiny: Path, split: Dataset, tmp_path: Path) -> None:
        both = threading.Barrier(2, timeout=10)

        class Meeting(backends.find(REFERENCE)):  # type: ignore[misc]
            def logits_from_ids(self, batch: Any) -> Any:
                both.wait()  # for a second batch, which only another thread can start
                return super().logits_from_ids(batch)

        Meeting.build(backends.base.Setting(tiny, tmp_path, 2), split.ids)
        Meeting(backends.base.Setting(tiny, tmp_path, 2, 2)).run_ids(split.ids[:4], 1)

    def test_threads_and_limits_reach_the_process(self) -> None:
        environment = worker_environment(4, 2, {"SOME_LIMIT": "avx2"})
        assert environment["OMP_NUM_THREADS"] == "2"
        assert environment["RAYON_NUM_THREADS"] == "4"
        assert environment["SOME_LIMIT"] == "avx2"


@pytest.fixture(scope="module")
def options(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("run")
    return Options(
        checkpoint=tiny,
        cache=folder / "cache",
        out=folder / "out",
        peers=(REFERENCE, INT8, WRONG, BROKEN, DYING, ABSENT),
        reference=REFERENCE,
        single_texts=6,
        batch_sizes=(1, 8),
        lengths=(8, 16, 512),
        rounds=ROUNDS,
        memory_rounds=2,
        idle_seconds=0.02,
        batch_seconds=0.0,
        command="python -m bench compare",
    )


@pytest.fixture(scope="module")
def run(options: Options, split: Dataset) -> Results:
    """One run of everything, which all tests of the class look at."""
    return Comparison(options, split).run()


@pytest.mark.skipif(sys.platform != "linux", reason="workload e reads /proc")
class TestEndToEnd:
    def test_every_workload_gives_figures(self, run: Results) -> None:
        for peer in ("fake-fp32", "fake-int8"):
            own = [series for series in run["series"] if series["peer"] == peer]
            assert {series["workload"] for series in own} == set(WORKLOADS)
            for series in own:
                assert series["counts"]
                assert series["agreement"] in (None, 1.0)
                assert series["workload"] == "e" or len(series["rounds"]) == ROUNDS
                assert series["higher_is_better"] is None or min(series["rounds"]) > 0
        lengths = {series["metric"] for series in run["series"] if series["workload"] == "c"}
        assert lengths == {"8 tokens", "16 tokens"}  # the model has 32 positions

    def test_wrong_labels_do_not_count(self, run: Results) -> None:
        checked = [s for s in run["series"] if s["peer"] == "fake-wrong" and s["workload"] in "abcef"]
        judged = [series for series in checked if series["agreement"] is not None]
        assert judged
        assert all(series["agreement"] == 0.0 and not series["counts"] for series in judged)

    def test_a_single_wrong_label_may_be_chance(self, options: Options, split: Dataset, tmp_path: Path) -> None:
        peers = (REFERENCE, f"{FAKES}:fake-slip")
        changed = replace(options, cache=tmp_path, out=tmp_path, workloads=("a",), peers=peers)
        slips = [s for s in Comparison(changed, split).run()["series"] if s["peer"] == "fake-slip"]
        assert slips
        assert all(series["agreement"] == 1 - 1 / TEXTS and series["counts"] for series in slips)

    def test_several_threads_try_several_batches_at_a_time(
        self, options: Options, split: Dataset, tmp_path: Path
    ) -> None:
        peers = (REFERENCE, f"{FAKES}:fake-parallel")
        changed = replace(options, cache=tmp_path, out=tmp_path, threads=(2,), workloads=("a", "b"), peers=peers)
        parallel = Comparison(changed, split).run()["peers"]["fake-parallel"]
        assert parallel["status"] == "ran"
        assert {streams: set(rates) for streams, rates in parallel["calibration"]["2"].items()} == {
            "1": {"1", "8"},
            "2": {"1", "8"},
        }
        assert parallel["streams"] == {"2": 2}

    def test_failures_and_absence_are_reported(self, run: Results) -> None:
        status = {name: peer["status"] for name, peer in run["peers"].items()}
        assert status["fake-broken"] == "failed: ValueError: no such kernel"
        assert status["fake-dying"].startswith("failed: the process ended (exit status 3)")
        assert status["fake-absent"] == "absent: no_such_package not installed"
        assert status["fake-int8"] == "ran"

    def test_rounds_are_interleaved(self, run: Results, options: Options, tiny: Path) -> None:
        best = {name: peer["batch_size"].get("1") for name, peer in run["peers"].items()}
        calls = (options.cache / checkpoint_digest(tiny) / "calls.txt").read_text().splitlines()
        order = [name for name, count, size in map(str.split, calls) if (int(count), int(size)) == (TEXTS, best[name])]
        peers = ["fake-fp32", "fake-int8", "fake-wrong"]
        turns = [peer for turn in range(ROUNDS) for peer in peers[turn:] + peers[:turn]] * len(options.inputs)
        # The calibration's passes over as many texts come before, those of the memory workload after.
        assert any(order[start : start + len(turns)] == turns for start in range(len(order)))

    def test_reports_are_written(self, run: Results, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
        assert json.loads((options.out / "results.json").read_text()) == run
        write_report(run, options.out)
        page = (options.out / "results.md").read_text()
        assert capsys.readouterr().out.strip() == page.strip()
        assert "Wrong int8 (does not count)" in page
        for letter, title in WORKLOADS.items():
            assert f"## ({letter}) {title}, 1 thread" in page


def _series(peer: str, rounds: list[float], **changes: Any) -> dict[str, Any]:
    series = {"workload": "a", "threads": 1, "case": "from ids", "metric": "throughput", "unit": "texts/s"}
    checked = {"agreement": 1.0, "accuracy": 0.9, "counts": True}
    return {**series, **checked, "higher_is_better": True, "peer": peer, "rounds": rounds, **changes}


@pytest.fixture
def results() -> Results:
    """Results in which ours is there: twice the best int8 peer that counts, four times ONNX Runtime fp32."""
    peers = {backends.OURS: "int8", "ort-fp32": "fp32", "slow": "int8", "good": "int8", "liar": "int8"}
    latency = {"workload": "c", "case": "batch 1", "unit": "ms/text", "higher_is_better": False}
    return {
        "command": "python -m bench compare",
        "machine": {
            "cpu": "Some CPU",
            "cpus": 2,
            "flags": ["avx2"],
            "system": "Linux x86_64",
            "python": "3.10",
            "load_before": 0.0,
        },
        "options": {"texts": 12, "single_texts": 6, "rounds": 3, "isa": None, "reference": "ort-fp32"},
        "peers": {
            name: {
                "title": name.upper(),
                "precision": precision,
                "status": "ran",
                "described": "",
                "versions": {"package": "1.0"},
                "batch_size": {"1": 0, "2": 8},
                "streams": {"1": 1, "2": 2},
            }
            for name, precision in peers.items()
        },
        "series": [
            _series(backends.OURS, [200.0, 100.0, 180.0]),
            _series("ort-fp32", [50.0, 25.0, 45.0]),
            _series("slow", [10.0, 10.0, 10.0]),
            _series("good", [100.0, 50.0, 90.0]),
            _series("liar", [900.0, 900.0, 900.0], agreement=0.3, counts=False),
            *(
                _series(peer, [value], metric=f"{tokens} tokens", **latency)
                for peer, value in ((backends.OURS, 1.0), ("good", 2.5))
                for tokens in (8, 16)
            ),
        ],
    }


class TestReport:
    def test_headline_compares_with_the_best_int8_peer_that_counts(self, results: Results) -> None:
        page = markdown(results)
        assert "| (a) from ids | 1 | throughput | GOOD | 2.00x [2.00 to 2.00] | 4.00x [4.00 to 4.00] |" in page
        assert "| (c) batch 1 | 1 | 16 tokens | GOOD | 2.50x |  |" in page

        assert "| 1: all, 2: 8, 2 at a time |" in page

    def test_headline_claims_nothing_where_our_labels_do_not_count(self, results: Results) -> None:
        results["series"][0]["counts"] = False
        assert "| (a) from ids |" not in markdown(results)

    def test_table_is_sorted_and_shows_the_spread(self, results: Results) -> None:
        rows = [line for line in markdown(results).split("## (a)")[1].split("## (c)")[0].splitlines() if "%" in line]
        assert [row.split("|")[1].strip() for row in rows] == [
            "LIAR (does not count)",
            "AGNEWS-FAST",
            "GOOD",
            "ORT-FP32",
            "SLOW",
        ]
        assert "| GOOD | 90.0 [50.0 to 100] · 2.00x | 100.00% | 90.00% |" in rows

    def test_a_peer_that_failed_on_the_way_has_cells_for_as_far_as_it_came(self, results: Results) -> None:
        latency = {"workload": "c", "case": "batch 1", "unit": "ms/text", "higher_is_better": False}
        results["series"] += [_series("slow", [4.0], metric="8 tokens", **latency)]
        results["series"] += [_series("liar", [5.0], metric="16 tokens", **latency)]
        rows = markdown(results).split("## (c)")[1].splitlines()
        assert "| SLOW | 4.00 · 4.00x |  | 100.00% | 90.00% |" in rows
        assert "| LIAR |  | 5.00 · 5.00x | 100.00% | 90.00% |" in rows

    def test_plots(self, results: Results, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        written = write_plots(results, tmp_path)
        assert [path.name for path in written] == ["throughput.png", "latency.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
