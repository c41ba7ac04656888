"""What a run of few-shot learning was asked to do; written into its run folder, and read back when it resumes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from frostline.errors import MetaError, RunFolderError
from frostline.meta.networks import NETWORKS
from frostline.meta.policy import Policy
from frostline.state.names import nearest

SCHEMA_VERSION = 1
# What torch's generators take.
SEEDS = 2**64
ALGORITHMS = ("maml", "fomaml", "anil", "reptile", "proto")
WITH_OUTER_GRADIENT = ("maml", "fomaml", "anil")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "algorithm": ALGORITHMS,
    "learn_rates": ("no", "parameter", "layer_step"),
    "on_nonfinite": ("stop", "skip"),
    "network": tuple(NETWORKS),
    "resample": ("nearest", "box", "bilinear", "bicubic", "lanczos"),
    "rotations": ("classes", "none"),
}
LEAST = {
    "way": 2,
    "shot": 1,
    "queries": 1,
    "steps": 1,
    "iterations": 1,
    "meta_batch": 1,
    "width": 1,
    "size": 1,
    "seed": 0,
    "threads": 1,
    "multi_step": 1,
    "eval_tasks": 2,
    "eval_steps": 1,
    "validate_every": 1,
    "validate_tasks": 2,
    "checkpoint_every": 1,
}
# Reptile's are those of its paper: Adam within a task, and a part of the way to where it led outside.
_RATES = {"reptile": (1e-3, 1.0)}
_USUAL_RATES = (0.4, 1e-3)


@dataclass(frozen=True)
class MetaConfig:
    """The settings of one run.

    What is ``None`` and depends on other settings is filled in when this is made.

    Attributes:
        data: a folder with Omniglot or with images in class folders; ``None`` takes scikit-learn's digits.
        way: classes in a task.
        shot: support images of each.
        queries: query images of each, in training.
        algorithm: ``maml``; ``fomaml``, the same in first order; ``anil``, which adapts the classifier alone;
            ``reptile``; ``proto``, prototypical networks.
        policy: which statistics batch norm uses; see :data:`frostline.meta.SOURCES`.
        inner_lr: rate of the inner steps.
        steps: inner steps of training.
        order: 2, or 1 for first order; by default what the algorithm says.
        learn_rates: rates of the inner steps that are learned: ``no``, ``parameter`` or ``layer_step``.
        multi_step: iterations over which the query losses of all steps move to the last one; ``None`` uses the last.
        checkpoint_steps: less memory, more time, the same gradient.
        iterations: steps of the outer optimizer.
        meta_batch: tasks in each.
        lr: rate of the outer optimizer, Adam, or plain SGD for Reptile.
        network: ``conv4``, ``conv3`` (of higher's example) or ``conv2``; by default what fits the images.
        width: its channels.
        size: height and width of the images; by default 28 for Omniglot and 84 for a folder.
        resample: which filter resizes them; by default lanczos for Omniglot and bilinear for a folder.
        invert: Omniglot's strokes are 1, and its paper 0.
        rotations: of Omniglot and the digits: ``classes`` makes four classes of each, ``none`` one.
        splits: a file of splits; by default they are drawn, and stored in the run folder either way.
        on_nonfinite: what becomes of a task that is NaN or blows up: ``stop`` or ``skip``.
        eval_tasks: tasks of the evaluation at the end.
        eval_steps: inner steps there; by default those of training.
        validate_every: iterations between validations; by default a tenth of the run.
        validate_tasks: tasks of each.
        checkpoint_every: iterations between checkpoints.
        seed: of splits, initialization and tasks.
        threads: tasks at a time; by default as many as PyTorch has threads.
        vmap: all tasks in one batched pass.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        MetaError: a setting is out of range, or two contradict each other.
        PolicyError: there is no such policy.

    Example:
        >>> MetaConfig(algorithm="reptile").inner_lr, MetaConfig(algorithm="fomaml").order
        (0.001, 1)
    """

    data: str | None = None
    way: int = 5
    shot: int = 1
    queries: int = 15
    algorithm: str = "maml"
    policy: str = "batch"
    inner_lr: float | None = None
    steps: int = 5
    order: int | None = None
    learn_rates: Literal["no", "parameter", "layer_step"] = "no"
    multi_step: int | None = None
    checkpoint_steps: bool = False
    iterations: int = 1000
    meta_batch: int = 16
    lr: float | None = None
    network: str | None = None
    width: int = 64
    size: int | None = None
    resample: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] | None = None
    invert: bool = True
    rotations: Literal["classes", "none"] = "classes"
    splits: str | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    eval_tasks: int = 600
    eval_steps: int | None = None
    validate_every: int | None = None
    validate_tasks: int = 100
    checkpoint_every: int = 50
    seed: int = 0
    threads: int | None = None
    vmap: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise MetaError(f"{option(name)} {value}: too small\n  fix: {low} or more")
        if self.seed >= SEEDS:
            raise MetaError(f"--seed {self.seed}: too large\n  fix: less than 2**64")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                close = nearest(str(value), known)
                meant = f"did you mean {close[0]!r}? " if close else ""
                raise MetaError(
                    f"{option(name)} {value}: there is no such one\n  fix: {meant}one of {', '.join(known)}"
                )
        Policy.of(self.policy)
        self._fill("order", (1 if self.algorithm == "fomaml" else 2) if self._has_outer_gradient else None)
        inner, outer = _RATES.get(self.algorithm, _USUAL_RATES)
        self._fill("inner_lr", inner)
        self._fill("lr", outer)
        self._fill("validate_every", max(1, self.iterations // 10))
        for name in ("inner_lr", "lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise MetaError(f"{option(name)} {value}: a rate is a positive number\n  fix: {option(name)} 0.1")
        self._refuse_what_does_not_go_together()

    @property
    def _has_outer_gradient(self) -> bool:
        return self.algorithm in WITH_OUTER_GRADIENT

    def _fill(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _refuse_what_does_not_go_together(self) -> None:
        if self._has_outer_gradient and self.order not in (1, 2):
            raise MetaError(f"--order {self.order}: there is no such one\n  fix: 2, or 1 for first order")
        if self.algorithm == "fomaml" and self.order != 1:
            raise MetaError("--algorithm fomaml --order 2: fomaml is maml in first order\n  fix: --algorithm maml")
        if self.multi_step is not None and self.algorithm not in WITH_OUTER_GRADIENT:
            self._alone("--multi-step")
        if self.learn_rates != "no" and self.algorithm not in WITH_OUTER_GRADIENT:
            self._alone(f"--learn-rates {self.learn_rates}")
        if self.checkpoint_steps and self.order != 2:
            self._alone("--checkpoint-steps", "a second-order gradient, and here there is none")
        if self.order is not None and not self._has_outer_gradient:
            self._alone(f"--order {self.order}")

    def _alone(
        self, given: str, needs: str = "a gradient through the inner steps, which this algorithm has not"
    ) -> None:
        raise MetaError(
            f"{given} with --algorithm {self.algorithm} --order {self.order}: it is about {needs}\n"
            f"  fix: leave out {given}, or --algorithm maml"
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values with a schema version."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> MetaConfig:
        """The inverse of :meth:`to_json`.

        Raises:
            RunFolderError: it was written by another version or another command, or changed by hand to what is no
                configuration.

        Example:
            >>> MetaConfig.from_json(MetaConfig(seed=3).to_json()).seed
            3
        """
        if not isinstance(data, Mapping):
            raise RunFolderError(f"config.json holds a {type(data).__name__}, no settings\n  fix: start a new run")
        settings = cast("Mapping[str, Any]", data)
        version = settings.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunFolderError(
                f"config.json has schema version {version!r}, this version reads {SCHEMA_VERSION}\n"
                "  fix: start a new run"
            )
        known = {field.name for field in fields(cls)}
        unknown = sorted(settings.keys() - known - {"schema_version"})
        if unknown or "way" not in settings:
            what = f"a setting {unknown[0]!r}" if unknown else "no number of ways"
            raise RunFolderError(
                f"config.json has {what}: it is of no run of few-shot learning\n  fix: a folder of `frostline meta`"
            )
        try:
            return cls(**{name: value for name, value in settings.items() if name in known})
        except TypeError as error:
            raise RunFolderError(
                f"config.json has a setting of the wrong type: {error}\n  fix: restore it, or start a new run"
            ) from error


def refuse_other(stored: MetaConfig, asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a run by other settings than it began with.

    Args:
        stored: those of the run.
        asked: some settings by name.

    Raises:
        RunFolderError: one differs; it is named with both values.

    Example:
        >>> refuse_other(MetaConfig(way=5), {"way": 20})
        Traceback (most recent call last):
        frostline.errors.RunFolderError: the run was started with other settings
          --way 5 there, 20 asked for
          fix: leave that out, or start a new run without --resume
    """
    differing = [
        f"{option(name)} {getattr(stored, name)} there, {value} asked for"
        for name, value in asked.items()
        if getattr(stored, name) != value
    ]
    if differing:
        lines = "".join(f"\n  {line}" for line in differing)
        raise RunFolderError(
            f"the run was started with other settings{lines}\n"
            "  fix: leave that out, or start a new run without --resume"
        )


def option(name: str) -> str:
    """A setting as an option of the command line."""
    return f"--{name.replace('_', '-')}"
