"""Make the pictures of the README: the example scene and clip, what the bundled checkpoint makes of them, thumbnails.

    python -m assets.make_pictures

scene.png is a held-out scene; clip.mp4 shows two seconds of a drawing in which one thing moves, long_clip.mp4 four of
another. Every number in pipeline.png,
every box in boxes.png and every line in terminal.png comes from a real run of the bundled checkpoint; the thumbnails
are figures of the notebooks.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import weights_loader
from qwen2vl_mini import (
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    draw_boxes,
    get_rope_index,
    parse_boxes,
    unpatchify,
)
from tiny_world.scenes import TEST_SEED, make_sample

ASSETS = Path(__file__).parent
INK = "#1f2933"
BLUE = "#3565c4"
ORANGE = "#e08214"
GREEN = "#2e8b57"
GREY = "#8a94a0"
SOFT = "#52606d"


def box(axes, x, y, width, height, text, colour, size=10.5):
    """A rounded box with a text in it."""
    shape = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc="white", ec=colour, lw=1.8))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.45)


def arrow(axes, x1, y1, x2, y2):
    axes.add_patch(FancyArrowPatch((x1, y1), (x2, y2), arrowstyle="-|>", mutation_scale=15, lw=1.5, color=GREY))


def caption(axes, x, y, title):
    axes.text(x, y, title, ha="center", va="bottom", fontsize=12, weight="bold", color=INK)


def note(axes, x, y, text, size=10, colour=INK, va="top", linespacing=None):
    """A centred text without a box."""
    axes.text(x, y, text, ha="center", va=va, fontsize=size, color=colour, linespacing=linespacing)


def picture(axes, left, bottom, width, content, grid):
    """Draw a picture at (left, bottom), with the borders of its patches and tokens if `grid`."""
    sub = axes.figure.add_axes((left / 150, (bottom - 2) / 77, width / 150, width * 0.8 / 77))
    sub.imshow(content)
    sub.set_xticks([])
    sub.set_yticks([])
    if not grid:
        return
    height, width = content.shape[:2]
    for x in range(0, width + 1, 14):
        sub.axvline(x - 0.5, **line_of(x))
    for y in range(0, height + 1, 14):
        sub.axhline(y - 0.5, **line_of(y))


def line_of(pixel: int) -> dict:
    """The style of the border at this pixel: of a token at every 28th, of a patch at the others."""
    return {"color": "#9fb3c8", "lw": 0.5} if pixel % 28 else {"color": INK, "lw": 1.2}


CLIPS = {  # name → number of the held-out scene, frames a second
    "clip.mp4": (8, 4),
    "long_clip.mp4": (36, 2),  # long enough that --fps changes what is seen of it
}


def make_clip(name: str) -> None:
    number, rate = CLIPS[name]
    sample = make_sample(TEST_SEED * 2 + number, "motion", 160, 112, max_things=3, frames=8)
    with av.open(str(ASSETS / name), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        stream.width, stream.height = sample.images[0].size
        stream.pix_fmt = "yuv420p"
        for image in sample.images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))


@dataclass
class Run:
    """A real run of the bundled checkpoint on one picture."""

    model: Qwen2VLForConditionalGeneration
    processor: Qwen2VLProcessor
    image: Image.Image
    inputs: dict
    answer_ids: Tensor  # (new tokens)
    answer: str
    visual_tokens: int
    logits_shape: tuple[int, ...]
    positions: Tensor  # (3, 1, prompt)
    delta: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patches."""
        return tuple(self.inputs.image_grid_thw[0].tolist())

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.inputs.input_ids.shape[1]

    @property
    def is_image(self) -> list[bool]:
        """Of each token of the prompt, whether it stands for a part of the picture."""
        return (self.inputs.input_ids[0] == self.model.config.image_token_id).tolist()

    @property
    def width(self) -> int:
        """Of the decoder."""
        return self.model.config.text_config.hidden_size


