"""Clips against transformers and against the rules they follow: frames, sizes, positions, logits, answers.

transformers 5 numbers the text behind a *long* clip (more frame pairs than rows and columns of cells) in its own way.
Logits are compared on clips where that makes no difference; one test pins where it does.
"""

import copy
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from qwen2vl_mini import (
    ATTENTION,
    KVCache,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    get_rope_index,
    unpatchify,
)
from tests.official import official_rope_index, twins
from tests.small_models import image, make_inputs, one_row, real_tokens, relative_difference, small_model, video

SAME = 1e-5  # largest difference relative to the largest number, float32
SOME_SHAPES = ("gqa1", "gqa2", "gqa4-deep", "gqa7-as-7b")
LAYOUTS = {  # frame pairs ≤ max(rows, columns) of cells, which are 2×2 patches
    "video": [[3, video(2, 4, 6), 4]],
    "one-pair": [[2, video(1, 2, 2), 3]],
    "as-long-as-wide": [[1, video(4, 4, 8), 3]],
    "image-video": [[2, image(4, 6), 1, video(3, 6, 4), 3]],
    "video-image": [[video(2, 4, 4), 2, image(2, 6), 3]],
    "two-videos": [[1, video(2, 4, 4), 2, video(3, 4, 6), 2]],
    "batch": [[7], [2, image(4, 6), 1, image(6, 2), 2], [1, video(2, 4, 6), 3], [image(2, 2), video(2, 6, 4), 2]],
}


def our_rope_index(config, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("image_grid_thw", "video_grid_thw", "attention_mask")
    return get_rope_index(config, inputs["input_ids"], **{name: inputs[name] for name in names if name in inputs})


# --- the model --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SOME_SHAPES)
def test_logits_are_the_official_ones(shape, layout):
    ours, official = twins(shape)
    inputs = make_inputs(ours.config, LAYOUTS[layout], padding=3 * (layout == "batch"))
    for found, expected in zip(our_rope_index(ours.config, inputs), official_rope_index(ours.config, inputs)):
        assert torch.equal(found, expected)
    expected = real_tokens(official(**inputs).logits, inputs)
    for ours.attn_implementation in ("eager", "sdpa"):
        found = real_tokens(ours(**inputs).logits, inputs)
        assert relative_difference(found, expected) < SAME, ours.attn_implementation


@torch.no_grad()
def test_frames_and_their_order_matter():
    """The comparison above can fail: the same frame pairs in another order give other logits, after them only."""
    ours, official = twins("gqa2")
    inputs = make_inputs(ours.config, LAYOUTS["as-long-as-wide"])
    pairs = inputs["pixel_values_videos"].unflatten(0, (4, 32))
    other = inputs | {"pixel_values_videos": pairs[[0, 1, 3, 2]].flatten(0, 1)}
    for model in (ours, official):
        moved = (model(**inputs).logits - model(**other).logits).abs().amax(-1)[0]
        assert (moved[: 2 + 2 * 8] == 0).all() and (moved[2 + 2 * 8 :] > 1e-3).all()


@torch.no_grad()
@pytest.mark.parametrize("implementation", ("eager", "sdpa", "flash"))
def test_a_padded_batch_with_clips_is_its_rows_alone(implementation):
    model = small_model(tied=False)
    model.attn_implementation = implementation
    rows = [*LAYOUTS["batch"], LAYOUTS["two-videos"][0], [2, video(5, 2, 4), 3]]  # the last one longer than wide
    inputs = make_inputs(model.config, rows, padding=2)
    together = model(**inputs).logits
    for row in range(len(rows)):
        alone = model(**one_row(model.config, inputs, row)).logits[0]
        assert relative_difference(together[row, inputs["attention_mask"][row].bool()], alone) < 1e-4
    new = model.generate(**inputs, max_new_tokens=4)[:, -4:]
    for row in range(len(rows)):
        assert torch.equal(new[row], model.generate(**one_row(model.config, inputs, row), max_new_tokens=4)[0, -4:])


def test_text_after_a_long_clip_is_where_transformers_5_differs():
    """2 words, the marker, 4 frame pairs of 2×2 cells from position 3 on, the other marker, 2 words.

    The paper goes on after the largest position, 6; transformers 5 after max(rows, columns) of them, 3 + 2.
    """
    ours, official = twins("gqa2")
    inputs = make_inputs(ours.config, [[2, video(4, 4, 4), 2]])
    (found, delta), (theirs, their_delta) = (
        rope_index(ours.config, inputs) for rope_index in (our_rope_index, official_rope_index)
    )
    t, h, w = ("".join(map(str, axis[0].tolist())) for axis in found)
    assert (t, h, w) == ("0123333444455556666789", "0123344334433443344789", "0123434343434343434789")
    t, h, w = ("".join(map(str, axis[0].tolist())) for axis in theirs)
    assert (t, h, w) == ("0123333444455556666567", "0123344334433443344567", "0123434343434343434567")
    assert (delta.item(), their_delta.item()) == (10 - 22, 8 - 22)
    with torch.no_grad():  # that rule is the only difference: at its positions, our logits are the official ones
        reference, own = official(**inputs).logits, ours(**inputs).logits
        moved = ours(**inputs, position_ids=theirs).logits
    assert relative_difference(moved, reference) < SAME
    assert relative_difference(own[:, :19], reference[:, :19]) < SAME
    assert relative_difference(own[:, 19:], reference[:, 19:]) > 1e-3


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ("video", "image-video", "two-videos", "batch"))
@pytest.mark.parametrize("shape", ("gqa1", "gqa7-as-7b"))
def test_32_greedy_tokens_are_the_official_ones(shape, layout):
    ours, official = twins(shape)
    ours.attn_implementation = "sdpa"
    inputs = make_inputs(ours.config, LAYOUTS[layout])
    options = {"max_new_tokens": 32, "do_sample": False, "suppress_tokens": []}
    found = ours.generate(**inputs, **options, eos_token_id=[])
    expected = official.generate(**inputs, **options, eos_token_id=None, pad_token_id=0)
    assert found.shape[1] == inputs["input_ids"].shape[1] + 32
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("rows", (*LAYOUTS.values(), [[2, video(5, 2, 4), 3]]), ids=(*LAYOUTS, "longer-than-wide"))
def test_cached_decoding_with_clips_is_the_full_forward_at_every_step(rows):
    model = small_model(tied=False)
    inputs = make_inputs(model.config, rows)
    (B, S), steps = inputs["input_ids"].shape, 5
    new = torch.randint(1, model.config.vision_start_token_id, (B, steps))
    media = {name: x for name, x in inputs.items() if name.endswith("_thw") or name.startswith("pixel")}
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, steps), value=1)
    cache = KVCache(model.config.text_config, B, S + steps, dtype=torch.float32)
    found = [model(**inputs, cache=cache).logits[:, -1]]
    found += [model(new[:, i : i + 1], cache=cache).logits[:, -1] for i in range(steps)]
    whole = torch.cat([inputs["input_ids"], new], dim=1)
    for step in range(steps + 1):
        expected = model(whole[:, : S + step], attention_mask=mask[:, : S + step], **media).logits[:, -1]
        assert relative_difference(found[step], expected) < SAME, step


