"""The tree of exceptions and warnings; pure Python, knows nothing of torch.

::

    FrostlineError
    ├── SelectionError (ValueError)       a selector cannot be used on this model
    │   └── NothingSelected               it matches nothing; the nearest paths are named
    ├── UnsupportedModel (TypeError)      a kind of model that cannot be looked into
    ├── CannotDigest (ValueError)         a tensor has no bytes to hash (meta, uninitialized)
    ├── SnapshotError (ValueError)        a snapshot cannot be compared, restored or read
    ├── FreezeError (RuntimeError)
    │   ├── CannotFreeze                  a part cannot be held, and why
    │   ├── CannotThaw                    a part cannot begin to train as things are, and why
    │   ├── FrozenStateMoved              held state is not what it was; carries ``diff``
    │   ├── RanksDiffer                   processes do not hold the same; carries ``comparison``
    │   └── HoldReleased                  the hold no longer holds anything
    ├── NormsError (RuntimeError)         anything about normalization statistics
    │   ├── NoStatistics                  there is nothing to estimate, split or convert
    │   ├── NonFiniteStatistics           an input or a statistic is NaN or infinite; the first layer is named
    │   ├── DomainError                   a domain is unknown, missing or has no samples
    │   └── CannotConvert                 a layer cannot be turned into what was asked for
    ├── MissingExtra (ImportError)        an optional dependency is not installed
    │   └── UnsupportedVersion            it is older than what is supported; the range is named
    ├── ScriptError (ValueError)          a script cannot be run
    ├── ModelError (ValueError)           a model cannot be built or does not fit its task
    ├── DataError (ValueError)            a data folder cannot be used
    │   └── CorruptData                   a file in it cannot be read
    ├── RunFolderError (ValueError)       an output folder is in the way, or holds no run
    ├── CheckpointError (ValueError)      a checkpoint does not fit
    │   ├── CorruptCheckpoint             it cannot be read
    │   └── UnsafeCheckpoint              it wants to run code
    ├── TrainingDiverged (ArithmeticError)  the loss is not a number
    │   └── InnerLoopDiverged             adapting to a task blew up; carries ``report``
    ├── ProcessLost (RuntimeError)        another process of a run has ended
    ├── MetaError (ValueError)            a few-shot learner and its tasks do not go together
    │   └── PolicyError                   no such statistics policy, or none that this model can have
    ├── FindingsFound (RuntimeError)      a run was to end where the doctor finds mistakes; carries ``findings``
    ├── BaselineError (ValueError)        a file of known findings cannot be used
    │   └── CorruptBaseline               it cannot be read
    ├── FastError (RuntimeError)          a shortcut cannot be taken
    │   ├── NoPrefix                      no frozen part comes first; the reasons are named
    │   └── ShortcutDiffers               it gives other values than the plain way
    ├── CacheError (ValueError)           a folder of cached features cannot be used
    │   ├── CacheMismatch                 it was made of another model, dataset, transform or version
    │   ├── CacheBusy                     another process is writing to it
    │   └── CorruptCache                  a file of it is damaged
    ├── LintSettingsError (ValueError)    the linter is asked for a rule, a file or a setting that there is not
    ├── CannotWrite (OSError)             a file cannot be written
    └── StorageFull (OSError)             the disk has no space left
    FrostlineWarning (UserWarning)
    ├── TiedAcrossBoundary                a held tensor is also used outside what is held
    ├── RandomStart                       a part is held that was never trained
    ├── HeldAnew                          held parameters were re-created, and are held again
    ├── NotConverted                      a layer was left as it was: converting it would lose what it does
    ├── UntestedVersion                   a framework is newer than what was tested
    └── TorchvisionWithoutOperators       torchvision runs without its compiled operators

Every message says what was asked, what was found, where (a dotted path or a file) and the narrow fix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frostline.state.changes import StateDiff


class FrostlineError(Exception):
    """The root of every error that Frostline raises on purpose.

    Attributes:
        exit_code: what the command line ends with: 2 for wrong usage, 3 for unsafe or corrupt input,
            1 for a finding.
    """

    exit_code: int = 2


class SelectionError(FrostlineError, ValueError):
    """A selector cannot be used on this model."""


class NothingSelected(SelectionError):
    """A selector matches nothing; the message names the nearest paths."""


class UnsupportedModel(FrostlineError, TypeError):
    """A kind of model that cannot be looked into or held."""


class CannotDigest(FrostlineError, ValueError):
    """A tensor has no bytes that could be hashed."""


class SnapshotError(FrostlineError, ValueError):
    """A snapshot cannot be compared, restored or read."""


class FreezeError(FrostlineError, RuntimeError):
    """Anything that goes wrong with a hold."""


class CannotFreeze(FreezeError):
    """A part of the model cannot be held to the bit."""


class FrozenStateMoved(FreezeError):
    """Held state is not what it was.

    Attributes:
        diff: the :class:`~frostline.state.changes.StateDiff` with one row for each entry that moved.
    """

    exit_code = 1

    def __init__(self, message: str, diff: StateDiff) -> None:
        super().__init__(message)
        self.diff = diff

    def __reduce__(self) -> tuple[type[FrozenStateMoved], tuple[str, StateDiff]]:
        return type(self), (str(self), self.diff)


class CannotThaw(FreezeError):
    """A part of the model cannot begin to train as things are: what exchanges gradients would not know of it."""


class RanksDiffer(FreezeError):
    """The processes of a distributed run do not hold the same.

    Attributes:
        comparison: what each of them holds, as a value of :mod:`frostline.freezing`.
    """

    exit_code = 1

    def __init__(self, message: str, comparison: Any = None) -> None:
        super().__init__(message)
        self.comparison = comparison

    def __reduce__(self) -> tuple[type[RanksDiffer], tuple[str, Any]]:
        return type(self), (str(self), self.comparison)


class HoldReleased(FreezeError):
    """The hold was released, or its model no longer exists."""


class NormsError(FrostlineError, RuntimeError):
    """Anything that goes wrong with normalization statistics."""


class NoStatistics(NormsError):
    """There is no layer with statistics, or no data to estimate them from."""


class NonFiniteStatistics(NormsError):
    """An input, an activation or a statistic is NaN or infinite; the message names the first layer."""

    exit_code = 3


class DomainError(NormsError):
    """A domain is unknown, missing, or has no samples."""


class CannotConvert(NormsError):
    """A normalization layer cannot be turned into what was asked for."""


class MissingExtra(FrostlineError, ImportError):
    """An optional dependency is not installed; the message says how to install it."""


class UnsupportedVersion(MissingExtra):
    """A framework is older than what this library works with; the message names the range."""


class ScriptError(FrostlineError, ValueError):
    """A script that was to be run does not exist or cannot be read."""


class ModelError(FrostlineError, ValueError):
    """A model cannot be built, or does not fit what it is asked to do."""


class DataError(FrostlineError, ValueError):
    """A data folder cannot be used."""


class CorruptData(DataError):
    """A file in a data folder cannot be read."""

    exit_code = 3


class RunFolderError(FrostlineError, ValueError):
    """An output folder already holds a run, or holds none where one was expected."""


class CheckpointError(FrostlineError, ValueError):
    """A checkpoint does not fit the model."""


class CorruptCheckpoint(CheckpointError):
    """A checkpoint is truncated or is no checkpoint."""

    exit_code = 3


class UnsafeCheckpoint(CheckpointError):
    """A checkpoint is a pickle that wants to import or run code."""

    exit_code = 3


class TrainingDiverged(FrostlineError, ArithmeticError):
    """The loss became NaN or infinite; training was stopped."""

    exit_code = 3


class InnerLoopDiverged(TrainingDiverged):
    """Adapting to a task blew up, and was stopped; the message says where and why.

    Attributes:
        report: what was measured, as a value of :mod:`frostline.meta`; ``None`` where a task was merely NaN.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[InnerLoopDiverged], tuple[str, Any]]:
        return type(self), (str(self), self.report)


