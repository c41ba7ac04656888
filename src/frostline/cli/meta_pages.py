"""The folder of a few-shot run as the values that an HTML page is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import frostline
from frostline.report import AccuracyLine, Curve, MetaPage, Range, VariationLine

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from frostline.runs.run_folder import RunFolder

# So many points a curve has on the page; more iterations are averaged.
POINTS = 100
USUAL_TASKS = 600
# Said elsewhere on the page, or of no consequence for a number.
_UNSAID = frozenset({"threads", "device", "checkpoint_every", "schema_version", "data", "splits"})


def meta_page(folder: RunFolder) -> MetaPage:
    """What the page of a run says.

    Args:
        folder: of a run that has its results; the table of policies is taken in where it is there.
    """
    from frostline.meta.run import RESULTS
    from frostline.meta.run_policies import POLICIES

    config, results = folder.read_json("config.json"), folder.read_json(RESULTS)
    table = folder.read_json(POLICIES) if (folder.path / POLICIES).is_file() else None
    evaluation = results["evaluation"]
    policy = results["learner"]["policy"]
    accuracies = _lines(evaluation["rows"], policy)
    conditions = evaluation["conditions"]
    data = results["data"].partition(":")[0]
    return MetaPage(
        title=f"{config['way']}-way {config['shot']}-shot on {data}, {config['algorithm']}",
        claim=_claim(accuracies),
        evidence=f"on {conditions['count']:,} tasks of the split {conditions['split']!r}, with 95% intervals over "
        f"tasks; {results['data']}",
        accuracies=accuracies,
        policies=() if table is None else _lines(table["evaluation"]["rows"], policy),
        policy_note="" if table is None else _of_population(table["population_tasks"]),
        curves=curves_of(folder.read_metrics()),
        variation=tuple(VariationLine(**row) for row in results.get("variation", {}).get("layers", ())),
        conditions=tuple(flat(conditions)),
        settings=(
            ("network", f"{results['network']}, {results['parameters']:,} parameters"),
            *((name.replace("_", " "), _text(value)) for name, value in config.items() if _shown(name, value)),
        ),
        notes=tuple(_notes(conditions, results, table)),
        generator=f"frostline {frostline.__version__}",
    )


def write_meta_page(folder: RunFolder) -> Path:
    """Write ``report.html`` into the folder of a run.

    Raises:
        MissingExtra: what draws it is not installed.
        StorageFull: there is no space; what was there before is kept.
    """
    from frostline.report import render_meta

    return folder.write_text("report.html", render_meta(meta_page(folder)))


def curves_of(rows: Sequence[Mapping[str, Any]], most: int = POINTS) -> tuple[Curve, ...]:
    """Loss and accuracy over the iterations, averaged over equal stretches of them, and the validations as they are.

    Example:
        >>> rows = [{"iteration": i, "mode": "batch", "loss": 1.0 / i, "accuracy": 0.5} for i in range(1, 5)]
        >>> curves_of(rows, most=2)[0].epochs, curves_of(rows, most=2)[0].values
        ((2.0, 4.0), (0.75, 0.29...))
    """
    from frostline.meta.run_progress import VALIDATE

    trained = [row for row in rows if row["mode"] != VALIDATE]
    validated = [row for row in rows if row["mode"] == VALIDATE and row["accuracy"] is not None]
    stretch = max(1, -(-len(trained) // most))
    curves: list[Curve] = []
    for name, unit in (("loss", ""), ("accuracy", "%")):
        points: list[tuple[float, float]] = []
        for begin in range(0, len(trained), stretch):
            part = trained[begin : begin + stretch]
            values = [row[name] for row in part if row[name] is not None]
            if values:
                points.append((float(part[-1]["iteration"]), sum(values) / len(values)))
        if points:
            curves.append(Curve(name, "training", *_columns(points), unit=unit))
    if validated:
        points = [(float(row["iteration"]), row["accuracy"]) for row in validated]
        curves.append(Curve("accuracy", "validation", *_columns(points), unit="%"))
    return tuple(curves)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names and values of nested objects, one after the other.

    Example:
        >>> list(flat({"tasks": [{"way": 5}], "classes": {"train": 24, "test": 8}}))
        [('tasks: way', '5'), ('classes', 'train 24, test 8')]
    """
    for name, value in values.items():
        said = f"{prefix}{name.replace('_', ' ')}"
        items = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for item in items:
            if not isinstance(item, dict):
                yield said, _text(item)
                continue
            inner = cast("dict[str, Any]", item)
            if len(inner) > 1 and all(type(each) is int for each in inner.values()):
                yield said, ", ".join(f"{key} {_text(each)}" for key, each in inner.items())
            else:
                yield from flat(inner, f"{said}: ")


def _of_population(tasks: int) -> str:
    if not tasks:
        return "The population is that which training kept, because adapting to measure it blew up."
    return f"The population was measured on {tasks} tasks of training first."


def _columns(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(where for where, _ in points), tuple(value for _, value in points)


def _lines(rows: Sequence[Mapping[str, Any]], trained_with: str) -> tuple[AccuracyLine, ...]:
    from frostline.meta.policy import SOURCES

    return tuple(
        AccuracyLine(
            policy=row["policy"],
            meaning=SOURCES.get(row["policy"].rpartition("/")[2], ""),
            kind=row["kind"],
            queries=row["queries"],
            measured=_range(row["accuracy"], row["interval"]),
            tasks=row["tasks"],
            skipped=row["skipped"],
            why=row["why"],
            trained=row["policy"] == trained_with,
        )
        for row in rows
    )


def _range(accuracy: float | str, interval: float | str) -> Range | None:
    # What is no number is a text in JSON.
    if isinstance(accuracy, str):
        return None
    half = 0.0 if isinstance(interval, str) else interval
    return Range(accuracy, accuracy - half, accuracy + half)


def _claim(lines: Sequence[AccuracyLine]) -> str:
    said: list[str] = []
    for kind in ("transductive", "inductive"):
        own = [line for line in lines if line.kind == kind]
        # The net's own policy says most; and the pass with the most queries is the usual one.
        chosen = max(own, key=lambda line: (line.trained, line.queries), default=None)
        if chosen is not None:
            said.append(f"{kind} {_accuracy(chosen)}")
    return f"Accuracy: {', '.join(said)}" if said else "Nothing was measured"


def _accuracy(line: AccuracyLine) -> str:
    if line.measured is None:
        return "not to be had, adapting blew up"
    # No-break spaces: a figure and its interval stay on one line.
    return f"{100 * line.measured.value:.1f}%\u00a0±\u00a0{100 * (line.measured.high - line.measured.value):.1f}"


def _notes(conditions: Mapping[str, Any], results: Mapping[str, Any], table: Mapping[str, Any] | None) -> Iterable[str]:
    if conditions["count"] < USUAL_TASKS:
        yield f"{conditions['count']:,} tasks give wide intervals; {USUAL_TASKS} are usual."
    if results["skipped"]:
        yield f"{results['skipped']:,} tasks of training were skipped because something was not finite."
    for policy, reason in (table or {}).get("left_out", {}).items():
        yield f"{policy} is not in the table: {reason}."


def _shown(name: str, value: object) -> bool:
    return name not in _UNSAID and value is not None and name != "network"


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) if value else "none"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