def test_other_media_on_one_model_is_two_fresh_models():
    """A clip, then a picture with another delta, then the clip again: nothing of one answer is left for the next."""
    model = small_model(tied=False)
    prompts = [
        make_inputs(model.config, rows, seed)
        for seed, rows in enumerate(([[3, video(5, 2, 4), 2]], [[3, image(8, 8), 2]], LAYOUTS["batch"]))
    ]
    deltas = [our_rope_index(model.config, inputs)[1].flatten().tolist() for inputs in prompts]
    assert len({row[0] for row in deltas}) == 3
    fresh = [copy.deepcopy(model).generate(**inputs, max_new_tokens=6) for inputs in prompts]
    for turn in (0, 1, 0, 2, 1):
        assert torch.equal(model.generate(**prompts[turn], max_new_tokens=6), fresh[turn]), turn


# --- frames → patches -------------------------------------------------------------------------------------------------


def noise(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(T, 3, height, width) random bytes: the hardest frames to resample."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


CLIPS = [  # frames, height, width
    (4, 48, 64),
    (6, 64, 48),
    (2, 90, 200),
    (5, 100, 70),
    (1, 56, 56),
    (3, 84, 112),
    (7, 30, 300),
    (4, 150, 150),
]


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("limits", ((784, 768 * 784), (4 * 784, 9 * 784), (16 * 784, 20 * 784)), ids=str)
def test_patches_are_the_official_ones_to_the_last_bit(clip, limits):
    frames = noise(*clip)
    ours = Qwen2VLImageProcessor(video_min_pixels=limits[0]).preprocess(videos=[frames], max_pixels=limits[1])
    official = Qwen2VLVideoProcessor(size={"shortest_edge": limits[0], "longest_edge": limits[1]})
    expected = official(videos=[frames], cap_pixels_per_frame=False, return_tensors="pt")
    assert torch.equal(ours.video_grid_thw, expected["video_grid_thw"])
    assert torch.equal(ours.pixel_values_videos, expected["pixel_values_videos"])


@pytest.mark.parametrize("clip", [(4, 480, 640), (40, 60, 80), (30, 48, 64), (3, 28, 28)], ids=str)
def test_the_total_budget_is_the_official_one(clip):
    """With transformers' budget set to ours (it takes 90 % of `max_video_tokens`), the same sizes and bits."""
    frames, tokens = noise(*clip), 300 if clip[0] > 20 else 24576
    official = Qwen2VLVideoProcessor(max_video_tokens=tokens / 0.9 + 1e-6, min_pixels=4 * 784)
    expected = official(videos=[frames], cap_pixels_per_frame=True, return_tensors="pt")
    processor = Qwen2VLImageProcessor(video_min_pixels=4 * 784, video_total_pixels=tokens * 784)
    ours = processor.preprocess(videos=frames)
    assert torch.equal(ours.video_grid_thw, expected["video_grid_thw"])
    assert torch.equal(ours.pixel_values_videos, expected["pixel_values_videos"])
    assert ours.video_grid_thw.prod() // 4 == processor.num_video_tokens(*clip)


@pytest.mark.parametrize("kind", (Qwen2VLImageProcessor, Qwen2VLImageProcessorFast))
@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_frames_are_torchvisions_bicubic_bytes(kind, clip):
    """The bytes that go into the patches, read back from them, whatever pictures are resampled with."""
    frames, processor = noise(*clip), kind(video_min_pixels=784)
    inputs = processor.preprocess(videos=[frames], max_pixels=20 * 784)
    back = unpatchify(inputs.pixel_values_videos, inputs.video_grid_thw[0].tolist())  # (T, 3, height, width)
    mean, std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    exact = (back * std + mean) * 255
    assert (exact - exact.round()).abs().max() < 1e-3
    expected = tvF.resize(frames, list(back.shape[-2:]), InterpolationMode.BICUBIC, antialias=True)
    assert expected.dtype == torch.uint8
    assert torch.equal(exact.round()[: clip[0]], expected.float())
    if clip[0] % 2:  # an odd number of frames repeats the last one
        assert torch.equal(back[-1], back[-2]) and len(back) == clip[0] + 1


def test_frames_are_not_resampled_by_pillow():
    """The two differ: what the test above finds equal is not equal anyway."""
    frames = noise(2, 100, 70)
    expected = tvF.resize(frames, [56, 56], InterpolationMode.BICUBIC, antialias=True)
    pillow = [
        Image.fromarray(frame.movedim(0, -1).numpy()).resize((56, 56), Image.Resampling.BICUBIC) for frame in frames
    ]
    assert not torch.equal(torch.from_numpy(np.stack(pillow)).movedim(-1, 1), expected)


def test_an_odd_number_of_frames_repeats_the_last():
    frames, processor = noise(5, 60, 90), Qwen2VLImageProcessor(video_min_pixels=784)
    odd, even = (processor.preprocess(videos=clip) for clip in (frames, torch.cat([frames, frames[-1:]])))
    assert odd.video_grid_thw.tolist() == even.video_grid_thw.tolist() == [[3, 4, 6]]
    assert torch.equal(odd.pixel_values_videos, even.pixel_values_videos)
    other = processor.preprocess(videos=torch.cat([frames, frames[:1]]))
    assert not torch.equal(odd.pixel_values_videos, other.pixel_values_videos)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ("eager", "sdpa", "flash"))
