"""N302: a normalization layer has no running statistics and depends on the batch in eval mode too."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.source_lines import expressions, reached
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Batch norms without running statistics: in a frozen part, or in a model that runs in eval mode."""
    for model in seen.models:
        bare = tuple(path for path, module in model.modules.items() if module.no_statistics)
        frozen = tuple(path for path in bare if model.modules[path].frozen_above or model.modules[path].must_eval)
        evals = [phase for phase in model.phases if not phase.training]
        if not bare or not (frozen or evals):
            continue
        paths = frozen or bare
        draw = next((d for d in model.draws if d.what == "batch_norm" and d.path in set(bare)), None)
        evidence = [f"running_mean is None in {some(paths)}"]
        if draw is not None:
            evidence.append(f"{draw.op} normalized with the batch in eval mode at {at(draw.place)}")
        elif evals:
            evidence.append(f"eval mode in the pass at {at(evals[0].place)}")
        if frozen:
            evidence.append("no mode makes such a layer independent of the other samples of its batch")
        yield Found(
            message=f"{counted(len(paths), 'batch norm')} {'of a frozen part ' if frozen else ''}"
            f"{'has' if len(paths) == 1 else 'have'} no running statistics: outputs depend on the batch in any mode",
            model=model.name,
            paths=paths,
            evidence=tuple(evidence),
            remedy="build the layers with track_running_stats=True and put them into eval mode to fix their statistics",
            severity=Severity.WARNING if frozen else Severity.INFO,
            safety=Safety.UNSAFE,
            place=_line(seen) or (draw.place if draw is not None else evals[0].place if evals else None),
            inferred=bool(frozen),
        )


def _line(seen: Seen) -> Place | None:
    """The line that takes the statistics away, where only one does."""
    lines = dict.fromkeys(s.place for s in reached(seen) if any(_switches_off(node) for node in expressions(s)))
    return next(iter(lines)) if len(lines) == 1 else None


def _switches_off(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        named, value = node.arg == "track_running_stats", node.value
    elif isinstance(node, ast.Assign):
        value = node.value
        named = any(isinstance(t, ast.Attribute) and t.attr == "track_running_stats" for t in node.targets)
    else:
        return False
    return named and isinstance(value, ast.Constant) and value.value is False


def sound(seen: Seen) -> str | None:
    """How many batch norms of frozen parts have statistics to normalize with."""
    right = sum(len(_with_statistics(model)) for model in seen.models)
    return (
        f"{counted(right, 'batch norm')} of frozen parts {'has' if right == 1 else 'have'} running statistics"
        if right
        else None
    )


def _with_statistics(model: ModelSeen) -> list[str]:
    return [
        path
        for path, module in model.modules.items()
        if "batchnorm" in module.kinds and not module.no_statistics and module.frozen_above
    ]


RULE = Rule(
    code="N302",
    what="Looks for batch norms whose `running_mean` is `None`, in frozen parts and in models that run in eval mode.",
    why="`track_running_stats=False` is taken for a way to freeze statistics. It removes them: the layer normalizes "
    "with the batch in both modes. The output for a sample depends on the samples next to it, with a batch of one it "
    "is meaningless, and a frozen part is no fixed function.",
    evidence="The layers, the line that switched their statistics off, and the operator that normalized with the "
    "batch in eval mode; from the first training step or the first pass in eval mode on.",
    example="for m in trunk.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.track_running_stats = "
    "False\n        m.running_mean = m.running_var = None",
    instead='frostline.freeze(model, "trunk")',
    remedy="Build the layers with `track_running_stats=True` and put them into eval mode; where the statistics are "
    "lost, `frostline.recalibrate` estimates them from data.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the layer normalizes with other figures, and outputs change",
    false_alarms="Layers that are meant to use the batch at test time too, as in few-shot learning: an info where "
    "they train, a warning where they are frozen.",
    source="pytorch PR38084, pytorch#66073",
    look=look,
    sound=sound,
)
