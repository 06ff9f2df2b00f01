"""Folders as COCO, Pascal VOC and YOLO lay them out: what is read, what is left out, and every error."""

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from conftest import DATA_ROOT
from PIL import Image

from agents.checkpoint import Loaded
from hsal_env.config import EnvConfig
from hsal_env.data import pixel_store
from hsal_env.data.annotations import read_annotations
from hsal_env.data.annotations.listing import key_of, part_of
from hsal_env.data.annotations.yolo import _names_of_table
from hsal_env.data.custom import LabelledImages, load_folder
from hsal_env.data.fitting import Fit
from hsal_env.env import HSALEnv
from hsal_env.errors import ConfigError, DataError
from hsal_env.perception.examples import Examples

SIZE = (40, 60)  # rows, columns
CLASSES = ("bee", "ant", "cup")
SCENES = [  # class, row, col, height, width
    [(0, 4, 6, 10, 20), (0, 20, 30, 8, 12), (2, 0, 0, 6, 6)],
    [(1, 10, 10, 20, 40)],
    [],
    [(2, 30, 50, 10, 10), (1, 2, 3, 4, 5)],
    [(1, 0, 0, 40, 60), (0, 1, 1, 2, 2)],
]
LISTS = [[label for label, *_ in scene] for scene in SCENES]
BOXES = [[box for _, *box in scene] for scene in SCENES]
NAMES = [f"photo {i}.jpg" if i == 3 else f"{i}.png" for i in range(len(SCENES))]