def test_three_frame_pairs_are_three_stills_to_the_tower(implementation):
    model, frames = small_model(tied=False), noise(6, 84, 112)
    processor = Qwen2VLImageProcessor(video_min_pixels=784)
    clip = processor.preprocess(videos=frames)
    assert clip.video_grid_thw.tolist() == [[3, 6, 8]]
    together = model.visual(clip.pixel_values_videos, clip.video_grid_thw, ATTENTION[implementation])
    pairs = [processor.preprocess(videos=frames[i : i + 2]) for i in (0, 2, 4)]
    assert torch.equal(torch.cat([pair.pixel_values_videos for pair in pairs]), clip.pixel_values_videos)
    alone = [
        model.visual(pair.pixel_values_videos, torch.tensor([[1, 6, 8]]), ATTENTION[implementation]) for pair in pairs
    ]
    assert relative_difference(together, torch.cat(alone)) < SAME
    swapped = model.visual(pairs[1].pixel_values_videos, torch.tensor([[1, 8, 6]]), ATTENTION[implementation])
    assert relative_difference(swapped, alone[1]) > 1e-3, "the stills are compared at their own size"


@torch.no_grad()
def test_a_clip_that_stands_still_is_that_many_pictures():
    """Frames a a b b c c: bit for bit the patches of the pictures a, b, c, so also their visual tokens."""
    model, stills = small_model(tied=False), noise(3, 84, 112)
    processor = Qwen2VLImageProcessorFast(min_pixels=784, video_min_pixels=784)
    clip = processor.preprocess(videos=stills.repeat_interleave(2, dim=0))
    pictures = processor.preprocess(images=list(stills))
    assert pictures.image_grid_thw.tolist() == [[1, 6, 8]] * 3
    assert torch.equal(clip.pixel_values_videos, pictures.pixel_values)
    tokens = model.get_video_features(clip.pixel_values_videos, clip.video_grid_thw)[0]
    expected = torch.cat(model.get_image_features(pictures.pixel_values, pictures.image_grid_thw))
    assert relative_difference(tokens, expected) < SAME


