"""Exercises of notebook 02: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import random
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from exercises.book import Exercise, Probe
from qwen2vl_mini import (
    KVCache,
    Qwen2VLImageProcessor,
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
    Special,
    VisionBlock,
    cos_sin,
    eager_attention,
    expand_placeholders,
    render_chat,
)

PROCESSOR = Qwen2VLImageProcessor()  # with the default limits, 4 and 1,280 tokens


# ── 2.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

MARKERS = 2  # <|vision_start|> and <|vision_end|>, around each picture and each clip


def five_costs() -> dict[str, int]:
    """Tokens of the five prompts, the words left out."""
    tokens = PROCESSOR.num_image_tokens
    return {
        "A": tokens(2800, 2800, max_pixels=64 * 784) + MARKERS,
        "B": 15 * (tokens(56, 56) + MARKERS),
        "C": tokens(252, 252) + MARKERS,
        "D": PROCESSOR.num_tokens(4, 168, 168) + MARKERS,
        "E": 10 * (tokens(20, 20) + MARKERS),
    }


def in_order() -> list[str]:
    costs = five_costs()
    return sorted(costs, key=costs.get)


# ── 2.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Tokens of the texts that the template writes, by the released tokenizer (notebook 02 counts them).
TEMPLATE = {"system\n": 2, "user\n": 2, "assistant\n": 2, "\n": 1, "You are a helpful assistant.": 6}


def prompt_length(messages: list[dict]) -> int:
    """The length of the rendered prompt, its placeholders expanded."""
    items = [item for message in messages for item in message["content"]]
    images = [PROCESSOR.num_image_tokens(i["height"], i["width"]) for i in items if i["type"] == "image"]
    clips = [PROCESSOR.num_tokens(i["frames"], i["height"], i["width"]) for i in items if i["type"] == "video"]
    chat = [{**message, "content": [as_text(item) for item in message["content"]]} for message in messages]
    pieces = [render_chat(chat, add_generation_prompt=True)]
    pieces = expand_placeholders(pieces, "<|image_pad|>", images)
    pieces = expand_placeholders(pieces, "<|video_pad|>", clips)
    return sum(1 if type(piece) is Special or "_pad|>" in piece else text_length(piece) for piece in pieces[0])


def as_text(item: dict) -> dict:
    """An item of n tokens of words → one with a text of n letters."""
    return {"type": "text", "text": "x" * item["tokens"]} if item["type"] == "text" else item


def text_length(piece: str) -> int:
    return TEMPLATE.get(piece, len(piece))


def text(tokens: int) -> dict:
    return {"type": "text", "tokens": tokens}


def image(height: int, width: int) -> dict:
    return {"type": "image", "height": height, "width": width}


def video(frames: int, height: int, width: int) -> dict:
    return {"type": "video", "frames": frames, "height": height, "width": width}


def said(role: str, *items: dict) -> dict:
    return {"role": role, "content": list(items)}


def random_item(rng: random.Random) -> dict:
    kind = rng.choice((text, image, video))
    if kind is text:
        return text(rng.randint(1, 60))
    if kind is image:
        return image(rng.randint(10, 2000), rng.randint(15, 2000))
    return video(rng.randint(1, 9), 28 * rng.randint(2, 12), 28 * rng.randint(2, 12))


def random_chat(rng: random.Random) -> tuple:
    messages = [said("system", text(rng.randint(1, 40)))] if rng.random() < 0.3 else []
    for turn in range(2 * rng.randint(0, 2) + 1):
        items = [random_item(rng) for _ in range(rng.randint(1, 4))]
        messages.append(said("assistant", text(rng.randint(1, 60))) if turn % 2 else said("user", *items))
    return (messages,)


# ── 2.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shape(layers: int, heads: int, kv_heads: int, head_dim: int = 128) -> Qwen2VLTextConfig:
    """A decoder of that shape; the rest, which the cache does not depend on, is the 2B model's."""
    return Qwen2VLTextConfig(
        hidden_size=heads * head_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )


def room_of_a_cache(config: Qwen2VLTextConfig, tokens: int, dtype: torch.dtype) -> int:
    """What our cache takes, made without memory."""
    return KVCache(config, 1, tokens, device="meta", dtype=dtype).data.nbytes