def run_checkpoint() -> Run:
    """Ask for a description of a held-out scene, which is saved as scene.png."""
    sample = make_sample(TEST_SEED * 2 + 22, "describe", 210, 176, max_things=4, text_share=0)
    image = sample.images[0]
    image.save(ASSETS / "scene.png")
    model, processor = weights_loader.load("tiny", dtype="float32")
    content = [{"type": "image", "image": image}, {"type": "text", "text": sample.question}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)

    answer_ids = model.generate(**inputs)[0, inputs.input_ids.shape[1] :]
    with torch.no_grad():
        merged = model.visual(inputs.pixel_values, inputs.image_grid_thw)
        logits = model(**inputs, logits_to_keep=1).logits
    positions, delta = get_rope_index(model.config, inputs.input_ids, inputs.image_grid_thw)
    return Run(
        model,
        processor,
        image,
        inputs,
        answer_ids,
        processor.decode(answer_ids, skip_special_tokens=True),
        visual_tokens=len(merged),
        logits_shape=tuple(logits.shape),
        positions=positions,
        delta=int(delta),
    )


def draw_patches(axes, run: Run) -> None:
    """Upper row, left: from the file to patches."""
    t, h, w = run.grid
    picture(axes, 3, 51, 23, plt.imread(ASSETS / "scene.png"), grid=False)
    caption(axes, 14.5, 72.5, "1 · a picture")
    note(axes, 14.5, 49.6, f"{run.image.width} × {run.image.height} pixels")
    arrow(axes, 27, 61, 32.5, 61)
    note(axes, 29.8, 62.3, "smart\nresize", size=8.5, colour=SOFT, va="baseline")

    processor = run.processor.image_processor
    pixels = unpatchify(run.inputs.pixel_values, (t, h, w))[0].movedim(0, 2)
    pixels = pixels * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    picture(axes, 33.5, 51, 23, pixels.clamp(0, 1).numpy(), grid=True)
    caption(axes, 45, 72.5, "2 · patches")
    sizes = f"{w * 14} × {h * 14} pixels, grid (t, h, w) = ({t}, {h}, {w})"
    note(axes, 45, 49.6, f"{sizes}\ngrey: patches of 14 px · black: tokens of 28 px", linespacing=1.4)
    arrow(axes, 57.5, 61, 63, 61)
    note(axes, 60.2, 62.3, "patchify", size=8.5, colour=SOFT, va="baseline")


def draw_tower(axes, run: Run) -> None:
    """Upper row, right: from patches to visual tokens."""
    N, patch = run.inputs.pixel_values.shape
    C_vision, C = run.model.config.vision_config.embed_dim, run.width
    caption(axes, 73, 72.5, "3 · rows of numbers")
    box(axes, 64, 52, 18, 18, f"pixel_values\n({N}, {patch})\n\n3 colours × 2 frames\n× 14 × 14 pixels", BLUE)
    arrow(axes, 83, 61, 88, 61)

    blocks = f"{len(run.model.visual.blocks)} blocks, 2-D rotary,\nfull attention inside\none picture"
    caption(axes, 99, 72.5, "4 · vision tower")
    box(axes, 89, 52, 20, 18, f"({N}, {C_vision})\n\n{blocks}", ORANGE)
    arrow(axes, 110, 61, 115, 61)

    shapes = f"({N}, {C_vision}) → ({run.visual_tokens}, {4 * C_vision}) → ({run.visual_tokens}, {C})"
    wide = f"{run.visual_tokens} visual tokens, as wide\nas the decoder's words"
    caption(axes, 131, 72.5, "5 · merger")
    box(axes, 116, 52, 30, 18, f"2 × 2 patches → 1 token\n{shapes}\n\n{wide}", ORANGE)


