"""The main job from end to end: what it proves is true, also by other means than its own."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import xxhash
from safetensors import safe_open

from frostline.compat import import_torchvision
from frostline.errors import CorruptCheckpoint, NothingSelected, RunFolderError, StorageFull, TrainingDiverged
from frostline.finetune import FinetuneConfig, run
from frostline.finetune.digits_problem import digits_problem
from frostline.finetune.interrupted import RunInterrupted
from frostline.runs.run_folder import RunFolder

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators"),
    pytest.mark.filterwarnings("ignore::frostline.errors.RandomStart"),
]
Arrays = dict[str, np.ndarray[Any, Any]]


def xxh3(array: np.ndarray[Any, Any]) -> str:
    """What a digest is, computed without torch and frostline: of dtype, shape and the bytes in row-major order."""
    shape = tuple(int(n) for n in array.shape)
    return xxhash.xxh3_128_hexdigest(f"torch.{array.dtype}|{shape}|".encode() + array.tobytes())


def of_file(path: Path) -> Arrays:
    return safetensors.numpy.load_file(path)


def start_of(folder: Path) -> Arrays:
    (path,) = (folder / "checkpoints").glob("*.start.safetensors")
    return {name.removeprefix("model/"): array for name, array in of_file(path).items()}


def certificate_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text())


# The embedded digits


def test_the_run_folder_holds_what_the_design_names(digits_run: Any):
    folder = digits_run.result.folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "certificate.json",
        "report.html",
        "model.safetensors",
        "checkpoints",
    }
    assert FinetuneConfig.from_json(json.loads((folder / "config.json").read_text())) == digits_run.config


def test_the_certificate_has_the_fields_of_the_design(digits_run: Any):
    certificate = certificate_of(digits_run.result.folder)
    assert certificate == digits_run.result.certificate
    assert certificate["schema_version"] == 1
    for account in (certificate, certificate["naive"]):
        assert all(row.keys() == {"before", "after", "equal"} for row in account["held"].values())
        assert account["moved"] == [path for path, row in account["held"].items() if not row["equal"]]
        assert account["probe"].keys() == {"digit", "parity"}
        for head in account["probe"].values():
            assert {"logits_equal", "metric_before", "metric_after"} <= head.keys()


def test_its_digests_are_those_of_the_files(digits_run: Any):
    """Computed anew from the checkpoint at the start of the phase and from the final model."""
    folder = digits_run.result.folder
    held = certificate_of(folder)["held"]
    before, after = start_of(folder), of_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    tensors = {path for path in held if path in before}
    # All of the trunk and of the first head, its statistics and counters included.
    assert tensors == {path for path in before if not path.startswith("heads.parity")}
    assert {"trunk.bn1.running_mean", "trunk.bn3.num_batches_tracked", "heads.digit.bias"} <= tensors
    for path in tensors:
        assert held[path] == {"before": xxh3(before[path]), "after": xxh3(after[path]), "equal": True}
    assert any(xxh3(before[path]) != xxh3(after[path]) for path in before if path.startswith("heads.parity"))


def test_flags_and_figures_are_held_too(digits_run: Any):
    held = certificate_of(digits_run.result.folder)["held"]
    assert held["trunk.bn1.training"] == {"before": False, "after": False, "equal": True}
    assert held["trunk.conv1.weight.requires_grad"] == {"before": False, "after": False, "equal": True}
    assert held["trunk.bn1.momentum"]["before"] == 0.1
    assert held["trunk.dropout.p"]["before"] == 0.3


def test_the_first_head_is_what_it_was_and_the_naive_loop_spoils_it(digits_run: Any):
    certificate = certificate_of(digits_run.result.folder)
    assert certificate["moved"] == []
    digit = certificate["probe"]["digit"]
    assert digit["logits_equal"]
    assert digit["metric_before"] == digit["metric_after"] > 0.8
    assert (digit["trained"], digit["logits_max_abs"], digit["predictions_changed"]) == (False, 0.0, 0)

    naive = certificate["naive"]
    assert {path.rpartition(".")[2] for path in naive["moved"]} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert len(naive["moved"]) == 9
    spoilt = naive["probe"]["digit"]
    assert not spoilt["logits_equal"]
    assert spoilt["metric_before"] == digit["metric_before"]
    assert spoilt["metric_after"] < digit["metric_after"] - 0.05
    assert spoilt["predictions_changed"] > 0


def test_the_first_heads_accuracy_is_true(digits_run: Any):
    """Measured here from the final model's file, on all validation images."""
    problem = digits_problem(digits_run.config)
    problem.model.load_state_dict(
        {k: torch.tensor(v) for k, v in of_file(digits_run.result.folder / "model.safetensors").items()}
    )
    images, labels = problem.probe.tensors
    with torch.no_grad():
        right = problem.model.eval()(images, "digit").argmax(-1) == labels
    assert float(right.double().mean()) == certificate_of(digits_run.result.folder)["probe"]["digit"]["metric_after"]


