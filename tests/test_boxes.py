"""PITFALL 23: boxes are read from a model's answer and drawn."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from qwen2vl_io.boxes import Box, draw_boxes, parse_boxes
from tests import test_pictures
from tests.test_pictures import WHITE, same, sentence

scene = test_pictures.scene  # fixtures
pillow_warnings_are_errors = test_pictures.pillow_warnings_are_errors


def marked(name: str | None, *boxes: str) -> str:
    ref = "" if name is None else f"<|object_ref_start|>{name}<|object_ref_end|>"
    return ref + "".join(f"<|box_start|>{box}<|box_end|>" for box in boxes)


def test_pitfall_23_boxes_are_thousandths_of_the_original_picture():
    text = marked("red circle", "(100,200),(300,450)") + "<|im_end|>"
    assert parse_boxes(text, width=640, height=480) == [Box("red circle", 64.0, 96.0, 192.0, 216.0)]


def test_pitfall_23_several_names_several_boxes_and_none():
    text = (
        "There is "
        + marked("a cat", "(0,0),(10,10)", "(20,20),(30,30)")
        + ", "
        + marked(" 红色的圆 ", "(1,2),(3,4)")
        + " and here: "
        + marked(None, "(5,6),(7,8)")
        + marked("nothing")
        + " at all."
    )
    assert parse_boxes(text, 1000, 1000) == [
        Box("a cat", 0, 0, 10, 10),
        Box("a cat", 20, 20, 30, 30),
        Box("红色的圆", 1, 2, 3, 4),
        Box("", 5, 6, 7, 8),
    ]
    spaced = marked("dog") + "\n" + marked(None, "(1,1),(2,2)") + ", " + marked(None, "( 3 , 3 ) , ( 4 , 4 )")
    assert [box.name for box in parse_boxes(spaced, 100, 100)] == ["dog", "dog"]


def test_pitfall_23_clamped_and_put_in_order():
    text = marked("x", "(900,-5),(1200,99999999999999999999)", "(300,400),(100,200)", "(1.5,2),(3,4.5)")
    assert parse_boxes(text, 1000, 500) == [
        Box("x", 900, 0, 1000, 500),
        Box("x", 100, 100, 300, 200),
        Box("x", 1.5, 1, 3, 2.25),
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "(1,2)",
        "(1,2),(3)",
        "(1,2),(3,4),(5,6)",
        "(1,2)(3,4)",
        "1,2,3,4",
        "(a,b),(c,d)",
        "(1,2),(3,4",
        "(٣,2),(3,4)",
    ],
)
def test_pitfall_23_malformed_boxes_are_skipped_and_the_good_ones_kept(broken):
    text = marked("x", "(0,0),(1,1)", broken, "(2,2),(3,3)")
    assert parse_boxes(text, 1000, 1000) == [Box("x", 0, 0, 1, 1), Box("x", 2, 2, 3, 3)]
    for unclosed in ("<|box_start|>(1,2),(3,4)", "<|object_ref_start|>y", "<|box_end|>", "<|object_ref_end|>"):
        found = parse_boxes(unclosed + marked("x", "(0,0),(1,1)") + unclosed, 1000, 1000)
        assert found == [Box("x", 0, 0, 1, 1)]


def test_pitfall_23_no_boxes_and_no_picture():
    assert parse_boxes("A red circle.", 10, 10) == parse_boxes("", 10, 10) == []
    with pytest.raises(ValueError, match="size of their picture") as error:
        parse_boxes("", 0, 10)
    sentence(error)


def test_parsing_takes_no_time_on_hostile_text():
    for piece in ("<|object_ref_start|>", "<|box_start|>", "<|box_start|>(1", "(1,1),", "1" * 10, "<|"):
        text = piece * 20000
        assert parse_boxes(text + marked("x", text, "1" * 20000), 10, 10) == []


def test_drawing_leaves_the_picture_and_puts_the_lines_where_the_box_is(scene):
    image = Image.new("RGB", (300, 300), "white")
    before = image.tobytes()
    drawn = draw_boxes(image, [Box("", 50, 60, 200, 250)])
    assert image.tobytes() == before and drawn.size == image.size and drawn is not image
    changed = np.argwhere((np.asarray(drawn) != 255).any(2))  # (n, 2): row, column
    assert changed.min(0).tolist() == [60, 50] and changed.max(0).tolist() == [249, 199]
    assert drawn.getpixel((125, 150)) == WHITE, "not filled"
    assert draw_boxes(scene, []).tobytes() == scene.tobytes()


def test_every_box_has_its_own_colour_and_shows_on_it():
    boxes = [Box("", 10 + 25 * i, 10, 30 + 25 * i, 290) for i in range(12)]
    drawn = draw_boxes(Image.new("RGB", (320, 300), "white"), boxes)
    colours = [drawn.getpixel((int(box.x1) + 1, 150)) for box in boxes]
    distances = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 40
    for colour, box in zip(colours, boxes):
        on_itself = np.asarray(draw_boxes(Image.new("RGB", (320, 300), colour), [boxes[0], box]))
        assert (on_itself != colour).any()


@pytest.mark.parametrize("background", ["white", "black", "red", (255, 255, 0), (128, 128, 128)])
def test_names_are_legible_on_any_background(background):
    """The tag behind the letters makes their contrast, whatever the picture: light ink on dark or dark on light."""
    for i in range(8):
        boxes = [Box("", 0, 0, 1, 1)] * i + [Box("MMMMMM", 60, 100, 280, 280)]
        drawn = draw_boxes(Image.new("RGB", (300, 300), background), boxes)
        inside = np.asarray(drawn.convert("L").crop((64, 92, 100, 97))).astype(int)
        assert inside.max() - inside.min() > 75, (i, inside)


def test_lines_grow_with_the_picture():
    def line_width(side):
        drawn = np.asarray(draw_boxes(Image.new("RGB", (side, side)), [Box("", 0, 0, side, side)]))
        return int((drawn[side // 2, : side // 2] != 0).any(1).sum())

    assert line_width(56) == 2 and line_width(448) == 3 and line_width(3000) == 20


@pytest.mark.parametrize(
    "box",
    [
        Box("a name much longer than the picture is wide, by a lot" * 9, 0, 0, 5, 5),
        Box("corner", 99, 99, 100, 100),
        Box("outside", -500, -500, 5000, 5000),
        Box("reversed", 80, 80, 20, 20),
        Box("two\nlines\tand 中文 \x00", 10, 10, 50, 50),
        Box("empty", 50, 50, 50, 50),
        Box("fractions", 10.4, 10.5, 20.6, 30.1),
    ],
)
def test_odd_boxes_are_drawn_too(box):
    for size in ((100, 100), (1, 1), (300, 7)):
        drawn = draw_boxes(Image.new("RGB", size, "white"), [box])
        assert drawn.size == size
    assert np.asarray(draw_boxes(Image.new("RGB", (100, 100), "white"), [box])).min() == 0


def test_names_at_the_same_place_do_not_cover_each_other():
    boxes = [Box("MMM", 100, 100, 250, 250)] * 3
    once, thrice = (np.asarray(draw_boxes(Image.new("RGB", (300, 300), "white"), boxes[:n])) for n in (1, 3))
    first_tag = np.argwhere((once[:90] != 255).any(2))
    top, bottom = first_tag[:, 0].min(), 100
    assert np.array_equal(thrice[top:bottom], once[top:bottom]), "the first name is still there"
    assert (thrice[bottom:130, 105:130] != once[bottom:130, 105:130]).any(), "the others are below it"


def test_drawing_takes_what_loading_takes(tmp_path):
    photo = load_sample_image("flower.jpg")
    Image.fromarray(photo).save(tmp_path / "flower.png")
    boxes = [Box("flower", 200, 50, 500, 400)]
    assert same(draw_boxes(tmp_path / "flower.png", boxes), draw_boxes(photo, boxes))