class ProcessLost(FrostlineError, RuntimeError):
    """Another process of a run has ended, and the run with it; the message says what is kept.

    Attributes:
        speaks: whether this process is the one of those that are left which tells the user.
    """

    exit_code = 1

    def __init__(self, message: str, *, speaks: bool = True) -> None:
        super().__init__(message)
        self.speaks = speaks


class MetaError(FrostlineError, ValueError):
    """A few-shot learner, its tasks or what was asked of them do not go together."""


class PolicyError(MetaError):
    """A statistics policy does not exist, or is none that this model can have."""


class FindingsFound(FrostlineError, RuntimeError):
    """A run was to end where the doctor finds mistakes, and it did.

    Attributes:
        findings: the mistakes, as values of :mod:`frostline.findings`.
    """

    exit_code = 1

    def __init__(self, message: str, findings: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)

    def __reduce__(self) -> tuple[type[FindingsFound], tuple[str, tuple[Any, ...]]]:
        return type(self), (str(self), self.findings)


class BaselineError(FrostlineError, ValueError):
    """A file of known findings is missing, damaged or of another version."""


class CorruptBaseline(BaselineError):
    """A file of known findings is damaged."""

    exit_code = 3


class FastError(FrostlineError, RuntimeError):
    """A shortcut that freezing makes possible cannot be taken."""


