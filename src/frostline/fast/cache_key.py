"""What the features of a cache depend on, and how two such keys differ, in words.

Knows names and digests; knows nothing of tensors' values or of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frostline.errors import name_some, printable
from frostline.fast.features import Extractor, Place

_SHORT = 12


@dataclass(frozen=True)
class CacheKey:
    """All that cached features depend on beside the samples themselves. Equal keys give equal features.

    Attributes:
        identity: of the extractor.
        entries: path to digest of its tensors, to say which of them differ.
        places: what it gives.
        rows: how many samples it computes at a time.
        preprocessing: how the dataset prepares samples, where that is known.
        dtype: what features are narrowed to, or ``""``.
        keyed: whether samples are told apart by the dataset's own keys, or by their index.
        randomness: what samples depend on beside their index: ``none``, ``epochs`` or ``unseeded``.
        seed: of unseeded ones; 0 for others.
        positions: whether a sample that has moved to another index counts as the same.
    """

    identity: Mapping[str, str]
    entries: Mapping[str, str]
    places: tuple[Place, ...]
    rows: int
    preprocessing: str | None
    dtype: str
    keyed: bool
    randomness: str
    seed: int
    positions: str

    def differences(self, found: CacheKey) -> list[str]:
        """What another key has instead, a line each; empty if they are equal.

        Example:
            >>> import torch
            >>> place = Place("pool", (2,), torch.float32)
            >>> key = CacheKey({"weights": "ab"}, {}, (place,), 8, "crop 224", "", False, "none", 0, "any")
            >>> other = CacheKey({"weights": "ab"}, {}, (place,), 8, "crop 192", "", False, "none", 0, "any")
            >>> key.differences(other)
            ['preprocessing: asked crop 224, found crop 192']
        """
        lines = [
            _weights(self, found)
            if name == "weights"
            else _line(name, self.identity.get(name), found.identity.get(name))
            for name in {**self.identity, **found.identity}
            if self.identity.get(name) != found.identity.get(name)
        ]
        facts = (
            ("places", "; ".join(map(str, self.places)), "; ".join(map(str, found.places))),
            ("rows", str(self.rows), str(found.rows)),
            ("preprocessing", self.preprocessing, found.preprocessing),
            ("dtype", self.dtype or "that of the features", found.dtype or "that of the features"),
            (
                "samples told apart",
                "by their keys" if self.keyed else "by index",
                "by their keys" if found.keyed else "by index",
            ),
            ("random transform", self.randomness, found.randomness),
            ("seed", str(self.seed), str(found.seed)),
            ("positions", self.positions, found.positions),
        )
        return lines + [_line(name, asked, there) for name, asked, there in facts if asked != there]

    def to_json(self) -> dict[str, Any]:
        """The key as JSON-ready values."""
        return {
            "identity": dict(self.identity),
            "entries": dict(self.entries),
            "places": [place.to_json() for place in self.places],
            "rows": self.rows,
            "preprocessing": self.preprocessing,
            "dtype": self.dtype,
            "keyed": self.keyed,
            "randomness": self.randomness,
            "seed": self.seed,
            "positions": self.positions,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> CacheKey:
        """The key that :meth:`to_json` gave."""
        places = [Place(str(p["name"]), tuple(map(int, p["shape"])), dtype_named(p["dtype"])) for p in value["places"]]
        return CacheKey(
            identity={str(name): str(each) for name, each in value["identity"].items()},
            entries={str(name): str(each) for name, each in value["entries"].items()},
            places=tuple(places),
            rows=int(value["rows"]),
            preprocessing=None if value["preprocessing"] is None else str(value["preprocessing"]),
            dtype=str(value["dtype"]),
            keyed=bool(value["keyed"]),
            randomness=str(value["randomness"]),
            seed=int(value["seed"]),
            positions=str(value["positions"]),
        )


def key_of(
    extractor: Extractor,
    *,
    preprocessing: str | None,
    dtype: str,
    keyed: bool,
    randomness: str,
    seed: int,
    positions: str,
) -> CacheKey:
    """The key of what an extractor gives of samples."""
    return CacheKey(
        identity=dict(extractor.identity),
        entries=dict(extractor.entries),
        places=tuple(extractor.places),
        rows=extractor.rows,
        preprocessing=preprocessing,
        dtype=dtype,
        keyed=keyed,
        randomness=randomness,
        # Others are not seeded from here, and need not care.
        seed=seed if randomness == "unseeded" else 0,
        positions=positions,
    )


def dtype_named(name: object) -> Any:
    """The type of torch that has a name.

    Raises:
        ValueError: there is none.
    """
    import torch

    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no type of torch")  # noqa: TRY004 - it is the value of a file that is wrong
    return dtype


def _weights(asked: CacheKey, found: CacheKey) -> str:
    """Which weights differ, most useful first: how many, and the first ones by name."""
    both = [path for path in asked.entries if path in found.entries]
    moved = [path for path in both if asked.entries[path] != found.entries[path]]
    lines = [f"{len(moved)} of {len(both)} tensors differ, {printable(moved[0])} first"] if moved else []
    for more, one, other in (("asked", asked, found), ("found", found, asked)):
        only = [path for path in one.entries if path not in other.entries]
        lines += [f"only {more}: {name_some(only, most=2)}"] if only else []
    if not lines:
        return _line("weights", asked.identity.get("weights"), found.identity.get("weights"))
    return f"weights: {'; '.join(lines)}"


def _line(name: str, asked: str | None, found: str | None) -> str:
    def shown(value: str | None) -> str:
        if value is None:
            return "none"
        text = printable(value)
        return f"{text[:_SHORT]}…" if len(text) == 32 and set(text) <= set("0123456789abcdef") else text

    return f"{name}: asked {shown(asked)}, found {shown(found)}"
