"""Runs a training script as it is, under a watch: for some steps, or to its end."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from frostline.audit.contract import Contract
from frostline.audit.places import short
from frostline.audit.recorder import EVERY
from frostline.audit.seen import Seen
from frostline.audit.watch import Stopped, Watch
from frostline.doctor.examination import Examination
from frostline.doctor.examine import examine
from frostline.errors import ScriptError

# `width: 3` is a line of Python too, so that a file of settings would run, and fail somewhere else.
_NO_SCRIPTS = frozenset({".cfg", ".csv", ".ini", ".ipynb", ".json", ".md", ".sh", ".toml", ".txt", ".yaml", ".yml"})
# A script that catches everything is asked to stop so many times; then its process ends.
_PATIENCE = 5


@dataclass
class ScriptRun:
    """What came of a script.

    Attributes:
        examination: what was found; after remedies, where they were applied.
        earlier: what was found before remedies were applied; ``None`` where none were asked for.
        applied: what the remedies did, a line each.
        exit_code: what the script itself ended with, where it called ``sys.exit``; 0 otherwise.
    """

    examination: Examination
    earlier: Examination | None = None
    applied: list[str] = field(default_factory=list[str])
    exit_code: int = 0

    @property
    def seen(self) -> Seen:
        """What was seen in the last audit."""
        return self.examination.seen

    @property
    def is_complete(self) -> bool:
        """Whether the script ran without an error, and something in it trained."""
        trained = any(forward.grad and forward.training for forward in self.seen.forwards)
        return self.seen.crash is None and self.exit_code == 0 and (bool(self.seen.steps) or trained)


def run_script(
    script: str | Path,
    arguments: Sequence[str] = (),
    *,
    steps: int = 20,
    keep_going: bool = False,
    apply: bool = False,
    as_module: bool = False,
    contract: Contract | None = None,
    every: int = EVERY,
    trace: bool = True,
    give_up: Callable[[ScriptRun], None] | None = None,
) -> ScriptRun:
    """Run a training script as ``python SCRIPT ARGS`` would, and watch it.

    The file is not changed, and neither are its results: it is stopped after some optimizer steps, or watched for
    these steps and left to itself. Its standard output is its own. What it does to ``sys.argv``, ``sys.path`` and
    ``__main__`` is undone.

    Args:
        script: the file; with ``as_module``, the dotted name of a module.
        arguments: its arguments.
        steps: after how many optimizer steps the audit ends; 0 watches to the end.
        keep_going: after the audit the script goes on, unwatched, to its end.
        apply: after the audit the remedies that are safe in memory are applied, and the same number of steps is audited
            once more.
        as_module: run it as ``python -m`` does.
        contract: what must stay, as for :func:`frostline.watch`.
        every: parameters that must stay are digested at every so many steps.
        trace: whether a step may be looked at operator by operator.
        give_up: called with what was seen where the script catches everything and cannot be stopped; the process ends
            after it.

    Returns:
        The :class:`ScriptRun`. An exception of the script is in ``seen.crash``, not raised.

    Raises:
        ScriptError: there is no such script, or it cannot be read.
        NothingSelected: a selector of the contract matches nothing in the model.
        KeyboardInterrupt: the user stopped it before anything was seen.
    """
    path = str(script)
    if not as_module:
        _check(Path(path))
    audit = _Audit(steps, keep_going, apply, contract, every, trace, give_up)
    seen = audit.begin()
    seen.script = path if as_module else short(path)
    with _as_main(path, list(arguments), as_module=as_module):
        if as_module:
            _find(path)
        try:
            with audit:
                if as_module:
                    runpy.run_module(path, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(path, run_name="__main__")
        except Stopped:
            pass
        except SystemExit as leaving:
            audit.exit_code = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
        except Exception:
            if audit.seen.crash is None:  # the watch has what the script raised, and nothing else is meant to be here
                raise
        except KeyboardInterrupt:
            if not audit.seen.events:
                raise
    return audit.result()


class _Audit:
    """One watch, or two with remedies in between."""

    def __init__(
        self,
        steps: int,
        keep_going: bool,
        apply: bool,
        contract: Contract | None,
        every: int,
        trace: bool,
        give_up: Callable[[ScriptRun], None] | None,
    ) -> None:
        self._steps, self._keep_going, self._apply = steps, keep_going, apply
        self._contract, self._every, self._trace, self._give_up = contract, every, trace, give_up
        self._asked = 0
        self._earlier: Examination | None = None
        self._applied: list[str] = []
        self.exit_code = 0

    def begin(self) -> Seen:
        self._watch = Watch([], [], self._contract, every=self._every, trace=self._trace, after_step=self._after_step)
        self.seen = self._watch.seen
        return self.seen

    def __enter__(self) -> None:
        self._watch.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._watch.close(error)

    def _after_step(self, steps: int) -> None:
        if not self._steps or steps < self._steps:
            return
        if self._apply and self._earlier is None:
            # Not from inside of the optimizer's hooks: they are being walked.
            self._watch.at_next_forward(self._mend)
        elif self._keep_going:
            self._watch.at_next_forward(self._watch.close)
        else:
            self._asked += 1
            if self._asked > _PATIENCE:
                self._end()
            raise Stopped

    def _mend(self) -> None:
        """The audit is over: do what is safe, and audit once more."""
        script = self.seen.script
        self._watch.close(Stopped())
        self._earlier = examine(self.seen)
        self._applied = self._earlier.apply()
        self.begin().script = script
        self._watch.__enter__()

    def _end(self) -> None:
        """The script caught every request to stop."""
        self._watch.close(Stopped())
        self.seen.missed.append(
            f"the script caught the request to stop {_PATIENCE} times (except: or except BaseException:); "
            "its process was ended"
        )
        if self._give_up is not None:
            self._give_up(self.result())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def result(self) -> ScriptRun:
        seen = self.seen
        if self._watch.refused is not None:
            raise self._watch.refused
        if not seen.steps:
            seen.missed.append(
                "no optimizer stepped"
                + (f" in {len(seen.forwards)} forward passes" if seen.forwards else ", and no model ran")
                + ": what happens at a step was not seen"
            )
        return ScriptRun(examine(seen), self._earlier, self._applied, self.exit_code)


@contextmanager
def _as_main(path: str, arguments: list[str], *, as_module: bool) -> Generator[None]:
    """Make ``sys`` look to a script as it does when Python runs it; undone at the end."""
    argv, first, main = sys.argv, list(sys.path), sys.modules.get("__main__")
    shown = warnings.showwarning
    sys.argv = [path, *arguments]
    sys.path[0:1] = [os.getcwd() if as_module else str(Path(path).resolve().parent)]
    # The script's warnings are shown as Python shows them.
    warnings.showwarning = warnings._showwarning_orig  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    try:
        yield
    finally:
        sys.argv, sys.path[:], warnings.showwarning = argv, first, shown
        if main is not None:
            sys.modules["__main__"] = main


def _find(module: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        found = None
        if error.name is None or not module.startswith(error.name):
            raise
    if found is None:
        raise ScriptError(f"doctor: there is no module {module!r} on sys.path.\n  fix: name it as python -m would")


def _check(path: Path) -> None:
    if path.is_dir() and not (path / "__main__.py").exists():
        raise ScriptError(f"doctor: {path} is a folder without __main__.py.\n  fix: name the training script in it")
    if not path.exists():
        near = [p.name for p in path.parent.glob("*.py")][:5] if path.parent.is_dir() else []
        beside = f"\n  beside it: {', '.join(sorted(near))}" if near else ""
        raise ScriptError(f"doctor: there is no script {path}.{beside}\n  fix: name a Python file")
    if path.is_file() and path.suffix.lower() in _NO_SCRIPTS:
        raise ScriptError(f"doctor: {path} is not a Python file.\n  fix: name the training script, and this behind it")
    try:
        with path.open("rb"):
            pass
    except IsADirectoryError:
        pass
    except OSError as error:
        raise ScriptError(f"doctor: {path} cannot be read ({error.strerror}).\n  fix: make it readable") from error
