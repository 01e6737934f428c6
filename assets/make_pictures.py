"""Make assets/scene.png (a held-out scene), assets/pipeline.png (its way through the model) and assets/clip.mp4.

    python -m assets.make_pictures

Every number in the second one is read off a real run of the bundled checkpoint. The clip is two seconds of a drawing in
which one thing moves.
"""

from __future__ import annotations

from pathlib import Path

import av
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import weights_loader
from qwen2vl_mini import get_rope_index, unpatchify
from tiny_world.scenes import TEST_SEED, make_sample

ASSETS = Path(__file__).parent
INK, BLUE, ORANGE, GREEN, GREY = "#1f2933", "#3565c4", "#e08214", "#2e8b57", "#8a94a0"


def box(axes, x, y, width, height, text, colour, size=10.5):
    patch = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.8", fc="white", ec=colour, lw=1.8
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK, linespacing=1.45)


def arrow(axes, x1, y1, x2, y2):
    axes.add_patch(FancyArrowPatch((x1, y1), (x2, y2), arrowstyle="-|>", mutation_scale=15, lw=1.5, color=GREY))


def make_clip() -> None:
    sample = make_sample(TEST_SEED * 2 + 8, "motion", 160, 112, max_things=3, frames=8)
    with av.open(str(ASSETS / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = *sample.images[0].size, "yuv420p"
        for image in sample.images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))


