"""Parts whose parameters are frozen while the part is, or gets, in train mode: what F107 and M207 speak of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frostline.lint.diagnostic import Edit
from frostline.lint.events import Condition, Event, Flow
from frostline.lint.iterations import loops_of, meet
from frostline.lint.layers import LayerBook, Layers
from frostline.lint.scopes import Function
from frostline.lint.torch_names import WRAPPERS
from frostline.lint.values import PARAMETERS, is_below, owner_of, related

if TYPE_CHECKING:
    from frostline.lint.file_view import FileView

# A part that can be written as code as it stands.
_EXPRESSION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*|\[-?\d+\])*$")
# What somebody calls who looks after the mode of normalization layers, in a function that nobody here knows.
_KEEPS_MODE = re.compile(
    r"(freeze|frozen|fix|set|eval|lock|disable|stop|convert|replace)\w*(_bn|bn_|norm|batch_?norm|_stat|eval|frozen|mode)|"
    r"(bn|batch_?norm|norm)\w*_(eval|freeze|frozen|fix|mode)|^freeze_?bn|frozen_?batch_?norm",
    re.I,
)
_KEEPS_STATISTICS = re.compile(
    r"FrozenBatchNorm|frozen_batch_norm|\.momentum\s*=\s*0(\.0*)?\b|track_running_stats\s*=\s*False|BackboneFinetuning"
)
# What is frozen gets layers that train: it is to be in train mode.
_ADAPTS = re.compile(r"get_peft_model|LoraConfig|add_adapter|inject_adapter|lora_layer|mark_only_lora", re.I)
# Copies that follow a model by an average of its weights: their statistics are meant to move.
_FOLLOWERS = re.compile(
    r"(^|[._])(ema|momentum|target|shadow|averaged|swa)([._\d]|$)|(encoder|net|model)_(k|m|ema)$", re.I
)
_TRAINED_ON_PURPOSE = re.compile(
    r"norm|bn|['\"]\.?bias|lora|adapter|prompt|isinstance|requires_grad|\.ndim|shape", re.I
)
_TRAINER = re.compile(r"^transformers\.\w*Trainer$")
_NOT_TRAINING = re.compile(r"valid|test|predict|eval|export|infer|sample|generate", re.I)
_FITS = re.compile(r"(^|[._])(train\w*|fit\w*|finetune\w*)$")


@dataclass(frozen=True)
class FrozenInTrainMode:
    """A part that is frozen by its flags alone, and runs in train mode.

    Attributes:
        part: its path.
        flag: what froze it.
        train: what put it into train mode; ``None`` where it was made so.
        use: what runs or trains it afterwards.
        undone: the ``eval()`` that `train` undid.
        layers: what is in it.
        is_all: nothing that the same ``train()`` reaches can train.
        is_sure: nothing of this was told from a name.
    """

    part: str
    flag: Event
    train: Event | None
    use: Event
    undone: Event | None
    layers: Layers
    is_all: bool
    is_sure: bool


def frozen_in_train_mode(view: FileView) -> Iterator[FrozenInTrainMode]:
    """What is frozen in the flows of a file, and in train mode.

    Nothing is said of copies that follow another model, of parts that are frozen and thawed in turn, nor where anything
    that nobody here knows may look after the mode.
    """
    if _KEEPS_STATISTICS.search(view.source.text) or _ADAPTS.search(view.source.text):
        return
    flows = [flow for flow in view.flows if any(_freezes(event) for event in flow.events)]
    if not flows or somebody_keeps_mode(view):
        return
    book = LayerBook(view)
    for flow in flows:
        yield from _InFlow(view, flow, book).found()


def somebody_keeps_mode(view: FileView) -> bool:
    """Whether a function that is none of the files' is called by a name that says it looks after modes."""
    for call in view.nodes(ast.Call):
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if _KEEPS_MODE.search(name):
            value = view.value(function)
            known = view.walk.find(value.cls) if value is not None and value.cls else None
            # A class that keeps it is as good as a function, and a layer is none of both.
            if known is None and not (value is not None and value.cls.startswith("torch.nn.")):
                return True
    return False


def is_whole_flag(event: Event, value: bool) -> bool:
    """Whether an event sets the flag of all parameters of a module."""
    return event.what == "flag" and event.get("value") is value and event.whole and bool(owner_of(event.path))


def shown(path: str) -> str:
    """A path as a user knows it.

    Example:
        >>> shown("make():trunk"), shown("self.net[0]")
        ('trunk', 'self.net[0]')
    """
    return path.rpartition("():")[2]