def test_metrics_have_a_row_for_each_epoch(digits_run: Any):
    rows = [json.loads(line) for line in (digits_run.result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        (phase, epoch) for phase in ("digit", "parity", "parity (naive)") for epoch in (1, 2)
    ]
    keys = {"phase", "epoch", "epochs", "loss", "accuracy", "seconds", "rates", "spent"}
    assert all(row.keys() == keys for row in rows)
    assert rows == [row.to_json() for row in digits_run.result.rows]
    assert all(0 < row["accuracy"] <= 1 and row["loss"] > 0 for row in rows)


def test_the_seconds_of_a_run_are_told_apart(digits_run: Any):
    result = digits_run.result
    for row in result.rows:
        within = {name: seconds for name, seconds in row.spent.items() if name != "saving"}
        assert {"loading", "head"} <= within.keys()
        assert all(seconds > 0 for seconds in within.values())
        assert sum(within.values()) <= row.seconds
        # A checkpoint is kept behind each epoch of the run itself.
        assert row.spent.get("saving", 0.0) > 0 or row.phase.endswith("(naive)")
    assert {"preparing", "starting", "saving", "proof", "report"} <= result.outside.keys()
    assert "epochs" not in result.outside
    assert all(seconds > 0 for seconds in result.outside.values())
    saving = sum(row.spent.get("saving", 0.0) for row in result.rows)
    whole = sum(row.seconds for row in result.rows) + saving + sum(result.outside.values())
    assert sum(result.spent().values()) == pytest.approx(whole)
    assert result.to_json()["spent"] == result.spent()


def test_no_second_is_counted_twice(tmp_path: Path):
    """Names within names: the epochs lie within the proof, and saving within both."""
    began = time.perf_counter()
    result = run(FinetuneConfig(epochs=1, batch_size=512, naive=True), tmp_path / "run")
    assert 0.8 * (time.perf_counter() - began) < sum(result.spent().values()) <= time.perf_counter() - began


def test_the_report_says_where_the_time_went(digits_run: Any):
    page = (digits_run.result.folder / "report.html").read_text()
    assert "Where the time went" in page
    for title in ("digit", "parity", "parity (naive)"):
        assert f'aria-label="{title}, first epoch: loading ' in page
        assert f'aria-label="{title}, epoch 2: loading ' in page
    assert 'aria-label="outside of the epochs: ' in page


def test_the_result_and_its_json(digits_run: Any):
    result = digits_run.result
    assert result.report.isolated
    assert result.naive is not None
    assert not result.naive.isolated
    assert result.page == result.folder / "report.html"
    data = result.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (data["schema_version"], data["isolated"], data["folder"]) == (1, True, str(result.folder))
    assert data["accuracy"].keys() == {"digit", "parity", "parity (naive)"}
    assert data["certificate"] == result.certificate


def test_the_report_names_what_was_found(digits_run: Any):
    page = (digits_run.result.folder / "report.html").read_text()
    assert "trunk.bn1.running_mean" in page or "running_mean" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_progress_is_told(digits_run: Any):
    assert digits_run.told.begun == [("digit", 2, 0), ("parity", 2, 0), ("parity (naive)", 2, 0)]
    # Told before the epoch is kept; how long that took is known behind it.
    told = [replace(row, spent={**row.spent, "saving": 0.0}) for row in digits_run.told.rows]
    assert told == [replace(row, spent={**row.spent, "saving": 0.0}) for row in digits_run.result.rows]
    naively = "the same phase the naive way, on a copy: requires_grad=False and model.train()"
    assert digits_run.told.said[-1] == naively


def test_what_trains_and_what_is_held_is_said_before_the_first_epoch(digits_run: Any):
    said = digits_run.told.said
    first = said.index("  trains: trunk, heads.digit")
    assert said[first + 1] == "  held: heads.parity"
    second = said.index("  trains: heads.parity")
    assert said[second + 1] == "  held: trunk, heads.digit"
    assert said[second - 1] == "  learns even or odd on the negatives of the images, dark ink on white paper"


def test_the_file_of_the_model_names_heads_and_classes(digits_run: Any):
    with safe_open(digits_run.result.folder / "model.safetensors", "pt") as file:
        heads = json.loads(file.metadata()["heads"])
        assert all(f"{head['path']}.weight" in file.keys() for head in heads.values())  # noqa: SIM118 - no mapping
    assert heads["parity"] == {"path": "heads.parity", "classes": ["even", "odd"]}
    assert len(eval(digits_run.result.loading(), {"safetensors": safetensors})) > 0


def test_an_interrupted_run_says_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("frostline.finetune.job.fit", interrupted)
    with pytest.raises(RunInterrupted) as caught:
        run(FinetuneConfig(epochs=1, naive=False), tmp_path / "run")
    assert caught.value.folder == tmp_path / "run"


@pytest.mark.parametrize("strategy", ["gradual", "probe-then-tune"])
def test_a_schedule_that_never_comes_is_said_and_nothing_else_is_claimed(tmp_path: Path, recorder: Any, strategy: str):
    config = FinetuneConfig(epochs=1, batch_size=512, naive=False, device="cpu", strategy=strategy)
    result = run(config, tmp_path / "run", progress=recorder)
    assert recorder.said[0].startswith(f"--strategy {strategy} with --epochs 1: the trunk does not train")
    assert not any("unfrozen" in line for line in recorder.said)
    assert f"  trains: heads.parity; later, by --strategy {strategy}: trunk" in recorder.said
    assert result.page is not None
    page = result.page.read_text()
    assert "nothing of the trunk trained" in page
    assert "trained too" not in page
    assert "which was only the own weights of digit" in page


def test_the_same_seed_gives_the_same_and_the_random_state_is_given_back(digits_run: Any, tmp_path: Path):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again = run(digits_run.config, tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), state)
    one, other = (of_file(folder / "model.safetensors") for folder in (digits_run.result.folder, again.folder))
    assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in other.items()}
    assert again.certificate == digits_run.result.certificate