def make_pipeline() -> None:
    sample = make_sample(TEST_SEED * 2 + 22, "describe", 210, 176, max_things=4, text_share=0)
    image = sample.images[0]
    image.save(ASSETS / "scene.png")
    model, processor = weights_loader.load("tiny", dtype="float32")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": sample.question}]}
    ]
    inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    prompt = inputs.input_ids.shape[1]
    answer_ids = model.generate(**inputs)[0, prompt:]
    answer = processor.decode(answer_ids, skip_special_tokens=True)
    with torch.no_grad():
        merged = model.visual(inputs.pixel_values, inputs.image_grid_thw)
        hidden = model(**inputs, logits_to_keep=1)
    positions, delta = get_rope_index(model.config, inputs.input_ids, inputs.image_grid_thw)
    t, h, w = inputs.image_grid_thw[0].tolist()
    N, M, V = h * w * t, len(merged), hidden.logits.shape[-1]
    C_vision, C = model.config.vision_config.embed_dim, hidden.last_hidden_state.shape[-1]
    is_image = (inputs.input_ids[0] == model.config.image_token_id).tolist()
    first, after = is_image.index(True), prompt - is_image[::-1].index(True)

    figure = plt.figure(figsize=(15, 7.7), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 150), ylim=(2, 79))
    axes.axis("off")

    def picture(left, bottom, width, content, grid):
        sub = figure.add_axes((left / 150, (bottom - 2) / 77, width / 150, width * 0.8 / 77))
        sub.imshow(content)
        sub.set_xticks([])
        sub.set_yticks([])
        if grid:
            height, width = content.shape[:2]
            for x in range(0, width + 1, 14):
                sub.axvline(x - 0.5, color="#9fb3c8" if x % 28 else INK, lw=0.5 if x % 28 else 1.2)
            for y in range(0, height + 1, 14):
                sub.axhline(y - 0.5, color="#9fb3c8" if y % 28 else INK, lw=0.5 if y % 28 else 1.2)
        return sub

    def caption(x, y, title, text):
        axes.text(x, y, title, ha="center", va="bottom", fontsize=12, weight="bold", color=INK)
        axes.text(x, y - 0.8, text, ha="center", va="top", fontsize=9.5, color="#52606d", linespacing=1.4)

    # upper row: from the file to visual tokens
    picture(3, 51, 23, plt.imread(ASSETS / "scene.png"), grid=False)
    caption(14.5, 72.5, "1 · a picture", "")
    axes.text(14.5, 49.6, f"{image.width} × {image.height} pixels", ha="center", va="top", fontsize=10, color=INK)
    arrow(axes, 27, 61, 32.5, 61)
    axes.text(29.8, 62.3, "smart\nresize", ha="center", fontsize=8.5, color="#52606d")
    pixels = unpatchify(inputs.pixel_values, (t, h, w))[0].movedim(0, 2)
    pixels = pixels * torch.tensor(processor.image_processor.image_std) + torch.tensor(
        processor.image_processor.image_mean
    )
    picture(33.5, 51, 23, pixels.clamp(0, 1).numpy(), grid=True)
    caption(45, 72.5, "2 · patches", "")
    axes.text(
        45, 49.6,
        f"{w * 14} × {h * 14} pixels, grid (t, h, w) = ({t}, {h}, {w})\n"
        "grey: patches of 14 px · black: tokens of 28 px",
        ha="center", va="top", fontsize=10, color=INK, linespacing=1.4,
    )  # fmt: skip
    arrow(axes, 57.5, 61, 63, 61)
    axes.text(60.2, 62.3, "patchify", ha="center", fontsize=8.5, color="#52606d")
    caption(73, 72.5, "3 · rows of numbers", "")
    box(
        axes,
        64,
        52,
        18,
        18,
        f"pixel_values\n({N}, {inputs.pixel_values.shape[1]})\n\n3 colours × 2 frames\n× 14 × 14 pixels",
        BLUE,
    )
    arrow(axes, 83, 61, 88, 61)
    caption(99, 72.5, "4 · vision tower", "")
    blocks = len(model.visual.blocks)
    box(
        axes,
        89,
        52,
        20,
        18,
        f"({N}, {C_vision})\n\n{blocks} blocks, 2-D rotary,\nfull attention inside\none picture",
        ORANGE,
    )
    arrow(axes, 110, 61, 115, 61)
    caption(131, 72.5, "5 · merger", "")
    box(
        axes,
        116,
        52,
        30,
        18,
        f"2 × 2 patches → 1 token\n({N}, {C_vision}) → ({M}, {4 * C_vision}) → ({M}, {C})\n\n"
        f"{M} visual tokens, as wide\nas the decoder's words",
        ORANGE,
    )

    # middle row: the sequence and its positions
    caption(75, 41.2, f"6 · one sequence of {prompt} tokens, and M-RoPE's three positions for each", "")
    tokens = [processor.tokenizer.decode([i]).replace("\n", "\\n") for i in inputs.input_ids[0]]
    row = w // 2
    columns = [*range(first - 5, first + row + 2), None, *range(after - 2, after + 7)]
    left, step = 11, 136 / len(columns)
    for y, axis, colour in ((31.3, "t", BLUE), (28.3, "h", ORANGE), (25.3, "w", GREEN)):
        axes.text(8.5, y, axis, ha="center", va="center", fontsize=12, weight="bold", color=colour)
    for place, index in enumerate(columns):
        x = left + place * step
        if index is None:
            axes.text(x + step / 2, 30, "…", ha="center", va="center", fontsize=16, color=GREY)
            continue
        visual = is_image[index]
        name = "image" if visual else tokens[index].replace("<|", "").replace("|>", "")
        rectangle = Rectangle((x + 0.1, 33.2), step - 0.2, 5, fc="#fde6c8" if visual else "#e8eef9", ec="white")
        axes.add_patch(rectangle)
        axes.text(x + step / 2, 35.7, name, ha="center", va="center", fontsize=7, color=INK, rotation=40)
        for y, axis, colour in ((31.3, 0, BLUE), (28.3, 1, ORANGE), (25.3, 2, GREEN)):
            value = int(positions[axis, 0, index])
            axes.text(x + step / 2, y, value, ha="center", va="center", fontsize=10, color=colour)
    axes.text(
        75, 22.4,
        f"the picture starts at {int(positions[0, 0, first])}: its t stands still, h counts rows, w counts columns; "
        f"the text resumes at {int(positions[0, 0, after])}, so {M} visual tokens take {max(h, w) // 2} positions",
        ha="center", va="top", fontsize=10, color="#52606d",
    )  # fmt: skip

    # lower row: the decoder
    layers, text = len(model.model.layers), model.config.text_config
    arrow(axes, 11, 11, 16, 11)
    axes.text(6, 11, f"embeddings\n(1, {prompt}, {C})", ha="center", va="center", fontsize=10, color=INK)
    box(
        axes, 17, 4, 40, 14,
        f"7 · decoder, {layers} layers → (1, {prompt}, {C})\n"
        f"causal attention, {text.num_attention_heads} query heads over "
        f"{text.num_key_value_heads}\nkey/value heads, rotated by M-RoPE; SwiGLU",
        BLUE,
    )  # fmt: skip
    arrow(axes, 58, 11, 63, 11)
    box(
        axes,
        64,
        4,
        24,
        14,
        f"8 · logits of the last place\n(1, 1, {V})\ntake the likeliest token,\nfeed it back, repeat",
        BLUE,
    )
    arrow(axes, 89, 11, 94, 11)
    box(axes, 95, 4, 51, 14, f"9 · {len(answer_ids)} new tokens\n“{answer}”", GREEN, size=10)
    figure.savefig(ASSETS / "pipeline.png", dpi=100)
    print(answer, "| rope_delta", int(delta))


if __name__ == "__main__":
    make_clip()
    make_pipeline()
