"""One net under many policies: the population is measured first, and what blows up is a row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.errors import InnerLoopDiverged, PolicyError, RunFolderError
from frostline.meta import found_data, run_policies
from frostline.meta.digits_classes import digits
from frostline.meta.evaluate import evaluate
from frostline.meta.gradient_learner import GradientLearner
from frostline.meta.policy import SOURCES
from frostline.meta.population import measure_population
from frostline.meta.run import train
from frostline.meta.run_learner import build, unpack_learner
from frostline.meta.run_policies import POPULATION_TASKS, evaluate_policies
from frostline.meta.run_settings import MetaConfig
from frostline.meta.splits import Splits
from frostline.meta.tasks import Tasks
from frostline.runs.run_folder import RunFolder

SMALL = MetaConfig(
    way=3, queries=2, steps=2, iterations=3, meta_batch=2, width=4, eval_tasks=4, inner_lr=0.1, threads=1
)


@pytest.fixture(autouse=True, scope="module")
def _prepared() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    class_set = digits(rotations="classes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found_data, "digits", lambda **_: class_set)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(SMALL, tmp_path_factory.mktemp("policies") / "run").folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_every_policy_is_a_row_and_the_rest_of_the_run_stays(folder: Path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    table = evaluate_policies(folder, tasks=3)
    assert [row.policy for row in table.evaluation.rows] == list(SOURCES)
    assert {row.policy for row in table.evaluation.rows if row.kind == "transductive"} == {"batch"}
    assert all(row.queries == 15 and row.tasks + row.skipped == 3 for row in table.evaluation.rows)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {folder / "policies.json"}
    assert all(after[path] == content for path, content in before.items())
    assert json.loads((folder / "policies.json").read_text()) == table.results


def test_the_numbers_are_those_of_the_stored_learner_with_a_measured_population(folder: Path):
    table = evaluate_policies(folder, policies=["population", "batch/support"], tasks=4)
    class_set = digits(rotations="classes")
    splits = Splits.read(folder / "splits.json", class_set)
    learner = build(SMALL, class_set.shape, torch.device("cpu")).learner
    unpack_learner(learner, None, RunFolder.open(folder).load_tensors("learner.safetensors"), {})
    train = Tasks(class_set, way=3, shot=1, queries=2, splits=splits).batch("train", 0, POPULATION_TASKS)
    tasks = Tasks(class_set, way=3, shot=1, queries=15, splits=splits)
    named: dict[str, Any] = {"count": 4, "policies": ["population", "batch/support"]}
    unmeasured = evaluate(learner, tasks, **named).rows
    learner.statistics = measure_population(learner, train)
    assert table.evaluation.rows == evaluate(learner, tasks, **named).rows
    # The twin: without measuring, the population's numbers are others.
    assert table.evaluation.rows[0] != unmeasured[0]
    assert table.evaluation.rows[1] == unmeasured[1]


def test_what_blows_up_is_a_row_that_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    adapted_on = GradientLearner.adapted_on

    def exploding(self: Any, run: Any, support: Any, policy: Any, steps: int, seed: int) -> Any:
        if policy.inner == ("frozen",):
            raise InnerLoopDiverged("block1.conv grew without end\n  fix: a smaller rate")
        return adapted_on(self, run, support, policy, steps, seed)

    monkeypatch.setattr(GradientLearner, "adapted_on", exploding)
    table = evaluate_policies(folder, policies=["batch", "frozen", "support"], tasks=3)
    batch, frozen, support = table.evaluation.rows
    assert (frozen.tasks, frozen.skipped, frozen.why) == (0, 3, "block1.conv grew without end")
    assert (batch.tasks, support.tasks) == (3, 3)
    stored = json.loads((folder / "policies.json").read_text())["evaluation"]["rows"][1]
    assert (stored["accuracy"], stored["why"]) == ("nan", "block1.conv grew without end")


def test_a_population_that_cannot_be_measured_stays_that_of_training(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def exploding(*_: Any, **__: Any) -> Any:
        raise InnerLoopDiverged("task 3: block1.conv grew without end\n  fix: a smaller rate")

    monkeypatch.setattr(run_policies, "measure_population", exploding)
    table = evaluate_policies(folder, policies=["population"], tasks=2)
    assert table.results["population_tasks"] == 0
    assert table.evaluation.rows[0].tasks == 2


def test_what_the_net_cannot_have_is_left_out_or_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    policy_for = GradientLearner.policy_for

    def without_frozen(self: Any, policy: Any) -> Any:
        if policy == "frozen":
            raise PolicyError("no layer keeps statistics\n  fix: another policy")
        return policy_for(self, policy)

    monkeypatch.setattr(GradientLearner, "policy_for", without_frozen)
    table = evaluate_policies(folder, tasks=2)
    assert table.left_out == table.results["left_out"] == {"frozen": "no layer keeps statistics"}
    assert [row.policy for row in table.evaluation.rows] == [name for name in SOURCES if name != "frozen"]
    with pytest.raises(PolicyError, match="no layer keeps statistics"):
        evaluate_policies(folder, policies=["frozen"], tasks=2)


def test_bad_requests_write_nothing(folder: Path, tmp_path: Path):
    with pytest.raises(PolicyError, match="did you mean 'support'"):
        evaluate_policies(folder, policies=["batch", "suport"])
    with pytest.raises(RunFolderError, match=r"no run: .*\n  fix: --run with"):
        evaluate_policies(tmp_path / "nowhere")
    (folder / "learner.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"is not finished\n  fix: frostline meta --resume"):
        evaluate_policies(folder)
    assert not (folder / "policies.json").exists()
