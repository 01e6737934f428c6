"""The boxes in a model's answer, read and drawn.

Qwen2-VL points at things with <|object_ref_start|>name<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>, in
thousandths of the picture's width and height. Decode with skip_special_tokens=False, or the markers are gone.
"""

from __future__ import annotations

import colorsys
import math
import re
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from qwen2vl_io.pictures import load_image

BOX_SCALE = 1000
TINY_SIDE = 112  # pixels: in a picture with a shorter side, names would cover what they name
READABLE_SIDE = 280  # pixels of the shorter side, at which they do not
LARGEST_SIDE = 1400  # pixels that the longer side may get by that
MARKED = re.compile(
    r"<\|object_ref_start\|>(?P<name>(?:(?!<\|).)*)<\|object_ref_end\|>|<\|box_start\|>(?P<box>[^<]*)<\|box_end\|>",
    re.DOTALL,
)
NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
CORNERS = re.compile(rf"\s*\({NUMBER},{NUMBER}\)\s*,\s*\({NUMBER},{NUMBER}\)\s*")


@dataclass
class Box:
    """A named rectangle in pixels of the picture: (x1, y1) is its top left, (x2, y2) its bottom right."""

    name: str
    x1: float
    y1: float
    x2: float
    y2: float


def parse_boxes(text: str, width: int, height: int) -> list[Box]:
    """The boxes in a model's raw answer, in pixels of a picture of width × height.

    A name holds for all boxes that follow it directly; a box without one is named "". Malformed boxes are skipped.

    >>> parse_boxes("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(0,250),(500,1000)<|box_end|>", 640, 480)
    [Box(name='cat', x1=0.0, y1=120.0, x2=320.0, y2=480.0)]
    """
    if width < 1 or height < 1:
        raise ValueError(f"Boxes need the size of their picture in pixels, not {width}×{height}.")
    boxes = []
    name = ""
    end = 0
    for match in MARKED.finditer(text):
        if text[end : match.start()].strip(" \t\r\n,;"):  # other words came between: the name before them is used up
            name = ""
        end = match.end()
        if match["box"] is None:
            name = match["name"].strip()
        elif corners := CORNERS.fullmatch(match["box"]):
            x1, y1, x2, y2 = (min(max(float(number), 0), BOX_SCALE) / BOX_SCALE for number in corners.groups())
            (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
            boxes.append(Box(name, x1 * width, y1 * height, x2 * width, y2 * height))
    return boxes


def enlarge_tiny(image, boxes: list[Box]) -> tuple[Image.Image, list[Box], int]:
    """A picture too small to write on, with its boxes, a whole number of times as large; others stay as they are.

    Its pixels become squares, so that nothing is invented. Returns the factor, too: 1 where nothing was done.
    """
    image = load_image(image)
    shorter, longer = sorted(image.size)
    factor = 1
    if shorter < TINY_SIDE:
        factor = max(1, min(math.ceil(READABLE_SIDE / shorter), LARGEST_SIDE // longer))
    if factor == 1:
        return image, boxes, 1

    large = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    corners = [(factor * side for side in (box.x1, box.y1, box.x2, box.y2)) for box in boxes]
    return large, [Box(box.name, *sides) for box, sides in zip(boxes, corners)], factor


def draw_boxes(image, boxes: list[Box]) -> Image.Image:
    """A copy of the picture (anything `load_image` takes) with the boxes and their names drawn on it.

    Names are written with Pillow's own font, which has Latin letters only.
    """
    image = load_image(image).copy()
    draw = ImageDraw.Draw(image)
    shorter = min(image.size)
    line = max(2, round(shorter / 150))  # pixels
    font = ImageFont.load_default(max(10, round(shorter / 25)))
    tags = []
    placed = []
    for number, box in enumerate(boxes):
        # steps of the golden ratio around the colour circle never come back to the same hue
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.9, 1.0))
        left, right = sorted(min(max(round(x), 0), image.width) for x in (box.x1, box.x2))
        top, bottom = sorted(min(max(round(y), 0), image.height) for y in (box.y1, box.y2))
        right = max(right - 1, left)  # Pillow draws the last pixel too
        bottom = max(bottom - 1, top)
        edge = line + (line + 2) // 3  # black inside the line, so that it shows on its own colour
        draw.rectangle((left, top, right, bottom), outline="black", width=edge)
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        label = " ".join(box.name.split())[:100]
        if label:
            while len(label) > 1 and font.getlength(label) + 2 * line > image.width:
                label = label[:-2] + "…"
            tags.append((label, left, top, colour))
    for label, left, top, colour in tags:  # after all lines, so that none crosses a name
        _, up, _, down = font.getbbox("Ág")
        wide = round(font.getlength(label)) + 2 * line + 2
        tall = down - up + 2 * line
        x = max(0, min(left, image.width - wide))
        y = top - tall if top >= tall else min(top, max(0, image.height - tall))  # above the box if there is room
        while y + 2 * tall <= image.height and any(abs(y - b) < tall and a - wide < x < a + w for a, b, w in placed):
            y += tall  # below a name that is there already
        placed.append((x, y, wide))
        draw.rectangle((x, y, x + wide - 1, y + tall - 1), fill=colour, outline="black")
        red, green, blue = colour
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
        draw.text((x + line + 1, y + line - up), label, fill=ink, font=font)
    return image
