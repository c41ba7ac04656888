"""Named classes with their images in memory, in an order that no directory or archive has a say in.

Knows names, groups and tensors; knows nothing of files, splits or tasks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import xxhash
from torch import Tensor

from frostline.errors import DataError, name_some
from frostline.json_values import finite
from frostline.state.digest import digest_all
from frostline.state.names import nearest

ROTATIONS = ("classes", "none")
# uint8 holds what images are stored with: 255 is white.
WHITE = 255


@dataclass(frozen=True, eq=False)
class ImageClass:
    """One class.

    Attributes:
        name: its name, different from that of every other class.
        images: shape (n, ...), for images (n, C, H, W); floating, or uint8 where 255 stands for 1.
        group: classes of one group are kept in one split; its name alone by default.
        quarter_turns: how many times 90 degrees, counter-clockwise, the images are turned when they are asked for.
        part: which part of its source it came from, such as one of two archives.
    """

    name: str
    images: Tensor
    group: str = ""
    quarter_turns: int = 0
    part: str = ""


class ClassSet:
    """Classes sorted by name, with all their images in memory.

    Images are kept as their source gave them and turned into float32 when they are asked for. Nothing is changed
    after it was made, so threads may share it.

    Args:
        classes: in any order.
        description: JSON values that say what the images are and how they were prepared.

    Raises:
        DataError: there is no class; two have one name; one has no images, images of another shape than the rest, or
            of a kind that is not known; or images are to be turned that are not square.

    Example:
        >>> zeros, ones = torch.zeros(3, 1, 2, 2), torch.ones(2, 1, 2, 2)
        >>> class_set = ClassSet([ImageClass("b", ones), ImageClass("a", zeros)], description={"source": "docs"})
        >>> class_set.names, class_set.count("b"), class_set.shape
        (('a', 'b'), 2, (1, 2, 2))
        >>> class_set.images("b", [1]).sum().item()
        4.0
    """

    def __init__(self, classes: Iterable[ImageClass], *, description: Mapping[str, Any]) -> None:
        every = sorted(classes, key=lambda each: each.name)
        _refuse(every)
        self._classes = {each.name: replace(each, group=each.group or each.name) for each in every}
        self._description = dict(description)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, sorted by code points."""
        return tuple(self._classes)

    @cached_property
    def members(self) -> dict[str, tuple[str, ...]]:
        """For each group the names of its classes, both sorted."""
        groups: dict[str, list[str]] = {}
        for name, each in self._classes.items():
            groups.setdefault(each.group, []).append(name)
        return {group: tuple(groups[group]) for group in sorted(groups)}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (C, H, W)."""
        return tuple(next(iter(self._classes.values())).images.shape[1:])

    def count(self, name: str) -> int:
        """How many images a class has.

        Raises:
            DataError: there is no such class; the nearest names are given.
        """
        return len(self._of(name).images)

    def group(self, name: str) -> str:
        """The group of a class: the unturned character, where rotations are classes.

        Raises:
            DataError: there is no such class.
        """
        return self._of(name).group

    def part(self, name: str) -> str:
        """The part of its source that a class came from; empty where there are no parts.

        Raises:
            DataError: there is no such class.
        """
        return self._of(name).part

    def images(self, name: str, indices: Sequence[int] | None = None) -> Tensor:
        """Images of a class, as a new tensor of its own.

        Args:
            name: the class.
            indices: which of its images, in this order; all of them by default.

        Returns:
            float32, shape (n, C, H, W). uint8 is divided by 255; floating values are what they were given as.

        Raises:
            DataError: there is no such class, or it has no such image.
        """
        found = self._of(name)
        chosen = range(len(found.images)) if indices is None else indices
        outside = [index for index in chosen if not 0 <= index < len(found.images)]
        if outside:
            raise DataError(
                f"the class {name!r} has {len(found.images)} images, there is no image {outside[0]}\n"
                f"  fix: indices from 0 to {len(found.images) - 1}"
            )
        images = found.images[torch.tensor(list(chosen), dtype=torch.int64, device=found.images.device)]
        whole = images.dtype == torch.uint8
        images = images.to(torch.float32)
        if whole:
            images.div_(WHITE)
        return images.rot90(found.quarter_turns, dims=(-2, -1)).contiguous() if found.quarter_turns else images

    def rotated(self) -> ClassSet:
        """Make four classes of each: as it is, and turned by 90, 180 and 270 degrees counter-clockwise.

        The four are of one group, share their images in memory, and are turned exactly, when they are asked for.

        Raises:
            DataError: the images are not square.

        Example:
            >>> upright = ClassSet([ImageClass("a", torch.eye(2).view(1, 1, 2, 2))], description={})
            >>> upright.rotated().names
            ('a', 'a/rot090', 'a/rot180', 'a/rot270')
            >>> upright.rotated().images("a/rot090")[0, 0].tolist()
            [[0.0, 1.0], [1.0, 0.0]]

        Source:
            Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", ICML 2016, section 4.1: new classes
            through rotations in multiples of 90 degrees.
        """
        turned = [
            replace(each, name=f"{each.name}/rot{90 * turns:03d}" if turns else each.name, quarter_turns=turns)
            for each in self._classes.values()
            for turns in range(4)
        ]
        return ClassSet(turned, description={**self._description, "rotations": "classes"})

    @cached_property
    def digest(self) -> str:
        """A content hash of names, groups, turns and every byte of every image: 32 hexadecimal digits.

        It says whether a stored split or a finished run belongs to these very data. Nothing of it depends on the order
        in which they were found.
        """
        # Turned classes share their images, which are hashed once.
        hashes = digest_all({name: each.images for name, each in self._classes.items()})
        rows = [[name, each.group, each.quarter_turns, hashes[name]] for name, each in self._classes.items()]
        return xxhash.xxh3_128_hexdigest(json.dumps(rows).encode())

    def describe(self) -> dict[str, Any]:
        """What changes a number that is measured on these data, as JSON values.

        Example:
            >>> in_docs = ClassSet([ImageClass("a", torch.zeros(2, 1, 4, 4))], description={"source": "docs"})
            >>> facts = in_docs.describe()
            >>> {name: facts[name] for name in ("source", "classes", "groups", "images", "shape", "rotations")}
            {'source': 'docs', 'classes': 1, 'groups': 1, 'images': 2, 'shape': [1, 4, 4], 'rotations': 'none'}
        """
        counts = {
            "classes": len(self._classes),
            "groups": len(self.members),
            "images": sum(len(each.images) for each in self._classes.values()),
            "shape": list(self.shape),
        }
        return finite({"rotations": "none", **self._description, **counts, "digest": self.digest})

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __repr__(self) -> str:
        source = self._description.get("source", "")
        shape = " x ".join(map(str, self.shape))
        return f"<ClassSet {source}: {len(self):,} classes in {len(self.members):,} groups, {shape}>"

    def _of(self, name: str) -> ImageClass:
        found = self._classes.get(name)
        if found is None:
            near = nearest(name, self.names) or self.names
            raise DataError(
                f"there is no class {name!r} among {len(self)}\n"
                f"  nearest names: {name_some(near, rest='class_set.names')}"
            )
        return found


def in_memory(
    inputs: Tensor,
    labels: Tensor,
    names: Sequence[str] | Mapping[int, str] | None = None,
    groups: Mapping[str, str] | None = None,
) -> ClassSet:
    """Make a class set of tensors; they are copied, and keep their device.

    Args:
        inputs: shape (N, ...), floating, or uint8 where 255 stands for 1.
        labels: whole numbers, shape (N,).
        names: the name of each label; the label itself by default. Names of labels that do not occur are passed over.
        groups: the group of a class, by the name of the class, for those that have to stay in one split with others.

    Raises:
        DataError: shapes do not fit each other, labels are no whole numbers, a label has no name, or a group is given
            for a class that does not exist.

    Example:
        >>> in_memory(torch.rand(4, 1, 8, 8), torch.tensor([1, 0, 1, 1]), ["ant", "bee"])
        <ClassSet tensors in memory: 2 classes in 2 groups, 1 x 8 x 8>
    """
    if labels.dim() != 1 or inputs.dim() < 1 or len(inputs) != len(labels):
        raise DataError(
            f"inputs of shape {tuple(inputs.shape)} and labels of shape {tuple(labels.shape)} do not fit\n"
            "  fix: inputs of shape (N, C, H, W), labels of shape (N,)"
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise DataError(f"labels of dtype {labels.dtype} are no whole numbers\n  fix: labels.long()")
    found: list[int] = labels.unique().tolist()
    by_label = {label: str(label) for label in found} if names is None else names
    known = by_label if isinstance(by_label, Mapping) else dict(enumerate(by_label))
    nameless = [str(label) for label in found if label not in known]
    if nameless:
        raise DataError(
            f"{len(nameless)} labels have no name: {name_some(nameless)}\n  fix: a name for each of {len(found)} labels"
        )
    groups = groups or {}
    unknown = sorted(set(groups) - {known[label] for label in found})
    if unknown:
        near = nearest(unknown[0], known.values()) or list(known.values())
        raise DataError(
            f"groups are given for {len(unknown)} classes that do not exist: {name_some(unknown)}\n"
            f"  nearest names: {name_some(near)}"
        )
    classes = [
        ImageClass(known[label], inputs[labels.to(inputs.device) == label].detach(), groups.get(known[label], ""))
        for label in found
    ]
    return ClassSet(classes, description={"source": "tensors in memory"})


def refuse_unknown(what: str, value: object, known: Sequence[object]) -> None:
    """Refuse a setting that has no such value.

    Raises:
        DataError: ``value`` is not among ``known``.
    """
    if value not in known:
        raise DataError(f"{what} is {value!r}\n  fix: one of {', '.join(map(repr, known))}")


def _refuse(classes: Sequence[ImageClass]) -> None:
    if not classes:
        raise DataError("there is no class\n  fix: at least one class with images")
    doubled = [name for name, count in Counter(each.name for each in classes).items() if count > 1]
    if doubled:
        raise DataError(f"{len(doubled)} names stand for several classes: {name_some(doubled)}\n  fix: rename them")
    nameless = [each for each in classes if not each.name]
    if nameless:
        raise DataError("a class has no name\n  fix: a text of at least one character")
    empty = [each.name for each in classes if each.images.dim() < 1 or not len(each.images)]
    if empty:
        raise DataError(f"{len(empty)} classes have no images: {name_some(empty)}\n  fix: leave them out")
    first = classes[0]
    for each in classes:
        if each.images.dtype != torch.uint8 and not each.images.is_floating_point():
            raise DataError(
                f"the images of {each.name!r} are of dtype {each.images.dtype}\n"
                "  fix: uint8 where 255 stands for 1, or floating numbers"
            )
        if each.images.shape[1:] != first.images.shape[1:] or each.images.dtype != first.images.dtype:
            raise DataError(
                f"images of one set have one shape and one dtype\n"
                f"  {first.name!r}: {tuple(first.images.shape[1:])}, {first.images.dtype}\n"
                f"  {each.name!r}: {tuple(each.images.shape[1:])}, {each.images.dtype}"
            )
        if each.quarter_turns and (each.images.dim() < 3 or each.images.shape[-1] != each.images.shape[-2]):
            raise DataError(
                f"images of shape {tuple(each.images.shape[1:])} cannot be turned by 90 degrees: they are not square\n"
                "  fix: rotations='none', or square images"
            )
