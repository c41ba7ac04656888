"""M206: attention drops in eval mode too."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.running_mode import Pass, Passes, asks_for_mode, assigned, decided_by_mode, is_meant

# Where the rate stands, and what it is called: torch 2.13, flash-attn 2.8, xformers 0.0.30. All are 0 if left out.
_RATES = {
    "torch.nn.functional.scaled_dot_product_attention": (4, "dropout_p"),
    "flash_attn.flash_attn_func": (3, "dropout_p"),
    "flash_attn.flash_attn_qkvpacked_func": (1, "dropout_p"),
    "flash_attn.flash_attn_kvpacked_func": (2, "dropout_p"),
    "flash_attn.flash_attn_varlen_func": (7, "dropout_p"),
    "flash_attn.flash_attn_varlen_qkvpacked_func": (3, "dropout_p"),
    "flash_attn.flash_attn_varlen_kvpacked_func": (6, "dropout_p"),
    "xformers.ops.memory_efficient_attention": (4, "p"),
}
# This one is told the mode by a flag, which is True if it is left out.
_WITH_FLAG = "torch.nn.functional.multi_head_attention_forward"
_FLAG_PLACE = 13


def check(view: FileView) -> Iterator[Violation]:
    """Calls of attention in the forward pass of a module whose rate does not depend on the mode."""
    passes = Passes(view)
    for call in view.nodes(ast.Call):
        name = view.name(call.func).replace("flash_attn.flash_attn_interface.", "flash_attn.")
        if name == _WITH_FLAG:
            yield from _with_flag(view, passes, call)
            continue
        place = _RATES.get(name)
        if place is None:
            continue
        rate = next((each.value for each in call.keywords if each.arg == place[1]), None)
        if rate is None and len(call.args) > place[0] and not any(isinstance(a, ast.Starred) for a in call.args):
            rate = call.args[place[0]]
        where = passes.of(call) if rate is not None else None
        if rate is None or where is None or is_meant(view, call) or decided_by_mode(view, call, where.method):
            continue
        constant = _constant(view, rate, where, 0)
        if constant is None:
            continue
        yield from _violation(view, rate, where, name.rpartition(".")[2], constant)


def _violation(view: FileView, rate: ast.expr, where: Pass, name: str, constant: str) -> Iterator[Violation]:
    text = view.text(rate)
    given = f"({text})" if isinstance(rate, (ast.IfExp, ast.Lambda, ast.NamedExpr)) else text
    right = f"{given} if {where.mode} else 0.0"
    yield Violation(
        rate,
        f"{name}() drops in eval mode too: its rate is {text} in both modes",
        evidence=(constant,) if constant else (),
        remedy=right if where.mode else "pass the mode to the function, and 0.0 in eval mode",
        severity=Severity.ERROR if where.sure else Severity.WARNING,
        edits=(view.replaced(rate, right),) if where.mode else (),
        safety=(Safety.SAFE if where.sure else Safety.UNSAFE) if where.mode else Safety.MANUAL,
        title="Drop in train mode only",
        inferred=not where.sure,
    )


def _constant(view: FileView, rate: ast.expr, where: Pass, depth: int) -> str | None:
    """Why a rate is the same in both modes, and not 0; ``None`` where that cannot be told."""
    if asks_for_mode(rate):
        return None
    if isinstance(rate, ast.Constant):
        return "" if isinstance(rate.value, (int, float)) and rate.value else None
    if isinstance(rate, ast.Name):
        given = assigned(where.function, rate.id)
        if len(given) != 1 or given[0] is None or depth > 2 or _is_argument(where, rate.id):
            return None
        told = _constant(view, given[0], where, depth + 1)
        return None if told is None else told or f"{rate.id} is {view.text(given[0])}"
    if isinstance(rate, ast.Attribute):
        base = rate.value
        if rate.attr == "p" and isinstance(base, ast.Attribute) and _is_self(base.value, where):
            return f"{view.text(base)}.p is the rate of a layer, which its mode does not change"
        if _is_self(base, where):
            return _attribute(view, rate, where)
    return None


def _attribute(view: FileView, rate: ast.Attribute, where: Pass) -> str | None:
    """Why an attribute of the module is the same in both modes: it is set in ``__init__`` alone, and not to 0."""
    values: list[ast.expr] = []
    for _, cls in view.walk.ancestry(view.walk.qualified(where.owner)):
        for method in cls.node.body:
            if not isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if method.name == rate.attr:
                return None  # a property may look at the mode
            for node in ast.walk(method):
                for target, value in _targets(node):
                    if isinstance(target, ast.Attribute) and target.attr == rate.attr:
                        if method.name != "__init__":
                            return None
                        values.append(value)
    if any(asks_for_mode(value) or (isinstance(value, ast.Constant) and not value.value) for value in values):
        return None
    if not values:
        return None  # set by a base class that is not in the files
    return f"{view.text(rate)} is set on line {values[0].lineno}, once for both modes"


def _targets(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield target, node.value
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and node.value is not None:
        yield node.target, node.value


def _is_self(node: ast.expr, where: Pass) -> bool:
    first = where.method.args.args[0].arg if where.owner and where.method.args.args else ""
    return isinstance(node, ast.Name) and node.id == first


def _is_argument(where: Pass, name: str) -> bool:
    arguments = where.function.args
    return any(each.arg == name for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _with_flag(view: FileView, passes: Passes, call: ast.Call) -> Iterator[Violation]:
    """The whole of multi-head attention as a function, without its flag."""
    if any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords):
        return
    if len(call.args) > _FLAG_PLACE or any(each.arg == "training" for each in call.keywords):
        return
    where = passes.of(call)
    if where is None or decided_by_mode(view, call, where.method) or _rate_is_zero(call):
        return
    yield Violation(
        call,
        "multi_head_attention_forward() drops in eval mode too: training is True unless it is passed",
        remedy=f"training={where.mode}" if where.mode else "pass training from the module",
        severity=Severity.ERROR if where.sure else Severity.WARNING,
        edits=(view.argument_added(call, f"training={where.mode}"),) if where.mode else (),
        safety=(Safety.SAFE if where.sure else Safety.UNSAFE) if where.mode else Safety.MANUAL,
        title=f"Pass training={where.mode}",
        inferred=not where.sure,
    )


def _rate_is_zero(call: ast.Call) -> bool:
    rate = next((each.value for each in call.keywords if each.arg == "dropout_p"), None)
    rate = rate or (call.args[10] if len(call.args) > 10 else None)
    return rate is None or (isinstance(rate, ast.Constant) and not rate.value)


RULE = LintRule(
    code="M206",
    what="Looks for `scaled_dot_product_attention`, the functions of flash-attn and xformers, and "
    "`multi_head_attention_forward` in the methods of modules, with a dropout rate above 0 that does not depend on "
    "the mode.",
    why="Attention as a function knows of no mode: a rate that is passed as a constant drops at test time too. "
    "Outputs are random, and generated text is worse than the loss promises.",
    example="class Attention(nn.Module):\n    def forward(self, q, k, v):\n"
    "        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)",
    instead="class Attention(nn.Module):\n    def forward(self, q, k, v):\n"
    "        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)",
    remedy="Pass `dropout_p=p if self.training else 0.0`.",
    safety=Safety.SAFE,
    how_safe="safe in modules, as train mode stays what it was; unsafe in a class that may be none",
    false_alarms="Attention that is meant to drop at test time, to estimate uncertainty. A rate that is an "
    "argument, a property, or set anywhere but in `__init__` is not judged, nor one that is 0 there.",
    source="transformers#33844, pytorch#124464",
    triggers=(
        "scaled_dot_product_attention",
        "flash_attn",
        "memory_efficient_attention",
        "multi_head_attention_forward",
    ),
    check=check,
)
