"""The hold itself: verifying to the bit, releasing whole or in part, and renewing."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from typing import Any, Literal, TypeAlias

from torch import nn
from torch.optim import Optimizer

from frostline.attach.ledger import ledger_of
from frostline.errors import CannotFreeze, FrozenStateMoved, HoldReleased, NothingSelected, name_some
from frostline.findings import Finding, Safety, Severity
from frostline.freezing.grips import drop_gradients, freed_by, grip, release
from frostline.freezing.handlers import Handler
from frostline.freezing.live_wrappers import end_training, refuse_freeze, refuse_thaw, several_processes
from frostline.freezing.mode_lock import is_locked
from frostline.freezing.plan import FreezePlan, Level, plan_freeze, plan_selection, warn_of_ties
from frostline.freezing.probe import probe as run_probe
from frostline.freezing.step_guard import Place, StepGuard, as_optimizers
from frostline.state import names
from frostline.state.changes import Change, StateDiff
from frostline.state.selection import Selector, exactly, select
from frostline.state.shards import reshard
from frostline.state.snapshot import Snapshot, record_entries

What: TypeAlias = Literal["everything", "buffers"]


class Hold:
    """What :func:`freeze` returns: the means to verify, release and renew it.

    It refers weakly to the model. Holds nest and may be released in any order; releasing the last hold on an entry
    brings back what was there before the first.

    Attributes:
        level: ``grad``, ``stats`` or ``state``.
        findings: what the user should know about the boundary of the hold.
        reference: the digests that :meth:`verify` compares with.
    """

    def __init__(
        self,
        plan: FreezePlan,
        selectors: tuple[Selector, ...],
        handlers: Mapping[type[nn.Module], Handler],
        *,
        token: str = "",
    ) -> None:
        self.token = token or uuid.uuid4().hex
        self.level: Level = plan.level
        self.findings: list[Finding] = list(plan.findings)
        self.reference = Snapshot()
        self._root: Callable[[], nn.Module | None] = weakref.ref(plan.root)
        self._selectors = selectors
        self._handlers = dict(handlers)
        self._hard = False
        self._modules: list[str] = []
        self._parameters: list[str] = []
        self._paths: tuple[str, ...] = ()
        self._guard: StepGuard | None = None

    @property
    def paths(self) -> list[str]:
        """Every state entry that is held, in the order of the model; empty once all is released."""
        return list(self._paths)

    @property
    def released(self) -> bool:
        """Whether nothing is held any more, or the model no longer exists."""
        return not self._paths or self._root() is None

    def diff(self, what: What = "everything") -> StateDiff:
        """What has moved since the hold began, without raising.

        Args:
            what: ``"buffers"`` looks at buffers and flags only, which is fast enough for every step.

        Returns:
            Moved entries; also locks that are gone (change ``unlocked``) and modules that were replaced.

        Raises:
            HoldReleased: nothing is held any more.
        """
        root = self._live_root("verify")
        reference = self.reference
        if what == "buffers":
            reference = Snapshot({p: r for p, r in reference.items() if r.kind != "parameter"})
            reference.partial = True
        diff = reference.diff(root)
        modules = dict(root.named_modules(remove_duplicate=False))
        gone = [self._unlocked(path, modules.get(path)) for path in self._modules]
        return replace(diff, moved=[*diff.moved, *(row for row in gone if row is not None)])

    def verify(self, what: What = "everything") -> StateDiff:
        """Prove that what is held has not moved. Only reads.

        Values are compared by digest, never by version counters; modes, flags and locks by value. A parameter or
        module that was replaced by another is found under its path.

        Args:
            what: ``"everything"``, or ``"buffers"`` for buffers and flags only.

        Returns:
            The :class:`~frostline.state.changes.StateDiff`, in which nothing moved.

        Raises:
            FrozenStateMoved: something moved; its ``diff`` names each entry.
            HoldReleased: nothing is held any more.
        """
        diff = self.diff(what)
        if diff:
            folded = names.name_folded(diff.paths, rest="error.diff")
            raise FrozenStateMoved(
                f"{len(diff.moved)} of {len(diff.moved) + diff.still} held entries moved: {folded}\n{diff}", diff
            )
        return diff

    def thaw(self, *selectors: Selector) -> None:
        """Release the hold, or a part of it; a second time does nothing.

        Modes, ``requires_grad``, dropout rates and observer switches become what they were before the first hold on
        them, unless another hold still holds them. Values and gradients are not touched. A module of which a part is
        released is no longer kept in eval mode itself; its other parts are.

        Args:
            *selectors: the part to release; none releases everything.

        Raises:
            NothingSelected: a selector matches nothing that this hold holds.
            CannotThaw: on several processes, a live DistributedDataParallel would exchange no gradients of what is
                released; :func:`~frostline.freezing.rewrap` thaws and wraps anew, :meth:`close` is for the end of
                training. Nothing is released then.
            CannotFreeze: single statistics of a norm layer would be left, which cannot be held without the layer.

        Warns:
            TiedAcrossBoundary: a released tensor stays held under another name.
        """
        root = self._root()
        if root is None or not self._paths:
            self._forget()
            return
        reshard(root)
        looks = several_processes()
        if not selectors:
            if looks:
                refuse_thaw(root, freed_by(root, self.token))
            release(root, self.token)
            self._forget()
            return
        part = select(root, *selectors)
        remaining = (*self._selectors, *(f"!{exactly(path)}" for path in [*part.tops, *part.alone]))
        plan = self._planned(root, remaining)
        kept = set(plan.paths) if plan is not None else set[str]()
        if kept >= set(self._paths):
            raise NothingSelected(
                "thaw: nothing of what this hold holds is selected.\n"
                f"  held: {names.name_folded(self._paths, rest='hold.paths')}"
            )
        if plan is None or not kept:
            self.thaw()
            return
        # By object: what is still held under another name is not released.
        modules = {id(m) for m in [*plan.locked.values(), *(m for m, _ in plan.handled.values())]}
        parameters = {id(p) for p in plan.parameters.values()}
        by_path: dict[str, object] = dict(root.named_modules(remove_duplicate=False))
        by_path |= root.named_parameters(remove_duplicate=False)
        released = [p for p in self._parameters if id(by_path.get(p)) not in parameters]
        if looks:
            refuse_thaw(root, freed_by(root, self.token, released))
        warn_of_ties(finding for finding in plan.findings if finding not in self.findings)
        release(
            root,
            self.token,
            modules=[p for p in self._modules if id(by_path.get(p)) not in modules],
            parameters=released,
        )
        self._selectors = remaining
        reference = Snapshot({p: r for p, r in self.reference.items() if p in kept})
        reference.partial = True
        # The plan may also know modules that are new since; they are not held until `refresh`.
        self._keep_account(
            root,
            modules=[p for p in self._modules if p in plan.locked or p in plan.handled],
            parameters=[p for p in self._parameters if p in plan.parameters],
            reference=reference,
        )

    def close(self) -> None:
        """Release the hold at the end of training, which is also what the end of ``with frozen(...)`` does.

        As :meth:`thaw`, but nothing is refused: where a live DistributedDataParallel would exchange no gradients of
        what is released, it is that wrapper which refuses to train on; it still evaluates.
        """
        root = self._root()
        if root is not None and self._paths:
            if several_processes():
                end_training(root, freed_by(root, self.token))
            release(root, self.token)
        self._forget()

    def refresh(self) -> None:
        """Hold the part as it is now: take in modules and parameters that are new there, and digest anew.

        For a change that was meant: weights that were loaded into the held part, an embedding that was resized. The
        selectors are asked again, so a module that was put below a selected one is held too.

        Raises:
            HoldReleased: nothing is held any more.
            CannotFreeze: as for :func:`freeze`; then the hold is as it was.
        """
        root = self._live_root("refresh")
        reshard(root)
        plan = plan_freeze(root, *self._selectors, level=self.level, handlers=self._handlers)
        refuse_freeze(plan)
        new_modules = [p for p in plan.gripped if not self._is_on(root.get_submodule(p))]
        new_parameters = [p for p in plan.parameters if not self._is_on(*_place(root, p))]
        try:
            grip(plan, self.token, hard=self._hard)
            self._keep_plan(plan)
        except BaseException:
            release(root, self.token, modules=new_modules, parameters=new_parameters)
            raise
        drop_gradients(plan)

    def guard(self, *optimizers: Optimizer) -> None:
        """Let optimizers that were made after the freeze drop the gradients of what is held before each step.

        What ``freeze(optimizer=...)`` does for those that were there; wrappers of them are looked through.

        Args:
            *optimizers: torch optimizers; one that is guarded already stays so.

        Raises:
            HoldReleased: nothing is held any more.
            FreezeError: something else was passed.
        """
        root = self._live_root("guard")
        found = as_optimizers(optimizers)
        if self._guard is not None:
            self._guard.guard(found)
        elif found and self._parameters:
            self._guard = StepGuard([_place(root, path) for path in self._parameters], found)

    def __str__(self) -> str:
        root = self._root()
        if root is None or not self._paths:
            return f"hold on nothing (level {self.level!r}, released)"
        tops = [str(f) for f in names.fold([p for p in self._modules if names.parent(p) not in self._modules])]
        count = f"{len(self._paths)} state entries, {len(self._parameters)} parameters, {len(self._modules)} modules"
        lines = [
            f"hold on {type(root).__name__}, level {self.level!r}: {count}",
            f"  {name_some(tops or self._parameters, rest='hold.paths')}",
        ]
        return "\n".join(lines + [str(finding) for finding in self.findings])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def __getstate__(self) -> dict[str, Any]:
        # A model may keep its hold as an attribute: its copy then gets a hold on the copy.
        return {**self.__dict__, "_root": self._root(), "_guard": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        root = state["_root"]
        self._root = _nothing if root is None else weakref.ref(root)

    def _planned(self, root: nn.Module, selectors: tuple[Selector, ...]) -> FreezePlan | None:
        try:
            return plan_selection(select(root, *selectors), self.level, self._handlers)
        except NothingSelected:
            return None

    def _begin(self, plan: FreezePlan, *, hard: bool, optimizers: list[Optimizer], probe: Any) -> None:
        """Carry out a plan, whole or not at all."""
        self._hard = hard
        try:
            grip(plan, self.token, hard=hard)
            self._keep_plan(plan)
            if probe is not None:
                self._probe(plan, probe)
        except BaseException:
            release(plan.root, self.token)
            self._forget()
            raise
        drop_gradients(plan)
        self.guard(*optimizers)

    def _keep_plan(self, plan: FreezePlan) -> None:
        reference = record_entries(plan.held_entries(), values="buffers")
        self._keep_account(plan.root, plan.gripped, list(plan.parameters), reference)

    def _keep_account(self, root: nn.Module, modules: list[str], parameters: list[str], reference: Snapshot) -> None:
        self._modules, self._parameters, self._paths = modules, parameters, tuple(reference)
        self.reference = reference
        if self._guard is not None:
            self._guard.watch([_place(root, path) for path in parameters])

    def _is_on(self, module: nn.Module, parameter: str | None = None) -> bool:
        """Whether this hold has a grip on the module, or on its parameter of this name."""
        ledger = ledger_of(module)
        if ledger is None:
            return False
        if parameter is not None:
            return parameter in ledger.gradients and self.token in ledger.gradients[parameter].tokens
        return any(self.token in held.tokens for held in ledger.of_module)

    def _forget(self) -> None:
        self._modules, self._parameters, self._paths = [], [], ()
        self.reference = Snapshot()
        if self._guard is not None:
            self._guard.watch(())

    def _probe(self, plan: FreezePlan, inputs: Any) -> None:
        moved, random = run_probe(plan.root, inputs, self.reference, plan.tops if self.level == "state" else {})
        if moved:
            kinds = list(dict.fromkeys(row.module_type for row in moved.moved))
            raise CannotFreeze(
                f"freeze(probe=...): in a trial run {len(moved.moved)} entries that should be held moved, because "
                f"their modules write them in forward whatever their mode.\n"
                f"  where: {name_some([f'{row.path} ({row.module_type})' for row in moved.moved])}\n"
                f"  fix: freeze(..., handlers={{{kinds[0]}: KeepTensors()}}), from frostline.freezing"
            )
        self.findings += [
            Finding(
                code="M205",
                severity=Severity.WARNING,
                message=f"{path or 'the model'!r} is held, yet gives different results for the same input",
                where=path,
                evidence="two runs with the same input and different random seeds",
                remedy="look for F.dropout without training=self.training, or other sampling in its forward",
                safety=Safety.MANUAL,
                paths=(path,),
            )
            for path in random
        ]

    def _unlocked(self, path: str, module: nn.Module | None) -> Change | None:
        if module is None:
            return None  # the snapshot has reported its entries as removed
        ledger = ledger_of(module)
        kept = ledger is not None and self.token in ledger.tokens
        if kept and (ledger is None or ledger.mode is None or is_locked(module)):
            return None
        where = names.join(path, "training")
        return Change(where, "mode", "mode", path, type(module).__name__, "unlocked", "held", "not held")

    def _live_root(self, verb: str) -> nn.Module:
        root = self._root()
        if root is None or not self._paths:
            why = "its model no longer exists" if root is None else "it was thawed"
            raise HoldReleased(f"{verb}: this hold holds nothing any more, because {why}.\n  fix: freeze again")
        return root


def _place(root: nn.Module, path: str) -> Place:
    return root.get_submodule(names.parent(path)), path.rpartition(".")[2]


def _nothing() -> None:
    """What a weak reference to a model that no longer exists answers."""
