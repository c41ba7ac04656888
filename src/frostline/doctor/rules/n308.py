"""N308: spectral or weight normalization was never initialized by a training step."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, ModuleSeen, Phase, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted, some
from frostline.findings import Safety, Severity

# One power iteration for each training step leaves some per cent; vectors that never had one are off by more than half.
_OFF = 0.3


def look(seen: Seen) -> Iterator[Found]:
    """Layers whose vectors do not give the largest singular value of their weight, in a pass in eval mode."""
    for model in seen.models:
        phase = _phase(model)
        off = {path: module for path, module in model.modules.items() if _gap(module) > _OFF}
        if phase is None or not off:
            continue
        worst = max(off, key=lambda path: _gap(off[path]))
        off_by = _gap(off[worst])
        never = not any(p.training for p in model.phases)
        yield Found(
            message=f"spectral normalization of {counted(len(off), 'layer')} was used before it fitted the weight",
            model=model.name,
            paths=tuple(off),
            evidence=(
                f"{worst}: the weight is divided by a norm that is off by {off_by:.0%} of its largest singular value",
                "no pass in train mode came before: only such a pass iterates the vectors"
                if never
                else "the passes in train mode were too few, or the weight changed after the last of them",
                f"used in eval mode at {at(phase.place)}",
                f"layers: {some(off)}",
            ),
            remedy=f"run a few passes in train mode without gradients before {model.name}.eval(), or use "
            "torch.nn.utils.parametrizations.spectral_norm, which iterates when it is made",
            severity=Severity.ERROR if never else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=phase.place,
        )


def _gap(module: ModuleSeen) -> float:
    return module.sigma_gap or 0.0


def _phase(model: ModelSeen) -> Phase | None:
    return next((phase for phase in model.phases if not phase.training), None)


def sound(seen: Seen) -> str | None:
    """How many layers divide by what they should."""
    right = sum(
        module.sigma_gap is not None and module.sigma_gap <= _OFF
        for model in seen.models
        if _phase(model) is not None
        for module in model.modules.values()
    )
    return f"spectral normalization fits the weight in {counted(right, 'layer')}" if right else None


RULE = Rule(
    code="N308",
    what="Compares the norm that spectral normalization divides by with the largest singular value of the weight, in "
    "the first pass in eval mode.",
    why="The vectors of spectral normalization start at random and are iterated in passes in train mode only. A "
    "model that is built, loaded without them and put into eval mode divides its weights by a number that means "
    "nothing: outputs are scaled by up to tens, and the Lipschitz bound does not hold.",
    evidence="How far the norm is off, and whether a pass in train mode came before; at the first pass in eval mode.",
    example="net = Net()  # torch.nn.utils.spectral_norm inside\nnet.eval()\nscore = net(x)",
    instead="net = Net()\nwith torch.no_grad():\n    for _ in range(15):\n        net.train()(x)\nnet.eval()\nscore "
    "= net(x)",
    remedy="Run passes in train mode first, load the vectors with the weights, or use "
    "`torch.nn.utils.parametrizations.spectral_norm`, which iterates when it is made.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the outputs change, and other statistics would move in the passes",
    false_alarms="Two largest singular values that are nearly equal converge slowly; the norm is then hardly off. "
    "Other data-dependent initialization, as in ActNorm, is not looked at.",
    source="pytorch#51800; Miyato et al. 2018 (arXiv:1802.05957) section 2.1",
    look=look,
    sound=sound,
)
