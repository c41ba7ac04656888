"""Labels in CSV files: how they may be written, what is refused, and what trains and validates."""

from __future__ import annotations

from pathlib import Path

import pytest

from frostline.errors import CorruptData, DataError
from frostline.finetune.label_file import LabelFile, read_labels, sides_of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve files; nothing here looks into them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index:02}.png").touch()
    return folder


def written(images: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = images.parent / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(images: Path, text: str | bytes) -> LabelFile:
    return read_labels("kind", written(images, text), images)


def refusal(images: Path, text: str | bytes, error: type[Exception] = DataError) -> str:
    with pytest.raises(error) as caught:
        read(images, text)
    return str(caught.value)


PLAIN = "image,label\n00.png,ant\n01.png,bee\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip("\n"),
        "\ufeff" + PLAIN,
        "\n" + PLAIN + "\n , \n",
        " Image , LABEL \n 00.png , ant \n./01.png,bee\n",
        'label,image\nant,"00.png"\nbee,01.png\n',
        PLAIN + "../images/00.png,ant\n",
    ],
)
def test_one_file_in_many_hands(images: Path, text: str):
    rows = read(images, text).rows
    assert [(row.image, row.label, row.side) for row in rows] == [
        (images / "00.png", "ant", ""),
        (images / "01.png", "bee", ""),
    ]


def test_names_with_commas_line_separators_and_other_letters(images: Path):
    names = ["a, b.png", "été.png", "a\u2028b.png"]
    for name in names:
        (images / name).touch()
    rows = read(images, "image,label\n" + "".join(f'"{name}",größer\n' for name in names)).rows
    assert [row.image.name for row in rows] == names
    assert {row.label for row in rows} == {"größer"}


def test_images_lie_in_the_data_folder_or_beside_the_file(images: Path):
    (images.parent / "beside.png").touch()
    (images.parent / "00.png").touch()
    rows = read(images, f"image,label\n00.png,ant\nbeside.png,bee\n{images / '02.png'},bee\n").rows
    assert [row.image for row in rows] == [images / "00.png", images.parent / "beside.png", images / "02.png"]
    alone = read_labels("kind", images.parent / "labels.csv")
    assert alone.rows[0].image == images.parent / "00.png"


def test_other_columns_and_repeated_rows_are_passed_over_and_said(images: Path):
    file = read(images, "image,by,label\n00.png,x,ant\n01.png,y,bee\n00.png,z,ant\n")
    assert len(file.rows) == 2
    assert file.notes == (
        "labels.csv: passing over the columns by",
        "labels.csv: 1 rows say what another one says, and count once",
    )


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "labels.csv is empty\n  fix: a first line image,label"),
        ("\n \n", "labels.csv is empty"),
        ("image,label\n", "has a header and no rows"),
        ("00.png,ant\n01.png,bee\n", "the first line has to name the columns\n  expected: image,label or "),
        ("image;label\n00.png;ant\n", "fix: commas between the columns instead of semicolons"),
        ("image\tlabel\n", "instead of tabs"),
        ("image,label,label\n", "name the columns, each once"),
        ("image,label\n00.png\n", "line 2: 1 columns instead of 2"),
        ("image,label\n00.png,ant,bee\n", "line 2: 3 columns instead of 2 (a comma in a name needs quotes around it)"),
        ("image,label\n00.png,\n", "line 2: no label"),
        ("image,label\n,ant\n", "line 2: no image"),
        ("image,label,split\n00.png,ant,test\n", "line 2: the split 'test', which is neither train nor val"),
        (PLAIN + "00.png,bee\n", "line 4: 00.png is 'bee', and in line 2 'ant'"),
        (
            "image,label,split\n00.png,ant,train\n./00.png,ant,val\n",
            "line 3: 00.png is 'ant' (val), and in line 2 'ant' (train)",
        ),
        ("image,label,split\n00.png,ant,train\n01.png,bee,\n", "rows with a split and rows without one, line 3"),
        (PLAIN + "no\x1b[31m.png,ant\n", "1 of the images in {path} are not there\n  line 4: no\\x1b[31m.png\n"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(images: Path, text: str, said: str):
    message = refusal(images, text)
    assert said.replace("{path}", str(images.parent / "labels.csv")) in message
    assert "\n  fix: " in message


def test_at_most_eight_images_that_are_not_there_are_named(images: Path):
    message = refusal(images, "image,label\n" + "".join(f"lost{index}.png,ant\n" for index in range(11)))
    assert message.startswith(
        f"11 of the images in {images.parent / 'labels.csv'} are not there\n  line 2: lost0.png\n"
    )
    assert (
        "line 9: lost7.png\n  (+3 more)\n  fix: paths relative to one of the folders that were looked in: " in message
    )
    assert f"{images} and {images.parent}" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,label\nfé.png,a\n".encode("latin-1"), "is not UTF-8: byte 13 is 0xe9"),
        (PLAIN.encode("utf-16"), "is not UTF-8: byte 0 is 0xff"),
        (b'image,label\n"00.png,ant\n', "is no CSV file: "),
    ],
)
def test_what_is_no_text_is_refused(images: Path, content: bytes, said: str):
    assert said in refusal(images, content, CorruptData)