def eval_below(view: FileView, found: FrozenInTrainMode) -> tuple[Edit, ...]:
    """``PART.eval()`` below the ``train()``, where that is a line by itself and knows the part by its name."""
    train = found.train
    if train is None or train.origin or train.node is None or not _EXPRESSION.match(found.part):
        return ()
    if found.part == train.path and not found.is_all:
        return ()  # the new head, too, would be in eval mode
    owned = found.part.startswith("self.") and train.path.startswith("self")
    if train.via and not owned:
        return ()
    statement = view.statement(train.node)
    if not isinstance(statement, ast.Expr) or statement.value is not train.node:
        return ()
    here = view.function(statement)
    root = found.part.partition(".")[0].partition("[")[0]
    if root != "self" and here != "<module>" and root not in view.walk.functions[here].local_names:
        return ()
    line = view.source.line_text(statement.lineno).partition("#")[0].strip()
    if line != view.text(statement):
        return ()
    return (view.line_below(statement, f"{found.part}.eval()"),)


def names_a_result(flow: Flow, index: int) -> bool:
    """Whether what a function made, and did things to, is given a name by an event: it is nothing new."""
    event = flow.events[index]
    depth, node = len(event.via), event.node
    first, last = getattr(node, "lineno", event.line), getattr(node, "end_lineno", None) or event.line
    for before in reversed(flow.events[:index]):
        if len(before.via) <= depth or before.via[:depth] != event.via:
            return False
        if not first <= int(before.via[depth].rpartition(":")[2]) <= last:
            return False
        if related(owner_of(before.path), event.path):
            return True
    return False


def other_names(flow: Flow) -> dict[str, str]:
    """By which other paths modules are known in a flow: attributes that were set to them, and wrappers."""
    wrappers = {e.path: str(e.get("of")) for e in flow.of("wrap") if e.path and e.get("of") and e.path != e.get("of")}
    return {**flow.aliases, **wrappers}


def reaches(aliases: dict[str, str], path: str, part: str) -> bool:
    """Whether what is done to the module at a path is done to a part: it lies in it, under any of its names."""
    path = owner_of(path)
    if is_below(part, path):
        return True
    return any(is_below(part, of) and is_below(alias, path) for alias, of in aliases.items())


def freezes_all_but(event: Event) -> bool:
    """Whether an event freezes all parameters of a module but those of a name.

    By a branch, ``if "fc" not in name``, or by what the flag is set to, ``p.requires_grad = "fc" in name``.
    """
    if event.what != "flag" or event.get("filtered"):
        return False
    given = _given_by_name(event) if event.get("value") is None else None
    if given is None and event.get("value") is not False:
        return False
    loops = [loop for loop in event.loops if loop.over is not None and loop.over.kind in PARAMETERS]
    if len(loops) != 1 or (loops[0].over is not None and loops[0].over.filtered):
        return False
    conditions = event.conditions[loops[0].conditions :]
    if given is not None:
        names = {node.id for node in ast.walk(given) if isinstance(node, ast.Name)}
        # The branch in which the flag is False is that of the parameters which are frozen.
        return not conditions and not names.isdisjoint(loops[0].targets) and _leaves_out(Condition((), False, given))
    return bool(conditions) and all(_leaves_out(condition) for condition in conditions)


def _given_by_name(event: Event) -> ast.expr | None:
    """The test on a name that a flag is set to; ``None`` where it is set to anything else."""
    node = event.node
    given: ast.expr | None = None
    if isinstance(node, ast.Assign):
        given = node.value
    elif isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        given = node.args[0]
    return given if isinstance(given, (ast.Compare, ast.Call, ast.BoolOp, ast.UnaryOp)) else None


def _leaves_out(condition: Condition) -> bool:
    """Whether a branch is taken for all names but some."""
    test, arm = condition.node, condition.arm
    if test is None or _TRAINED_ON_PURPOSE.search(ast.unparse(test)):
        return False
    while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, arm = test.operand, not arm
    if isinstance(test, ast.BoolOp):
        # Either of several names, or none of them.
        return all(_leaves_out(Condition(condition.key, arm, each)) for each in test.values)
    if isinstance(test, ast.Call):
        function = test.func
        named = isinstance(function, ast.Attribute) and function.attr in {"startswith", "endswith"}
        return not arm and (named or (isinstance(function, ast.Name) and function.id == "any"))
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        excludes = isinstance(test.ops[0], (ast.NotIn, ast.NotEq))
        return arm is excludes and isinstance(test.ops[0], (ast.In, ast.NotIn, ast.Eq, ast.NotEq))
    return False