def save(path: Path, number: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def coco(scenes: dict[str, list], **more: Any) -> str:
    images = [{"id": 7 + i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(scenes)]
    annotations = [
        {"id": 1, "image_id": 7 + i, "category_id": 3 * (label + 1), "bbox": [col, row, width, height], "iscrowd": 0}
        for i, scene in enumerate(scenes.values())
        for label, row, col, height, width in scene
    ]
    categories = [{"id": 3 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories[::-1], **more})


def voc(scene: list) -> str:
    objects = "".join(
        f"<object><name> {CLASSES[label]} </name><difficult>1</difficult><bndbox><xmin>{col + 1}</xmin><ymin>{row + 1}</ymin>"
        f"<xmax>{col + width}</xmax><ymax>{row + height}</ymax></bndbox></object>"
        for label, row, col, height, width in scene
    )
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>x</filename>{size}{objects}</annotation>"


def yolo(scene: list) -> str:
    (rows, columns) = SIZE
    return "".join(
        f"{label} {(col + width / 2) / columns:.6f} {(row + height / 2) / rows:.6f} {width / columns:.6f} {height / rows:.6f}\n"
        for label, row, col, height, width in scene
    )


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def write_coco(root: Path) -> None:
    for i, name in enumerate(NAMES):
        save(root / "images" / name, i)
    write(root / "annotations" / "instances_default.json", coco(dict(zip(NAMES, SCENES, strict=True))))


def write_voc(root: Path) -> None:
    for i, (name, scene) in enumerate(zip(NAMES, SCENES, strict=True)):
        save(root / "JPEGImages" / name, i)
        write(root / "Annotations" / f"{Path(name).stem}.xml", voc(scene))


def write_yolo(root: Path) -> None:
    for i, (name, scene) in enumerate(zip(NAMES, SCENES, strict=True)):
        save(root / name, i)
        write(root / f"{Path(name).stem}.txt", yolo(scene))
    write(root / "classes.txt", "\n".join(CLASSES) + "\n")


def write_csv(root: Path) -> None:
    rows = ["file,labels,boxes"]
    for i, (name, scene) in enumerate(zip(NAMES, SCENES, strict=True)):
        save(root / name, i)
        labels = " ".join(CLASSES[label] for label, *_ in scene)
        rows.append(f"{name},{labels},{';'.join(' '.join(map(str, box)) for _, *box in scene)}")
    write(root / "labels.csv", "\n".join(rows))
    write(root / "classes.txt", "\n".join(CLASSES))


FORMATS: dict[str, Callable[[Path], None]] = {
    "csv": write_csv,
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
}


def objects(data: LabelledImages) -> dict[str, list]:
    """Of each file, its objects by the names of their classes."""
    return {
        Path(name).name: [
            (data.class_names[label] if data.class_names else label, *box)
            for label, box in zip(labels, boxes, strict=True)
            if label >= 0
        ]
        for name, labels, boxes in zip(data.names, data.labels.tolist(), data.boxes.tolist(), strict=True)
    }


EXPECTED = {name: [(CLASSES[label], *box) for label, *box in scene] for name, scene in zip(NAMES, SCENES, strict=True)}


# --- every layout says the same ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("images_format", FORMATS)
def test_all_layouts_say_the_same(tmp_path, images_format):
    FORMATS[images_format](tmp_path)
    for asked in ("auto", images_format):
        data = load_folder(str(tmp_path), images_format=asked)
        assert objects(data) == EXPECTED
        order = sorted(CLASSES) if images_format == "voc" else [*CLASSES]
        assert data.class_names == tuple(order)
        assert (data.image_shape, data.fit, data.has_boxes) == ((*SIZE, 3), None, True)
        for name, image in zip(data.names, data.images, strict=True):
            with Image.open(name) as file:
                np.testing.assert_array_equal(image, np.asarray(file))


@pytest.mark.parametrize("images_format", FORMATS)
def test_labels_stay_with_their_boxes_through_the_environment(tmp_path, images_format):
    FORMATS[images_format](tmp_path)
    config = EnvConfig(source="custom", images=str(tmp_path), split="all", image_px=(20, 60), saliency="boxes",
                       activation="playing:Colours")  # fmt: skip
    assert config.has_boxes
    env = HSALEnv(render_mode="rgb_array", **asdict(config))
    for index, name in enumerate(Path(name).name for name in config.data.names):
        batch = config.canvases.compose([index])
        fit, expected = Fit((20, 60)), EXPECTED[name]
        moved = fit.boxes(np.array([box for _, *box in expected]).reshape(-1, 4), SIZE).tolist()
        assert [(config.label_names[label], *box) for label, box in zip(batch.labels[0], batch.boxes[0].tolist(), strict=True)
                if label >= 0] == [(label, *box) for (label, *_), box in zip(expected, moved, strict=True)]  # fmt: skip
        seen, _ = env.reset(options={"index": index})
        trace = env.trace()
        assert trace.boxes.tolist() == moved
        assert [config.label_names[label] for label in trace.labels] == [label for label, *_ in expected]
        assert (seen["saliency"].max() > 0) == bool(expected)
    with pytest.raises(ConfigError, match="images_format to be one of auto, csv, coco, voc, yolo; got 'pascal'"):
        load_folder(str(tmp_path), images_format="pascal")


def test_what_is_not_there_is_named_with_what_would_be_read(tmp_path):
    save(tmp_path / "a.png", 0)
    with pytest.raises(
        DataError, match=r"expected labels\.csv, or train/.*; or COCO's .*; or Pascal VOC's .*; or YOLO's .*; got"
    ):
        load_folder(str(tmp_path))
    for name in ("csv", "coco", "voc", "yolo"):
        with pytest.raises(DataError, match=r"expected .*; got none"):
            load_folder(str(tmp_path), images_format=name)


def test_two_layouts_are_refused_unless_one_is_chosen(tmp_path):
    write_voc(tmp_path)
    for name, scene in zip(NAMES, SCENES, strict=True):
        write(tmp_path / "labels" / f"{Path(name).stem}.txt", yolo(scene))
    with pytest.raises(DataError, match=r"annotations of one kind; got Pascal.*YOLO.*images_format='voc' or 'yolo'"):
        load_folder(str(tmp_path))
    assert load_folder(str(tmp_path), images_format="voc").class_names == ("ant", "bee", "cup")
    assert load_folder(str(tmp_path), images_format="yolo").class_names == ()
    write(tmp_path / "labels.csv", "file,labels\nJPEGImages/0.png,cup\n")
    assert load_folder(str(tmp_path)).class_names == ("cup",)  # ours outranks all others


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [("train", "train"), ("Train2017", "train"), ("training_1", "train"), ("val", "val"), ("valid", "val"), ("validation", "val"),
     ("VAL2012", "val"), ("test", "test"), ("testing-2", "test"), ("trainval", None), ("tests", None), ("2017", None), ("", None),
     ("train set", None)],
)  # fmt: skip
def test_what_names_a_part(name, part):
    assert part_of(name) == part


def test_an_image_and_its_annotations_have_one_key():
    for image, text in (
        ("train/images/a.b.jpg", "train/labels/a.b.txt"),
        ("images/train/a.b.jpg", "labels/train/a.b.txt"),
        ("train/a.b.jpg", "train/a.b.txt"),
        ("VOC/JPEGImages/a.b.jpg", "VOC/Annotations/a.b.xml"),
    ):
        assert key_of(image) == key_of(text)
    assert key_of("train/a.jpg") != key_of("val/a.jpg")


def parts(data: LabelledImages) -> dict[str, list[str]]:
    return {split: sorted(Path(data.names[i]).stem for i in data.part(split)) for split in ("train", "val", "test")}


def coco_per_file(root: Path) -> None:
    for part, numbers in (("train2017", (0, 1)), ("val2017", (3,)), ("test2017", (4,))):
        write(root / f"annotations/instances_{part}.json", coco({NAMES[i]: SCENES[i] for i in numbers}))
        for i in numbers:
            save(root / "images" / part / NAMES[i], i)


def coco_beside(root: Path) -> None:
    for part, numbers in (("train", (0, 1)), ("valid", (3,)), ("test", (4,))):
        write(root / part / "_annotations.coco.json", coco({NAMES[i]: SCENES[i] for i in numbers}))
        for i in numbers:
            save(root / part / NAMES[i], i)


def voc_lists(root: Path) -> None:
    write_voc(root / "deeper")
    for part, numbers in (("trainval", (0, 1, 3)), ("val", (3,)), ("test", (4,)), ("cup_train", (4,))):
        lines = "".join(f"{Path(NAMES[i]).stem}\n" for i in numbers)
        write(root / f"deeper/ImageSets/Main/{part}.txt", lines)
    (root / "deeper/Annotations/2.xml").unlink()
    (root / "deeper/JPEGImages/2.png").unlink()


def voc_beside(root: Path) -> None:
    for part, numbers in (("train", (0, 1)), ("valid", (3,)), ("test", (4,))):
        for i in numbers:
            save(root / part / NAMES[i], i)
            write(root / part / f"{Path(NAMES[i]).stem}.xml", voc(SCENES[i]))


def yolo_in(image: str, text: str) -> Callable[[Path], None]:
    def made(root: Path) -> None:
        for part, numbers in (("train", (0, 1)), ("val", (3,)), ("test", (4,))):
            for i in numbers:
                save(root / image.format(part) / NAMES[i], i)
                write(root / text.format(part) / f"{Path(NAMES[i]).stem}.txt", yolo(SCENES[i]))
        write(root / "data.yaml", f"train: ../train\nnc: 3\nnames: {list(CLASSES)}\n")

    return made


LAYOUTS = {
    "coco, a file per part": coco_per_file,
    "coco, beside": coco_beside,
    "voc, lists": voc_lists,
    "voc, beside": voc_beside,
    "yolo, beside": yolo_in("{}", "{}"),
    "yolo, part first": yolo_in("{}/images", "{}/labels"),
    "yolo, part last": yolo_in("images/{}", "labels/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_are_the_folders_own(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    data = load_folder(str(tmp_path))
    assert parts(data) == {"train": ["0", "1"], "val": ["photo 3"], "test": ["4"]}
    assert objects(data) == {name: found for name, found in EXPECTED.items() if name != "2.png"}


def test_an_image_in_two_parts_is_tested_and_not_learned(tmp_path):
    coco_beside(tmp_path)
    write(
        tmp_path / "train" / "_annotations.coco.json",
        coco({name: SCENES[0] for name in ("0.png", "1.png", "../test/4.png")}),
    )
    with pytest.warns(UserWarning, match=r"1 are left out: 1 listed more than once \(.*test/4\.png\)"):
        data = load_folder(str(tmp_path))
    assert parts(data) == {"train": ["0", "1"], "val": ["photo 3"], "test": ["4"]}
    assert objects(data)["4.png"] == EXPECTED["4.png"]


def test_images_of_no_part_are_left_out_where_others_have_one(tmp_path):
    voc_lists(tmp_path)
    save(tmp_path / "deeper/JPEGImages/9.png", 9)
    write(tmp_path / "deeper/Annotations/9.xml", voc([]))
    write(tmp_path / "deeper/ImageSets/Main/test.txt", "4 1\nnowhere\n")
    with pytest.warns(UserWarning, match=r"2 are left out: 1 named but not there \(deeper/nowhere\); 1 of no part"):
        assert parts(load_folder(str(tmp_path)))["test"] == ["4"]


def test_a_class_that_training_lacks_is_named(tmp_path):
    yolo_in("{}", "{}")(tmp_path)
    write(tmp_path / "train" / "1.txt", yolo([]))
    with pytest.warns(UserWarning, match=r"No image of train holds ant, which others hold"):
        load_folder(str(tmp_path))


# --- what is left out -------------------------------------------------------------------------------------------------


def edit_coco(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "annotations/instances_default.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new, 1))


LEFT_OUT: dict[str, tuple[str, Callable[[Path], object], str, int]] = {  # layout, damage, what is said, images that remain
    "coco, missing": ("coco", lambda r: (r / "images/1.png").unlink(), r"1 named but not there \(1\.png\)", 4),
    "coco, unlisted": ("coco", lambda r: save(r / "images/9.png", 9), r"1 without an entry \(.*images/9\.png\)", 5),
    "coco, broken": ("coco", lambda r: write(r / "images/1.png", b"x"), r"1 damaged or in no format that is read \(.*1\.png", 4),
    "coco, no area": ("coco", edit_coco(lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5])), "1 with a box of no area", 4),
    "coco, NaN": ("coco", edit_coco(lambda c: c["annotations"][0].update(bbox=[1, 1, -3, 5])), "1 with a box of no area", 4),
    "coco, outside": (
        "coco", edit_coco(lambda c: c["annotations"][0].update(bbox=[60, 1, 3, 5])), "1 with a box outside the image", 4,
    ),
    "coco, crowd": ("coco", edit_coco(lambda c: c["annotations"][0].update(iscrowd=1)), "1 with a box around a crowd", 4),
    "coco, orphan": (
        "coco", edit_coco(lambda c: c["annotations"][0].update(image_id=99)),
        r"1 annotations of images that are not listed \(.*entry 0\)", 5,
    ),
    "coco, size": (
        "coco", edit_coco(lambda c: c["images"][1].update(height=60, width=40)),
        r"1 of another size than their entry says \(.*1\.png\)", 4,
    ),
    "coco, twice": (
        "coco", edit_coco(lambda c: c["images"].append({**c["images"][0], "id": 99})), "1 listed more than once", 5,
    ),
    "voc, missing": ("voc", lambda r: (r / "JPEGImages/1.png").unlink(), r"1 named but not there \(.*1\.xml\)", 4),
    "voc, unlisted": ("voc", lambda r: save(r / "JPEGImages/9.png", 9), r"1 without an entry \(.*9\.png\)", 5),
    "voc, same name": ("voc", lambda r: save(r / "JPEGImages/1.bmp", 9), "1 of the same name as another", 5),
    "voc, no area": ("voc", edit("Annotations/1.xml", "<xmax>50</xmax>", "<xmax>10</xmax>"), "1 with a box of no area", 4),
    "voc, outside": (
        "voc", edit("Annotations/1.xml", "<ymin>11</ymin>", "<ymin>41</ymin>"), "1 with a box of no area", 4,
    ),
    "yolo, missing": ("yolo", lambda r: (r / "1.png").unlink(), r"1 named but not there \(.*1\.txt\)", 4),
    "yolo, unlisted": ("yolo", lambda r: (r / "1.txt").unlink(), r"1 without an entry \(.*1\.png\)", 4),
    "yolo, no area": ("yolo", lambda r: write(r / "1.txt", "0 0.5 0.5 0 0.1"), "1 with a box of no area", 4),
    "yolo, outside": ("yolo", lambda r: write(r / "1.txt", "0 1.5 0.5 0.2 0.1"), "1 with a box outside the image", 4),
    "several": (
        "yolo", lambda r: [(r / f"{i}.txt").unlink() for i in (0, 1)] + [write(r / "2.png", b"x")],
        r"2 without an entry \(.*0\.png\); 1 damaged or in no format that is read \(.*2\.png\)", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("images_format", "damage", "said", "remain"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_cannot_be_used_is_left_out_and_told_once(tmp_path, images_format, damage, said, remain):
    FORMATS[images_format](tmp_path)
    damage(tmp_path)
    with pytest.warns(UserWarning, match=rf"{remain} images are used\..* are left out: .*{said}") as told:
        data = load_folder(str(tmp_path))
    assert (len(told), len(data)) == (1, remain)
    assert all(
        found == EXPECTED[name] for name, found in objects(data).items() if "orphan" not in said and name in "034"
    )


def test_a_box_that_reaches_out_is_cut_off(tmp_path):
    write_yolo(tmp_path)
    write(tmp_path / "1.txt", "1 0 0.5 0.2 0.5")  # half of it lies beyond the left edge
    write_voc(tmp_path / "voc")
    edit("Annotations/1.xml", "<xmax>50</xmax>", "<xmax>99</xmax>")(tmp_path / "voc")
    assert objects(load_folder(str(tmp_path), images_format="yolo"))["1.png"] == [("ant", 10, 0, 20, 6)]
    assert objects(load_folder(str(tmp_path / "voc")))["1.png"] == [("ant", 10, 10, 20, 50)]


def test_an_outline_and_a_missing_box_and_a_fraction(tmp_path):
    write_yolo(tmp_path)
    write(tmp_path / "1.txt", "\n1 0.1 0.5 0.5 0.25 0.5 0.75\n")
    assert objects(load_folder(str(tmp_path)))["1.png"] == [("ant", 10, 6, 20, 24)]
    write_coco(tmp_path / "coco")
    edit_coco(lambda c: (c["annotations"][0].pop("bbox"), c["annotations"][3].update(bbox=[1.5, 2.25, 3, 4])))(
        tmp_path / "coco"
    )
    data = load_folder(str(tmp_path / "coco"))
    assert objects(data)["0.png"] == [("bee", -1, -1, -1, -1), *EXPECTED["0.png"][1:]]
    assert objects(data)["1.png"] == [("ant", 2, 1, 5, 4)]  # rows 2.25 to 6.25, columns 1.5 to 4.5, outwards
    assert not data.has_boxes


# --- errors -----------------------------------------------------------------------------------------------------------

BOMB = (
    '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;">]>'
    "<annotation><object><name>&d;</name></object></annotation>"
)
ERRORS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "coco, no JSON": ("coco", lambda r: write(r / "annotations/instances_default.json", "{"), r"default\.json cannot be read"),
    "coco, nested": (
        "coco", lambda r: write(r / "annotations/instances_default.json", "[" * 100_000), "default.json cannot be read as JSON",
    ),
    "coco, a list": ("coco", lambda r: write(r / "annotations/instances_default.json", "[]"), "COCO's lists .*; got no images"),
    "coco, no images": ("coco", edit_coco(lambda c: c.pop("images")), "expected COCO's lists .*; got no images"),
    "coco, an image that is text": ("coco", edit_coco(lambda c: c["images"].append("x")), "images, entry 5: expected an object"),
    "coco, image id twice": ("coco", edit_coco(lambda c: c["images"][1].update(id=7)), "entry 1: the id 7 is there twice"),
    "coco, no id": ("coco", edit_coco(lambda c: c["images"][1].pop("id")), "entry 1: expected id as a whole number"),
    "coco, no name": ("coco", edit_coco(lambda c: c["images"][1].pop("file_name")), r"entry 1 \(id 8\): expected a file_name"),
    "coco, unknown class": (
        "coco", edit_coco(lambda c: c["annotations"][2].update(category_id=4)),
        "annotations, entry 2: the category_id 4 is not among the categories",
    ),
    "coco, class id twice": ("coco", edit_coco(lambda c: c["categories"][1].update(id=9)), "categories, entry 1: expected an id"),
    "coco, class name twice": ("coco", edit_coco(lambda c: c["categories"][1].update(name="bee")), "entry 2: expected an id"),
    "coco, no classes": ("coco", edit_coco(lambda c: c.update(categories=[], annotations=[])), "expected categories; got none"),
    "coco, bbox of three": ("coco", edit_coco(lambda c: c["annotations"][2].update(bbox=[1, 2, 3])), "entry 2: expected bbox"),
    "coco, bbox of text": ("coco", edit_coco(lambda c: c["annotations"][2].update(bbox="1234")), "entry 2: expected bbox"),
    "coco, nothing labelled": ("coco", edit_coco(lambda c: c["annotations"].clear()), "no image has a label"),
    "coco, all missing": ("coco", lambda r: shutil.rmtree(r / "images"), "no image can be used. 5 are left out: 5 named but not"),
    "coco, outside": ("coco", edit_coco(lambda c: c["images"][0].update(file_name="../../x.png")), "entry 0: expected a file in"),
    "coco, absolute": ("coco", edit_coco(lambda c: c["images"][0].update(file_name="/etc/x.png")), "entry 0: expected a file in"),
    "coco, two files": (
        "coco", lambda r: shutil.copy(r / "annotations/instances_default.json", r / "annotations/instances_all.json"),
        "one file of COCO's annotations, or one each for train, val and test; got .*all.* and .*default",
    ),
    "voc, no XML": ("voc", lambda r: write(r / "Annotations/1.xml", "<annotation>"), r"1\.xml cannot be read as XML"),
    "voc, a bomb": ("voc", lambda r: write(r / "Annotations/1.xml", BOMB), r"1\.xml: expected no document type \(DOCTYPE\)"),
    "voc, a bomb in UTF-16": (
        "voc", lambda r: write(r / "Annotations/1.xml", BOMB.encode("utf-16")), r"1\.xml: expected no document type",
    ),
    "voc, another root": ("voc", lambda r: write(r / "Annotations/1.xml", "<html/>"), "expected VOC's <annotation>; got <html>"),
    "voc, no name": ("voc", edit("Annotations/1.xml", "<name> ant </name>", ""), r"1\.xml: object 1: expected a name; got none"),
    "voc, a corner of text": (
        "voc", edit("Annotations/1.xml", "<xmax>50</xmax>", "<xmax>far</xmax>"), "object 1, xmax: expected a number; got 'far'",
    ),
    "voc, no corner": ("voc", edit("Annotations/1.xml", "<xmax>50</xmax>", ""), "object 1: expected bndbox with ymin, xmin"),
    "voc, unknown class": (
        "voc", lambda r: write(r / "classes.txt", "bee\ncup\n"), r"\.xml: expected names among those of classes\.txt, bee, cup",
    ),
    "voc, nothing labelled": (
        "voc", lambda r: [write(path, voc([])) for path in (r / "Annotations").iterdir()], "no image has a label",
    ),
    "yolo, text": ("yolo", lambda r: write(r / "1.txt", "cup 0.5 0.5 0.1 0.1"), r"1\.txt, line 1: expected 'class x y width"),
    "yolo, four": ("yolo", lambda r: write(r / "1.txt", "0 .5 .5 .1 .1\n0 0.5 0.5 0.1"), r"1\.txt, line 2: expected 'class x"),
    "yolo, with a score": ("yolo", lambda r: write(r / "1.txt", "0 .5 .5 .1 .1 .9"), "line 1: expected 'class x y width height'"),
    "yolo, NaN": ("yolo", lambda r: write(r / "1.txt", "0 nan .5 .1 .1"), "line 1: expected 'class x y width height'"),
    "yolo, unknown class": (
        "yolo", lambda r: write(r / "1.txt", "3 .5 .5 .1 .1"), r"line 1: expected a class in 0\.\.2, since 3 classes have names",
    ),
    "yolo, class -1": ("yolo", lambda r: write(r / "1.txt", "-1 .5 .5 .1 .1"), r"line 1: expected a class in 0\.\.2"),
    "yolo, a huge class": (
        "yolo", lambda r: ((r / "classes.txt").unlink(), write(r / "1.txt", "10000 .5 .5 .1 .1")),
        r"line 1: expected a class in 0\.\.9999, since the largest that is read; got 10000",
    ),
    "yolo, two name files": (
        "yolo", lambda r: write(r / "sub/obj.names", "a\nb\nc"), "same class names in all files; classes.txt and sub/obj",
    ),
    "yolo, a name twice": ("yolo", lambda r: write(r / "classes.txt", "a\na\nb"), "classes.txt: Expected each class name once"),
    "yolo, nothing labelled": ("yolo", lambda r: [write(p, "") for p in r.glob("[0-9p]*.txt")], "no image has a label"),
    "yolo, no UTF-8": ("yolo", lambda r: write(r / "1.txt", b"0 .5 .5 .1 .1\n\xff"), r"1\.txt cannot be read.*UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("images_format", "damage", "said"), ERRORS.values(), ids=ERRORS)
def test_what_is_malformed_is_an_error_that_names_the_entry(tmp_path, images_format, damage, said):
    FORMATS[images_format](tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=said):
        load_folder(str(tmp_path))


@pytest.mark.parametrize("images_format", ["coco", "voc", "yolo"])
def test_links_out_of_the_folder_are_not_followed(tmp_path, images_format):
    root = tmp_path / "root"
    FORMATS[images_format](root)
    image = next(root.rglob("1.png"))
    image.rename(tmp_path / "secret.png")
    image.symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match=r"that are links out of the folder \(.*1\.png\)"):
        assert len(load_folder(str(root))) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with the folder above, names occur twice
        assert len(load_folder(str(root), outside=True)) == 5


# --- names of classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "names: ['bee', \"ant\", coffee cup]",
        "nc: 3\nnames:\n- bee\n- 'ant'\n- coffee cup  # comment\nroboflow:\n  x: 1\n",
        'names:\n  0: bee\n  1: ant\n\n  # a comment\n  2: "coffee cup"\n',
        "names: {0: bee, 1: ant, 2: 'coffee cup'}",
        "names: [bee,\n  ant,\n  coffee cup]\nnc: 3\n",
        "names:  # of the classes\n  - bee\n  - ant\n  - coffee cup",
    ],
)
def test_names_of_a_table(text):
    assert _names_of_table(text, Path("data.yaml")) == ["bee", "ant", "coffee cup"]


@pytest.mark.parametrize(
    "text", ["names: bee", "names:\nnc: 3", "names: {1: bee}", "names: [bee", "names: &a [bee]", "names: []"]
)
def test_names_in_another_form_are_refused(text):
    with pytest.raises(DataError, match=r"data\.yaml: expected names as a list, or numbered from 0 on"):
        _names_of_table(text, Path("data.yaml"))
    assert _names_of_table("nc: 3", Path("data.yaml")) is None


def test_names_that_are_numbers_are_spelled_out_unless_they_are_their_places(tmp_path):
    write_yolo(tmp_path)
    for names, expected in ((("1", "2", "cup"), ("no. 1", "no. 2", "cup")), (("0", "1", "2"), ("0", "1", "2"))):
        write(tmp_path / "classes.txt", "\n".join(names))
        data = load_folder(str(tmp_path))
        assert data.class_names == expected
        assert EnvConfig(source="custom", images=str(tmp_path), class_names=data.class_names).classes == 3


def test_classes_of_several_coco_files_are_one_by_their_names(tmp_path):
    coco_beside(tmp_path)
    other = json.loads((tmp_path / "test/_annotations.coco.json").read_text())
    for category, (number, name) in zip(other["categories"], ((3, "eel"), (6, "ant"), (9, "bee")), strict=True):
        category.update(id=number, name=name)
    (tmp_path / "test/_annotations.coco.json").write_text(json.dumps(other))
    with pytest.warns(UserWarning, match="No image of train holds eel"):
        data = load_folder(str(tmp_path))
    assert data.class_names == (*CLASSES, "eel")
    assert objects(data)["4.png"] == [("ant", 0, 0, 40, 60), ("eel", 1, 1, 2, 2)]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Photographs of several sizes with a box around the whole image."""
    folder, lines = tmp_path / "mixed", ["file,labels,boxes"]
    for i, (height, width) in enumerate([(40, 60), (60, 40), (40, 80), (50, 75), (40, 60)] * 3):
        save(folder / f"{i}.png", i, (height, width))
        lines.append(f"{i}.png,{i % 2},0 0 {height} {width}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def custom(images: Any, **more: Any) -> EnvConfig:
    return EnvConfig(source="custom", images=images, activation="playing:Colours", **more)


def test_mixed_sizes_are_brought_to_one_that_suits_and_that_is_said(mixed):
    with pytest.warns(
        UserWarning, match=r"several sizes are brought to 48x64 px \(rows x columns\) by fit='letterbox'; image_px"
    ):
        data = load_folder(str(mixed))
    assert (data.image_shape, data.fit) == ((48, 64, 3), Fit((48, 64)))
    assert data.sizes[:3].tolist() == [[40, 60], [60, 40], [40, 80]]
    for i in range(3):
        with Image.open(mixed / f"{i}.png") as file:
            np.testing.assert_array_equal(data.images[i], Fit((48, 64)).pixels(np.asarray(file)))
    assert data.boxes[1].tolist() == [[0, 16, 48, 32]]
    np.testing.assert_allclose(data.fit.to_original(np.array([24, 32]), (60, 40)), [30, 20])


@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch"])
@pytest.mark.parametrize("image_px", [32, (32, 48), [16, 24]])
def test_sizes_that_are_asked_for(mixed, image_px, fit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = custom(str(mixed), image_px=image_px, fit=fit)
        assert config.image_shape[:2] == config.image_fit.image_px == Fit(image_px, fit).image_px
    with Image.open(mixed / "3.png") as file:
        np.testing.assert_array_equal(config.data.images[3], config.image_fit.pixels(np.asarray(file)))
    arrays = [np.asarray(Image.open(mixed / f"{i}.png")) for i in range(15)]
    given = custom(arrays, labels=[[i % 2] for i in range(15)], image_px=image_px, fit=fit)
    np.testing.assert_array_equal(np.asarray(config.data.images), given.data.images)
    np.testing.assert_array_equal(given.data.sizes, config.data.sizes)
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(config.data.part(split), given.data.part(split))
    boxed = LabelledImages(
        arrays, [[i % 2] for i in range(15)], boxes=[[(0, 0, *a.shape[:2])] for a in arrays], fit=Fit(image_px, fit)
    )
    assert boxed.digest == config.data.digest
    assert config.data.digest != given.data.digest  # which has no boxes


def test_shares_do_not_depend_on_the_size(mixed):
    with pytest.warns(UserWarning, match="several sizes"):
        first = load_folder(str(mixed))
    for px in (16, (20, 50)):
        for split in ("train", "val", "test"):
            np.testing.assert_array_equal(
                load_folder(str(mixed), image_px=px, fit="crop").part(split), first.part(split)
            )
    for image in range(15):  # to one size by hand
        save(mixed / f"{image}.png", image, SIZE)
        (mixed / "labels.csv").write_text("\n".join(["file,labels", *(f"{i}.png,0" for i in range(15))]))
    plain, small = load_folder(str(mixed)), load_folder(str(mixed), image_px=20)
    assert (plain.fit, small.fit) == (None, Fit((20, 20)))
    np.testing.assert_array_equal(plain.part("train"), small.part("train"))
    assert plain.digest != small.digest


def test_grey_and_colour_mix_and_share_as_arrays_do(tmp_path):
    arrays = [
        np.random.default_rng(i).integers(0, 256, (20 + i, 30) + (3,) * (i % 2), dtype=np.uint8) for i in range(12)
    ]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.bmp")
    write(tmp_path / "labels.csv", "\n".join(f"{i}.bmp,{i % 3}" for i in range(12)))
    folder = load_folder(str(tmp_path), image_px=16)
    listed = LabelledImages(arrays, [[i % 3] for i in range(12)], fit=Fit(16))
    assert folder.image_shape == (16, 16, 3)
    np.testing.assert_array_equal(np.asarray(folder.images), listed.images)
    assert folder.digest == listed.digest


@pytest.mark.parametrize("form", ["png", "jpg", "bmp", "webp", "tif", "tiff"])
@pytest.mark.parametrize("turned", [False, True])
def test_formats_and_their_orientation(tmp_path, form, turned):
    image = np.zeros((20, 30, 3), np.uint8)
    image[:10] = 200
    exif = Image.Exif()
    if turned and form != "bmp":
        exif[0x0112] = 6
    with_exif = {"exif": exif} if turned and form != "bmp" else {}
    Image.fromarray(image).save(tmp_path / f"a.{form}", **with_exif, **({"lossless": True} if form == "webp" else {}))
    write(tmp_path / "labels.csv", f"a.{form},0\n")
    read = load_folder(str(tmp_path)).images[0].astype(int)
    expected = np.rot90(image, -1) if with_exif else image
    assert read.shape == expected.shape
    assert np.abs(read - expected).max() <= 4


def test_lists_in_several_sizes_need_a_size():
    arrays = [np.zeros((20, 30), np.uint8), np.zeros((30, 20), np.uint8)]
    with pytest.raises(
        DataError, match=r"image 1: expected 20x30 px .*; got 30x20\. .* image_px=\(ROWS, COLUMNS\) does it"
    ):
        custom(arrays, labels=[[0], [1]])
    assert custom(arrays, labels=[[0], [1]], image_px=8).image_shape == (8, 8, 1)
    for wrong in ({"image_px": 0}, {"image_px": (8, 8, 8)}, {"image_px": "8"}):
        with pytest.raises(ConfigError, match="image_px as a whole number in"):
            custom(arrays, labels=[[0], [1]], **wrong)
    with pytest.raises(ConfigError, match="fit to be one of letterbox, crop, stretch"):
        custom(arrays, labels=[[0], [1]], fit="pad")
    with pytest.raises(ConfigError, match=r"got image_px \(for custom\), fit \(for custom\)"):
        EnvConfig(source="digits", image_px=8, fit="crop")


def test_labelled_images_are_refitted():
    boxes = [[(0, 0, 20, 30)], [(10, 0, 10, 15)]]
    data = LabelledImages(np.zeros((2, 20, 30), np.uint8), [[0], [1]], boxes=boxes)
    assert data.fitted(Fit((20, 30), "crop")) is data
    config = custom(data, image_px=(40, 60))
    assert config.image_shape == (40, 60, 1)
    assert config.data.boxes.tolist() == [[[0, 0, 40, 60]], [[20, 0, 20, 30]]]
    assert data.boxes.tolist() == [[[0, 0, 20, 30]], [[10, 0, 10, 15]]]  # the first ones stay
    assert config.data.digest != data.digest
    assert (config.image_fit, custom(data).image_fit) == (Fit((40, 60)), Fit((20, 30)))


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[(0, 0, 9, 9)]], "as many lists of boxes as images; got 1 for 2"),
        ([[(0, 0, 9, 9)], []], "image 1: expected boxes as whole numbers .*, one for each of 1 labels; got"),
        ([[(0, 0, 9)], None], r"image 0: expected boxes as whole numbers .* of shape \(1, 3\)"),
        ([[(0.5, 0, 9, 9)], None], "image 0: expected boxes as whole numbers .*; got float64"),
        (
            [[(0, 0, 21, 9)], None],
            r"image 0: expected boxes of at least 1 px within 20x30 px, or -1; got \[0, 0, 21, 9\]",
        ),
        ([[(0, 0, 0, 9)], None], "image 0: expected boxes of at least 1 px"),
    ],
)
def test_wrong_boxes_are_refused(boxes, said):
    with pytest.raises(DataError, match=said):
        LabelledImages(np.zeros((2, 20, 30), np.uint8), [[0], [1]], boxes=boxes)


def test_boxes_may_be_unknown_or_cut_away():
    images = np.zeros((2, 20, 60), np.uint8)
    some = LabelledImages(images, [[0], [1]], boxes=[None, [(0, 0, 9, 9)]])
    assert not some.has_boxes
    assert not LabelledImages(images, [[0], [1]]).has_boxes
    assert not LabelledImages(images, [[], []], labels_are="lists", boxes=[[], []]).has_boxes
    assert LabelledImages(images, [[0], [1]], boxes=[[(0, 30, 9, 9)], [(0, 0, 9, 9)]], fit=Fit(20, "crop")).has_boxes
    with pytest.raises(DataError, match="unknown for these images"):
        Examples(custom(some, split="all", saliency="boxes")).load([0])


# --- the store of pixels ----------------------------------------------------------------------------------------------


@pytest.fixture
def stores(tmp_path, monkeypatch) -> Callable[[], int]:
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path / "cache"))
    return lambda: len([*(tmp_path / "cache" / "images").iterdir()])


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The files that are decoded from now on."""
    files: list[str] = []
    read = pixel_store.read_image
    monkeypatch.setattr(pixel_store, "read_image", lambda file: files.append(file) or read(file))
    return files


def forget() -> None:
    from hsal_env.data import custom

    custom._load.cache_clear()


def test_images_are_decoded_once(mixed, stores, decoded):
    for count, asked in enumerate(({"image_px": 16}, {"image_px": (16, 24)}, {"image_px": 16, "fit": "crop"}), start=1):
        forget()
        first = load_folder(str(mixed), **asked)
        assert len(decoded) == 15 * count
        forget()
        again = load_folder(str(mixed), **asked)
        assert again is not first
        assert (len(decoded), stores()) == (15 * count, count)
        np.testing.assert_array_equal(np.asarray(again.images), np.asarray(first.images))
        assert again.digest == first.digest
    save(mixed / "3.png", 77, (40, 60))
    assert load_folder(str(mixed), image_px=16).digest != first.digest
    assert stores() == 4


def test_a_changed_annotation_is_read_again_and_nothing_decoded(tmp_path, decoded):
    write_voc(tmp_path)
    assert load_folder(str(tmp_path)) is load_folder(str(tmp_path))
    before = len(decoded)
    write(tmp_path / "Annotations/1.xml", voc(SCENES[0]))
    assert objects(load_folder(str(tmp_path)))["1.png"] == EXPECTED["0.png"]
    assert len(decoded) == before


def test_bad_images_are_remembered(mixed, stores, decoded):
    write(mixed / "4.png", b"broken")
    Image.new("RGBA", (30, 30)).save(mixed / "5.png")
    cut = (mixed / "6.png").read_bytes()
    write(mixed / "6.png", cut[:-20])
    said = r"12 images are used\. 3 are left out: 2 damaged or in no format that is read \(.*4\.png\); 1 neither 8-bit"
    for _ in range(2):
        forget()
        with pytest.warns(UserWarning, match=said):
            data = load_folder(str(mixed), image_px=16)
        assert [Path(name).stem for name in data.names] == ["0", "1", "2", "3", *map(str, range(7, 15))]
        with Image.open(mixed / "7.png") as file:
            np.testing.assert_array_equal(data.images[4], Fit(16).pixels(np.asarray(file)))
    assert len(decoded) == 13  # 6.png is damaged behind its head


def test_stored_images_are_rows_of_an_array(mixed):
    data = load_folder(str(mixed), image_px=(16, 24))
    images, whole = data.images, np.asarray(data.images)
    assert (images.shape, images.dtype, images.ndim, len(images)) == ((15, 16, 24, 3), np.uint8, 4, 15)
    for rows in (
        3,
        -1,
        np.int64(2),
        slice(2, 5),
        [4, 0, 4],
        np.array([7]),
        np.zeros(0, np.int64),
        np.arange(15) % 2 == 0,
    ):
        np.testing.assert_array_equal(images[rows], whole[rows])
    np.testing.assert_array_equal(np.stack([*images]), whole)
    with pytest.raises(IndexError):
        _ = images[15]
    same = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(np.asarray(same.images), whole)
    assert len(pickle.dumps(data)) < whole.nbytes


# --- what goes with an agent ------------------------------------------------------------------------------------------


def test_plain_values_fix_the_size(mixed, tmp_path):
    with pytest.warns(UserWarning, match="several sizes"):
        plain = custom(str(mixed), split="train", fit="crop").plain()
    assert plain == json.loads(json.dumps(plain))
    assert (plain["image_px"], plain["fit"], plain["images_format"]) == ([48, 64], "crop", "auto")
    again = EnvConfig.from_kwargs(plain)
    assert (again.image_px, again.image_fit, again.plain()) == ((48, 64), Fit((48, 64), "crop"), plain)
    write_yolo(tmp_path / "other")
    (tmp_path / "other" / "classes.txt").unlink()
    for i in range(2):
        (tmp_path / "other" / f"{i}.txt").write_text("1 .5 .5 .5 .5\n")
    (tmp_path / "other" / "photo 3.txt").write_text("")
    (tmp_path / "other" / "4.txt").write_text("")
    loaded = Loaded(None, again, "custom")  # type: ignore[arg-type]
    env = replace(loaded.env_on("all", images=str(tmp_path / "other")), split="all")
    assert (env.image_shape, env.size, env.classes) == ((48, 64, 3), 5, 2)
    assert env.data.fit == Fit((48, 64), "crop")
    uniform = custom(str(tmp_path / "other"), split="train")
    assert uniform.plain()["image_px"] == [*SIZE]
    assert not {"images_format", "image_px", "fit"} & set(EnvConfig(source="digits").plain())


def test_any_image_can_be_brought_to_the_size_of_a_trained_agent(mixed):
    digits = EnvConfig(source="digits")
    assert digits.image_fit == Fit((100, 100), "letterbox")
    assert EnvConfig(source="house-numbers", canvas_px=64).image_fit == Fit((64, 64), "stretch")
    loaded = Loaded(None, digits, "digits")  # type: ignore[arg-type]
    env = loaded.env_on("all", images=str(mixed), max_objects=4)
    assert (env.image_shape, env.data.fit) == ((100, 100, 3), Fit((100, 100), "letterbox"))


# --- many images ------------------------------------------------------------------------------------------------------


def test_a_folder_within_a_folder_of_parts_that_links_back(tmp_path):
    yolo_in("{}/images", "{}/labels")(tmp_path / "data")
    os.symlink(tmp_path / "data", tmp_path / "data" / "train" / "loop")
    assert len(load_folder(str(tmp_path / "data"))) == 4
    assert len(load_folder(str(tmp_path / "data"), outside=True)) == 4


def test_reading_looks_at_no_image(tmp_path):
    write_coco(tmp_path)
    for name in NAMES:
        write(tmp_path / "images" / name, b"no image")
    assert [path.name for path in read_annotations(tmp_path).files] == NAMES


# --- the real data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes", "most", "labels"),
    [
        ("dice", (279, 31, 86), (160, 224, 3), ("One", "Two", "Three", "Four", "Five", "Six"), 5, None),
        ("handwritten_amounts", (972, 108, 128), (64, 160, 3), tuple("0123456789"), 7, 4898 + 562),
        ("blood_cells", (205, 87, 72), (160, 224, 3), ("Platelets", "RBC", "WBC"), 30, None),
    ],
)
@pytest.mark.slow
def test_photographs_of_others(name, sizes, shape, classes, most, labels):
    folder = needs.photographs(DATA_ROOT, name)
    px = None if name == "handwritten_amounts" else shape[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # amounts have many sizes
        data = load_folder(folder, image_px=px)
    assert tuple(len(data.part(split)) for split in ("train", "val", "test")) == sizes
    assert (data.image_shape, data.class_names, data.max_objects(), data.has_boxes) == (shape, classes, most, True)
    assert labels in (None, int((data.labels >= 0).sum()))
    known = data.boxes[data.labels >= 0]
    assert (known[:, 2:] > 0).all()
    assert (known[:, :2] + known[:, 2:] <= shape[:2]).all()