def test_another_seed_gives_another_result(digits_run: Any, tmp_path: Path):
    other = run(replace(digits_run.config, seed=1, epochs=1, naive=False), tmp_path / "run")
    assert other.report.isolated
    assert other.naive is None
    assert certificate_of(other.folder)["naive"] is None
    one = of_file(digits_run.result.folder / "model.safetensors")
    assert not np.array_equal(
        of_file(other.folder / "model.safetensors")["trunk.conv1.weight"], one["trunk.conv1.weight"]
    )


def test_part_of_the_trunk(digits_run: Any, tmp_path: Path):
    config = replace(digits_run.config, epochs=1, freeze=("conv[12]", "bn[12]"), naive=True)
    result = run(config, tmp_path / "run")
    before, after = start_of(result.folder), of_file(result.folder / "model.safetensors")
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert {path.split(".")[1] for path in moved} == {"conv3", "bn3", "parity"}
    assert result.certificate["moved"] == []
    assert not result.certificate["probe"]["digit"]["logits_equal"]  # which was not promised
    assert result.report.isolated
    assert {path.split(".")[1] for path in result.certificate["naive"]["moved"]} == {"bn1", "bn2"}


def test_without_a_name_the_next_free_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Any):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "finetune-1").mkdir(parents=True)
    result = run(FinetuneConfig(epochs=1, batch_size=512, naive=False), progress=recorder)
    assert result.folder == Path("runs/finetune-2")
    assert recorder.said[0] == "run folder runs/finetune-2"