# --- sizes and tokens -------------------------------------------------------------------------------------------------


def cells(frames: int, height: int, width: int, low=None, high=None, total=None) -> tuple[int, int] | None:
    """Rows and columns of 28×28 pixels, in whole numbers only: ⌊√x⌋ = isqrt(⌊x⌋), and no rounding errors at all.

    What is None was not set by a user, and gives way to what was; None comes back where two that were set contradict.
    """
    pairs = (frames + 1) // 2
    share, least = Fraction(total or 24576 * 784, pairs), low or 128 * 784
    if total and low and low > share or high and low and low > high:
        return None
    most = min(high or max(768 * 784, least * 105 // 100), share if total else max(share, least * 105 // 100))
    sides = (height, width), (width, height)
    below = tuple(max(1, math.isqrt(math.floor(Fraction(a, b) * most / 784))) for a, b in sides)
    least = min(least, most)
    above = tuple(math.isqrt(math.ceil(Fraction(a, b) * least / 784) - 1) + 1 for a, b in sides)
    rounded = [round(Fraction(side, 28)) for side, _ in sides]  # a half goes to the even neighbour
    found = tuple(rounded)
    if rounded[0] * rounded[1] * 784 > most:
        found = below
    elif rounded[0] * rounded[1] * 784 < least:
        found = above
    if not low and (total or high) and math.prod(found) * 784 > most:
        found = below  # growing to a default would pass what the user set
    if low and not total and high != most and math.prod(found) * 784 < low:
        found = above  # and shrinking to a default would
    return None if total and pairs * math.prod(found) * 784 > total else found


def size_table() -> list[tuple]:
    """(frames, height, width, limits) with small and large clips, few and many frames, and every kind of limit."""
    rng = random.Random(0)
    table = [(frames, h, w, {}) for frames in (1, 2, 3, 4, 7, 40, 100, 367, 768) for h, w in ((720, 1280), (48, 64))]
    for _ in range(300):
        low = rng.choice((None, rng.randint(1, 300) * 784))
        limits = {
            "min_pixels": low,
            "max_pixels": rng.choice((None, None, (low or 128 * 784) + rng.randint(0, 500_000))),
            "total_pixels": rng.choice((None, rng.randint(1000, 30_000) * 784)),
        }
        limits = {name: value for name, value in limits.items() if value}
        table.append((rng.randint(1, 768), rng.randint(20, 2000), rng.randint(20, 2000), limits))
    return table


def test_sizes_and_tokens_over_a_table():
    processor, names, kinds = Qwen2VLImageProcessor(), {"min": "low", "max": "high", "total": "total"}, set()
    contradictions = 0
    for frames, height, width, limits in size_table():
        known = {names[name.split("_")[0]]: value for name, value in limits.items()}
        case = (frames, height, width, limits)
        expected = cells(frames, height, width, **known)
        if expected is None:
            contradictions += 1
            with pytest.raises(ValueError, match="min_pixels|total_pixels"):
                processor.frame_size(frames, height, width, **limits)
            continue
        rows, columns = expected
        assert processor.frame_size(frames, height, width, **limits) == (28 * rows, 28 * columns), case
        assert processor.num_video_tokens(frames, height, width, **limits) == (frames + 1) // 2 * rows * columns, case
        kinds.add(tuple(limits))
        if "total_pixels" in limits or not limits:  # a budget that a user set holds; the default one may break …
            within = processor.num_video_tokens(frames, height, width, **limits) * 784 <= limits.get("total_pixels", 0)
            assert within or not limits, case
        if "max_pixels" in limits and "min_pixels" not in limits:
            assert 784 * rows * columns <= limits["max_pixels"], case
    assert len(kinds) == 8  # all combinations of limits came up
    assert contradictions > 20


@pytest.mark.parametrize(
    "frames, height, width, limits, size, tokens",
    [
        (4, 720, 1280, {}, (560, 1008), 2 * 720),  # a frame has at most 768 tokens
        (40, 720, 1280, {}, (560, 1008), 20 * 720),
        (100, 720, 1280, {}, (448, 812), 50 * 464),  # the budget: 491.52 tokens for each pair, 24576 in all
        (768, 720, 1280, {}, (224, 420), 384 * 120),  # but never less than 1.05 × 128 tokens
        (768, 480, 640, {}, (280, 364), 384 * 130),  # with 1.00 × 128 this would be one row less
        (768, 720, 1280, {"max_pixels": 360 * 420}, (224, 420), 384 * 120),  # said explicitly, it replaces no budget
        (100, 720, 1280, {"max_pixels": 700 * 784}, (448, 812), 50 * 464),
        (4, 720, 1280, {"max_pixels": 1000 * 784}, (644, 1176), 2 * 23 * 42),  # more than the default for a frame
        (768, 720, 1280, {"total_pixels": 24576 * 784}, (168, 280), 384 * 60),  # the same budget, but set by a user
        (5, 720, 1280, {"total_pixels": 300 * 784}, (196, 364), 3 * 91),  # 100 tokens for each of 3 pairs, not 120
        (4, 720, 1280, {"max_pixels": 360 * 420}, (280, 504), 2 * 180),
        (4, 48, 64, {}, (280, 392), 2 * 140),  # grown to at least 128 tokens
        (4, 48, 64, {"min_pixels": 784}, (56, 56), 2 * 4),
        (16, 720, 1280, {"total_pixels": 2048 * 784}, (336, 588), 8 * 252),  # 256 tokens for each pair
        (5, 84, 112, {"min_pixels": 784}, (84, 112), 3 * 12),
        (1, 84, 112, {"min_pixels": 784}, (84, 112), 12),
    ],
)  # fmt: skip
def test_golden_sizes(frames, height, width, limits, size, tokens):
    processor = Qwen2VLImageProcessor()
    assert processor.frame_size(frames, height, width, **limits) == size
    assert processor.num_video_tokens(frames, height, width, **limits) == tokens


@pytest.mark.parametrize("frames, height, width", [(4, 48, 64), (5, 84, 112), (1, 60, 60), (9, 200, 40), (12, 30, 30)])
@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 784},
        {"min_pixels": 2 * 784, "max_pixels": 6 * 784},
        {"min_pixels": 784, "total_pixels": 20 * 784},
        {"max_pixels": 130 * 784},
    ],
    ids=str,
)
def test_the_rows_made_are_as_many_as_counted(frames, height, width, limits):
    """… with the limits in the call, in the item, and (as `video_…`) in the constructor."""
    clip, processor = noise(frames, height, width), Qwen2VLImageProcessor()
    tokens = processor.num_video_tokens(frames, height, width, **limits)
    rows, columns = cells(frames, height, width, *map(limits.get, ("min_pixels", "max_pixels", "total_pixels")))
    grid = ((frames + 1) // 2, 2 * rows, 2 * columns)
    made = processor.preprocess(videos=clip, **limits)
    assert made.video_grid_thw.tolist() == [list(grid)] and len(made.pixel_values_videos) == 4 * tokens
    by_item, item_grid = processor.media_patches({"type": "video", "video": clip, **limits}, max_pixels=784)
    if "max_pixels" in limits:  # else the call's holds
        assert item_grid == grid and torch.equal(by_item, made.pixel_values_videos)
    if "max_pixels" not in limits:
        own = Qwen2VLImageProcessor(**{f"video_{name}": value for name, value in limits.items()})
        assert torch.equal(own.preprocess(videos=clip).pixel_values_videos, made.pixel_values_videos)


def test_each_clip_of_a_call_has_its_own_size():
    clips, processor = [noise(4, 84, 112), noise(3, 60, 60, 1), noise(2, 84, 112, 2)], Qwen2VLImageProcessor(784)
    together = processor.preprocess(videos=clips, min_pixels=784)
    assert together.video_grid_thw.tolist() == [[2, 6, 8], [2, 4, 4], [1, 6, 8]]
    alone = [processor.preprocess(videos=[clip], min_pixels=784).pixel_values_videos for clip in clips]
    assert torch.equal(together.pixel_values_videos, torch.cat(alone))
