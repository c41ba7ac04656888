"""Folders of images as batches: labels, order, sizes, augmentation, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.errors import CorruptData, DataError
from frostline.finetune.evaluation_data import Batches, Pixels, common_classes, read_image_folder

pytestmark = pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")


def paint(root: Path, classes: Sequence[str], each: int = 3, size: tuple[int, int] = (8, 8)) -> Path:
    """Every image of its own gray, so that a batch tells which images are in it."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            gray = np.full((size[1], size[0], 3), 10 * (c * each + i), dtype=np.uint8)
            Image.fromarray(gray).save(root / name / f"{i}.png")
    return root


def plain(size: tuple[int, int] = (8, 8)) -> Pixels:
    return Pixels(size, (0.0,) * 3, (1.0,) * 3, as_they_are=True)


def grays(batches: Any) -> list[int]:
    return [round(255 * float(pixel)) for images, _ in batches for pixel in images[:, 0, 0, 0]]


def test_batches_mix_the_classes_and_come_again_the_same(tmp_path: Path):
    folder = read_image_folder(paint(tmp_path / "a", ["x", "y"], each=8))
    batches = Batches(folder, plain().evaluation(), classes=["x", "y"], batch_size=8)
    assert len(batches) == 2
    first = grays(batches)
    assert first == grays(batches)
    assert sorted(first) == [10 * i for i in range(16)]
    assert all(len(set(labels.tolist())) == 2 for _, labels in batches)
    assert all(((gray >= 80) == bool(label)) for gray, (_, label) in zip(first, _each(batches), strict=True))
    other = read_image_folder(tmp_path / "a", seed=1)
    assert grays(Batches(other, plain().evaluation(), classes=["x", "y"], batch_size=8)) != first


def _each(batches: Any) -> list[tuple[Any, Any]]:
    return [pair for inputs, labels in batches for pair in zip(inputs, labels.tolist(), strict=True)]


def test_labels_are_places_among_all_classes_not_among_those_of_the_folder(tmp_path: Path):
    folder = read_image_folder(paint(tmp_path / "a", ["x"]))
    (batch,) = Batches(folder, plain().evaluation(), classes=["w", "x"], batch_size=3)
    assert batch[1].tolist() == [1, 1, 1]


def test_without_class_folders_batches_have_no_labels(tmp_path: Path):
    paint(tmp_path, ["a"])
    folder = read_image_folder(tmp_path / "a")
    assert (folder.classes, len(folder.images)) == ((), 3)
    (batch,) = Batches(folder, plain().evaluation(), classes=None, batch_size=3)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (3, 3, 8, 8)


def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path):
    folder = read_image_folder(paint(tmp_path / "a", ["x"], each=5))
    assert [len(b) for b in Batches(folder, plain().evaluation(), classes=None, batch_size=2)] == [2, 2]
    assert [len(b) for b in Batches(folder, plain().evaluation(), classes=None, batch_size=3)] == [3, 2]


def test_a_listener_hears_every_batch(tmp_path: Path):
    folder = read_image_folder(paint(tmp_path / "a", ["x"], each=4))
    heard: list[tuple[str, int, int]] = []
    list(
        Batches(
            folder,
            plain().evaluation(),
            classes=None,
            batch_size=2,
            name="data",
            listener=lambda *told: heard.append(told),
        )
    )
    assert heard == [("data", 1, 2), ("data", 2, 2)]


def test_a_limit_takes_a_random_part(tmp_path: Path):
    paint(tmp_path / "a", ["x", "y"], each=10)
    folder = read_image_folder(tmp_path / "a", limit=12)
    assert len(folder.images) == 12
    assert folder.classes == ("x", "y")
    assert len({path for path, _ in folder.images}) == 12


