"""The benchmark of strategies, in its quick mode: every one runs, each moves what it says, and the figures add up."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import finetuning_strategies as suite
import pytest
import strategies_start as start
import strategies_training as training
import torch

STRATEGIES = ["head", "full", "discriminative", "gradual", "probe-then-tune", "scratch"]
QUICK_SEEDS, QUICK_EPOCHS = 2, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return suite.run_suite(*suite.quick_suite(folder))


def runs_of(result: dict[str, Any], strategy: str) -> list[dict[str, Any]]:
    return [run for run in result["runs"] if run["strategy"] == strategy]


def test_every_strategy_ran_with_every_seed(result: dict[str, Any]) -> None:
    found = [(run["strategy"], run["seed"]) for run in result["runs"]]
    assert found == [(name, seed) for seed in range(QUICK_SEEDS) for name in STRATEGIES]
    for run in result["runs"]:
        assert len(run["curve"]) == QUICK_EPOCHS
        assert all(0 <= value <= 1 for value in run["curve"])
        assert run["best"] == pytest.approx(max(run["curve"]), abs=1e-4)
        assert run["last"] == pytest.approx(run["curve"][-1], abs=1e-4)
        assert run["rate"] == result["rates"]["chosen"][run["strategy"]]
        assert run["cpu_seconds"] > 0


def test_the_head_alone_moves_nothing_else_to_the_bit(result: dict[str, Any]) -> None:
    for run in runs_of(result, "head"):
        assert (run["moved"], run["distance"], run["trained"]) == (0, 0, 0)
    for strategy in STRATEGIES[1:]:
        for run in runs_of(result, strategy):
            assert run["moved"] > 0.9, strategy
            assert run["distance"] > 0, strategy
            assert run["trained"] == 1, strategy


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_the_trunk_afterwards(strategy: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared here with the file it came from, not by the benchmark's own figures."""
    made: list[start.Net] = []

    class Kept(start.Net):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    plan = suite.quick_suite(folder)[0].plan
    monkeypatch.setattr(training, "Net", Kept)
    training.fine_tune(strategy, start.synthetic_task("stripes", 0), 0, 1e-2, plan)
    from safetensors.torch import load_file

    kept, state = load_file(plan.start), made[-1].state_dict()
    assert not torch.equal(state["head.weight"], kept["head.weight"])
    trunk = [name for name in kept if not name.startswith("head.")]
    assert len(trunk) == len(state) - 2
    assert all(torch.equal(state[name], kept[name]) for name in trunk) == (strategy == "head")


def test_gradual_ends_with_everything_trained(folder: Path) -> None:
    plan = suite.quick_suite(folder)[0].plan
    model = start.Net(3, plan.width)
    prepared = training.STRATEGIES["gradual"](model, 1e-3, plan, 3)
    assert prepared.unfreezing is not None
    blocks = [model.blocks[3], model.blocks[2], model.blocks[1], model.blocks[0], model.stem]
    for done in range(len(blocks) + 1):
        training_now = [all(p.requires_grad for p in part.parameters()) for part in blocks]
        assert training_now == [n < done for n in range(len(blocks))]
        prepared.unfreezing.epoch_end()
    assert prepared.unfreezing.held == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rates_of_the_trunk(folder: Path) -> None:
    plan = suite.quick_suite(folder)[0].plan
    model = start.Net(3, plan.width)
    for strategy, wanted in (
        ("full", {"head.weight": 1.0, "blocks.3.conv1.weight": 1.0, "stem.0.weight": 1.0}),
        ("discriminative", {"head.weight": 1.0, "blocks.3.conv1.weight": 0.07, "stem.0.weight": 0.1 * 0.7**5}),
        ("probe-then-tune", {"head.weight": 1.0, "blocks.3.conv1.weight": 0.1, "stem.0.weight": 0.1}),
    ):
        prepared = training.STRATEGIES[strategy](model, 1.0, plan, 3)
        rates = {id(p): group["lr"] for group in prepared.optimizer.param_groups for p in group["params"]}
        for name, rate in wanted.items():
            assert rates[id(model.get_parameter(name))] == pytest.approx(rate), (strategy, name)
        if prepared.unfreezing is not None:
            assert prepared.unfreezing.hold is not None
            prepared.unfreezing.hold.thaw()


def test_a_run_is_the_same_again_and_another_seed_is_another_run(folder: Path) -> None:
    plan = suite.quick_suite(folder)[0].plan
    task = start.synthetic_task("stripes", 0)
    first, again, other = (training.fine_tune("full", task, seed, 1e-3, plan) for seed in (0, 0, 1))
    assert (first.curve, first.distance) == (again.curve, again.distance)
    assert first.distance != other.distance