class NoPrefix(FastError):
    """No part of the model is frozen and comes first; the message says what stands in the way."""


class ShortcutDiffers(FastError):
    """A shortcut gives other values than the plain way, beyond what was allowed."""

    exit_code = 1


class CacheError(FrostlineError, ValueError):
    """A folder of cached features cannot be used."""


class CacheMismatch(CacheError):
    """A folder of cached features was made of another model, dataset, transform or version."""


class CacheBusy(CacheError):
    """Another process is writing to a folder of cached features."""


class CorruptCache(CacheError):
    """A file of cached features is damaged."""

    exit_code = 3


class LintSettingsError(FrostlineError, ValueError):
    """The linter was asked for a rule or a file that does not exist, or its settings cannot be used."""


class CannotWrite(FrostlineError, OSError):
    """A file cannot be written where it was asked for."""


class StorageFull(FrostlineError, OSError):
    """A file could not be written because the disk is full."""

    exit_code = 3


class FrostlineWarning(UserWarning):
    """The root of every warning that Frostline gives."""


class TiedAcrossBoundary(FrostlineWarning):
    """A held tensor or module is also used by a part of the model that is not held."""


class NotConverted(FrostlineWarning):
    """A layer was left as it was, because converting it would lose what it does."""


class RandomStart(FrostlineWarning):
    """A part is held that has random weights."""


class UntestedVersion(FrostlineWarning):
    """A framework is newer than what this library was tested with."""


class HeldAnew(FrostlineWarning):
    """Something re-created parameters after they were frozen; they are held again from then on."""


class TorchvisionWithoutOperators(FrostlineWarning):
    """Torchvision was imported without its compiled operators."""


def printable(text: str) -> str:
    r"""A text in one line, with control characters written out, so that no name from a file can play with a terminal.

    Example:
        >>> printable("fc.\x1b[31mweight")
        'fc.\\x1b[31mweight'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def name_some(names: Sequence[str], most: int = 8, rest: str = "") -> str:
    """Join at most ``most`` names, and count the others.

    Args:
        names: the names, in the order they should be read.
        most: how many are written out.
        rest: how to see the others, added behind their count.

    Example:
        >>> name_some(["a", "b", "c"], most=2, rest="hold.paths")
        'a, b (+1 more; hold.paths)'
    """
    shown = ", ".join(map(printable, names[:most]))
    if len(names) <= most:
        return shown
    behind = f"; {rest}" if rest else ""
    return f"{shown} (+{len(names) - most} more{behind})"