def test_images_of_the_right_size_are_taken_as_they_are_and_others_are_not(tmp_path: Path):
    exact = read_image_folder(paint(tmp_path / "a", ["x"]))
    assert Pixels.for_images([exact], (8, 8), (0.0,), (1.0,)).as_they_are
    oblong = read_image_folder(paint(tmp_path / "b", ["x"], size=(8, 12)))
    assert Pixels.for_images([oblong], (12, 8), (0.0,), (1.0,)).as_they_are
    for folders in ([oblong], [exact, oblong]):
        pixels = Pixels.for_images(folders, (8, 8), (0.0,) * 3, (1.0,) * 3)
        assert not pixels.as_they_are
        for transform in (pixels.evaluation(), *(pixels.training(name) for name in ("crop", "shift", "none"))):
            (batch,) = Batches(oblong, transform, classes=None, batch_size=3)
            assert batch.shape == (3, 3, 8, 8)


def test_pixels_arrive_unchanged_but_for_mean_and_std(tmp_path: Path):
    generator = np.random.default_rng(0)
    values = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / "0.png")
    pixels = Pixels((8, 8), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0), as_they_are=True)
    (batch,) = Batches(read_image_folder(tmp_path / "a"), pixels.evaluation(), classes=None, batch_size=1)
    wanted = (values.astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    assert np.abs(batch[0].permute(1, 2, 0).double().numpy() - wanted).max() < 1e-6


@pytest.mark.parametrize("augmentation", ["shift", "crop"])
def test_augmentation_differs_by_image_and_not_by_pass(tmp_path: Path, augmentation: str):
    generator = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    values = generator.integers(1, 256, (16, 16, 3), dtype=np.uint8)
    for i in range(4):
        Image.fromarray(values).save(tmp_path / "a" / f"{i}.png")
    folder = read_image_folder(tmp_path / "a")
    batches = Batches(folder, plain((16, 16)).training(augmentation), classes=None, batch_size=4)
    (first,), (again,) = batches, batches
    assert torch.equal(first, again)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 4
    assert ((first == 0).any().item()) is (augmentation == "shift")  # black moves in from the border


def test_classes_are_those_of_all_folders_and_have_to_be_as_many_as_the_model_tells_apart(tmp_path: Path):
    one = read_image_folder(paint(tmp_path / "a", ["x", "y"]))
    two = read_image_folder(paint(tmp_path / "b", ["y", "z"]), option="--train-data ")
    assert common_classes([one, two], 3) == ("x", "y", "z")
    with pytest.raises(DataError, match=r"has 2 classes, and the model tells 10 apart") as refused:
        common_classes([one], 10)
    assert f"--data {one.root}: x, y" in str(refused.value)
    with pytest.raises(DataError, match=r"the model gives no logits .*\n  fix: --unchecked$"):
        common_classes([one], None, instead="--unchecked")
    flat = read_image_folder(tmp_path / "a" / "x", option="--held-out ")
    with pytest.raises(DataError, match=r"--held-out .*: its images are in no class folders"):
        common_classes([one, flat], 2)


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path):
    def refused(root: Path, said: str) -> None:
        with pytest.raises(DataError, match=said) as error:
            read_image_folder(root, option="--train-data ")
        assert "--train-data" in str(error.value)
        assert "\n  fix: " in str(error.value)

    refused(tmp_path / "nowhere", "the folder does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no images in it\n  found: nothing")
    (tmp_path / "empty" / "x").mkdir()
    refused(tmp_path / "empty", "no images in it\n  found: x")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file, not a folder")
    paint(tmp_path / "both" / "train", ["x"])
    paint(tmp_path / "both" / "val", ["x"])
    refused(tmp_path / "both", "train, val hold folders of images themselves\n.*\n  fix: --train-data .*/both/val")


def test_images_that_cannot_be_read_are_named_or_left_out(tmp_path: Path):
    paint(tmp_path / "a", ["x", "y"])
    (tmp_path / "a" / "x" / "1.png").write_bytes(b"")
    with pytest.raises(CorruptData, match=r"1 of 6 images in .*\n  x/1.png: empty file\n  fix: .*--skip-bad-images"):
        read_image_folder(tmp_path / "a")
    folder = read_image_folder(tmp_path / "a", skip_bad_images=True)
    assert len(folder.images) == 5
    assert "1 that cannot be read left out" in folder.described()
    for path in (tmp_path / "a").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 6 images can be read"):
        read_image_folder(tmp_path / "a", skip_bad_images=True)
