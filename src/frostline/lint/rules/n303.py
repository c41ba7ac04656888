"""N303: a normalization layer uses the batch in eval mode, hard-coded."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.running_mode import Pass, Passes, assigned, decided_by_mode

_BATCH = "torch.nn.functional.batch_norm"
_INSTANCE = "torch.nn.functional.instance_norm"
# The flag is the sixth argument of both (torch 2.13).
_PLACE = 5
_SHAPES = frozenset({"view", "reshape"})


def check(view: FileView) -> Iterator[Violation]:
    """Calls of functional batch norm, and of instance norm with running statistics, that are told to use the batch."""
    passes = Passes(view)
    for call in view.nodes(ast.Call):
        name = view.name(call.func)
        if name not in {_BATCH, _INSTANCE} or not call.args:
            continue
        if any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords):
            continue
        word = "training" if name == _BATCH else "use_input_stats"
        given = next((each.value for each in call.keywords if each.arg == word), None)
        given = given or (call.args[_PLACE] if len(call.args) > _PLACE else None)
        # Left out, it is False in batch norm and True in instance norm.
        hard = given is None if name == _INSTANCE else False
        if not hard and not (isinstance(given, ast.Constant) and given.value is True):
            continue
        if _is_no_batch(view, call, passes):
            continue
        yield from _violation(view, call, passes.of(call), given, word, name)


def _violation(
    view: FileView, call: ast.Call, where: Pass | None, given: ast.expr | None, word: str, name: str
) -> Iterator[Violation]:
    mean = _argument(call, 1, "running_mean")
    has_statistics = mean is not None and not (isinstance(mean, ast.Constant) and mean.value is None)
    if name == _INSTANCE and (not has_statistics or where is None or not where.owner):
        return  # without running statistics it has nothing else to normalize with
    if where is not None and decided_by_mode(view, call, where.method):
        return
    last = name.rpartition(".")[2]
    if not has_statistics:
        yield Violation(
            call,
            f"{last}() without running statistics: it normalizes with the batch in eval mode too",
            evidence=("running_mean is None, so that this is declared; results depend on what else is in the batch",),
            remedy="keep running statistics, or evaluate with batches that are made as in training",
            severity=Severity.INFO,
        )
        return
    in_module = where is not None and bool(where.owner)
    mode = where.mode if where is not None else ""
    edits = ()
    if mode:
        edits = (view.replaced(given, mode),) if given is not None else (view.argument_added(call, f"{word}={mode}"),)
    sure = where is not None and where.sure
    yield Violation(
        call,
        f"{last}() normalizes with the batch in eval mode too: {word} is True in both modes",
        evidence=(f"running statistics are passed, {view.text(mean) if mean is not None else ''}, and never used",),
        remedy=f"{word}={mode}" if mode else f"pass {word} from the caller",
        severity=Severity.ERROR if sure and in_module and name == _BATCH else Severity.WARNING,
        edits=edits,
        safety=(Safety.SAFE if sure and name == _BATCH else Safety.UNSAFE) if edits else Safety.MANUAL,
        title=f"Pass {word}={mode}" if edits else "",
        inferred=not sure,
    )


def _argument(call: ast.Call, place: int, name: str) -> ast.expr | None:
    if len(call.args) > place:
        return call.args[place]
    return next((each.value for each in call.keywords if each.arg == name), None)


def _is_no_batch(view: FileView, call: ast.Call, passes: Passes) -> bool:
    """Whether it normalizes no batch: a weight that is standardized, or samples that are laid out as channels."""
    given: ast.expr | None = call.args[0]
    if isinstance(given, ast.Name):
        where = passes.of(call)
        values = assigned(where.function, given.id) if where is not None else []
        if any(each is not None and _is_laid_out(view, each) for each in values):
            return True
    return "weight" in view.text(call.args[0]) or _is_laid_out(view, call.args[0])


def _is_laid_out(view: FileView, node: ast.expr) -> bool:
    """Whether it has one sample: `x.view(1, batch * channels, ...)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SHAPES and node.args:
        first = node.args[0]
        if isinstance(first, (ast.Tuple, ast.List)) and first.elts:
            first = first.elts[0]
        if isinstance(first, ast.Constant) and first.value == 1:
            return True
    if isinstance(node, ast.Call) and view.name(node.func) == "torch.reshape":
        return len(node.args) == 2 and view.text(node.args[1]).startswith(("(1,", "[1,"))
    return False


RULE = LintRule(
    code="N303",
    what="Looks for `functional.batch_norm` with `training=True`, by name or as the sixth argument, and for "
    "`functional.instance_norm` that is given running statistics and never uses them.",
    why="`functional.batch_norm(..., training=True)` does not look at the mode of the model. At test time a "
    "sample is classified by the samples next to it, the figure depends on the order of the data, and running "
    "statistics that are passed along are moved towards the test data.",
    example="class Norm(nn.Module):\n    def forward(self, x):\n        return F.batch_norm(x, self.running_mean, "
    "self.running_var, self.weight, self.bias, training=True)",
    instead="class Norm(nn.Module):\n    def forward(self, x):\n        return F.batch_norm(x, self.running_mean, "
    "self.running_var, self.weight, self.bias, training=self.training)",
    remedy="Pass `training=self.training`.",
    safety=Safety.SAFE,
    how_safe="safe in the method of a module, as train mode stays what it was; there is no fix where no mode is "
    "in reach",
    false_alarms="Few-shot learning that uses the statistics of the test batch on purpose: with None as running "
    "statistics it is an info, with statistics that are passed and not used it is reported. Standardized weights and "
    "samples that are laid out as channels are let be.",
    source="HowToTrainYourMAML#3",
    triggers=("batch_norm", "instance_norm"),
    check=check,
)