class _InFlow:
    """Goes through one flow, for each part that is frozen in it."""

    def __init__(self, view: FileView, flow: Flow, book: LayerBook) -> None:
        self._view = view
        self._flow = flow
        self._book = book
        self._aliases = other_names(flow)
        self._is_lightning_step = bool(flow.owner) and flow.name.endswith(".training_step")
        self._is_framework = self._is_lightning_step and view.walk.is_lightning(view.walk.qualified(flow.owner))

    def found(self) -> list[FrozenInTrainMode]:
        found: list[FrozenInTrainMode] = []
        if _NOT_TRAINING.search(self._flow.name.rpartition(".")[2]) and not self._flow.of("backward", "step"):
            return []
        done: set[str] = set()
        for index, event in enumerate(self._flow.events):
            part = owner_of(event.path)
            if part in done or not _freezes(event) or not _is_plain(part) or self._is_parameter(event):
                continue
            done.add(part)
            if self._is_left_alone(part, index):
                continue
            one = self._in_train_mode(part)
            if one is not None:
                found.append(one)
        # Of several at one place the first is told: rather one that is sure.
        return sorted(found, key=lambda each: (not each.is_sure, each.layers.norms is False))

    def _is_parameter(self, event: Event) -> bool:
        """Whether one parameter is frozen, not a module."""
        return event.path.rpartition(".")[2] in {"weight", "bias"}

    def _is_left_alone(self, part: str, index: int) -> bool:
        flag = self._flow.events[index]
        if _FOLLOWERS.search(part):
            return True
        for event in self._flow.events:
            if event.what in {"write", "average"} and is_below(owner_of(event.path), part):
                return True
        for other in self._flow.events[index + 1 :]:
            thaws = is_whole_flag(other, True) and reaches(self._aliases, other.path, part) and meet(flag, other)
            if thaws and (len(other.conditions) <= len(flag.conditions) or _in_one_loop(flag, other)):
                return True  # thawed again, or frozen and thawed in turn
            if other.what == "flag" and other.get("value") is True and not other.whole and _names_norms(other):
                return True  # the layers are trained on purpose
        trained = False
        for before in reversed(self._flow.events[:index]):
            trained = trained or before.what in {"backward", "step", "scaler_step"}
            if is_whole_flag(before, True) and reaches(self._aliases, before.path, part):
                if trained or _in_one_loop(flag, before):
                    return True  # thawed, trained, frozen: it will be so again
                break
        return self._is_kept_by_class(part)

    def _is_kept_by_class(self, part: str) -> bool:
        """Whether a class around the part, or its own, overrides ``train()``, keeps its mode or writes its values."""
        walk = self._view.walk
        pieces = _prefixes(part)
        for path in pieces:
            value = self._book.value_at(self._flow, path)
            if value is None or "." not in value.cls:
                continue
            for owner_walk, owner in walk.ancestry(value.cls):
                if f"{owner.name}.train" in owner_walk.functions and owner_walk.is_module(
                    owner_walk.qualified(owner.name)
                ):
                    return True
                rest = part[len(path) :]
                if self._is_kept_by_methods(owner_walk.methods_of(owner.name), f"self{rest}"):
                    return True
        return False

    def _is_kept_by_methods(self, methods: Mapping[str, Function], part: str) -> bool:
        walked = {event.function for event in self._flow.events}
        for name, function in methods.items():
            method = name.rpartition(".")[2]
            for event in function.events:
                below = is_below(owner_of(event.path), part) and part != "self"
                if event.what in {"write", "average"} and below:
                    return True
                is_eval = event.what == "mode" and event.get("value") is False and below
                if is_eval and name not in walked and not _NOT_TRAINING.search(method):
                    return True
        return False

    def _in_train_mode(self, part: str) -> FrozenInTrainMode | None:
        """The first use of a part that is frozen and in train mode."""
        train: Event | None = None
        flag: Event | None = None
        undone: Event | None = None
        evaluated: Event | None = None
        is_train, is_guess = self._begins_in_train_mode(part), False
        trains = [i for i, e in enumerate(self._flow.events) if e.what in {"backward", "step", "scaler_step"}]
        last_training = trains[-1] if trains else -1
        for index, event in enumerate(self._flow.events):
            path = owner_of(event.path)
            if event.what == "new" and reaches(self._aliases, path, part):
                value = event.get("value")
                is_wrapper = value is not None and value.cls in WRAPPERS and bool(value.copy_of)
                if is_wrapper or names_a_result(self._flow, index):
                    continue
                # Made anew: in train mode, and nothing of it is frozen, but for what is done in the same breath.
                own = {id(node) for node in ast.walk(event.node)} if event.node is not None else set[int]()
                if flag is not None and path == part and id(flag.node) not in own:
                    flag = None
                if path == part or train is None:
                    is_train, train = self._is_made_in_train_mode(event), None
                    if evaluated is not None and id(evaluated.node) in own:
                        is_train = False
            elif path == part and _freezes(event):
                flag = event
            elif event.what == "hold" and related(part, path):
                return None
            elif event.what == "mode" and reaches(self._aliases, path, part) and event.get("value") is not False:
                if event.get("value") is not True and event.function.endswith(".train"):
                    continue
                is_guess = event.get("value") is not True
                is_train, train = True, event
                undone, evaluated = evaluated, None
            elif event.what == "mode" and related(part, path) and event.get("value") is False:
                if train is not None and not meet(train, event):
                    continue
                is_train, evaluated = False, event
            elif flag is not None and event.what == "unknown" and _TRAINER.match(event.get("name", "")):
                if any(reaches(self._aliases, each, part) for each in event.get("paths", ())):
                    return self._one(part, flag, event, event, evaluated, is_guess)
            elif flag is not None and is_train:
                use = self._is_use(event, part, train, index, last_training)
                if use and meet(flag, event) and (train is None or meet(train, event)):
                    return self._one(part, flag, train, event, undone, is_guess)
        return None

    def _is_use(self, event: Event, part: str, train: Event | None, index: int, last_training: int) -> bool:
        """Whether an event runs the part, or trains what it is in, so that train mode matters."""
        goes_on = last_training >= index or self._is_framework
        path = owner_of(event.path)
        if event.what == "forward":
            runs = reaches(self._aliases, path, part) or is_below(path, part) or path == "self"
            return runs and (train is not None or goes_on)
        if event.what in {"backward", "step", "scaler_step"}:
            return train is not None or self._is_known_here(part)
        if event.what == "unknown" and any(reaches(self._aliases, each, part) for each in event.get("paths", ())):
            return train is not None and bool(_FITS.search(event.get("name", "")))
        return False

    def _is_known_here(self, part: str) -> bool:
        return any(e.what == "forward" and reaches(self._aliases, e.path, part) for e in self._flow.events)

    def _begins_in_train_mode(self, part: str) -> bool:
        """Lightning keeps the mode that a module has when fitting begins, and a new one is in train mode."""
        names = (part, *(alias for alias, of in self._aliases.items() if is_below(part, of)))
        return self._is_framework and any(name.startswith("self.") for name in names)

    def _is_made_in_train_mode(self, event: Event) -> bool:
        value = event.get("value")
        # transformers gives a pretrained model in eval mode, and a copy is in the mode of what it is a copy of.
        return value is None or not (".from_pretrained" in value.maker or value.copy_of)

    def _one(
        self, part: str, flag: Event, train: Event | None, use: Event, undone: Event | None, is_guess: bool
    ) -> FrozenInTrainMode:
        index = self._flow.events.index(flag)
        layers = self._book.of_path(self._flow, part, index)
        value = self._book.value_at(self._flow, part, index)
        reached = owner_of(train.path) if train is not None else part
        can_train = any(
            (e.what == "flag" and e.get("value") is not False and related(owner_of(e.path), reached))
            or (e.what == "new" and e.path != reached and is_below(e.path, reached) and not is_below(e.path, part))
            or (e.what == "new" and i > index and e.path != reached and is_below(e.path, reached))
            for i, e in enumerate(self._flow.events)
        )
        is_all = reached == part and not can_train and not self._flow.of("optimizer", "step")
        sure = not is_guess and is_whole_flag(flag, False) and layers.norms is True and (value is None or value.sure)
        return FrozenInTrainMode(part, flag, train, use, undone, layers, is_all, sure)


def _freezes(event: Event) -> bool:
    return is_whole_flag(event, False) or freezes_all_but(event)


def _is_plain(path: str) -> bool:
    return bool(path) and "*" not in path and "," not in path


def _prefixes(path: str) -> list[str]:
    """A path and all that it lies in, the shortest first.

    Example:
        >>> _prefixes("self.net[0].stem")
        ['self', 'self.net', 'self.net[0]', 'self.net[0].stem']
    """
    ends = [i for i, char in enumerate(path) if char in ".[" and i]
    return [*(path[:i] for i in ends), path]


def _in_one_loop(one: Event, other: Event) -> bool:
    keys = {loop.key for loop in loops_of(one)}
    return any(loop.key in keys for loop in other.loops)


def _names_norms(event: Event) -> bool:
    return any(c.node is not None and re.search(r"norm|bn", ast.unparse(c.node), re.I) for c in event.conditions)
