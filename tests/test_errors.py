"""The tree of errors: what the docstring draws is what the classes are."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import pytest

from frostline import errors
from frostline.errors import FrostlineError, FrostlineWarning, FrozenStateMoved, name_some
from frostline.state.changes import Change, StateDiff

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, (FrostlineError, FrostlineWarning))
}


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Name to (parent, builtin beside it), read off the drawing in the module's docstring."""
    assert errors.__doc__ is not None
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.fullmatch(r"    ((?:[│ ]   )*(?:[├└]── )?)(\w+)(?: \((\w+)\))?(?:  +.+)?", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        above = above[:depth]
        tree[found[2]] = (above[-1] if above else None, found[3])
        above.append(found[2])
    return tree


def real_tree() -> dict[str, tuple[str | None, str | None]]:
    tree: dict[str, tuple[str | None, str | None]] = {}
    for name, cls in CLASSES.items():
        ours = [base.__name__ for base in cls.__bases__ if base.__name__ in CLASSES]
        theirs = [base.__name__ for base in cls.__bases__ if base.__name__ not in CLASSES]
        assert len(ours) <= 1
        assert len(theirs) <= 1
        assert all(hasattr(builtins, base) for base in theirs)
        tree[name] = (ours[0] if ours else None, theirs[0] if theirs else None)
    # The root's base goes without saying.
    assert tree["FrostlineError"] == (None, "Exception")
    tree["FrostlineError"] = (None, None)
    return tree


def test_the_docstring_draws_the_real_tree() -> None:
    assert drawn_tree() == real_tree()


def test_reading_the_drawing_notices_a_class_in_the_wrong_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert errors.__doc__ is not None
    wrong = errors.__doc__.replace("│   └── NothingSelected ", "├── NothingSelected     ")
    assert wrong != errors.__doc__
    monkeypatch.setattr(errors, "__doc__", wrong)
    assert drawn_tree() != real_tree()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_is_a_builtin_too(name: str) -> None:
    """So that ``except ValueError`` around a call goes on working."""
    cls = CLASSES[name]
    if issubclass(cls, FrostlineWarning):
        assert issubclass(cls, UserWarning)
    elif cls is not FrostlineError:
        kinds = (ValueError, TypeError, RuntimeError, ImportError, ArithmeticError, OSError)
        assert [kind for kind in kinds if issubclass(cls, kind)]
    assert cls.__doc__


def test_exit_codes() -> None:
    codes = {name: cls.exit_code for name, cls in CLASSES.items() if issubclass(cls, FrostlineError)}
    not_two = {
        "FrozenStateMoved": 1,
        "RanksDiffer": 1,
        "FindingsFound": 1,
        "ProcessLost": 1,
        "CorruptData": 3,
        "ShortcutDiffers": 1,
        "CorruptBaseline": 3,
        "CorruptCache": 3,
        "CorruptCheckpoint": 3,
        "UnsafeCheckpoint": 3,
        "NonFiniteStatistics": 3,
        "TrainingDiverged": 3,
        "InnerLoopDiverged": 3,
        "StorageFull": 3,
    }
    assert codes == dict.fromkeys(codes, 2) | not_two
    assert not any(hasattr(cls, "exit_code") for cls in CLASSES.values() if issubclass(cls, FrostlineWarning))


def moved() -> FrozenStateMoved:
    row = Change("bn.running_mean", "buffer", "norm.mean", "bn", "BatchNorm1d", "changed", "00", "ff", 0.5, 0.25)
    return FrozenStateMoved("1 entry moved: bn.running_mean", StateDiff([row], 7))


@pytest.mark.parametrize("way", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy, copy.copy])
def test_frozen_state_moved_travels_between_processes(way) -> None:
    error = moved()
    back = way(error)
    assert type(back) is FrozenStateMoved
    assert (str(back), back.args, back.diff, back.exit_code) == (str(error), error.args, error.diff, 1)


def test_without_reduce_it_would_not_travel() -> None:
    """The twin: an exception with a second argument loses it by default."""

    class Naive(Exception):
        def __init__(self, message: str, diff: object) -> None:
            super().__init__(message)

    with pytest.raises(TypeError):
        copy.copy(Naive("moved", None))


def test_every_other_error_pickles() -> None:
    for cls in CLASSES.values():
        if cls is not FrozenStateMoved:
            back = pickle.loads(pickle.dumps(cls("what, where\n  fix: how")))
            assert type(back) is cls
            assert str(back) == "what, where\n  fix: how"


@pytest.mark.parametrize(
    ("count", "rest", "expected"),
    [
        (0, "", ""),
        (1, "report.paths", "n0"),
        (8, "report.paths", "n0, n1, n2, n3, n4, n5, n6, n7"),
        (9, "", "n0, n1, n2, n3, n4, n5, n6, n7 (+1 more)"),
        (49, "report.to_json()", "n0, n1, n2, n3, n4, n5, n6, n7 (+41 more; report.to_json())"),
    ],
)
def test_name_some(count: int, rest: str, expected: str) -> None:
    assert name_some([f"n{i}" for i in range(count)], rest=rest) == expected
