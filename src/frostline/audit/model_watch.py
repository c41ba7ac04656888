"""One model under watch: its tensors step by step (identity, versions, flags) and the digests of what must stay."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from frostline.attach.ledger import holds_mode
from frostline.audit.contract import INFERRED, Contract
from frostline.audit.expectations import STATISTICS, Parameters, is_held, reason_of
from frostline.audit.marks import marks
from frostline.audit.module_facts import depends_on_mode, hidden_in, settings_now
from frostline.audit.places import Place
from frostline.audit.rows import Row, check_start, digests, distance, pointer_of, version_of
from frostline.audit.seen import Draw, NormInput, Phase
from frostline.state import names
from frostline.state.roles import role_of
from frostline.state.selection import select

# Copies of what must stay are kept up to so many bytes in all, so that a report can say how far it moved.
_KEPT_COPIES = 256 * 2**20
_KEPT_PHASES = 2000


class ModelWatch:
    """What the recorder keeps of one model.

    Attributes:
        model: the model, without wrappers.
        name: how it is called.
        rows: path to row.
        modules: path to module, every module once.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name
        self.wrapper = ""
        self.rows: dict[str, Row] = {}
        self.modules: dict[str, nn.Module] = {}
        # Weak, so that watching keeps nothing alive that the user has let go of; ids of what is gone are dropped.
        self.paths: dict[int, tuple[weakref.ref[Any], str]] = {}
        self.flags: list[bool] = []
        self.contract_at: int | None = None
        self.declared = False
        self.training_then: dict[str, bool] = {}
        self.parameters = Parameters()
        self.must_eval: dict[str, str] = {}
        # Of the modules that must stay in eval mode: those that train now, and those that did while they must not.
        self.thawed: frozenset[str] = frozenset()
        self.undone: set[str] = set()
        self._inferred = self._unsettled = False
        self.phases: list[Phase] = []
        self.open_phase: tuple[Phase, dict[str, tuple[int, ...]]] | None = None
        self._looks: dict[tuple[bool, bool], int] = {}
        self.runs: dict[int, list[int]] = {}
        self.draws: list[Draw] = []
        self.norm_input: NormInput | None = None
        self.forwards = self.backwards = 0
        self.waiting_forwards = 0
        self.settings_before: dict[str, Any] | None = None
        self.bypassed: list[tuple[str, Place]] = []
        self.sigma_gaps: dict[str, float] = {}
        self.baseline = False
        self.changed_settings: list[tuple[str, str, str]] = []
        self.wants_trace: set[str] = set()
        self.traced = False
        self.trace_refused = ""
        self.eval_traced = False
        self.wrapped: dict[str, tuple[weakref.ref[Any], int]] = {}
        self.compiled = False
        self.refresh()
        self.compiled = any(getattr(m, "_compiled_call_impl", None) is not None for m in self.modules.values())

    def refresh(self) -> list[str]:
        """Read the tables of the model anew; what is known of a tensor that is still there stays.

        Returns:
            Paths at which another tensor stands than before.
        """
        old, changed = self.rows, list[str]()
        self.rows, self.modules = {}, {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            self._know(module, path)
            self.modules.setdefault(path, module)
            for kind, table in (("parameter", module._parameters), ("buffer", module._buffers)):
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    full = names.join(path, name)
                    self._know(tensor, full)
                    before = old.get(full)
                    if before is not None and before.tensor is tensor:
                        before.owner, before.table = module, table
                        self.rows[full] = before
                        continue
                    row = Row(full, kind, name, module, table, tensor, role_of(module, name, kind=kind))
                    row.read()
                    if before is not None:
                        changed.append(full)
                        self._inherit(row, before)
                    self.rows[full] = row
        self.flags = [module.training for module in self.modules.values()]
        return changed

    def _inherit(self, row: Row, before: Row) -> None:
        """A tensor that took another's place has to answer for it."""
        row.must_stay, row.trainable, row.digest, row.copy = (
            before.must_stay,
            before.trainable,
            before.digest,
            before.copy,
        )
        row.moved, row.first_moved, row.drift, row.writes = (
            before.moved,
            before.first_moved,
            before.drift,
            before.writes,
        )
        row.in_step, row.between = before.in_step, before.between
        row.gradients, row.steps = before.gradients, before.steps
        row.ground, row.let_go = before.ground, before.let_go
        row.replaced = True

    def _know(self, item: Any, path: str) -> None:
        known = self.paths.get(id(item))
        if known is None or known[0]() is not item:
            self.paths[id(item)] = (weakref.ref(item), path)

    def path_of(self, item: Any) -> str | None:
        """The path that a module or a tensor has, or had, in this model."""
        known = self.paths.get(id(item))
        return known[1] if known is not None and known[0]() is item else None

    def has(self, item: Any) -> bool:
        """Whether it is, or was, a part of this model."""
        return self.path_of(item) is not None

    @property
    def parameter_rows(self) -> Iterator[Row]:
        """The rows of its parameters."""
        return (row for row in self.rows.values() if row.kind == "parameter")

    @property
    def is_data_parallel(self) -> bool:
        """Whether a wrapper for data-parallel training is around it."""
        return self.wrapper in {"DistributedDataParallel", "DataParallel"}

    def parts_in_eval(self) -> Iterator[nn.Module]:
        """Parts that are in eval mode although what is above them is in train mode."""
        for path, module in self.modules.items():
            if path and not module.training and self.modules[names.parent(path)].training:
                yield module

    def hidden_modules(self) -> Iterator[nn.Module]:
        """Modules that a plain list or dict keeps, out of torch's sight, and all that is below them."""
        for _, _, module in hidden_in(self.model, self.modules):
            yield from module.modules()

    # -- the contract -------------------------------------------------------------------------------------------------

    def take_contract(self, at: int, declared: Contract | None, owned: set[int], mentioned: Iterable[str]) -> None:
        """Decide what must stay, and take its digests; at the first training step, before it changes anything.

        Args:
            at: the number of the event.
            declared: what the user has declared for this model.
            owned: ids of the parameters that optimizers have; empty where there is no optimizer yet.
            mentioned: paths of modules that the user has put into eval mode on their own, and not back.
        """
        self.refresh()
        self.contract_at = at
        mentioned = list(mentioned)
        given = declared or Contract()
        frozen = self._selected(given.frozen)
        moving = self._selected(given.moving)
        # Statistics that may move do so in train mode.
        switched = self._selected(given.moving, modules=True)
        switched |= {names.parent(path) for path in moving if self.rows[path].role in STATISTICS}
        self.declared = declared is not None
        self.training_then = {path: module.training for path, module in self.modules.items()}
        self.parameters = Parameters(self.rows.values(), owned)
        evals = self._selected(given.eval, modules=True)
        whole = not self.model.training
        for path, module in self.modules.items():
            if holds_mode(module):
                self.must_eval[path] = "hold"
                self.declared = True
            elif path in evals:
                self.must_eval[path] = "declared"
            elif path in switched:
                continue
            elif any(names.is_under(path, top) for top in mentioned) or (not module.training and not whole):
                self.must_eval[path] = "eval"
        for row in self.rows.values():
            row.trainable = row.kind == "parameter" and row.tensor.requires_grad
            row.may_move = row.path in moving
            row.must_stay = "" if row.may_move else reason_of(row, frozen, self.parameters, self.must_eval)
            row.ground = row.must_stay if row.must_stay in INFERRED else ""
        self._inferred = "eval" in self.must_eval.values() or any(row.ground for row in self.rows.values())
        self._takedigests()
        check_start(self.rows.values())

    def unsettle(self, step: int) -> None:
        """Flags or owners of parameters change: what moved until now did so while the contract was as it stood."""
        if self._inferred and not self._unsettled:
            self._unsettled = True
            self.suspect(self.check(step, parameters=False))

    def settle(self, owned: set[int], step: int) -> None:
        """Fit what was inferred to flags and owners that changed, before anything runs.

        What was unfrozen may move, and run in train mode, from here on; what moved before stays a contradiction. What
        is frozen again must stay as it is now.

        Args:
            owned: ids of the parameters that optimizers have.
            step: how many steps are done.
        """
        if not self._unsettled:
            return
        self._unsettled = False
        now = Parameters(self.rows.values(), owned)
        parts = {path for path in self.modules if now.thawed(path, self.parameters)}
        thawed = frozenset(path for path in parts if self.must_eval.get(path) == "eval")
        if thawed != self.thawed:
            self.close_phase(step)
            self.thawed = thawed
        free, again = list[Row](), list[Row]()
        for row in self.rows.values():
            if not row.ground:
                continue
            trains = row.tensor.requires_grad if row.kind == "parameter" else names.parent(row.path) in parts
            if trains and not row.let_go:
                free.append(row)
            elif row.let_go and not trains and row.kind == "buffer":
                again.append(row)
        self.suspect(self._compare([row for row in free if row.kind == "parameter"], step, in_step=False))
        for row in free:
            row.let_go = True
            row.must_stay = row.must_stay if row.moved else ""
        for row, mark in digests(again):
            row.let_go, row.must_stay = False, row.ground
            row.digest = row.now = mark
            row.copy = None if row.copy is None else row.tensor.detach().clone()

    def check_contract(self, contract: Contract) -> None:
        """See that every selector of a contract matches something.

        Raises:
            NothingSelected: one does not; the nearest paths are named.
        """
        for selectors in (contract.frozen, contract.moving, contract.eval):
            self._selected(selectors)

    def _selected(self, selectors: Iterable[Any], *, modules: bool = False) -> set[str]:
        selectors = tuple(selectors)
        if not selectors:
            return set()
        part = select(self.model, *selectors)
        return set(part.modules) if modules else {*part.parameters, *part.buffers}

    def _takedigests(self) -> None:
        stays = [row for row in self.rows.values() if row.must_stay]
        self._digest_into(self.rows.values())
        budget = _KEPT_COPIES
        for row in sorted(stays, key=lambda row: row.kind):  # buffers first
            row.digest = row.now
            size = row.tensor.nbytes if row.now else 0
            if row.now and size <= budget and not row.tensor.is_quantized:
                budget -= size
                row.copy = row.tensor.detach().clone()
        for row in self.rows.values():
            row.digest = row.now
            row.read()
            row.first = row.tensor

    def take_baseline(self) -> None:
        """Digests of a model that does not train (yet): a teacher, an average, an evaluation."""
        if not self.baseline:
            self.baseline = True
            self._digest_into(self.rows.values())
            for row in self.rows.values():
                row.digest = row.now
                row.first = row.tensor

    def rebase(self) -> None:
        """Values were loaded on purpose: from here on they are what must stay."""
        if self.contract_at is not None:
            self._takedigests()
        elif self.baseline:
            self.baseline = False
            self.take_baseline()

    def _digest_into(self, rows: Iterable[Row]) -> None:
        for row, mark in digests(rows):
            row.now = mark

    # -- step by step -------------------------------------------------------------------------------------------------

    def scan(self, step: int, *, in_step: bool) -> list[Row]:
        """T0: compare identity, versions and addresses with the last time; what differs is returned and entered."""
        changed: list[Row] = []
        stale = False
        for row in self.rows.values():
            if row.table.get(row.name) is not row.tensor:
                stale = True
                continue
            version, pointer = version_of(row.tensor), pointer_of(row.tensor)
            if version != row.version or pointer != row.pointer:
                row.version, row.pointer = version, pointer
                changed.append(row)
        if stale:
            paths = self.refresh()
            changed += [self.rows[path] for path in paths]
        for row in changed:
            # For what must stay, and for buffers, the version is a hint and the digest decides.
            if row.kind == "parameter" and (row.let_go or not row.must_stay):
                self._note(row, step, in_step=in_step)
        return changed

    def _note(self, row: Row, step: int, *, in_step: bool) -> None:
        if in_step:
            row.in_step += 1
        else:
            row.between += 1
        row.moved = True
        row.first_moved = step if row.first_moved is None else row.first_moved

    def check(self, step: int, *, parameters: bool, in_step: bool = False) -> list[Row]:
        """T1: compare digests of what must stay; those that moved since the last look are returned.

        Args:
            step: how many steps are done.
            parameters: whether parameters are looked at too, not only buffers.
            in_step: whether what moved now did so in an optimizer's step, as far as parameters go.
        """
        rows = [r for r in self.rows.values() if parameters or r.kind == "buffer"]
        return self.compare(rows, step, in_step=in_step)

    def compare(self, rows: Iterable[Row], step: int, *, in_step: bool) -> list[Row]:
        """Digests of those of the rows that must stay: their versions moved, which need not mean that they did."""
        return self._compare([r for r in rows if r.must_stay and not r.let_go], step, in_step=in_step)

    def suspect(self, rows: Iterable[Row]) -> None:
        """What moved although it must stay is looked at operator by operator in the next step."""
        self.wants_trace.update(row.path for row in rows)

    def _compare(self, rows: list[Row], step: int, *, in_step: bool) -> list[Row]:
        moved: list[Row] = []
        for row, mark in digests(rows):
            if mark == row.now:
                continue
            row.now = mark
            if row.must_stay == "hold" and not is_held(row):
                row.must_stay = ""  # the hold was released, and what moves since then is meant to
            row.moved = True
            row.first_moved = step if row.first_moved is None else row.first_moved
            in_step_too = in_step and row.kind == "parameter"
            row.in_step += in_step_too
            row.between += not in_step_too
            size = distance(row)
            if size is not None:
                row.drift.append((step, size))
            if row.must_stay:
                moved.append(row)
        return moved

    # -- phases -------------------------------------------------------------------------------------------------------

    def closely(self, training: bool, grad: bool, most: int) -> bool:
        """Whether this pass is among the first of its kind, which are looked at module by module."""
        looks = self._looks.get((training, grad), 0)
        self._looks[(training, grad)] = looks + 1
        return looks < most

    def note_phase(self, path: str, training: bool, grad: bool, place: Place, *, at: int, step: int) -> None:
        """A forward pass begins: it goes on with the phase that is open, or begins another."""
        if self.open_phase is not None:
            phase, before = self.open_phase
            if (phase.path, phase.training, phase.grad) == (path, training, grad):
                self.open_phase = replace(phase, forwards=phase.forwards + 1), before
                return
            self.close_phase(step)
        if training and self.settings_before is not None:
            now = settings_now(self.modules)
            self.changed_settings += [
                (key, repr(was), repr(now[key]))
                for key, was in self.settings_before.items()
                if now.get(key, was) != was
            ]
            self.settings_before = None
        on = tuple(p for p, m in self.modules.items() if m.training and depends_on_mode(m))
        for module_path in on:
            if self.must_eval.get(module_path) == "hold" and not holds_mode(self.modules[module_path]):
                del self.must_eval[module_path]  # the hold was released: that it trains from here on is meant
        thawed = tuple(p for p in on if p in self.thawed)
        if grad:
            self.undone.update(p for p in on if p in self.must_eval and p not in self.thawed)
        phase = Phase(self.name, path, training, grad, at, step, 1, place, (), on, thawed)
        self.open_phase = phase, self.statistics()

    def close_phase(self, step: int) -> None:
        """The open phase is over: what moved in it is entered."""
        if self.open_phase is None:
            return
        phase, before = self.open_phase
        self.open_phase = None
        if self.contract_at is not None:
            self.suspect(self.check(step, parameters=False))
        if len(self.phases) < _KEPT_PHASES:
            self.phases.append(replace(phase, moved=self.moved_statistics(before)))

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """What tells, mostly without reading values, whether running statistics moved."""
        found: dict[str, tuple[int, ...]] = {}
        for row in self.rows.values():
            if row.kind == "buffer" and row.role in STATISTICS:
                tensor: Tensor | None = row.table.get(row.name)
                if tensor is not None:
                    found[row.path] = id(tensor), version_of(tensor), pointer_of(tensor)
                    if row.owner._buffers.get("num_batches_tracked") is None:
                        # No counter whose version tells for the layer: the values have to, and are few.
                        found[row.path] += (hash(marks({"": tensor})[""]),)
        return found

    def moved_statistics(self, before: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
        """The statistics of the layers of which any moved; a counter's version tells for its layer's mean too."""
        now = self.statistics()
        layers = {names.parent(path) for path, mark in now.items() if before.get(path) not in {None, mark}}
        return tuple(path for path in now if names.parent(path) in layers)
