"""Statements of the user's files that were run, as far as can be told, and what of a model an expression names.

Some mistakes leave no trace at run time, because nothing happens: a comparison, a generator that nobody consumes. Their
lines are found here, by `ast` alone; nothing is imported or run. A statement counts only where its function was on the
stack, or is named in one that was: what stands in a file and is not reached says nothing about the loop.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.source_files import Function, Statement, files_of, functions_of, statements_of

# How a module is asked for what it has; each such line that ran is in `Seen.walks`.
WALKS = ("parameters", "named_parameters", "modules", "named_modules", "children", "named_children")
_PASS_ON = frozenset({*WALKS, "items", "values", "enumerate", "list", "tuple", "iter", "reversed", "filter", "zip"})


def reached(seen: Seen) -> list[Statement]:
    """The statements of the user's files that can have been run: outside of functions, and in functions reached.

    A condition around a statement, or around the call of its function, is not evaluated: that a line did run is only
    proved by something that was seen, :func:`walked_at` for example.
    """
    found: list[Statement] = []
    for function in _functions_reached(seen):
        found += statements_of(function)
    return found


def everything(seen: Seen) -> list[Statement]:
    """All statements of the user's files, those too that were not run."""
    return [
        statement for file in files_of(seen) for function in functions_of(file) for statement in statements_of(function)
    ]


def was_there(statement: Statement, seen: Seen) -> bool:
    """Whether a statement ran for certain: no condition is around it, and its function was on the stack."""
    kinds = (ast.If, ast.Try, ast.While, ast.For, ast.Match)
    if statement.function != "<module>" and (statement.file, statement.function) not in {
        (place.file, place.function) for place in _places(seen)
    }:
        return False
    return not any(isinstance(node, kinds) for node in statement.around)


def walked_at(node: ast.AST, file: str, seen: Seen) -> list[tuple[ModelSeen, str]]:
    """The parts of models that were asked for their parameters or modules on the lines of an expression: so it ran."""
    first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) or 0
    found: dict[tuple[str, str], ModelSeen] = {}
    for walk in seen.walks:
        model = seen.model(walk.model)
        if walk.place.file == file and first <= walk.place.line <= last and model is not None:
            found[(walk.model, walk.path)] = model
    return [(model, path) for (_, path), model in found.items()]


def method(seen: Seen, owner: str, name: str) -> list[Statement]:
    """The statements of a method of a class, and of the class's own methods that it calls."""
    own = {f.name: f for file in files_of(seen) for f in functions_of(file) if f.owner == owner}
    found: list[Statement] = []
    queue, done = [name], set[str]()
    while queue:
        wanted = queue.pop(0)
        if wanted in done or wanted not in own:
            continue
        done.add(wanted)
        statements = statements_of(own[wanted])
        found += statements
        for statement in statements:
            for node in expressions(statement):
                if (
                    isinstance(node, ast.Call)
                    and dotted(node.func).startswith("self.")
                    and dotted(node.func).count(".") == 1
                ):
                    queue.append(called(node))
    return found


def expressions(statement: Statement) -> Iterator[ast.AST]:
    """The expressions of a statement, not those of statements inside of it."""
    queue: list[ast.AST] = [statement.node]
    while queue:
        node = queue.pop(0)
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        queue += [child for child in ast.iter_child_nodes(node) if not isinstance(child, (ast.stmt, ast.ExceptHandler))]


def calls(statement: Statement, *names: str) -> list[ast.Call]:
    """The calls in a statement of a function or method of one of these names."""
    return [n for n in expressions(statement) if isinstance(n, ast.Call) and called(n) in names]


def called(node: ast.AST) -> str:
    """The last name of what is called: ``freeze`` of ``self.net.freeze()``; empty where it has none.

    Example:
        >>> called(ast.parse("self.net.freeze()", mode="eval").body)
        'freeze'
    """
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return node.func.id
        if isinstance(node.func, ast.Attribute):
            return node.func.attr
    return ""