def draw_sequence(axes, run: Run) -> None:
    """Middle row: the sequence and its positions."""
    caption(axes, 75, 41.2, f"6 · one sequence of {run.prompt} tokens, and M-RoPE's three positions for each")
    for y, name, colour in ((31.3, "t", BLUE), (28.3, "h", ORANGE), (25.3, "w", GREEN)):
        axes.text(8.5, y, name, ha="center", va="center", fontsize=12, weight="bold", color=colour)

    _, h, w = run.grid
    first = run.is_image.index(True)
    after = run.prompt - run.is_image[::-1].index(True)  # the picture
    columns = [*range(first - 5, first + w // 2 + 2), None, *range(after - 2, after + 7)]  # None: left out
    step = 136 / len(columns)
    for place, index in enumerate(columns):
        draw_token(axes, run, index, 11 + place * step, step)

    starts = f"the picture starts at {int(run.positions[0, 0, first])}"
    axes_of_picture = "its t stands still, h counts rows, w counts columns"
    resumes = f"the text resumes at {int(run.positions[0, 0, after])}"
    taken = f"so {run.visual_tokens} visual tokens take {max(h, w) // 2} positions"
    note(axes, 75, 22.4, f"{starts}: {axes_of_picture}; {resumes}, {taken}", colour=SOFT)


def draw_token(axes, run: Run, index: int | None, x: float, width: float) -> None:
    """One token of the sequence with its three positions; dots for those left out."""
    if index is None:
        note(axes, x + width / 2, 30, "…", size=16, colour=GREY, va="center")
        return
    name = run.processor.tokenizer.decode([run.inputs.input_ids[0, index]])
    name = name.replace("\n", "\\n").replace("<|", "").replace("|>", "")
    if run.is_image[index]:
        name = "image"
    colour = "#fde6c8" if run.is_image[index] else "#e8eef9"
    axes.add_patch(Rectangle((x + 0.1, 33.2), width - 0.2, 5, fc=colour, ec="white"))
    axes.text(x + width / 2, 35.7, name, ha="center", va="center", fontsize=7, color=INK, rotation=40)
    for y, axis, colour in ((31.3, 0, BLUE), (28.3, 1, ORANGE), (25.3, 2, GREEN)):
        note(axes, x + width / 2, y, int(run.positions[axis, 0, index]), colour=colour, va="center")


def draw_decoder(axes, run: Run) -> None:
    """Lower row: the decoder and its answer."""
    config, C = run.model.config.text_config, run.width
    arrow(axes, 11, 11, 16, 11)
    note(axes, 6, 11, f"embeddings\n(1, {run.prompt}, {C})", va="center")

    layers = f"7 · decoder, {len(run.model.model.layers)} layers → (1, {run.prompt}, {C})"
    heads = f"causal attention, {config.num_attention_heads} query heads over {config.num_key_value_heads}"
    box(axes, 17, 4, 40, 14, f"{layers}\n{heads}\nkey/value heads, rotated by M-RoPE; SwiGLU", BLUE)
    arrow(axes, 58, 11, 63, 11)

    shape = f"(1, 1, {run.logits_shape[-1]})"
    loop = "take the likeliest token,\nfeed it back, repeat"
    box(axes, 64, 4, 24, 14, f"8 · logits of the last place\n{shape}\n{loop}", BLUE)
    arrow(axes, 89, 11, 94, 11)
    box(axes, 95, 4, 51, 14, f"9 · {len(run.answer_ids)} new tokens\n“{run.answer}”", GREEN, size=10)


def make_pipeline() -> None:
    run = run_checkpoint()
    figure = plt.figure(figsize=(15, 7.7), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 150), ylim=(2, 79))
    axes.axis("off")

    draw_patches(axes, run)
    draw_tower(axes, run)
    draw_sequence(axes, run)
    draw_decoder(axes, run)

    figure.savefig(ASSETS / "pipeline.png", dpi=100)
    print(run.answer, "| rope_delta", run.delta)


# ── What the checkpoint answers ─────────────────────────────────────────────────────────────────────────────────────

THINGS = ("purple triangle", "orange heart", "green diamond")  # of scene.png


def make_boxes() -> None:
    """boxes.png: the scene, three times as large, with the boxes of three answers."""
    scene = Image.open(ASSETS / "scene.png").convert("RGB")
    model, processor = weights_loader.load("tiny", dtype="float32")
    large = scene.resize((3 * scene.width, 3 * scene.height), Image.Resampling.LANCZOS)
    boxes = []
    for thing in THINGS:
        content = [{"type": "image", "image": scene}, {"type": "text", "text": f"Where is the {thing}?"}]
        messages = [{"role": "user", "content": content}]
        inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
        ids = model.generate(**inputs)[0, inputs.input_ids.shape[1] :]
        boxes += parse_boxes(processor.decode(ids), large.width, large.height)
    draw_boxes(large, boxes).quantize(64).save(ASSETS / "boxes.png", optimize=True)


COMMANDS = (
    'python qwen2vl_mini.py --image assets/scene.png --prompt "Describe this image."',
    'python qwen2vl_mini.py --image assets/scene.png --prompt "What color is the heart?"',
    "python qwen2vl_mini.py --image assets/scene.png --video assets/clip.mp4 --count-tokens",
)
GROUND, TEXT, PROMPT, ASIDE = "#1d2430", "#e8edf4", "#7ee0a5", "#93a1b3"


def make_terminal() -> None:
    """terminal.png: three commands and what they print; what goes to stderr is grey."""
    lines = []  # (text, colour)
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        run = subprocess.run([sys.executable, *words], cwd=ASSETS.parent, capture_output=True, text=True, check=True)
        lines.append((f"$ {command}", PROMPT))
        lines += [(line, TEXT) for line in run.stdout.splitlines()]
        lines += [(line, ASIDE) for line in wrapped(run.stderr)]
        lines.append(("", TEXT))

    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf", 17)
    height = 25  # pixels of a line
    width = round(max(font.getlength(text) for text, _ in lines)) + 44
    still = Image.new("RGB", (width, height * (len(lines) - 1) + 40), GROUND)
    draw = ImageDraw.Draw(still)
    for i, (text, colour) in enumerate(lines):
        draw.text((22, 20 + i * height), text, font=font, fill=colour)
    still.quantize(16).save(ASSETS / "terminal.png", optimize=True)


def wrapped(text: str, columns: int = 92) -> list[str]:
    """Lines as a terminal of this width breaks them, at blanks."""
    lines = []
    for line in text.splitlines():
        while len(line) > columns:
            cut = line.rfind(" ", 0, columns)
            lines.append(line[:cut])
            line = line[cut + 1 :]
        lines.append(line)
    return lines


# ── Thumbnails of the notebooks ─────────────────────────────────────────────────────────────────────────────────────

FIGURE_OF = {"01": 2, "02": 1, "03": 1, "04": 0, "05": 1, "06": 1, "07": 1, "08": 1, "09": 2}  # which one stands for it
THUMBNAIL = (240, 160)  # pixels


def make_thumbnails() -> None:
    """thumbnails/NN.png: one figure of each notebook, small."""
    (ASSETS / "thumbnails").mkdir(exist_ok=True)
    for path in sorted((ASSETS.parent / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        figures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        chosen = figures[FIGURE_OF[path.name[:2]]]
        figure = Image.open(io.BytesIO(base64.b64decode("".join(chosen)))).convert("RGB")
        figure.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
        page = Image.new("RGB", THUMBNAIL, "white")
        page.paste(figure, ((THUMBNAIL[0] - figure.width) // 2, (THUMBNAIL[1] - figure.height) // 2))
        page.quantize(128).save(ASSETS / "thumbnails" / f"{path.name[:2]}.png", optimize=True)


if __name__ == "__main__":
    for name in CLIPS:
        make_clip(name)
    make_pipeline()
    make_boxes()
    make_terminal()
    make_thumbnails()
