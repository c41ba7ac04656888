"""A run of few-shot learning: it trains, evaluates, and leaves a folder behind that any kill can be resumed from."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frostline.errors import InnerLoopDiverged, TrainingDiverged
from frostline.json_values import finite
from frostline.meta.classes import ClassSet
from frostline.meta.evaluate import Evaluation, evaluate
from frostline.meta.found_data import TEST, TRAIN, VAL, load, splits_for
from frostline.meta.functional_model import governed_layers
from frostline.meta.population import variation
from frostline.meta.run_learner import Built, build, pack_learner, unpack_learner
from frostline.meta.run_processes import join
from frostline.meta.run_progress import VALIDATE, IterationRow, Progress, Silent, ValidationRow, known
from frostline.meta.run_settings import MetaConfig, refuse_other
from frostline.meta.splits import Splits
from frostline.meta.tasks import Tasks
from frostline.runs.run_folder import CONFIG, RunFolder

SPLITS, RESULTS, LEARNER, MODEL = "splits.json", "results.json", "learner.safetensors", "model.safetensors"
SCHEMA_VERSION = 1
# Queries of a class that go through the network together; what is transductive depends on it.
QUERY_SIZES = (1, 5, 15)
# Tasks on which it is measured how much statistics vary.
VARIATION_TASKS = 100
# So many meta-batches in a row without one task that could be learned from, and nothing more will come.
HOPELESS = 20


@dataclass(frozen=True)
class MetaResult:
    """What a run came to.

    Attributes:
        folder: the run folder.
        config: the settings.
        evaluation: the accuracies at the end.
        results: as written to ``results.json``.
    """

    folder: Path
    config: MetaConfig
    evaluation: Evaluation
    results: dict[str, Any]


def train(config: MetaConfig, out: str | Path | None = None, *, progress: Progress | None = None) -> MetaResult:
    """Train a few-shot learner and evaluate it.

    Everything that can be refused is refused before the run folder is made. Tasks are functions of the seed and their
    number, so that no state of a sampler has to be kept. The global random state stays as it is.

    Args:
        config: what to do.
        out: the run folder, which must not exist or be empty; ``None`` takes the next free ``runs/meta-N``.
        progress: told what happens.

    Returns:
        The :class:`MetaResult`; on several processes in each of them, but only the main one writes.

    Raises:
        FrostlineError: of the kind that says what is wrong; see :mod:`frostline.errors`.

    Example:
        >>> import tempfile
        >>> from frostline.meta.run_settings import MetaConfig
        >>> config = MetaConfig(way=2, steps=1, iterations=2, meta_batch=2, width=4, eval_tasks=10, validate_tasks=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(config, f"{folder}/run")
        >>> [(row.kind, row.queries) for row in result.evaluation.rows][:2]
        [('transductive', 1), ('transductive', 5)]
    """
    return _Run(config, progress or Silent(), resumed=None).run(out)


def resume(
    folder: str | Path, *, asked: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> MetaResult:
    """Go on with a run that was stopped, from its last checkpoint to the result that it would have had.

    Args:
        folder: the run folder; its ``config.json`` says what to do.
        asked: settings that were given beside it: ``device`` and ``threads`` may differ from those of the run, with
            which bit-equality with an uninterrupted run may be lost.
        progress: told what happens.

    Raises:
        RunFolderError: there is no run in the folder, or another setting differs, which is named.
        CorruptCheckpoint: none of its checkpoints can be read.
    """
    found = RunFolder.open(folder)
    config = MetaConfig.from_json(found.read_json(CONFIG))
    given = dict(asked or {})
    moved = {name: given.pop(name) for name in ("device", "threads") if name in given}
    refuse_other(config, given)
    return _Run(replace(config, **moved), progress or Silent(), resumed=found).run(found.path)


def tasks_of(config: MetaConfig, class_set: ClassSet, splits: Splits, queries: int | None = None) -> Tasks:
    """The tasks of a run, with its number of queries or another."""
    return Tasks(
        class_set,
        way=config.way,
        shot=config.shot,
        queries=queries or config.queries,
        splits=splits,
        seed=config.seed,
    )


def query_sizes(config: MetaConfig, class_set: ClassSet, splits: Splits) -> list[int]:
    """The numbers of queries of a class that a run is evaluated with: the usual ones that the images suffice for."""
    room = min(class_set.count(name) for names in splits.classes.values() for name in names) - config.shot
    return sorted(size for size in {*QUERY_SIZES, config.queries} if size <= room)


class _Run:
    def __init__(self, config: MetaConfig, progress: Progress, resumed: RunFolder | None) -> None:
        self.config = config
        self.processes = join(config.device)
        self.progress: Progress = progress if self.processes.main else Silent()
        self.resumed = resumed
        self.done = 0
        self.rows: list[dict[str, Any]] = []

    def run(self, out: str | Path | None) -> MetaResult:
        config = self.config
        found = load(config)
        # A kill may have come between the configuration and the splits, which are then drawn again.
        stored = None if self.resumed is None else self.resumed.path / SPLITS
        if stored is not None and stored.is_file():
            splits = Splits.read(stored, found.class_set)
        else:
            splits = splits_for(config, found.class_set)
        self.tasks = tasks_of(config, found.class_set, splits)
        self.sizes = query_sizes(config, found.class_set, splits)
        self.built = build(config, found.class_set.shape, self.processes.device)
        self.folder = self._start(out, splits) if self.resumed is None else self._go_on(self.resumed, splits)
        if out is None:
            # Said now, because a run that is stopped is resumed by it.
            self.progress.say(f"run folder {self.folder.path}")
        sizes = ", ".join(f"{name} {len(classes):,}" for name, classes in splits.classes.items())
        self.progress.say(f"found {found.said}; classes: {sizes}")
        self._train()
        evaluation = evaluate(
            self.built.learner,
            tasks_of(config, found.class_set, splits, max(self.sizes)),
            split=TEST,
            count=config.eval_tasks,
            queries=self.sizes,
            steps=config.eval_steps,
            threads=config.threads,
        )
        results = self._results(found.said, evaluation)
        if self.processes.main:
            self._write(self.built, results)
        self.processes.wait()
        return MetaResult(self.folder.path, config, evaluation, results)

    def _start(self, out: str | Path | None, splits: Splits) -> RunFolder:
        def create() -> str:
            path = Path(_free_folder() if out is None else out)
            was_there = path.exists()
            folder = RunFolder.create(path)
            try:
                folder.write_json(CONFIG, self.config.to_json())
                folder.write_json(SPLITS, splits.to_dict())
            except Exception:
                (path / CONFIG).unlink(missing_ok=True)
                if not was_there:
                    with suppress(OSError):
                        path.rmdir()
                raise
            return str(path)

        return RunFolder.open(self.processes.told(create))

    def _go_on(self, folder: RunFolder, splits: Splits) -> RunFolder:
        found = folder.latest_checkpoint()
        if found is None:
            self.progress.say("no checkpoint yet: starting from the beginning")
        else:
            for line in found.skipped:
                self.progress.say(f"passing over a damaged checkpoint, {line}")
            self.done = json.loads(found.metadata["run"])["iteration"]
            unpack_learner(self.built.learner, self.built.optimizer, found.tensors, found.metadata)
            self.progress.say(f"resuming after {found.name}")

        def cut() -> None:
            if not (folder.path / SPLITS).is_file():
                folder.write_json(SPLITS, splits.to_dict())
            # Rows behind the checkpoint belong to iterations that are done again.
            folder.truncate_metrics(lambda row: row["iteration"] <= self.done)

        self.processes.told(cut)
        self.rows = folder.read_metrics()
        return folder

    def _train(self) -> None:
        config = self.config
        self.progress.begin(config.iterations, self.done)
        for number in range(self.done + 1, config.iterations + 1):
            self._keep(self._step(number))
            assert config.validate_every is not None
            if number % config.validate_every == 0 and VAL in self.tasks.splits.classes:
                self._keep(self._validate(number))
            if number % config.checkpoint_every == 0 or number == config.iterations:
                self._save(number)

    def _step(self, number: int) -> IterationRow:
        config, (learner, optimizer, _) = self.config, self.built
        started = time.perf_counter()
        tasks = self.tasks.batch(TRAIN, (number - 1) * config.meta_batch, config.meta_batch)
        optimizer.zero_grad()
        try:
            batch = learner.backward(
                [task.to(self.processes.device) for task in tasks],
                threads=config.threads,
                vmap=config.vmap,
                on_nonfinite=config.on_nonfinite,
            )
        except InnerLoopDiverged as error:
            what, _, rest = str(error).partition("\n")
            raise InnerLoopDiverged(
                f"iteration {number}: {what}\n  {self._kept()}\n{rest}".rstrip(), error.report
            ) from None
        if batch.losses:
            optimizer.step()
        elif self._without_a_task() >= HOPELESS - 1:
            raise TrainingDiverged(
                f"iteration {number}: every task of {HOPELESS} meta-batches in a row was skipped\n"
                f"  the last: {next(iter(batch.skipped.values()))}\n  {self._kept()}\n"
                "  fix: a smaller --inner-lr or --lr"
            )
        row = IterationRow(
            iteration=number,
            mode=str(learner.policy),
            loss=known(batch.loss),
            accuracy=known(batch.accuracy),
            seconds=time.perf_counter() - started,
            skipped=len(batch.skipped),
        )
        self.progress.iteration(row)
        return row

    def _validate(self, number: int) -> ValidationRow:
        config, learner = self.config, self.built.learner
        started = time.perf_counter()
        policies = [learner.policy]
        (found,) = evaluate(
            learner, self.tasks, split=VAL, count=config.validate_tasks, policies=policies, threads=config.threads
        ).rows
        row = ValidationRow(
            iteration=number,
            policy=found.policy,
            accuracy=known(found.accuracy),
            interval=known(found.interval),
            tasks=found.tasks,
            skipped=found.skipped,
            seconds=time.perf_counter() - started,
        )
        self.progress.validated(row)
        return row

    def _keep(self, row: IterationRow | ValidationRow) -> None:
        self.rows.append(row.to_json())
        if self.processes.main:
            self.folder.append_metrics(row.to_json())

    def _save(self, number: int) -> None:
        if self.processes.main:
            tensors, metadata = pack_learner(self.built.learner, self.built.optimizer)
            metadata["run"] = json.dumps({"iteration": number})
            self.folder.save_checkpoint(f"iteration-{number}", tensors, metadata)

    def _kept(self) -> str:
        names = self.folder.checkpoint_names()
        return f"kept: the last good checkpoint, {names[-1]}" if names else "there was no checkpoint yet"

    def _without_a_task(self) -> int:
        """How many meta-batches before this one had no task that counts."""
        trained = (row for row in reversed(self.rows) if row["mode"] != VALIDATE)
        return sum(1 for _ in itertools.takewhile(lambda row: row["loss"] is None, trained))

    def _results(self, said: str, evaluation: Evaluation) -> dict[str, Any]:
        learner = self.built.learner
        results: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "data": said,
            "network": self.built.network,
            "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
            "iterations": self.config.iterations,
            "skipped": sum(row["skipped"] for row in self.rows if row["mode"] != VALIDATE),
            "learner": learner.describe(),
            "evaluation": evaluation.to_json(),
        }
        if governed_layers(learner.model) and self.config.queries > 1:
            with suppress(InnerLoopDiverged):
                count = min(VARIATION_TASKS, self.config.eval_tasks)
                tasks = [task.to(self.processes.device) for task in self.tasks.batch(TEST, 0, count)]
                results["variation"] = variation(learner, tasks, threads=self.config.threads).to_json()
        return finite(results)

    def _write(self, built: Built, results: dict[str, Any]) -> None:
        self.folder.save_tensors(LEARNER, pack_learner(built.learner, None)[0], {"format": "pt"})
        self.folder.save_tensors(MODEL, built.learner.model.state_dict(), {"format": "pt"})
        self.folder.write_json(RESULTS, results)


def _free_folder() -> str:
    names = (f"runs/meta-{number}" for number in itertools.count(1))
    return next(name for name in names if not Path(name).exists())
