"""The main job: train part of a model, prove that the rest did not move, and leave a run folder behind."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset

from frostline.errors import MissingExtra, TrainingDiverged
from frostline.extras import require
from frostline.finetune.alone import Alone, one_thread, same_on_all
from frostline.finetune.certificate import certify
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.digits_problem import digits_problem
from frostline.finetune.folder_problem import folder_problem
from frostline.finetune.interrupted import RunInterrupted
from frostline.finetune.loop import fit, make_accelerator
from frostline.finetune.lost_process import lost_process_told
from frostline.finetune.metrics import EpochRow
from frostline.finetune.naive import train_naively
from frostline.finetune.page import run_page, spent_bars, time_spent
from frostline.finetune.problem import Problem
from frostline.finetune.progress import Progress, Silent
from frostline.finetune.shortcut import shortcut_for
from frostline.finetune.told_parts import told_parts
from frostline.freezing import verify_ranks
from frostline.report import render_run, sum_spent
from frostline.runs.run_folder import RunFolder, free_folder
from frostline.runs.time_spent import TimeSpent
from frostline.runs.training_state import pack, unpack_model
from frostline.state.changes import StateDiff
from frostline.state.held_rows import held_rows
from frostline.state.snapshot import Snapshot, snapshot
from frostline.tasks.isolation import IsolationReport
from frostline.tasks.training import train_task

# The heads are compared on at most so many samples, evenly spaced; the logits and the inputs are kept in memory.
PROBE_SAMPLES = 512
PROBE_BATCH = 64
START = "start"
EPOCHS = "epochs"


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        folder: the run folder.
        problem: what was trained.
        rows: one for each epoch.
        report: the heads before and after, and what of the held part moved.
        naive: the same for the naive loop, where it was run.
        certificate: as written to ``certificate.json``.
        page: the HTML report, where the extra for it is installed.
        outside: what time was spent on outside of the epochs, to seconds; of a run that was resumed, since then.
    """

    folder: Path
    problem: Problem
    rows: tuple[EpochRow, ...]
    report: IsolationReport
    naive: IsolationReport | None
    certificate: dict[str, Any]
    page: Path | None
    outside: Mapping[str, float] = field(default_factory=dict[str, float])

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready values with a schema version."""
        return {
            "schema_version": self.certificate["schema_version"],
            "folder": str(self.folder),
            "isolated": self.report.isolated,
            "accuracy": {phase: row.accuracy for phase, row in self.last_rows().items()},
            "spent": self.spent(),
            "certificate": self.certificate,
            "report": None if self.page is None else str(self.page),
        }

    def loading(self) -> str:
        """The Python that loads ``model.safetensors``."""
        return self.problem.load.replace("FILE", repr(str(self.folder / "model.safetensors")))

    def last_rows(self) -> dict[str, EpochRow]:
        """The last epoch of each phase."""
        return {row.phase: row for row in self.rows}

    def spent(self) -> dict[str, float]:
        """What the time went to in all, name to seconds: the epochs of every phase, and what was outside of them."""
        return sum_spent([*(time_spent(row) for row in self.rows), self.outside])


@dataclass
class _Progress:
    """Where a run stands; kept in every checkpoint."""

    phase: int = 0
    epoch: int = 0
    rows: list[EpochRow] = field(default_factory=list[EpochRow])
    tensors: Mapping[str, Tensor] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


def run(config: FinetuneConfig, out: str | Path | None = None, *, progress: Progress | None = None) -> RunResult:
    """Run the main job.

    Everything that can be refused is refused before the run folder is made. The global random state is given back as
    it was.

    Args:
        config: what to do.
        out: the run folder, which must not exist or be empty; ``None`` takes the next free ``runs/finetune-N``.
        progress: told what happens.

    Returns:
        The :class:`RunResult`; the same on every process, but only the main one writes.

    Raises:
        FrostlineError: of the kind that says what is wrong; see :mod:`frostline.errors`.

    Example:
        >>> import tempfile, warnings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(FinetuneConfig(epochs=1, naive=False), f"{folder}/run")
        >>> result.report.isolated, result.certificate["moved"]
        (True, [])
    """
    return _Job(config, progress or Silent()).run(out, resume=False)


def resume(folder: str | Path, *, device: str | None = None, progress: Progress | None = None) -> RunResult:
    """Go on with a run that was stopped, from its last checkpoint to the result it would have had.

    Args:
        folder: the run folder; its ``config.json`` says what to do.
        device: another device than the run began on; bit-equality with an uninterrupted run is then not to be had.
        progress: told what happens.

    Raises:
        RunFolderError: there is no run in the folder.
        CorruptCheckpoint: none of its checkpoints can be read.
    """
    config = FinetuneConfig.from_json(RunFolder.open(Path(folder)).read_json("config.json"))
    # What was to be replaced was replaced when the run began.
    config = replace(config, rebuild_cache=False, device=config.device if device is None else device)
    return _Job(config, progress or Silent()).run(folder, resume=True)


class _Job:
    def __init__(self, config: FinetuneConfig, progress: Progress) -> None:
        self.config = config
        # The epochs count what is within them; here they are one name, so that nothing around them counts it again.
        self.spent = TimeSpent()
        with self.spent("preparing"):
            self.accelerator = make_accelerator(config)
        self.main: bool = self.accelerator.is_main_process
        self.several: bool = self.accelerator.num_processes > 1
        self.progress: Progress = progress if self.main else Silent()
        self.at = _Progress()
        # How many of the rows are from before this process.
        self.known = 0

    def run(self, out: str | Path | None, *, resume: bool) -> RunResult:
        devices = [self.accelerator.device.index or 0] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            with self.spent("preparing"):
                problem = digits_problem(self.config) if self.config.data is None else folder_problem(self.config)
            self.folder = self._open(Path(out or self._free_folder()), resume=resume)
            if out is None:
                # Said now, because a run that is stopped is resumed by it.
                self.progress.say(f"run folder {self.folder.path}")
            for line in problem.notes:
                self.progress.say(line)
            try:
                with lost_process_told(self._kept):
                    return self._train(problem)
            except KeyboardInterrupt:
                raise RunInterrupted(self.folder.path) from None

    def _open(self, out: Path, *, resume: bool) -> RunFolder:
        if resume:
            folder = RunFolder.open(out)
            self._find_checkpoint(folder)
            return folder
        if self.main:
            RunFolder.begin(out, self.config.to_json())
        self.accelerator.wait_for_everyone()
        return RunFolder.open(out)

    def _free_folder(self) -> str:
        """The next free name, the same on every process."""
        chosen = [free_folder("runs/finetune")]
        broadcast: Any = require("accelerate.utils", extra="train", purpose="Training").broadcast_object_list
        return broadcast(chosen)[0]

    def _find_checkpoint(self, folder: RunFolder) -> None:
        found = folder.latest_checkpoint()
        if found is None:
            self.progress.say("no checkpoint yet: starting from the beginning")
        else:
            for line in found.skipped:
                self.progress.say(f"passing over a damaged checkpoint, {line}")
            state: dict[str, Any] = json.loads(found.metadata["progress"])
            rows = _noted([EpochRow(**row) for row in state["rows"]], folder)
            self.at = _Progress(state["phase"], state["epoch"], rows, found.tensors, found.metadata)
            self.known = len(rows)
            self.progress.say(f"resuming after {found.name}")
        if self.main:
            # Rows behind the checkpoint, or before there was one, belong to an epoch that is done again.
            known, count = len(self.at.rows), itertools.count()
            folder.truncate_metrics(lambda _: next(count) < known)
            # A checkpoint is kept before the row of its epoch is: a kill in between leaves it without.
            for row in self.at.rows[len(folder.read_metrics()) :]:
                folder.append_metrics(row.to_json())

    def _train(self, problem: Problem) -> RunResult:
        model, last = problem.model, len(problem.phases) - 1
        for number in range(self.at.phase, last):
            if self.at.tensors is not None:
                unpack_model(model, self.at.tensors)
            # What comes before the phase that is proven is the start: the same on any number of processes and threads.
            with (
                one_thread(self.accelerator.device),
                train_task(model, problem.phases[number].task, trunk=problem.phases[number].trunk) as training,
            ):
                held = training.hold.reference
                self._fit(problem, number, Alone(self.accelerator) if self.several else self.accelerator, held)
            same_on_all(model)
            self.at = _Progress(phase=number + 1, rows=self.at.rows)
        with self.spent("proof"):
            return self._prove(problem, last)

    def _prove(self, problem: Problem, number: int) -> RunResult:
        """Train the last phase, and compare what is held with the state in which the phase began."""
        model, phase = problem.model, problem.phases[number]
        if self.at.tensors is None:
            if self.main:
                with self.spent("saving"):
                    self._save(model, None, START)
        else:
            # The proof is about the state at the beginning of the phase, also when the run was interrupted since.
            unpack_model(model, self.folder.checkpoint(START).tensors)
        began = copy.deepcopy(model)
        whole = snapshot(model, values=True)
        probe, labels = self._probe(problem)
        with train_task(model, phase.task, probe=probe, labels=labels, trunk=phase.trunk) as training:
            if self.at.tensors is not None:
                unpack_model(model, self.at.tensors)
            self._fit(problem, number, self.accelerator, training.hold.reference)
            if self.several:
                verify_ranks(model, what="everything")
            reference = training.hold.reference
            rows = held_rows(reference, model)
        report = training.report
        moved = whole.diff(model).where("parameter", "buffer")
        trained = StateDiff([row for row in moved.moved if row.path not in reference], moved.still)
        naive = self._naive(began, problem, number, reference, probe, labels)
        certificate = certify(rows, report, naive)
        page = self._write(problem, reference, certificate, trained, report, naive) if self.main else None
        self.accelerator.wait_for_everyone()
        return RunResult(
            folder=self.folder.path,
            problem=problem,
            rows=tuple(self.at.rows),
            report=report,
            naive=None if naive is None else naive[1],
            certificate=certificate,
            page=page,
            outside=self._outside(),
        )

    def _outside(self) -> dict[str, float]:
        """What was spent outside of the epochs until now; what a phase takes besides its epochs is ``starting``."""
        outside = self.spent.to_json()
        epochs = outside.pop(EPOCHS, 0.0)
        within = sum(sum(time_spent(row).values()) for row in self.at.rows[self.known :])
        return {**outside, "starting": max(0.0, epochs - within)}

    def _fit(self, problem: Problem, number: int, accelerator: Any, held: Snapshot) -> None:
        phase, at = problem.phases[number], self.at
        done = at.epoch if at.tensors is not None else 0
        if done >= phase.epochs:
            # Resumed behind its last epoch: nothing is computed for epochs that there are not.
            problem.model.to(self.accelerator.device)
            self.progress.say(self._already_trained(phase.task, done, last=number == len(problem.phases) - 1))
            return

        def after_epoch(row: EpochRow, optimizer: Optimizer, unfreezing: str) -> None:
            before, saving = self.at.rows, TimeSpent()
            self.at = _Progress(number, row.epoch, [*before, row])
            with saving("saving"):
                if self.main:
                    self._save(problem.model, optimizer, f"{phase.task}-epoch-{row.epoch}", unfreezing)
                self.accelerator.wait_for_everyone()
            # How long the checkpoint took is known behind it, so the row in the metrics says more than that within.
            row = replace(row, spent={**row.spent, **saving.to_json()})
            self.at.rows = [*before, row]
            if self.main:
                self.folder.append_metrics(row.to_json())

        packed = None if at.tensors is None or not at.epoch else (at.tensors, at.metadata)
        problem.model.to(self.accelerator.device)
        with self.spent("prefix"):
            shortcut = shortcut_for(
                problem.model, phase, self.config, accelerator, self.folder.path, self.progress, self.spent
            )
        try:
            with self.spent(EPOCHS):
                fit(
                    accelerator,
                    problem.model,
                    phase,
                    self.config,
                    self.progress,
                    name=phase.task,
                    number=number,
                    done=done,
                    packed=packed,
                    shortcut=shortcut,
                    after_epoch=after_epoch,
                    about=(*filter(None, [phase.about]), *told_parts(problem.model, phase.strategy, held)),
                )
        except TrainingDiverged as error:
            what, _, fix = str(error).partition("\n")
            raise TrainingDiverged(f"{what}\n  {self._kept()}\n{fix}") from None
        shortcut.discard()

    def _already_trained(self, task: str, epochs: int, *, last: bool) -> str:
        if last and (self.folder.path / "certificate.json").is_file():
            return f"already finished: {task} has its {epochs} epochs; only the proof and the report are made again"
        return f"{task} has its {epochs} epochs already"

    def _kept(self) -> str:
        found = self.folder.latest_checkpoint()
        return "there was no checkpoint yet" if found is None else f"kept: the last good checkpoint, {found.path}"

    def _save(self, model: torch.nn.Module, optimizer: Optimizer | None, name: str, unfreezing: str = "") -> None:
        tensors, metadata = pack(model, optimizer)
        if unfreezing:
            metadata["unfreezing"] = unfreezing
        rows = [row.to_json() for row in self.at.rows]
        metadata["progress"] = json.dumps({"phase": self.at.phase, "epoch": self.at.epoch, "rows": rows})
        self.folder.save_checkpoint(name, tensors, metadata, keep=(START,))

    def _probe(self, problem: Problem) -> tuple[list[Tensor], dict[str, Tensor]]:
        sized: Any = problem.probe
        step = max(1, -(-len(sized) // PROBE_SAMPLES))
        part: Any = Subset(problem.probe, range(0, len(sized), step))
        batches = list(DataLoader(part, batch_size=PROBE_BATCH))
        classes = torch.cat([labels for _, labels in batches])
        return [inputs for inputs, _ in batches], dict.fromkeys(problem.probe_heads, classes)

    def _naive(
        self, began: Any, problem: Problem, number: int, reference: Any, probe: Any, labels: Any
    ) -> tuple[dict[str, dict[str, Any]], IsolationReport] | None:
        if not self.config.compares_with_naive:
            return None
        self.progress.say("the same phase the naive way, on a copy: requires_grad=False and model.train()")
        try:
            with self.spent(EPOCHS):
                return train_naively(
                    self.accelerator,
                    began,
                    problem.phases[number],
                    self.config,
                    self.progress,
                    number=number,
                    held=reference,
                    probe=probe,
                    labels=labels,
                    after_epoch=self._note,
                )
        except TrainingDiverged as error:
            # The run itself is done, and its proof does not depend on what it is compared with.
            self.progress.say(f"no comparison: {str(error).splitlines()[0]}")
            return None

    def _note(self, row: EpochRow) -> None:
        self.at.rows.append(row)
        if self.main:
            self.folder.append_metrics(row.to_json())

    def _write(
        self,
        problem: Problem,
        reference: Any,
        certificate: dict[str, Any],
        trained: StateDiff,
        report: IsolationReport,
        naive: tuple[dict[str, dict[str, Any]], IsolationReport] | None,
    ) -> Path | None:
        with self.spent("saving"):
            self.folder.write_json("certificate.json", certificate)
            self.folder.save_tensors("model.safetensors", problem.export(problem.model), _named(problem))
        page = run_page(
            title=problem.title,
            summary=_summary(report, reference, trained),
            facts=(*problem.facts, *_settings(self.config, self.accelerator)),
            warnings=problem.warnings,
            rows=self.at.rows,
            reference=reference,
            certificate=certificate,
            trained=trained,
            report=report,
            naive=None if naive is None else naive[1],
            spent=spent_bars(self.at.rows, self._outside(), "since the run was resumed" if self.known else ""),
            spent_note=_how_measured(self.accelerator),
        )
        try:
            with self.spent("report"):
                self.folder.write_text("report.html", render_run(page))
        except MissingExtra as error:
            self.progress.say(f"report.html was not written: {error}")
            return None
        return self.folder.path / "report.html"


def _named(problem: Problem) -> dict[str, str]:
    """What the file of the model says of itself: where its heads are, and what their outputs mean."""
    heads = {name: {"path": path, "classes": list(classes)} for name, (path, classes) in problem.heads.items()}
    return {"format": "pt", "heads": json.dumps(heads)}


def _summary(report: IsolationReport, held: Snapshot, trained: StateDiff) -> str:
    others = [head.name for head in report.heads if not head.trained]
    what = f"The head {report.task!r} was trained while {report.held:,} state entries were held"
    if report.whole_trunk:
        return f"{what}; {', '.join(repr(o) for o in others)} must give the same logits as before, to the bit."
    those = ", ".join(repr(o) for o in others)
    if not any(row.path.startswith("trunk.") for row in trained.moved):
        # Not all of it was meant to stay, and yet it did: too few epochs to unfreeze it, for example.
        return f"{what}; nothing of the trunk trained, although not all of it was held, so {those} is as it was."
    part = "part of the trunk" if any(path.startswith("trunk.") for path in held) else "the trunk"
    return f"{what}; {part} trained too, so the logits of {those} may change."


def _noted(rows: list[EpochRow], folder: RunFolder) -> list[EpochRow]:
    """The rows of a checkpoint, with what the metrics know besides: how long saving that checkpoint took."""
    lines = [row.to_json() for row in rows]
    for place, line in enumerate(folder.read_metrics()[: len(rows)]):
        if {**line, "spent": lines[place]["spent"]} == lines[place]:
            rows[place] = replace(rows[place], spent=line.get("spent", {}))
    return rows


def _how_measured(accelerator: Any) -> str:
    said = "What is computed once for all epochs, such as features that are kept, is outside of the epochs."
    if accelerator.num_processes > 1:
        said += f" Measured by the first of {accelerator.num_processes} processes."
    if accelerator.device.type != "cpu":
        said += f" What {accelerator.device} does by itself is counted where the host waits for it."
    return said


def _settings(config: FinetuneConfig, accelerator: Any) -> tuple[tuple[str, str], ...]:
    several = accelerator.num_processes > 1
    shared = f" over {accelerator.num_processes} processes" if several else ""
    return (
        *((("naive loop", "requires_grad=False on what should stay, and model.train()"),) * config.compares_with_naive),
        ("epochs a phase", str(config.epochs)),
        ("optimizer", f"AdamW, learning rate {config.lr:g}"),
        ("batch size", f"{config.batch_size}{shared}"),
        ("seed", str(config.seed)),
        ("device", str(accelerator.device)),
        ("torch", torch.__version__),
    )
