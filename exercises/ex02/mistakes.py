"""Wrong answers to the exercises of notebook 02 that people really give, and what helps them."""

from __future__ import annotations

import torch

from exercises.book import Mistake
from exercises.ex02.probes import PROCESSOR
from qwen2vl_mini import Qwen2VLTextConfig, smart_resize

# ── 2.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_raw_pixels() -> list[str]:
    areas = {"A": 2800 * 2800, "B": 15 * 56 * 56, "C": 252 * 252, "D": 4 * 168 * 168, "E": 10 * 20 * 20}
    return sorted(areas, key=areas.get)


def without_markers() -> list[str]:
    tokens = {"A": 8 * 8, "B": 15 * 4, "C": 9 * 9, "D": 2 * 6 * 6, "E": 10 * 4}
    return sorted(tokens, key=tokens.get)


def every_frame_paid() -> list[str]:
    tokens = {"A": 8 * 8 + 2, "B": 15 * 6, "C": 9 * 9 + 2, "D": 4 * 6 * 6 + 2, "E": 10 * 6}
    return sorted(tokens, key=tokens.get)


# ── 2.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def counted(messages: list, patches_a_token: int = 4, markers: int = 2, frame_pairs=None, resize=smart_resize) -> int:
    """A count with one of its rules exchanged."""
    total = 0 if messages[0]["role"] == "system" else 11
    for item in (item for message in messages for item in message["content"]):
        if item["type"] == "text":
            total += item["tokens"]
            continue
        pairs, size = 1, (item["height"], item["width"])
        if item["type"] == "image":
            size = resize(*size)
        else:
            pairs = (frame_pairs or pairs_of_frames)(item["frames"])
        total += pairs * size[0] * size[1] * 4 // (784 * patches_a_token) + markers
    return total + 5 * len(messages) + 3


def pairs_of_frames(frames: int) -> int:
    return (frames + 1) // 2


def markers_left_out(messages: list) -> int:
    return counted(messages, markers=0)


def patches(messages: list) -> int:
    return counted(messages, patches_a_token=1)


def patches_by_two(messages: list) -> int:
    return counted(messages, patches_a_token=2)


