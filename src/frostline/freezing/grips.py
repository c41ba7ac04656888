"""Takes hold of what a plan names, and lets go of it again, entry by entry, in the ledgers of the modules."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from frostline.attach.ledger import Grip, close_ledger, ledger_of, open_ledger
from frostline.freezing.mode_lock import harden, is_locked, lock, unlock
from frostline.freezing.plan import FreezePlan
from frostline.state.inventory import owners


def grip(plan: FreezePlan, token: str, *, hard: bool) -> None:
    """Carry out a plan in the name of a hold. What this hold has already is left as it is, but made good again."""
    for module, handlers in plan.handled.values():
        held = open_ledger(module).handlers
        for handler in handlers:
            if handler not in held:
                held[handler] = Grip(handler.attach(module))
            held[handler].tokens[token] = plan.level
    for module in plan.locked.values():
        ledger = open_ledger(module)
        if ledger.mode is None:
            ledger.mode = Grip(lock(module, hard=hard))
        elif not is_locked(module):
            lock(module, hard=hard)
        elif hard:
            harden(module)
        ledger.mode.tokens[token] = plan.level
        module.training = False
    everywhere = owners(plan.root) if plan.parameters else {}
    for parameter in plan.parameters.values():
        _grip_parameter(parameter, everywhere[id(parameter)], token, plan.level)


def release(
    root: nn.Module, token: str, *, modules: Iterable[str] | None = None, parameters: Iterable[str] | None = None
) -> None:
    """Let go of these modules and parameters in the name of a hold; of everything that it has when both are None.

    What no other hold has any more becomes what it was before the first.
    """
    everything = modules is None and parameters is None
    by_path = dict(root.named_modules(remove_duplicate=False))
    targets = by_path.values() if everything else [by_path[p] for p in modules or () if p in by_path]
    for module in targets:
        _release_mode(module, token)
        _release_handlers(module, token)
    everywhere = owners(root)
    wanted = None if everything else set(parameters or ())
    for places in everywhere.values():
        if wanted is None or any(path in wanted for path, _, _ in places):
            _release_parameter([(owner, name) for _, owner, name in places], token)
    for module in by_path.values():
        if everything and (ledger := ledger_of(module)) is not None:
            # A parameter that was removed since leaves an entry behind that nothing else would find.
            for held in ledger.gradients.values():
                held.tokens.pop(token, None)
        close_ledger(module)


def _grip_parameter(parameter: nn.Parameter, places: list[tuple[str, nn.Module, str]], token: str, level: str) -> None:
    """Every owner of a tied parameter keeps account of it, so that holds on either name know of each other."""
    accounts = [(open_ledger(owner).gradients, name) for _, owner, name in places]
    earlier = next((account[name] for account, name in accounts if name in account), None)
    before = parameter.requires_grad if earlier is None else earlier.before
    others = {} if earlier is None else earlier.tokens
    for account, name in accounts:
        held = account.setdefault(name, Grip(before, dict(others)))
        held.tokens[token] = level
    parameter.requires_grad_(False)


def freed_by(root: nn.Module, token: str, parameters: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """The parameters that would begin to train if a hold let go of these, or of all that it has; only reads."""
    wanted = None if parameters is None else set(parameters)
    freed: dict[str, nn.Parameter] = {}
    for places in owners(root).values():
        if wanted is not None and not any(path in wanted for path, _, _ in places):
            continue
        ledgers = [(ledger_of(owner), name) for _, owner, name in places]
        held = [ledger.gradients[name] for ledger, name in ledgers if ledger and name in ledger.gradients]
        if (
            any(token in each.tokens for each in held)
            and held[0].before
            and not any(e.tokens.keys() - {token} for e in held)
        ):
            path, owner, name = places[0]
            parameter = owner._parameters[name]
            if parameter is not None:
                freed[path] = parameter
    return freed


def drop_gradients(plan: FreezePlan) -> None:
    """Clear the gradients of what is held: the one thing that could not be taken back, so it is done last."""
    for parameter in plan.parameters.values():
        parameter.grad = None


def _release_parameter(places: list[tuple[nn.Module, str]], token: str) -> None:
    before: bool | None = None
    free = True
    for owner, name in places:
        ledger = ledger_of(owner)
        held = ledger.gradients.get(name) if ledger else None
        if ledger is None or held is None:
            continue
        if held.tokens.pop(token, None) is not None:
            before = held.before
        if held.tokens:
            free = False
        else:
            del ledger.gradients[name]
    parameter = places[0][0]._parameters[places[0][1]]
    if free and before is not None and parameter is not None:
        parameter.requires_grad_(before)


def _release_mode(module: nn.Module, token: str) -> None:
    ledger = ledger_of(module)
    if ledger is None or ledger.mode is None or ledger.mode.tokens.pop(token, None) is None:
        return
    if not ledger.mode.tokens:
        unlock(module, ledger.mode.before)
        ledger.mode = None


def _release_handlers(module: nn.Module, token: str) -> None:
    ledger = ledger_of(module)
    for handler, held in list(ledger.handlers.items()) if ledger else []:
        if held.tokens.pop(token, None) is not None and not held.tokens:
            handler.detach(module, held.before)
            del ledger.handlers[handler]  # type: ignore[union-attr]


def tokens_on(root: nn.Module) -> dict[str, str]:
    """The holds on a model, token to level."""
    found: dict[str, str] = {}
    for module in root.modules():
        ledger = ledger_of(module)
        found |= ledger.tokens if ledger else {}
    return found