def random_cache(rng: random.Random) -> tuple:
    kv_heads = rng.randint(1, 8)
    config = shape(rng.randint(1, 80), kv_heads * rng.randint(1, 8), kv_heads, 2 * rng.randint(4, 64))
    return config, rng.randint(1, 32768), rng.choice((torch.bfloat16, torch.float16, torch.float32))


# ── 2.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sharpest(pictures: list[tuple[int, int]], words: int, context: int, answer: int) -> list[tuple[int, int]]:
    """By trying the limits from the largest down."""
    for limit in range(1280, 3, -1):
        costs = [PROCESSOR.num_image_tokens(*picture, max_pixels=784 * limit) for picture in pictures]
        if words + sum(costs) + MARKERS * len(pictures) + answer <= context:
            break
    return [PROCESSOR.target_size(*picture, max_pixels=784 * limit) for picture in pictures]


def random_album(rng: random.Random) -> tuple:
    pictures = [(rng.randint(60, 1500), rng.randint(60, 1500)) for _ in range(rng.randint(1, 4))]
    words, answer = rng.randint(10, 400), rng.randint(16, 256)
    return pictures, words, words + answer + rng.randint(32 * len(pictures), 1500), answer


# ── 2.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def block_without_memory(channels: int, heads: int, mlp_width: int) -> VisionBlock:
    with torch.device("meta"):  # shapes, and no numbers
        return VisionBlock(Qwen2VLVisionConfig(embed_dim=channels, num_heads=heads, mlp_ratio=mlp_width / channels))


