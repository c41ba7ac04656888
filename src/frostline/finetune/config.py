"""What a run of the main job was asked to do; written into its run folder, and read back when it resumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from frostline.errors import ModelError, RunFolderError
from frostline.finetune.strategy import RATE_SCHEDULES, STRATEGIES
from frostline.state.names import nearest

SCHEMA_VERSION = 1
# What torch's generators take.
SEEDS = 2**64
# Other ways to compute a frozen prefix; the last is a type for autocast.
PREFIXES = ("folded", "channels_last", "compiled", "bfloat16")


class ConfigError(ModelError):
    """A setting is out of its range, or two of them contradict each other."""


@dataclass(frozen=True)
class FinetuneConfig:
    """The settings of one run.

    Attributes:
        data: an image folder; ``None`` takes scikit-learn's handwritten digits.
        model: ``timm/NAME``, ``torchvision/NAME`` or ``package.module:factory``; ``None`` with the digits.
        freeze: what of the trunk is held, as globs on its dotted paths; empty holds all of it.
        head: the dotted path of the classifier in the model, where it does not say so itself.
        strategy: what trains when: the new ``head`` alone, the ``full`` model, ``discriminative`` rates for trunk and
            head, ``gradual`` unfreezing from the head down, or ``probe-then-tune``.
        lr_schedule: ``constant`` or ``cosine``; scales the rates of all groups.
        epochs: how often the data is gone through.
        lr: the learning rate of AdamW, for the new head.
        batch_size: samples a step, over all processes together.
        seed: of the split, the initialization, the order and the augmentation.
        init: a checkpoint to start from.
        pretrained: fetch the weights that timm or torchvision publish.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        skip_bad_images: go on without the images that cannot be read.
        naive: also train the naive way, and compare; ``None`` does so for the digits only.
        workers: processes that decode images.
        val_share: the share of images that validates, where the folder has no ``val``.
        views: how many draws of the augmentation there are; epochs go through them in turn. By default as many as
            epochs, but at most eight where the strategy is ``head``.
        use_cache: keep the features of the frozen prefix where the strategy is ``head`` and they fit.
        cache: the folder for them, which other runs may use too; by default in the run folder, until the run is done.
        rebuild_cache: replace what lies in that folder if it was made of something else.
        prefix: how the frozen prefix is computed: some of ``folded``, ``channels_last``, ``compiled`` and ``bfloat16``;
            none gives the bits of the model itself.
    """

    data: str | None = None
    model: str | None = None
    freeze: tuple[str, ...] = ()
    head: str | None = None
    strategy: str = "head"
    lr_schedule: str = "constant"
    epochs: int = 8
    lr: float = 2e-3
    batch_size: int = 32
    seed: int = 0
    init: str | None = None
    pretrained: bool = False
    device: str = "auto"
    skip_bad_images: bool = False
    naive: bool | None = None
    workers: int = 2
    val_share: float = 0.2
    views: int | None = None
    use_cache: bool = True
    cache: str | None = None
    rebuild_cache: bool = False
    prefix: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < low:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {getattr(self, name)}: too small.\n  fix: {low} or more")
        if self.seed >= SEEDS:
            raise ConfigError(f"--seed {self.seed}: too large.\n  fix: less than 2**64")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"--lr {self.lr}: a learning rate is a positive number.\n  fix: --lr 0.002, for example")
        for name, known in (("strategy", STRATEGIES), ("lr_schedule", RATE_SCHEDULES)):
            if getattr(self, name) not in known:
                option = name.replace("_", "-")
                raise ConfigError(_no_such(f"--{option}", getattr(self, name), known))
        if self.views is not None and self.views < 1:
            raise ConfigError(f"--views {self.views}: too small.\n  fix: 1 or more")
        unknown = [word for word in self.prefix if word not in PREFIXES]
        if unknown:
            raise ConfigError(_no_such("--prefix", unknown[0], PREFIXES, "some of"))
        if self.prefix and self.strategy != "head":
            raise ConfigError(
                f"--prefix with --strategy {self.strategy}: nothing of the trunk is frozen from the first step to the "
                "last.\n  fix: leave out one of them"
            )
        if not self.use_cache and (self.cache is not None or self.rebuild_cache):
            raise ConfigError(
                "--no-cache with --cache-folder or --rebuild-cache: they contradict each other.\n"
                "  fix: leave out one of them"
            )
        if self.rebuild_cache and self.cache is None:
            raise ConfigError(
                "--rebuild-cache: the features of a run folder are always its own.\n"
                "  fix: --cache-folder FOLDER, or leave it out"
            )
        if self.naive and self.strategy != "head":
            raise ConfigError(
                f"--naive with --strategy {self.strategy}: the naive loop shows what happens to a trunk that should "
                "stay, and here it trains.\n  fix: leave out one of them"
            )
        if self.data is None:
            given = [f"--{n}" for n in ("model", "head", "init") if getattr(self, n) is not None]
            given += ["--pretrained"] if self.pretrained else []
            if given:
                raise ConfigError(
                    f"{', '.join(given)}: without --data the job runs on the embedded digits with a small model of its "
                    "own.\n  fix: add --data FOLDER, with one folder of images for each class"
                )
        elif self.model is None:
            raise ConfigError(f"--data {self.data}: which model?\n  fix: add --model timm/resnet18, for example")
        if self.init is not None and self.pretrained:
            raise ConfigError("--init and --pretrained: both say what to start from.\n  fix: leave out one of them")

    @property
    def compares_with_naive(self) -> bool:
        """Whether the naive loop is run too."""
        return (self.data is None and self.strategy == "head") if self.naive is None else self.naive

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON-ready values with a schema version."""
        lists = {"freeze": list(self.freeze), "prefix": list(self.prefix)}
        return {"schema_version": SCHEMA_VERSION, **asdict(self), **lists}

    @classmethod
    def from_json(cls, data: Any) -> FinetuneConfig:
        """The inverse of :meth:`to_json`.

        Raises:
            RunFolderError: it was written by another version, or changed by hand to what is no configuration.

        Example:
            >>> FinetuneConfig.from_json(FinetuneConfig(seed=3).to_json()).seed
            3
        """
        if not isinstance(data, Mapping):
            raise RunFolderError(f"config.json holds a {type(data).__name__}, no settings.\n  fix: start a new run")
        settings = cast("Mapping[str, Any]", data)
        version = settings.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunFolderError(
                f"config.json has schema version {version!r}, this version reads {SCHEMA_VERSION}.\n"
                "  fix: start a new run"
            )
        known = {field.name for field in fields(cls)}
        try:
            values = {name: value for name, value in settings.items() if name in known}
            values |= {name: tuple(values.get(name, ())) for name in ("freeze", "prefix")}
            return cls(**values)
        except TypeError as error:
            raise RunFolderError(
                f"config.json has a setting of the wrong type: {error}\n  fix: restore it, or start a new run"
            ) from error


def _no_such(option: str, given: str, known: Sequence[str], of: str = "one of") -> str:
    near = nearest(given, known, most=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{option} {given}: there is no such one.\n  fix: {meant}{of} {', '.join(known)}"