def odd_frame_dropped(messages: list) -> int:
    return counted(messages, frame_pairs=lambda frames: frames // 2)


def each_frame(messages: list) -> int:
    return counted(messages, frame_pairs=lambda frames: frames)


def not_resized(messages: list) -> int:
    return counted(messages, resize=lambda height, width: (height, width))


def no_system_message(messages: list) -> int:
    return counted(messages) - (0 if messages[0]["role"] == "system" else 11)


# ── 2.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def numbers_a_layer(config: Qwen2VLTextConfig) -> int:
    return config.num_key_value_heads * config.head_dim


def query_heads(config: Qwen2VLTextConfig, tokens: int, dtype: torch.dtype) -> int:
    return config.num_hidden_layers * 2 * config.hidden_size * tokens * dtype.itemsize


def keys_only(config: Qwen2VLTextConfig, tokens: int, dtype: torch.dtype) -> int:
    return config.num_hidden_layers * numbers_a_layer(config) * tokens * dtype.itemsize


def one_layer(config: Qwen2VLTextConfig, tokens: int, dtype: torch.dtype) -> int:
    return 2 * numbers_a_layer(config) * tokens * dtype.itemsize


def always_two_bytes(config: Qwen2VLTextConfig, tokens: int, dtype: torch.dtype) -> int:
    return config.num_hidden_layers * 2 * numbers_a_layer(config) * tokens * 2


def always_the_2b_model(config: Qwen2VLTextConfig, tokens: int, dtype: torch.dtype) -> int:
    return 28672 * tokens


# ── 2.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def resized(pictures: list, limits: list[int]) -> list:
    return [PROCESSOR.target_size(*picture, max_pixels=784 * limit) for picture, limit in zip(pictures, limits)]


def tokens_of(pictures: list, limits: list[int]) -> int:
    return sum(height * width // 784 for height, width in resized(pictures, limits))


def one_limit(pictures: list, room: int) -> list:
    """The sizes under the largest limit with which the visual tokens are within `room`."""
    number = len(pictures)
    fits = (limit for limit in range(1280, 4, -1) if tokens_of(pictures, [limit] * number) <= room)
    return resized(pictures, [next(fits, 4)] * number)


def no_room_for_the_answer(pictures: list, words: int, context: int, answer: int) -> list:
    return one_limit(pictures, context - words - 2 * len(pictures))


def without_their_markers(pictures: list, words: int, context: int, answer: int) -> list:
    return one_limit(pictures, context - words - answer)


def only_the_first(pictures: list, words: int, context: int, answer: int) -> list:
    room = context - words - answer - 2 * len(pictures)
    others = [1280] * (len(pictures) - 1)
    fits = (limit for limit in range(1280, 4, -1) if tokens_of(pictures, [limit, *others]) <= room)
    return resized(pictures, [next(fits, 4), *others])


def same_share(pictures: list, words: int, context: int, answer: int) -> list:
    share = (context - words - answer) // len(pictures) - 2
    return resized(pictures, [min(1280, max(4, share))] * len(pictures))


# ── 2.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def first_side(is_larger) -> int:
    """The side of the first square whose number of patches says yes."""
    return next(28 * cells for cells in range(1, 1000) if is_larger(4 * cells**2))


def tokens_instead(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    return first_side(lambda L: L // 4 > mlp_width)


def across_pictures(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    return first_side(lambda L: pictures * L > mlp_width)


def scores_alone(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    return first_side(lambda L: L > 2 * mlp_width)


def times_heads(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    return first_side(lambda L: heads * L > mlp_width)


def as_much(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    return first_side(lambda L: mlp_width <= L)


def with_projections(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    return first_side(lambda L: L + 2 * channels > mlp_width)


MISTAKES = {
    "2.1": (
        Mistake(
            by_raw_pixels,
            "You ranked by the pixels on the disk. The limits come first: A shrinks to 64 tokens, each picture of E "
            "grows to 4, and a pair of frames costs as much as one frame.",
        ),
        Mistake(
            without_markers,
            "You left the markers out. Each picture and each clip stands between <|vision_start|> and <|vision_end|>, "
            "so fifteen small pictures have 30 tokens more.",
        ),
        Mistake(
            every_frame_paid,
            "You paid for each frame of the clip. A patch spans two frames, so four frames cost as much as two "
            "pictures.",
        ),
    ),
    "2.2": (
        Mistake(
            no_system_message,
            "11 tokens are missing where no system message was given: the template writes one of its own, and the "
            "model reads it.",
        ),
        Mistake(
            markers_left_out,
            "Two tokens are missing for each picture and clip: the markers <|vision_start|> and <|vision_end|>.",
        ),
        Mistake(
            patches,
            "You counted patches, the rows of pixel_values. The merger joins four of them before the decoder sees any.",
        ),
        Mistake(
            patches_by_two,
            "You divided the patches by 2. The merger joins 2×2 of them, so a token is four patches.",
        ),
        Mistake(
            odd_frame_dropped,
            "You dropped the last frame of an odd clip. It is repeated to make a pair, so 5 frames are 3 pairs.",
        ),
        Mistake(
            each_frame,
            "You counted each frame of a clip as a picture. Frames are read in pairs, and a pair costs as much as one.",
        ),
        Mistake(
            not_resized,
            "You divided the area on the disk by 784. Each side first becomes a multiple of 28, within the limits: "
            "smart_resize tells which.",
        ),
    ),
    "2.3": (
        Mistake(
            always_the_2b_model,
            "28,672 is the price in the 2B model, at two bytes a number. Work it out from the config that you are "
            "given.",
        ),
        Mistake(
            query_heads,
            "You counted as many heads as there are queries. Queries are not kept, and several of them share one head "
            "of keys and values: that is what num_key_value_heads is for.",
        ),
        Mistake(keys_only, "That is half of it: the keys. The values of each token are kept, too."),
        Mistake(one_layer, "That is what one layer keeps. Every layer has keys and values of its own."),
        Mistake(
            always_two_bytes,
            "You took 2 bytes for a number whatever the dtype. In float32 it has 4; dtype.itemsize says so.",
        ),
    ),
    "2.4": (
        Mistake(
            no_room_for_the_answer,
            "The prompt fits, but the answer does not: what the model writes stands in the same context as the prompt.",
        ),
        Mistake(
            only_the_first,
            "You shrank the first picture and left the others as they were. One limit holds for all, so whichever "
            "pictures are large give way.",
        ),
        Mistake(
            without_their_markers,
            "You forgot the markers: each picture takes two tokens more than its area says.",
        ),
        Mistake(
            same_share,
            "You divided the room by the number of pictures. What a small picture does not need of its share is free "
            "for the larger ones, so the limit can be higher.",
        ),
    ),
    "2.5": (
        Mistake(
            as_much,
            "Your comparison lets a tie through. Asked for is the first side at which attention costs more than the "
            "MLP.",
        ),
        Mistake(
            tokens_instead,
            "You counted tokens. The merger comes behind the tower: inside it there are patches, four times as many.",
        ),
        Mistake(
            across_pictures,
            "You let the pictures of a call look at each other. Attention stays inside a picture, so more pictures "
            "cost more of both, in the same proportion.",
        ),
        Mistake(
            scores_alone,
            "You counted q·kᵀ only. The product of the weights with v needs as many multiplications again.",
        ),
        Mistake(
            times_heads,
            "You multiplied by the number of heads. Each head has only its part of the channels, so all heads together "
            "cost as much as one head with all of them.",
        ),
        Mistake(
            with_projections,
            "You counted qkv and proj with attention. They grow with L as the MLP does; asked for are the two products "
            "that grow with L².",
        ),
    ),
}