@cache
def mlp_products(channels: int, mlp_width: int) -> int:
    """What one patch costs in our MLP, in multiplications and additions, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        block_without_memory(channels, 1, mlp_width).mlp(torch.empty(1, channels, device="meta"))
    return counter.get_total_flops()


@cache
@torch.no_grad()
def attention_products(channels: int, heads: int, pictures: int, patches: int) -> int:
    """What pictures of so many patches cost in our attention, its projections left out, counted likewise."""
    counter = FlopCounterMode(display=False)

    def counted_attention(q, k, v, causal):
        with counter:
            return eager_attention(q, k, v, causal)

    N, head_dim = pictures * patches, channels // heads
    with torch.device("meta"):
        x, angles = torch.empty(N, channels), torch.empty(N, head_dim // 2)
    block = block_without_memory(channels, heads, channels)
    block.attn(x, *cos_sin(angles), [patches] * pictures, counted_attention)
    return counter.get_total_flops()


def measured_crossover(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    """Where attention first costs more: its share only grows, so half of the range drops out each time."""
    below, above = 0, 64  # enough for an mlp_width of 16,384
    while above - below > 1:
        cells = (below + above) // 2
        patches = 4 * cells**2  # of a picture
        mlp = pictures * patches * mlp_products(channels, mlp_width)
        is_more = attention_products(channels, heads, pictures, patches) > mlp
        below, above = (below, cells) if is_more else (cells, above)
    return 28 * above


def random_tower(rng: random.Random) -> tuple:
    channels, heads = rng.choice(((96, 2), (80, 4), (320, 8)))
    return channels, channels * rng.randint(1, 6), heads, rng.choice((1, 3))


EXERCISES = (
    Exercise(
        number="2.1",
        title="Rank five prompts",
        function="cheapest_first",
        kind="P",
        stars=1,
        minutes=5,
        expected=in_order,
        probes=(Probe((), "the five orders of right and wrong countings all differ"),),
        hints=(
            "Write a number beside each letter: tokens are cells of 28×28 pixels, after the limits have spoken.",
            "252 = 9·28 and 168 = 6·28. A picture of 20×20 is enlarged to 4 tokens, and each picture or clip has two "
            "markers of its own.",
            "C costs 9·9 + 2. D has two pairs of frames. B costs 15·(4 + 2).",
        ),
    ),
    Exercise(
        number="2.2",
        title="Count from sizes alone",
        function="count",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=prompt_length,
        blocked=("Qwen2VLImageProcessor.num_tokens", "patchify"),
        probes=(
            Probe(([said("user", text(7))],), "system message forgotten"),
            Probe(([said("user", image(56, 84))],), "markers, patches for tokens, patches by 2"),
            Probe(([said("user", image(300, 400))],), "not resized"),
            Probe(([said("user", video(4, 112, 84))],), "a token for each frame"),
            Probe(([said("user", video(5, 112, 84))],), "last odd frame dropped"),
            Probe(([said("system", text(20)), said("user", text(7))],), "a system message of their own"),
            Probe(
                (
                    [
                        said("user", image(720, 1280), text(9), image(28, 28)),
                        said("assistant", text(30)),
                        said("user", video(3, 56, 56), text(4)),
                    ],
                ),
                "a chat of three turns",
                "count(a chat: picture of 720×1280, 9 words' tokens, picture of 28×28; an answer of 30; clip of 3 "
                "frames of 56×56, 4 words' tokens)",
            ),
        ),
        random_probe=random_chat,
        hints=(
            "Start with a prompt of words only: 11 + 5 + tokens + 3. Then what does an item of each kind add?",
            "A picture adds the cells of 28×28 pixels of its *resized* size, and a marker before and behind. "
            "smart_resize gives that size.",
            "A clip adds (frames + 1) // 2 · height · width // 784, and two markers: frames are read in pairs, and a "
            "last single one is repeated.",
        ),
    ),
    Exercise(
        number="2.3",
        title="Bytes of a cache",
        function="cache_bytes",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=room_of_a_cache,
        blocked=("KVCache.__init__",),
        probes=(
            Probe(
                (shape(1, 2, 1, 8), 1, torch.bfloat16),
                "",
                "cache_bytes(1 layer, 2 heads on 1 of 8 channels, 1, torch.bfloat16)",
            ),
            Probe((shape(28, 12, 2), 1, torch.bfloat16), "", "cache_bytes(the 2B model, 1, torch.bfloat16)"),
            Probe((shape(28, 28, 4), 1000, torch.bfloat16), "", "cache_bytes(the 7B model, 1000, torch.bfloat16)"),
            Probe((shape(28, 12, 2), 1000, torch.float32), "", "cache_bytes(the 2B model, 1000, torch.float32)"),
            Probe((shape(80, 64, 8), 32768, torch.bfloat16), "", "cache_bytes(the 72B model, 32768, torch.bfloat16)"),
        ),
        random_probe=random_cache,
        hints=(
            "What does a layer keep of a token? Look at what KVCache stores: the comment behind its `data` says it.",
            "In each layer a key and a value, each of num_key_value_heads heads with head_dim numbers.",
            "layers · 2 · num_key_value_heads · head_dim · tokens numbers, of dtype.itemsize bytes each.",
        ),
    ),
    Exercise(
        number="2.4",
        title="Fit a chat into a context",
        function="fit",
        kind="I",
        stars=2,
        minutes=20,
        expected=sharpest,
        probes=(
            Probe(([(560, 560)], 100, 600, 50), "it fits at its own size"),
            Probe(([(560, 560)], 100, 402, 100), "no room for the answer"),
            Probe(([(84, 84), (84, 84)], 50, 71, 0), "markers forgotten"),
            Probe(([(560, 560), (840, 560)], 200, 900, 100), "only the first shrunk"),
            Probe(([(1000, 1000), (56, 56)], 60, 400, 40), "an equal share each"),
            Probe(([(720, 1280), (1280, 720), (300, 300)], 500, 2048, 256)),
        ),
        random_probe=random_album,
        hints=(
            "Subtract from the context all that does not depend on the limit. What is left is for visual tokens.",
            "Words, answer and two markers for each picture go first. Then look for the largest limit with which the "
            "pictures together cost no more than what is left.",
            "for limit in range(1280, 3, -1): resize all with max_pixels=784 * limit, add up height * width // 784, "
            "and stop at the first sum that fits.",
        ),
    ),
    Exercise(
        number="2.5",
        title="When attention outgrows the MLPs",
        function="crossover",
        kind="E",
        stars=3,
        minutes=25,
        expected=measured_crossover,
        probes=(
            Probe((16, 64, 1, 1), "as much is not more"),
            Probe((128, 512, 4, 1), "tokens for patches, heads counted twice"),
            Probe((128, 512, 4, 3), "attention across pictures"),
            Probe((1280, 5120, 16, 1), "the released tower"),
            Probe((1280, 5120, 16, 8)),
        ),
        random_probe=random_tower,
        hints=(
            "Write both costs for a picture of L patches. Which one grows with L, and which with L²?",
            "q·kᵀ makes L·L numbers in each head, each a sum over the channels of the head. weights·v costs as much. "
            "Another picture of the call adds its own L·L, not more.",
            "Attention costs 2·L²·channels, the MLP 2·L·channels·mlp_width. So L must be above mlp_width, and a square "
            "of n×n tokens has L = 4·n² patches.",
        ),
    ),
)
