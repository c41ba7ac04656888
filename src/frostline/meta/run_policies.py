"""One trained net under many statistics policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.errors import InnerLoopDiverged, PolicyError, RunFolderError
from frostline.json_values import finite
from frostline.meta.evaluate import Evaluation, evaluate
from frostline.meta.found_data import TEST, TRAIN, load
from frostline.meta.policy import SOURCES, Policy
from frostline.meta.population import measure_population
from frostline.meta.run import LEARNER, SPLITS, query_sizes, tasks_of
from frostline.meta.run_learner import build, unpack_learner
from frostline.meta.run_processes import join
from frostline.meta.run_progress import Progress, Silent
from frostline.meta.run_settings import MetaConfig
from frostline.meta.splits import Splits
from frostline.runs.run_folder import CONFIG, RunFolder

POLICIES = "policies.json"
SCHEMA_VERSION = 1
# Enough for statistics of a whole population of tasks, where a layer sees many values in each.
POPULATION_TASKS = 100


@dataclass(frozen=True)
class PolicyTable:
    """The accuracies of one net under several policies.

    Attributes:
        folder: the run folder.
        evaluation: a row for each policy; of one that blew up, no task counts.
        left_out: policies that this net cannot have, with the reason.
        results: as written to ``policies.json``.
    """

    folder: Path
    evaluation: Evaluation
    left_out: dict[str, str]
    results: dict[str, Any]


def evaluate_policies(
    folder: str | Path,
    *,
    policies: Sequence[str] | None = None,
    tasks: int = 600,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PolicyTable:
    """Evaluate the net of a finished run under other statistics policies than the one it was trained with.

    The statistics of ``population`` are measured first, on tasks of training, with the final weights and the policy of
    training; where that blows up, they stay those of training. What blows up is a row that says so. Nothing of the run
    is changed but ``policies.json``, which is written anew.

    Args:
        folder: the run folder.
        policies: names or ``"INNER/QUERY"``; by default all of :data:`~frostline.meta.SOURCES` that the net can have.
        tasks: of the test split, for each policy the same.
        threads: tasks at a time.
        progress: told what happens.

    Raises:
        RunFolderError: there is no run, or it is not finished.
        PolicyError: a policy that was named does not exist, or the net cannot have it.
    """
    said = (progress or Silent()).say
    for policy in policies or ():
        Policy.of(policy)
    found = RunFolder.open(folder, asked="--run")
    config = MetaConfig.from_json(found.read_json(CONFIG))
    if not (found.path / LEARNER).is_file():
        raise RunFolderError(f"the run in {found.path} is not finished\n  fix: frostline meta --resume {found.path}")
    processes = join(config.device)
    device = processes.device
    class_set = load(config).class_set
    learner = build(config, class_set.shape, device).learner
    unpack_learner(learner, None, found.load_tensors(LEARNER), {})
    left_out: dict[str, str] = {}
    chosen: list[Policy] = []
    for policy in SOURCES if policies is None else policies:
        try:
            chosen.append(learner.policy_for(policy))
        except PolicyError as error:
            if policies is not None:
                raise
            left_out[policy] = str(error).splitlines()[0]
    splits = Splits.read(found.path / SPLITS, class_set)
    population = [task.to(device) for task in tasks_of(config, class_set, splits).batch(TRAIN, 0, POPULATION_TASKS)]
    said(f"measuring the population on {POPULATION_TASKS} tasks of {TRAIN}")
    measured = len(population)
    try:
        learner.statistics = measure_population(learner, population, threads=threads)
    except InnerLoopDiverged as error:
        measured = 0
        said(f"the population stays that of training, because measuring it blew up: {str(error).splitlines()[0]}")
    said(f"evaluating {len(chosen)} policies on {tasks} tasks of {TEST}")
    sizes = query_sizes(config, class_set, splits)
    evaluation = evaluate(
        learner,
        tasks_of(config, class_set, splits, max(sizes)),
        split=TEST,
        count=tasks,
        policies=chosen,
        queries=sizes[-1:],
        steps=config.eval_steps,
        threads=threads,
    )
    results = finite(
        {
            "schema_version": SCHEMA_VERSION,
            "trained_with": str(learner.policy),
            "population_tasks": measured,
            "evaluation": evaluation.to_json(),
            "left_out": left_out,
        }
    )
    if processes.main:
        found.write_json(POLICIES, results)
    return PolicyTable(found.path, evaluation, left_out, results)