def dotted(node: ast.AST) -> str:
    """An expression as a dotted path, as far as it is one: attributes and constant subscripts, walks taken off.

    Example:
        >>> dotted(ast.parse("self.net.layers[0].parameters()", mode="eval").body)
        'self.net.layers.0'
        >>> dotted(ast.parse("build()", mode="eval").body)
        ''
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        before = dotted(node.value)
        return f"{before}.{node.slice.value}" if before else ""
    if isinstance(node, ast.Call) and called(node) in _PASS_ON:
        if isinstance(node.func, ast.Attribute):
            return dotted(node.func.value)
        # filter(function, items) has what it walks last, the others have it first.
        return dotted(node.args[-1 if called(node) == "filter" else 0]) if node.args else ""
    return ""


def part_named(node: ast.AST, seen: Seen) -> tuple[ModelSeen, str] | None:
    """The module or tensor of a model that an expression names, where it can only be one.

    ``model.backbone`` is looked up below the model of that name, or below the only one that has a ``backbone``; of
    ``self.backbone`` and ``backbone`` the only module counts with a path that ends so.
    """
    text = dotted(node)
    if not text:
        return None
    for model in seen.models:
        if text == model.name or text.startswith(f"{model.name}."):
            path = text[len(model.name) + 1 :]
            if path in model.modules or path in model.tensors:
                return model, path
    first, _, rest = text.partition(".")
    if rest and first != "self":  # in another function the model goes by another name
        fits = [(model, rest) for model in seen.models if rest in model.modules or rest in model.tensors]
        return fits[0] if len(fits) == 1 else None
    tail = text.removeprefix("self.")
    if tail == "self":
        return None
    fits = [
        (model, path)
        for model in seen.models
        for path in (*model.modules, *model.tensors)
        if path and (path == tail or path.endswith(f".{tail}"))
    ]
    return fits[0] if len(fits) == 1 else None


def part_walked(node: ast.AST, walks: Sequence[tuple[ast.AST, ast.AST]], seen: Seen) -> tuple[ModelSeen, str] | None:
    """The same for an expression in a loop: the variable of a loop stands for what the loop walks over.

    Args:
        node: the expression.
        walks: the loops that it stands in, the innermost first: what each assigns to, and what it walks over.
        seen: what was seen.
    """
    first = next((n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)), None)
    for i, (target, over) in enumerate(walks):
        if first is not None and first.id in {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}:
            return part_walked(over, walks[i + 1 :], seen)
    return part_named(node, seen)


def loops_around(statement: Statement) -> list[ast.For]:
    """The ``for`` loops that a statement stands in, the innermost first."""
    return [node for node in reversed(statement.around) if isinstance(node, ast.For)]


def walks_around(statement: Statement) -> list[tuple[ast.AST, ast.AST]]:
    """The ``for`` loops that a statement stands in, the innermost first, for :func:`part_walked`."""
    return [(node.target, node.iter) for node in loops_around(statement)]


def is_conditional(statement: Statement) -> bool:
    """Whether a statement stands in an ``if`` that stands in a loop: not everything that is walked comes to it."""
    kinds = [type(node) for node in statement.around]
    return ast.For in kinds and ast.If in kinds[kinds.index(ast.For) :]


def sets_flag(node: ast.AST) -> bool | None:
    """The value to which an expression or a statement sets ``requires_grad``; ``None`` where it does not, or unclearly.

    Example:
        >>> sets_flag(ast.parse("p.requires_grad = False").body[0]), sets_flag(ast.parse("p.requires_grad_()").body[0])
        (False, True)
    """
    if isinstance(node, ast.Expr):
        node = node.value
    value: ast.AST | None = None
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Attribute) and target.attr == "requires_grad" for target in targets):
            value = node.value
    elif isinstance(node, ast.Call):
        if called(node) == "requires_grad_":
            named = [keyword.value for keyword in node.keywords if keyword.arg == "requires_grad"]
            value = (*node.args, *named, ast.Constant(True))[0]
        elif called(node) in {"setattr", "__setattr__"} and len(node.args) >= 2:
            name = node.args[-2]
            value = node.args[-1] if isinstance(name, ast.Constant) and name.value == "requires_grad" else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None


# -- what was reached ------------------------------------------------------------------------------------------------


def _functions_reached(seen: Seen) -> list[Function]:
    functions = [function for file in files_of(seen) for function in functions_of(file)]
    there = {(place.file, place.function) for place in _places(seen)}
    types = {module.type for model in seen.models for module in model.modules.values()}
    queue = [
        f
        for f in functions
        if f.name == "<module>" or (f.file, f.name) in there or (f.owner in types and f.name in {"forward", "__init__"})
    ]
    by_name: dict[str, list[Function]] = {}
    for function in functions:
        by_name.setdefault(function.name, []).append(function)
        if function.name == "__init__":
            by_name.setdefault(function.owner, []).append(function)
    found: dict[int, Function] = {}
    while queue:
        function = queue.pop()
        if id(function) in found:
            continue
        found[id(function)] = function
        for name in _names_in(function):
            queue += by_name.get(name, [])
    order = {id(function): i for i, function in enumerate(functions)}
    return sorted(found.values(), key=lambda function: order[id(function)])


def _places(seen: Seen) -> Iterator[Place]:
    yield from (event.place for event in seen.events)
    yield from (optimizer.made for optimizer in seen.optimizers)
    for model in seen.models:
        yield from (phase.place for phase in model.phases)
        yield from (odd.place for odd in model.odd)
    if seen.crash is not None:
        yield seen.crash.place


def _names_in(function: Function) -> Iterator[str]:
    """What a function calls, and what it hands to a call: the names in a list are not called by being there."""
    for statement in statements_of(function):
        for node in expressions(statement):
            if isinstance(node, ast.Call):
                given = [node.func, *node.args, *(keyword.value for keyword in node.keywords)]
                yield from (name for part in given if (name := _last_name(part)) not in {"", "__init__"})


def _last_name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
