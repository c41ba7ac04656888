"""Image folders: what is found, what is refused, and augmentation that depends on (seed, epoch, index) alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from frostline.errors import CorruptData, DataError
from frostline.finetune import image_folder
from frostline.finetune.image_folder import ImageDataset, read_image, scan_folder, transforms_for

pytestmark = pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators")

HYMENOPTERA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "hymenoptera"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (24, 18), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def two_sides(tmp_path: Path) -> Path:
    for side, count in (("train", 3), ("val", 2)):
        for name in ("wasp", "ant"):
            for index in range(count):
                draw(tmp_path / side / name / f"{index}.jpg", seed=index)
    return tmp_path


@pytest.fixture
def one_folder(tmp_path: Path) -> Path:
    for name, count in (("ant", 10), ("bee", 5), ("wasp", 2)):
        for index in range(count):
            draw(tmp_path / name / f"{index}.png", seed=index)
    return tmp_path


# What is found


def test_train_and_val_are_found_sorted_and_labelled(two_sides: Path):
    data = scan_folder(two_sides)
    assert data.classes == ("ant", "wasp")
    assert data.val == tuple(
        (two_sides / "val" / name / f"{index}.jpg", label)
        for label, name in enumerate(("ant", "wasp"))
        for index in range(2)
    )
    assert [label for _, label in data.train] == [0, 0, 0, 1, 1, 1]
    assert data.bad == ()


def test_hidden_entries_and_other_files_are_passed_over(two_sides: Path):
    expected = scan_folder(two_sides)
    for name in (".DS_Store", "._0.jpg", "notes.txt", "README"):
        (two_sides / "train" / "ant" / name).write_text("no image")
    (two_sides / "train" / ".thumbnails").mkdir()
    (two_sides / ".git").mkdir()
    assert scan_folder(two_sides) == expected


def test_suffixes_are_matched_in_any_case_and_every_mode_becomes_rgb(two_sides: Path):
    ants = two_sides / "train" / "ant"
    Image.new("P", (8, 8), 3).save(ants / "palette.GIF", transparency=1)
    Image.new("P", (8, 8), 3).save(ants / "bytes.png", transparency=bytes(range(8)))
    Image.new("LA", (8, 8), (9, 9)).save(ants / "grey.PNG")
    Image.new("CMYK", (8, 8)).save(ants / "print.JPEG")
    data = scan_folder(two_sides)
    assert len(data.train) == 10
    assert {read_image(path).mode for path, _ in data.train} == {"RGB"}


def test_one_folder_is_split_class_by_class(one_folder: Path):
    data = scan_folder(one_folder, val_share=0.2, seed=1)
    assert sorted(data.train + data.val) == sorted(
        (path, label) for label, name in enumerate(data.classes) for path in (one_folder / name).iterdir()
    )
    assert [sum(label == of for _, label in data.val) for of in range(3)] == [2, 1, 1]
    assert [sum(label == of for _, label in data.train) for of in range(3)] == [8, 4, 1]


def test_the_split_depends_on_the_seed_alone(one_folder: Path):
    torch.manual_seed(1)
    first = scan_folder(one_folder, seed=7)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert scan_folder(one_folder, seed=7) == first
    assert any(scan_folder(one_folder, seed=seed) != first for seed in range(3))
    torch.random.set_rng_state(state)
    scan_folder(one_folder, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)


# What is refused


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def test_every_bad_image_is_named_with_its_reason(two_sides: Path):
    truncate(two_sides / "train" / "ant" / "0.jpg")
    (two_sides / "train" / "wasp" / "1.jpg").write_bytes(b"")
    (two_sides / "val" / "ant" / "x.png").write_text("<html>404</html>")
    (two_sides / "val" / "ant" / "lost.png").symlink_to(two_sides / "nowhere.png")
    with pytest.raises(CorruptData) as caught:
        scan_folder(two_sides)
    message = str(caught.value)
    assert message.startswith(f"4 of 12 images in {two_sides} cannot be read\n  train/ant/0.jpg: ")
    assert "truncated" in message.splitlines()[1]
    assert message.endswith(
        "  train/wasp/1.jpg: empty file\n"
        "  val/ant/lost.png: a link to a file that does not exist\n"
        "  val/ant/x.png: not an image\n"
        "  fix: repair or remove them, or leave them out with --skip-bad-images"
    )
    assert caught.value.exit_code == 3


def test_opening_without_decoding_would_have_missed_the_truncated_image(two_sides: Path):
    path = truncate(two_sides / "train" / "ant" / "0.jpg")
    with Image.open(path) as image:
        image.verify()  # the cheap check sees nothing
    with pytest.raises(CorruptData):
        scan_folder(two_sides)


def test_bad_images_can_be_left_out_and_are_counted(two_sides: Path):
    bad = two_sides / "train" / "ant" / "0.jpg"
    bad.write_bytes(b"")
    data = scan_folder(two_sides, skip_bad_images=True)
    assert data.bad == ((bad, "empty file"),)
    assert len(data.train) == 5
    assert bad not in dict(data.train)


def test_a_split_is_drawn_among_the_images_that_can_be_read(one_folder: Path):
    expected = scan_folder(one_folder, seed=3)
    for index in range(3):
        (one_folder / "ant" / f"bad{index}.png").write_bytes(b"junk")
    data = scan_folder(one_folder, seed=3, skip_bad_images=True)
    assert (data.train, data.val, len(data.bad)) == (expected.train, expected.val, 3)


def test_at_most_eight_bad_images_are_named(two_sides: Path):
    for index in range(11):
        (two_sides / "val" / "ant" / f"bad{index:02}.jpg").write_bytes(b"")
    with pytest.raises(CorruptData, match=r"\n  val/ant/bad07.jpg: empty file\n  \(\+3 more\)\n  fix: "):
        scan_folder(two_sides)


def test_warnings_of_decoders_do_not_make_an_image_bad(two_sides: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # 24 x 18 is above it, but below twice of it
    assert scan_folder(two_sides).bad == ()


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        scan_folder(root, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_missing_folder(tmp_path: Path):
    assert refusal(tmp_path / "no").startswith(
        f"the data folder {tmp_path / 'no'} does not exist\n  fix: --data FOLDER with"
    )


def test_a_file(tmp_path: Path):
    path = draw(tmp_path / "a.png")
    assert refusal(path).startswith(f"{path} is a file, not a data folder")


def test_no_images(tmp_path: Path):
    assert "found: nothing" in refusal(tmp_path)
    (tmp_path / "ant").mkdir()
    assert refusal(tmp_path).startswith(f"no images in class folders in {tmp_path}\n  found: ant\n")


def test_images_outside_class_folders(tmp_path: Path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert "found: 2 images that are in no class folder" in refusal(tmp_path)


def test_one_class(tmp_path: Path):
    draw(tmp_path / "ant" / "a.png")
    assert "has one class, 'ant'" in refusal(tmp_path)


def test_train_without_val(two_sides: Path):
    (two_sides / "val").rename(two_sides / "valid")
    message = refusal(two_sides)
    assert message.startswith(f"{two_sides} has 'train' but no 'val'\n  found: train, valid\n")
    assert f"--data {two_sides / 'train'}" in message


def test_different_classes(two_sides: Path):
    (two_sides / "val" / "wasp").rename(two_sides / "val" / "bee")
    message = refusal(two_sides)
    assert "  only in train: wasp\n  only in val: bee\n" in message


def test_a_class_folder_without_images(two_sides: Path):
    (two_sides / "val" / "bee").mkdir()
    assert refusal(two_sides).startswith(f"the class folder {two_sides / 'val' / 'bee'} has no images")


def test_a_class_that_is_left_without_images(two_sides: Path):
    for path in (two_sides / "val" / "ant").iterdir():
        path.write_bytes(b"")
    message = refusal(two_sides, skip_bad_images=True)
    assert "the class 'ant' is left without images: none of the 2 in" in message


def test_a_single_image_cannot_be_split(one_folder: Path):
    (one_folder / "wasp" / "1.png").unlink()
    assert "the class 'wasp' of" in refusal(one_folder)
    assert "has a single image, 0.png" in refusal(one_folder)


def test_folders_of_images_inside_a_class_are_not_passed_over(one_folder: Path):
    draw(one_folder / "ant" / "worker" / "0.png")
    message = refusal(one_folder)
    assert message.startswith(f"the class folder {one_folder / 'ant'} holds folders of images: worker")


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_outside_zero_and_one(one_folder: Path, share: float):
    assert "a number between 0 and 1" in refusal(one_folder, val_share=share)


# The dataset


def augmented(data: image_folder.FolderData, **options: int) -> ImageDataset:
    return ImageDataset(data.train, transforms_for(12, MEAN, STD, train=True), **options)


def batches(dataset: ImageDataset, workers: int) -> torch.Tensor:
    return torch.cat([images for images, _ in DataLoader(dataset, batch_size=2, num_workers=workers)])


def test_augmentation_does_not_depend_on_workers_order_or_resuming(two_sides: Path):
    data = scan_folder(two_sides)
    dataset = augmented(data, seed=4)
    dataset.set_epoch(3)
    alone = batches(dataset, workers=0)
    torch.manual_seed(99)
    assert torch.equal(batches(dataset, workers=2), alone)
    resumed = augmented(data, seed=4, epoch=3)
    assert torch.equal(torch.stack([resumed[index][0] for index in reversed(range(6))]).flip(0), alone)
    assert torch.equal(resumed[-1][0], alone[5])


def test_epoch_seed_and_index_each_change_the_augmentation(tmp_path: Path):
    path = draw(tmp_path / "a.png", size=(64, 64))
    transform = transforms_for(12, MEAN, STD, train=True)
    dataset = ImageDataset([(path, 0)] * 2, transform, seed=0)
    first = dataset[0][0]
    assert torch.equal(first, dataset[0][0])
    assert not torch.equal(first, dataset[1][0])
    assert not torch.equal(first, ImageDataset([(path, 0)], transform, seed=1)[0][0])
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[0][0])


def test_workers_hear_of_the_epoch(two_sides: Path):
    dataset = augmented(scan_folder(two_sides))
    loader = DataLoader(dataset, batch_size=6, num_workers=1)
    (first, _), dataset.epoch = next(iter(loader)), 1
    (second, _) = next(iter(loader))
    assert torch.equal(second, batches(dataset, workers=0))
    assert not torch.equal(first, second)


def test_global_generators_are_left_alone(two_sides: Path):
    dataset = augmented(scan_folder(two_sides))
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    dataset[0]
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_other_devices_are_not_seeded(two_sides: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(seed: int) -> None:
        raise AssertionError(f"torch.manual_seed({seed}) also seeds CUDA, which drives the model's dropout")

    monkeypatch.setattr(torch, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    augmented(scan_folder(two_sides))[0]


def test_the_generator_is_restored_when_the_transform_fails(two_sides: Path):
    def fail(image: Image.Image) -> torch.Tensor:
        torch.rand(3)
        raise ZeroDivisionError

    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        ImageDataset(scan_folder(two_sides).train, fail)[0]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_during_training_is_named(two_sides: Path, workers: int):
    data = scan_folder(two_sides)
    dataset = ImageDataset(data.train[:1], transforms_for(12, MEAN, STD, train=True))
    dataset.samples[0][0].write_bytes(b"")
    with pytest.raises(CorruptData, match=r"0\.jpg could be read when training began, and no longer can: empty file"):
        batches(dataset, workers=workers)


@pytest.mark.parametrize(("size", "shape"), [(12, (12, 12)), ((10, 16), (10, 16))])
@pytest.mark.parametrize("train", [True, False])
def test_transforms_give_normalized_tensors_of_the_size(size: object, shape: tuple[int, int], train: bool):
    image = Image.new("RGB", (50, 30), (255, 0, 128))
    tensor = transforms_for(size, MEAN, STD, train=train)(image)
    assert tensor.shape == (3, *shape)
    assert tensor.dtype == torch.float32
    pixel = torch.tensor([255, 0, 128]) / 255
    assert torch.equal(tensor[:, 0, 0], (pixel - torch.tensor(MEAN)) / torch.tensor(STD))


def test_evaluation_is_not_random():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    transform = transforms_for(16, MEAN, STD, train=False)
    assert torch.equal(transform(image), transform(image))


# Real photographs

needs_hymenoptera = pytest.mark.skipif(
    not HYMENOPTERA.is_dir(), reason=f"REAL DATA ABSENT: {HYMENOPTERA} is not there, so real photographs go untested"
)


@pytest.mark.real_data
@needs_hymenoptera
def test_hymenoptera_is_read_whole_the_stray_gif_included():
    began = time.perf_counter()
    data = scan_folder(HYMENOPTERA)
    took = time.perf_counter() - began
    assert data.classes == ("ants", "bees")
    assert (len(data.train), len(data.val)) == (245, 153)
    gif = HYMENOPTERA / "train" / "ants" / "imageNotFound.gif"
    assert (gif, 0) in data.train
    assert took < 20, f"scanning took {took:.1f} s"


@pytest.mark.real_data
@needs_hymenoptera
def test_the_stray_gif_augments_like_any_photograph():
    gif = HYMENOPTERA / "train" / "ants" / "imageNotFound.gif"
    tensor, label = ImageDataset([(gif, 0)], transforms_for(64, MEAN, STD, train=True))[0]
    assert (tensor.shape, label) == ((3, 64, 64), 0)