# What stops it


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(NothingSelected, match="conv9"):
        run(FinetuneConfig(freeze=("conv9",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_left_alone(digits_run: Any):
    folder = digits_run.result.folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(RunFolderError, match="already holds a run"):
        run(digits_run.config, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_nan_loss_keeps_the_last_good_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Broken data in the second phase, after the first has left checkpoints."""
    from frostline.finetune import job

    def with_a_nan(config: FinetuneConfig) -> Any:
        problem = digits_problem(config)
        problem.phases[1].train.tensors[0][7] = float("nan")
        return problem

    monkeypatch.setattr(job, "digits_problem", with_a_nan)
    with pytest.raises(TrainingDiverged) as caught:
        run(FinetuneConfig(epochs=1, batch_size=128), tmp_path / "run")
    what, kept, fix = str(caught.value).splitlines()
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert what.startswith("the loss became nan in phase 'parity', epoch 1, step ")
    assert kept == f"  kept: the last good checkpoint, {newest}"
    assert fix.startswith("  fix: a smaller learning rate")
    assert caught.value.exit_code == 3
    assert all(np.isfinite(array).all() for array in of_file(newest).values())
    assert not (tmp_path / "run" / "certificate.json").exists()


def test_a_comparison_that_diverges_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Any
):
    from frostline.finetune import job

    def diverges(*_: object, **__: object) -> None:
        raise TrainingDiverged("the loss became nan in phase 'parity (naive)', epoch 1, step 1\n  fix: none")

    monkeypatch.setattr(job, "train_naively", diverges)
    result = run(FinetuneConfig(epochs=1, batch_size=512), tmp_path / "run", progress=recorder)
    assert (result.report.isolated, result.naive, result.page is not None) == (True, None, True)
    assert recorder.said[-1] == "no comparison: the loss became nan in phase 'parity (naive)', epoch 1, step 1"


def test_a_folder_made_for_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise StorageFull("no space")

    monkeypatch.setattr(RunFolder, "write_json", full)
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(StorageFull):
            run(FinetuneConfig(epochs=1), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_checkpoint_that_cannot_be_read_is_refused_before_the_folder_is_made(
    tmp_path: Path, photos: Path, small_net: str
):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    config = FinetuneConfig(
        data=str(photos), model=f"{small_net}:Net", init=str(tmp_path / "cut.safetensors"), workers=0
    )
    with pytest.raises(CorruptCheckpoint):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Photographs


@pytest.fixture(scope="session")
def resnet_run(bees_and_ants: Path, tmp_path_factory: pytest.TempPathFactory, single_threaded: Any) -> Any:
    """A few steps of ResNet-18, from a checkpoint with another number of classes."""
    place = tmp_path_factory.mktemp("resnet")
    import_torchvision()
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        source = timm.create_model("resnet18", num_classes=5)
    torch.save(source.state_dict(), place / "five.pth")
    config = FinetuneConfig(
        data=str(bees_and_ants),
        model="timm/resnet18",
        init=str(place / "five.pth"),
        epochs=1,
        batch_size=8,
        workers=0,
        device="cpu",
    )
    with single_threaded():
        return source, run(config, place / "run"), config


@pytest.mark.slow
@pytest.mark.real_data
class TestPhotographs:
    def test_the_model_fits_the_users_library_strictly(self, resnet_run: Any):
        import timm

        source, result, _ = resnet_run
        tensors = {name: torch.tensor(a) for name, a in of_file(result.folder / "model.safetensors").items()}
        user = timm.create_model("resnet18", num_classes=2)
        user.load_state_dict(tensors, strict=True)
        # The trunk is the checkpoint's, to the bit; the classifier is new.
        for name, tensor in source.state_dict().items():
            if not name.startswith("fc."):
                assert tensor.numpy().tobytes() == tensors[name].numpy().tobytes()
        assert tensors["fc.weight"].shape == (2, 512)
        # As the last line of the command says it.
        loaded = eval(result.loading(), {"timm": timm})
        assert torch.equal(loaded.state_dict()["fc.weight"], tensors["fc.weight"])

    def test_the_original_head_is_the_checkpoints_and_gives_the_same_logits(self, resnet_run: Any):
        source, result, _ = resnet_run
        assert result.certificate["probe"]["original"]["logits_equal"]
        assert result.certificate["moved"] == []
        assert result.certificate["naive"] is None
        image, _ = result.problem.probe[0]
        with torch.no_grad():
            expected = source.eval()(image[None])
            assert torch.equal(result.problem.model.eval()(image[None], "original"), expected)

    def test_every_entry_of_the_trunk_is_held(self, resnet_run: Any):
        source, result, _ = resnet_run
        names = {name for name in source.state_dict() if not name.startswith("fc.")}
        assert {f"trunk.{name}" for name in names} <= result.certificate["held"].keys()
        assert {"heads.original.weight", "heads.original.bias"} <= result.certificate["held"].keys()

    @pytest.mark.parametrize(
        ("freeze", "trains"),
        [("layer[1-3]*", {"conv1", "bn1", "layer4"}), ("!layer4", {"layer4"})],
    )
    def test_part_of_the_trunk(self, resnet_run: Any, tmp_path: Path, freeze: str, trains: set[str]):
        source, _, config = resnet_run
        result = run(replace(config, freeze=(freeze,)), tmp_path / "run")
        after = of_file(result.folder / "model.safetensors")
        moved = {
            name.partition(".")[0]
            for name, tensor in source.state_dict().items()
            if not name.startswith("fc.") and tensor.numpy().tobytes() != after[name].tobytes()
        }
        assert moved == trains
        assert result.certificate["moved"] == []
        assert result.report.isolated
        held = {path.split(".")[1] for path in result.certificate["held"] if path.startswith("trunk.")}
        assert held.isdisjoint(trains)