def test_files_and_folders_that_are_not_there(images: Path):
    with pytest.raises(DataError, match=r"--task kind=.*nowhere\.csv: it does not exist"):
        read_labels("kind", images / "nowhere.csv")
    with pytest.raises(DataError, match="it is a folder"):
        read_labels("kind", images)
    path = written(images, PLAIN)
    with pytest.raises(DataError, match=r"the data folder .*gone does not exist"):
        read_labels("kind", path, images / "gone")
    with pytest.raises(DataError, match="is a file"):
        read_labels("kind", path, images / "00.png")


# What trains and what validates


def labelled(images: Path, labels: str, sides: str = "") -> LabelFile:
    """One letter an image; sides as ``t`` and ``v``."""
    full = {"t": "train", "v": "val"}
    rows = [f"{i:02}.png,{label}" + (f",{full[sides[i]]}" if sides else "") for i, label in enumerate(labels)]
    return read(images, "\n".join(["image,label" + ",split" * bool(sides), *rows]))


def test_a_file_that_says_it_is_followed(images: Path):
    data = sides_of(labelled(images, "abab", "ttvv"), val_share=0.5, seed=0)
    assert data.classes == ("a", "b")
    assert [(path.name, label) for path, label in data.train] == [("00.png", 0), ("01.png", 1)]
    assert [(path.name, label) for path, label in data.val] == [("02.png", 0), ("03.png", 1)]
    assert data.largest_class == 0.5


def test_otherwise_a_share_of_each_class_is_drawn_from_the_seed(images: Path):
    file = labelled(images, "aaaaaaaabbcc")
    data = sides_of(file, val_share=0.25, seed=3)
    assert [[label for _, label in side] for side in (data.val, data.train)] == [
        [0, 0, 1, 2],
        [0] * 6 + [1, 2],
    ]
    assert sorted(path for path, _ in (*data.train, *data.val)) == sorted(file.images)
    backwards = LabelFile(file.task, file.path, file.rows[::-1])
    assert sides_of(backwards, val_share=0.25, seed=3) == data
    assert any(sides_of(file, val_share=0.25, seed=seed) != data for seed in range(4, 8))


@pytest.mark.parametrize(
    ("labels", "sides", "without", "said"),
    [
        ("aaaa", "", [], "has one class, 'a': there is nothing to tell apart"),
        ("aaab", "", [], "has nothing to validate on for b\n"),
        ("aabb", "ttvt", [], "has nothing to validate on for a\n"),
        ("aabb", "tvvv", [], "has nothing to train on for b\n"),
        ("aabb", "tvtv", ["00.png"], "has nothing that can be read to train on for a\n"),
        ("aabb", "", ["02.png", "03.png"], "has nothing that can be read to train on for b\n"),
    ],
)
def test_a_class_that_lacks_a_side_is_refused(images: Path, labels: str, sides: str, without: list[str], said: str):
    file = labelled(images, labels, sides)
    with pytest.raises(DataError) as caught:
        sides_of(file, val_share=0.5, seed=0, without=[images / name for name in without])
    assert said in str(caught.value)