def test_the_json(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == [
        "schema_version", "benchmark", "machine", "settings", "start", "rates", "summary", "against_full", "runs",
    ]  # fmt: skip
    tried = result["rates"]["accuracy"]
    assert list(tried) == STRATEGIES
    for strategy, rate in result["rates"]["chosen"].items():
        assert tried[strategy][str(rate)] == max(tried[strategy].values())
    assert not set(result["rates"]["choosing_seeds"]) & set(result["settings"]["seeds"])
    for row in result["summary"]:
        values = [run["last"] for run in runs_of(result, row["strategy"])]
        assert row["last"] == {
            "mean": pytest.approx(statistics.fmean(values)),
            "sd": pytest.approx(statistics.stdev(values)),
        }
    assert len(result["against_full"]) == 2 * (len(STRATEGIES) - 1)


def run_with(strategy: str, seed: int, last: float) -> training.Run:
    return training.Run("task", strategy, seed, 1e-3, [0.9, last], 1.0, 1.0, 1.0, 0.1, 1.0)


def test_differences_are_paired_by_seed() -> None:
    """Gaps of 0.02 and 0.04: mean 0.03, standard error 0.01, t with one degree of freedom 12.706."""
    runs = [run_with("head", 1, 0.54), run_with("full", 0, 0.6), run_with("head", 0, 0.62), run_with("full", 1, 0.5)]
    row = suite.difference("task", "head", "last", runs)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.03, 0.03 - 0.12706, 0.03 + 0.12706))
    assert not row["differs"]
    wide = [
        run_with(name, seed, 0.5 + 0.1 * (name == "head") + 0.1 * seed) for name in ("head", "full") for seed in (0, 1)
    ]
    assert suite.difference("task", "head", "last", wide)["differs"]
    assert suite.difference("task", "head", "best", wide)["mean"] == pytest.approx(0.0, abs=1e-9)


def test_intervals_are_student_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom, point in suite._T.items():
        assert point == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_the_table_and_the_sentences(result: dict[str, Any]) -> None:
    told = suite.tables(result)
    for row in result["summary"]:
        mean, sd = 100 * row["last"]["mean"], 100 * row["last"]["sd"]
        assert f"| {row['strategy']} | {row['rate']:g} | {mean:.1f} ± {sd:.1f} |" in told
    means = {row["strategy"]: row["last"]["mean"] for row in result["summary"]}
    first = max(means, key=lambda name: means[name])
    assert f"stripes: after the last epoch {first} has the highest mean, {100 * means[first]:.1f} %" in told


def test_a_strategy_that_is_worse_is_called_worse(result: dict[str, Any]) -> None:
    """Also if it is the one that was hoped for."""
    gaps = [
        {**row, "mean": -0.1, "differs": True} if row["strategy"] == "gradual" else {**row, "differs": False}
        for row in result["against_full"]
    ]
    told = suite.verdict({**result, "against_full": gaps})
    assert "better than full: none; worse: gradual; not to be told from it: head, discriminative, probe" in told


def test_splits_hold_out_a_share_of_each_class() -> None:
    whole = start.synthetic_task("stripes", 0).train
    train, held = start.split_by_seed(whole, 3, 0.25)
    assert train.labels.bincount().tolist() == [6, 6, 6]
    assert held.labels.bincount().tolist() == [2, 2, 2]
    both = torch.cat([train.pixels, held.pixels]).flatten(1)
    assert len(both.unique(dim=0)) == len(whole)
    assert not torch.equal(start.split_by_seed(whole, 4, 0.25)[1].pixels, held.pixels)


def test_steps_are_counted_as_batches_come(folder: Path) -> None:
    plan = suite.quick_suite(folder)[0].plan
    whole = start.synthetic_task("stripes", 0)
    for count in (8, 9, 10, 24):  # one image is left over of nine, which no batch norm could use
        task = start.Task("part", 3, whole.train.where(torch.arange(24) < count), whole.val)
        came = list(start.batches(task.train, plan.batch, torch.Generator().manual_seed(0)))
        assert plan.steps(task) == len(came)
        assert min(len(labels) for _, labels in came) > 1


@pytest.mark.real_data
def test_the_start_has_seen_no_image_of_a_task() -> None:
    if not start.DATA.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {start.DATA} is not there, so the splits of real photographs go unchecked")
    seen, _ = start.start_images()
    assert int(seen.labels.max()) + 1 == 15  # ten of CIFAR-10, seven of PACS, dog and horse once
    digests = {hash(pixels.numpy().tobytes()) for pixels in seen.pixels}
    for name in (*start.UNSEEN, "hymenoptera"):
        task = start.real_task(name, 0)
        assert not digests & {hash(pixels.numpy().tobytes()) for pixels in task.val.pixels}
        assert not digests & {hash(pixels.numpy().tobytes()) for pixels in task.train.pixels}
    assert digests & {hash(pixels.numpy().tobytes()) for pixels in start.domain("photo").pixels}
    assert math.isclose(len(start.real_task("sketch", 0).val) / 280, start.HELD_OUT)
