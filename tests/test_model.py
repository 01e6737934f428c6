"""The model by itself: positions, attention, tower, cache, generation. Each test names the mistake it would catch.

Nothing here needs the official implementation; what must hold is worked out by hand or by a slow second way.
"""

import cmath
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from qwen2vl_io.options import flash_problem, sampling_settings
from qwen2vl_mini import (
    ATTENTION,
    KVCache,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    choose,
    cos_sin,
    get_rope_index,
    mrope_angles,
    rotate,
    vision_angles,
)
from tests.small_models import (
    image,
    make_inputs,
    one_row,
    real_tokens,
    relative_difference,
    shared_model,
    small_config,
    small_model,
    video,
)

IMPLEMENTATIONS = ("eager", "sdpa", "flash")
MIXED = [[9], [3, image(4, 6), 4], [image(2, 4), 1, image(6, 2), 2], [1, video(3, 4, 4), 2]]  # text, 1, 2 images, clip


@torch.no_grad()
def logits(model, inputs: dict, **options) -> torch.Tensor:
    return model(**inputs, **options).logits


# --- rotary embeddings -----------------------------------------------------------------------------------------------


def turn_pairs(x: torch.Tensor, angles: list[float]) -> torch.Tensor:
    """The definition: pair i is the complex number x[i] + j·x[i + D/2], turned by angles[i]."""
    half = len(angles)
    turned = [complex(x[i], x[i + half]) * cmath.exp(1j * angle) for i, angle in enumerate(angles)]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned])


def test_mrope_is_chunked_not_interleaved():
    """Of 8 pairs the first 1 turns with t, the next 3 with h, the last 4 with w."""
    config = small_config(heads=(2, 1), head_dim=16, section=[1, 3, 4], theta=1e4).text_config
    position_ids = torch.randint(0, 50, (3, 2, 5))
    x = torch.randn(2, 5, 16)
    found = rotate(x, *cos_sin(mrope_angles(position_ids, config)))
    axis_of_pair = [0, 1, 1, 1, 2, 2, 2, 2]
    for b in range(2):
        for s in range(5):
            angles = [float(position_ids[axis, b, s]) * 1e4 ** (-i / 8) for i, axis in enumerate(axis_of_pair)]
            torch.testing.assert_close(found[b, s], turn_pairs(x[b, s], angles), atol=1e-5, rtol=0)


def test_mrope_with_three_equal_axes_is_ordinary_rope():
    sections = small_config(section=[2, 3, 3]).text_config
    plain = copy.copy(sections)
    plain.mrope_section = None
    position_ids = torch.arange(20).expand(3, 1, -1)
    assert torch.equal(mrope_angles(position_ids, sections), mrope_angles(position_ids, plain))


@pytest.mark.parametrize("kind", ("mrope", "default", None))
def test_mrope_goes_by_its_section_not_by_a_type_name(kind):
    d = shared_model().config.to_dict()
    for name in ("rope_scaling", "rope_parameters"):
        d.pop(name, None)
        rope = {"mrope_section": [2, 3, 3]} | ({"type": kind} if kind else {})
        assert Qwen2VLConfig.from_dict(d | {name: rope}).text_config.mrope_section == [2, 3, 3]
        assert Qwen2VLConfig.from_dict(d | {name: {"rope_type": "default"}}).text_config.mrope_section is None


def test_vision_rotary_turns_half_the_pairs_with_the_row_and_half_with_the_column():
    """In the 2×2-window order of the patches, and again for each frame pair; tiled, not interleaved."""
    grid, head_dim = (2, 4, 6), 16
    places = [
        (row + i, column + j)
        for _ in range(2)
        for row in (0, 2)
        for column in (0, 2, 4)
        for i in (0, 1)
        for j in (0, 1)
    ]
    x = torch.randn(len(places), head_dim)
    found = rotate(x, *cos_sin(vision_angles([grid], head_dim, 2, "cpu")))
    for patch, (row, column) in enumerate(places):
        angles = [row * 1e4 ** (-i / 4) for i in range(4)] + [column * 1e4 ** (-i / 4) for i in range(4)]
        torch.testing.assert_close(found[patch], turn_pairs(x[patch], angles), atol=1e-5, rtol=0)


def test_angles_are_float32_in_a_half_precision_model():
    """bfloat16 cannot tell position 1001 from 1000, and its angles would be far off."""
    model, seen = small_model().to(torch.bfloat16), []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[1][0, 0]))  # cos, (S, D)
    positions = [1000, 1001, 1002, 1003]
    logits(model, make_inputs(model.config, [[4]]), position_ids=torch.tensor(positions).expand(3, 1, -1))
    expected = torch.tensor([[math.cos(p * 1e6 ** (-i / 8)) for i in range(8)] * 2 for p in positions])
    torch.testing.assert_close(seen[0].float(), expected, atol=1 / 256, rtol=0)  # rounded once, at the end


# --- attention -------------------------------------------------------------------------------------------------------


def slow_attention(q, k, v, causal: bool) -> torch.Tensor:
    """One query at a time, from the formula, in float64."""
    (B, H, Q, D), (Hkv, S) = q.shape, k.shape[1:3]
    q, k, v = q.double(), k.double(), v.double()
    y = torch.zeros(B, H, Q, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                end = S - Q + i + 1 if causal else S
                keys, values = k[b, h * Hkv // H, :end], v[b, h * Hkv // H, :end]
                y[b, h, i] = (keys @ q[b, h, i] / math.sqrt(D)).softmax(0) @ values
    return y.float()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("causal, Q, S", [(True, 7, 7), (False, 7, 7), (True, 1, 7), (True, 3, 7), (True, 1, 1)])
@pytest.mark.parametrize("H, Hkv", [(4, 4), (6, 2), (7, 1)])
def test_attention_is_the_formula(implementation, causal, Q, S, H, Hkv):
    """Prefill, tower, decoding and a later chat turn (Q of S), with and without shared heads."""
    q, k, v = torch.randn(2, H, Q, 16), torch.randn(2, Hkv, S, 16), torch.randn(2, Hkv, S, 16)
    found = ATTENTION[implementation](q, k, v, causal)
    torch.testing.assert_close(found, slow_attention(q, k, v, causal), atol=1e-5, rtol=1e-5)


def test_implementations_agree_on_a_mixed_batch_and_while_decoding():
    model = small_model(heads=(6, 2), tied=False)
    inputs = make_inputs(model.config, MIXED)
    found = {}
    for model.attn_implementation in IMPLEMENTATIONS:
        cache = KVCache(model.config.text_config, 4, 64, dtype=torch.float32)
        prefill = real_tokens(logits(model, inputs, cache=cache), inputs)
        steps = [logits(model, {"input_ids": torch.full((4, 2 - i), 7 + i)}, cache=cache) for i in (0, 1)]
        found[model.attn_implementation] = torch.cat([prefill, *(step.flatten(0, 1) for step in steps)])
    assert relative_difference(found["sdpa"], found["eager"]) < 1e-5
    assert relative_difference(found["flash"], found["eager"]) < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_comes_later_changes_nothing_before_it(implementation):
    """Causal by sequence index: a picture's tokens share M-RoPE positions, yet only later ones see earlier ones."""
    model = small_model(tied=False)
    model.attn_implementation = implementation
    inputs = make_inputs(model.config, [[2, image(4, 4), 2, image(4, 4), 3]])
    other = inputs | {"pixel_values": inputs["pixel_values"].clone()}
    other["pixel_values"][-1] += 1  # the last patch of the second picture; in the tower all its patches see it
    moved = (logits(model, inputs) - logits(model, other)).abs().amax(-1)[0]
    start = 2 + 6 + 2 + 1  # text, the first picture with its two markers, text, a marker
    assert moved[:start].max() == 0 and moved[start:].min() > 1e-4

    text = make_inputs(model.config, [[20]])
    other = text | {"input_ids": text["input_ids"].index_fill(1, torch.tensor([12]), 5)}
    one_place = torch.zeros(3, 1, 20, dtype=torch.long)  # positions cannot say who came first, only the index can
    moved = (logits(model, text, position_ids=one_place) - logits(model, other, position_ids=one_place)).abs().amax(-1)
    assert moved[0, :12].max() == 0 and moved[0, 12:].min() > 1e-4


def test_unknown_attention_name_is_refused_and_the_official_flash_name_is_known():
    config = small_config()
    assert (
        Qwen2VLForConditionalGeneration(config, attn_implementation="flash_attention_2").attn_implementation == "flash"
    )
    with pytest.raises(ValueError, match="attn_implementation='xformers' is not one of eager, sdpa"):
        Qwen2VLForConditionalGeneration(config, attn_implementation="xformers")


# --- the flash kernel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device, dtype, head_dim, problem",
    [
        ("cpu", torch.float32, 20, None),
        ("cuda", torch.bfloat16, 128, None),
        ("cuda", torch.float16, 80, None),  # the tower's
        ("cuda", torch.bfloat16, 256, None),
        ("cuda", torch.float32, 128, "cuda, float32, 128"),
        ("cuda", torch.bfloat16, 20, "cuda, bfloat16, 20"),
        ("cuda", torch.bfloat16, 264, "cuda, bfloat16, 264"),
        ("mps", torch.bfloat16, 128, "mps, bfloat16, 128"),
    ],
)
def test_flash_problem(device, dtype, head_dim, problem):
    found = flash_problem(device, dtype, head_dim)
    assert found is None if problem is None else problem in found


def test_flash_demanded_where_it_cannot_run_says_why():
    q = torch.zeros(1, 2, 3, 16, device="meta")
    with pytest.raises(ValueError, match="demanded but it needs .* here are meta, float32, 16; use .*'sdpa'"):
        ATTENTION["flash"](q, q, q, True)


@pytest.fixture
def attention_calls(monkeypatch) -> list[dict]:
    """What every call of PyTorch's attention was given."""
    calls, real = [], F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        calls.append({"tensors": (q, k, v), "attn_mask": attn_mask, "is_causal": is_causal})
        return real(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return calls


@pytest.mark.parametrize("implementation", ("sdpa", "flash"))
@pytest.mark.parametrize(
    "rows",
    ([[9]], [[3, image(4, 6), 4]], [[2, video(3, 4, 4), image(4, 6)]], MIXED),
    ids=("text", "image", "clip", "mixed"),
)
def test_every_call_is_one_the_flash_kernel_takes(attention_calls, rows, implementation):
    """bfloat16, head_dim a multiple of 8, no mask tensor: prefill, left-padded batches, decoding and the tower."""
    model = small_model(heads=(6, 2), head_dim=24, section=[4, 4, 4], vision=(2, 64, 2)).to(torch.bfloat16)
    model.attn_implementation = implementation
    inputs = make_inputs(model.config, rows)
    cache = KVCache(model.config.text_config, len(rows), 64, dtype=torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # any other need is an error
        logits(model, inputs, cache=cache)
        prefill = len(attention_calls)
        logits(model, {"input_ids": torch.full((len(rows), 1), 5)}, cache=cache)
    assert len(attention_calls) > prefill > 0
    assert any(call["tensors"][0].shape[-1] == 32 for call in attention_calls) == ("image_grid_thw" in inputs)
    for number, call in enumerate(attention_calls):
        q, k, v = call["tensors"]
        is_tower = q.shape[-1] == 32
        assert call["attn_mask"] is None
        assert {x.dtype for x in (q, k, v)} == {torch.bfloat16} and q.shape[-1] % 8 == 0
        assert call["is_causal"] == (not is_tower and number < prefill)


# --- tower -----------------------------------------------------------------------------------------------------------


def patches(*grids: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixel rows and the tensor of their grids."""
    return torch.randn(sum(math.prod(grid) for grid in grids), 1176), torch.tensor(grids)


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sizes", [(4, 6, 6, 4), (4, 4, 4, 4), (2, 2, 8, 4)])
def test_two_pictures_in_one_call_do_not_see_each_other(implementation, sizes):
    first, second = (1, *sizes[:2]), (1, *sizes[2:])
    tower = shared_model().visual
    pixels, grids = patches(first, second)
    together = tower(pixels, grids, ATTENTION[implementation])
    cut = math.prod(first)
    attention = ATTENTION[implementation]
    alone = [tower(pixels[:cut], grids[:1], attention), tower(pixels[cut:], grids[1:], attention)]
    assert relative_difference(together, torch.cat(alone)) < 1e-5
    assert relative_difference(tower(pixels.flip(0), grids)[-1:], together[-1:]) > 1e-2  # the pixels do matter


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_clip_is_its_frame_pairs_as_stills(implementation):
    """Positions start anew in each frame pair, and no patch sees another pair."""
    tower = shared_model().visual
    pixels, grid = patches((3, 4, 6))
    stills = tower(pixels, torch.tensor([[1, 4, 6]] * 3), ATTENTION[implementation])
    assert relative_difference(tower(pixels, grid, ATTENTION[implementation]), stills) < 1e-5


@torch.no_grad()
def test_height_and_width_are_not_swapped():
    """The same pixel rows as 4×6 and as 6×4 patches are different pictures: a swap inside cannot stay unseen."""
    tower = shared_model().visual
    pixels, grid = patches((1, 4, 6))
    high = tower(pixels, torch.tensor([[1, 6, 4]]))
    assert relative_difference(tower(pixels, grid), high) > 1e-2
    # and of the two, rows are the first: in a 2×2 picture, rows turn the first half of the pairs
    angles = vision_angles([[1, 2, 2]], 8, 2, "cpu")
    assert angles[:, 0].tolist() == [0, 0, 1, 1] and angles[:, 2].tolist() == [0, 1, 0, 1]


@torch.no_grad()
def test_patch_embedding_is_the_convolution():
    embed = shared_model().visual.patch_embed
    pixels, _ = patches((1, 4, 6))
    expected = embed.proj(pixels.view(-1, 3, 2, 14, 14)).flatten(1)  # the real Conv3d, with the same weights
    assert relative_difference(embed(pixels), expected) < 1e-5


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@torch.no_grad()
def test_tower_never_builds_a_square_of_patches(attention_calls):
    """Two pictures of 64×64 patches: not N×N for the N = 8192 of both, nor L×L for the L = 4096 of one."""
    tower = small_model(vision=(1, 16, 1)).visual
    pixels, grids = patches((1, 64, 64), (1, 64, 64))
    with LargestTensor() as largest:
        tower(pixels, grids)
    assert attention_calls and all(call["attn_mask"] is None for call in attention_calls)
    assert len(pixels) * 4 * 16 <= largest.numel < 4096**2  # it did watch: the MLP's hidden layer is the lower bound


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_mixed_batch_is_its_rows_alone(implementation):
    model = small_model(tied=False)
    model.attn_implementation = implementation
    inputs = make_inputs(model.config, [*MIXED, []], padding=2)  # the last row is nothing but padding
    together = logits(model, inputs)
    for row in range(len(MIXED)):
        alone = logits(model, one_row(model.config, inputs, row))[0]
        assert relative_difference(together[row, inputs["attention_mask"][row].bool()], alone) < 1e-4
    assert together.isfinite().all()
    new = model.generate(**inputs, max_new_tokens=3)
    for row in range(len(MIXED)):
        alone = model.generate(**one_row(model.config, inputs, row), max_new_tokens=3)
        assert torch.equal(new[row, -3:], alone[0, -3:])


def test_right_padding_is_read_correctly_and_refused_for_generation():
    model = shared_model()
    inputs = make_inputs(model.config, [[6], [9]])
    right = {name: inputs[name].clone() for name in ("input_ids", "attention_mask")}
    for x in right.values():
        x[0] = x[0].roll(-3)
    expected = logits(model, one_row(model.config, inputs, 0))[0]
    assert relative_difference(logits(model, right)[0, :6], expected) < 1e-4
    with pytest.raises(ValueError, match="pad the prompts on the left"):
        model.generate(**right, max_new_tokens=1)


def test_a_hole_in_the_mask_is_refused():
    inputs = make_inputs(shared_model().config, [[6]])
    inputs["attention_mask"][0, 3] = 0
    with pytest.raises(ValueError, match="attention_mask has a hole"):
        logits(shared_model(), inputs)


def change(inputs: dict, **changes) -> dict:
    """Inputs with some tensors replaced; None removes one."""
    return {name: x for name, x in (inputs | changes).items() if x is not None}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda i: change(i, input_ids=i["input_ids"][:, :-4]), r"Row 1 has 5 <\|image_pad\|> .* make 6"),
        (lambda i: change(i, input_ids=i["input_ids"][[0, 0]]), r"Row 1 has 4 <\|image_pad\|> .* make 6"),
        (lambda i: change(i, input_ids=i["input_ids"][:1]), r"1 image\(s\) are left over"),
        (lambda i: change(i, image_grid_thw=i["image_grid_thw"][:1]), r"rows, but their grid_thw describes 16"),
        (lambda i: change(i, image_grid_thw=None), "40 rows, but their grid_thw describes 0"),
        (lambda i: change(i, pixel_values=None), "0 rows, but their grid_thw describes 40"),
        (lambda i: change(i, pixel_values=None, image_grid_thw=None), r"Row 0 has 4 <\|image_pad\|> .* make 0"),
        (lambda i: change(i, input_ids=i["input_ids"].flip(0)), r"Row 0 has 6 <\|image_pad\|> .* make 10"),
    ],
    ids=("cut", "too-few", "left-over", "grid-missing", "no-grids", "no-pixels", "no-picture", "rows-swapped"),
)
def test_placeholders_that_do_not_match_are_an_error_before_the_tower_runs(damage, message):
    """Row, expected and found are named."""
    model = small_model()
    inputs = make_inputs(model.config, [[3, image(4, 4), 3], [2, image(4, 6), 2]])
    inputs = damage({name: inputs[name] for name in ("input_ids", "pixel_values", "image_grid_thw")})
    model.visual.forward = lambda *_: pytest.fail("the tower ran")
    with pytest.raises(ValueError, match=message):
        logits(model, inputs)


@pytest.mark.parametrize("keep", (1, 3, torch.tensor([0, 4, 5])))
def test_logits_to_keep(keep):
    model, inputs = shared_model(), make_inputs(shared_model().config, [[4, image(4, 4), 2]])
    everything = logits(model, inputs)
    kept = everything[:, keep] if isinstance(keep, torch.Tensor) else everything[:, -keep:]
    torch.testing.assert_close(logits(model, inputs, logits_to_keep=keep), kept)
    assert logits(model, inputs, logits_to_keep=0).shape == everything.shape


# --- cache -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_later_turn_with_a_new_picture_continues_the_cache(implementation):
    """Two chunks, then single tokens, into a cache that must grow = one full forward."""
    model = small_model(tied=False)
    model.attn_implementation = implementation
    inputs = make_inputs(model.config, [[3, image(4, 6), 2, 4, image(6, 2), 3, video(2, 4, 4), 4]])
    expected = logits(model, inputs)
    ids, pixels, grids = inputs["input_ids"], inputs["pixel_values"], inputs["image_grid_thw"]
    first = {"input_ids": ids[:, :13], "pixel_values": pixels[:24], "image_grid_thw": grids[:1]}
    second = {"input_ids": ids[:, 13:-2], "pixel_values": pixels[24:], "image_grid_thw": grids[1:]}
    second |= {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw")}
    cache = KVCache(model.config.text_config, 1, 4, dtype=torch.float32)
    chunks = [first, second, {"input_ids": ids[:, -2:-1]}, {"input_ids": ids[:, -1:]}]
    found = torch.cat([logits(model, chunk, cache=cache) for chunk in chunks], dim=1)
    assert relative_difference(found, expected) < 1e-5
    assert cache.length == ids.shape[1] and torch.equal(cache.token_ids, ids)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_later_turn_of_a_padded_batch_continues_the_cache(implementation):
    """Each row has its own padding and its own next position, and keeps them."""
    model = small_model(tied=False)
    model.attn_implementation = implementation
    inputs = make_inputs(model.config, [[4, image(6, 6), 2], [7]])
    cache = KVCache(model.config.text_config, 2, 64, dtype=torch.float32)
    logits(model, inputs, cache=cache)
    turn = torch.randint(1, 100, (2, 5))
    found = logits(model, {"input_ids": turn}, cache=cache)
    for row in range(2):
        alone = one_row(model.config, inputs, row)
        whole = {"input_ids": torch.cat([alone["input_ids"], turn[row : row + 1]], dim=1)}
        whole |= {name: x for name, x in alone.items() if "pixel" in name or "grid" in name}
        assert relative_difference(found[row], logits(model, whole)[0, -5:]) < 1e-5


def test_cache_grows_only_when_full_and_keeps_what_it_holds():
    config = small_config().text_config
    cache = KVCache(config, 1, 8, dtype=torch.float32)
    kv = torch.randn(2, 1, config.num_key_value_heads, 200, config.head_dim)
    storage = cache.data
    for start, end in ((0, 5), (5, 8), (8, 9), (9, 200)):
        for layer in range(config.num_hidden_layers):
            k, v = cache.append(layer, *kv[..., start:end, :])
            assert torch.equal(k, kv[0, ..., :end, :]) and torch.equal(v, kv[1, ..., :end, :])
        cache.length = end
        assert (cache.data is storage) == (end <= 8)


def test_generation_continues_a_chat_as_if_it_had_read_all_at_once():
    """generate, then generate again with the new turn's ids only: the same answer as for the whole conversation."""
    model = shared_model()
    first, second = (
        make_inputs(model.config, [[3, image(4, 6), 2]], seed=1),
        make_inputs(model.config, [[2, image(8, 2), 4]], seed=2),
    )
    cache = KVCache(model.config.text_config, 1, 16, dtype=torch.float32)
    answer = model.generate(**first, max_new_tokens=5, cache=cache)
    # the last id was written, not read: it opens the next turn
    turn = torch.cat([answer[:, cache.length :], second["input_ids"]], dim=1)
    media = {name: second[name] for name in ("pixel_values", "image_grid_thw")}
    found = model.generate(turn, **media, max_new_tokens=6, cache=cache)
    whole = {name: torch.cat([first[name], second[name]]) for name in media}
    expected = model.generate(torch.cat([answer, second["input_ids"]], dim=1), **whole, max_new_tokens=6)
    assert torch.equal(found[:, -6:], expected[:, -6:])


def test_the_cache_has_its_earlier_name_too():
    """transformers 5.24 renamed `past_key_values` to `cache`, in calls and outputs; both are understood."""
    model = shared_model()
    ids, expected = torch.arange(6)[None], {}
    for name in ("cache", "past_key_values"):
        given = KVCache(model.config.text_config, 1, 12, dtype=torch.float32)
        output = model(ids, **{name: given})
        assert output.cache is output.past_key_values is given and given.length == 6
        expected[name] = model.generate(ids[:, :2], max_new_tokens=3, **{name: given})
        assert given.length == 6 + 2 + 2  # the last id is written, not read
    assert torch.equal(*expected.values())
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="past_key_values is the earlier name of cache; give one of the two"):
            call(ids, cache=given, past_key_values=given)


def test_generating_twice_with_other_pictures_leaves_nothing_behind():
    """rope_delta on the model was the bug: the second answer must be that of a fresh model."""
    used = small_model(tied=False)
    requests = [
        make_inputs(used.config, rows, seed=i)
        for i, rows in enumerate(([[image(2, 12), 3]], [[3, image(8, 8), 2]], [[7]]))
    ]
    for inputs in requests:
        fresh = small_model(tied=False)
        assert torch.equal(used.generate(**inputs, max_new_tokens=12), fresh.generate(**inputs, max_new_tokens=12))
    # two conversations that take turns on one model
    alone = [used.generate(**inputs, max_new_tokens=6)[0, -6:].tolist() for inputs in requests]
    steps = [used.generate_steps(**inputs, max_new_tokens=6) for inputs in requests]
    taken = [[int(next(step)) for step in steps] for _ in range(6)]
    assert [list(row) for row in zip(*taken)] == alone


# --- generation ------------------------------------------------------------------------------------------------------


def test_only_the_last_place_gets_logits_when_generating():
    """Of a long prompt and a vocabulary of 152 000, all logits would be gigabytes."""
    model, shapes = small_model(), []
    model.lm_head.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    inputs = make_inputs(model.config, [[30, image(4, 4)], [3]])
    model.generate(**inputs, max_new_tokens=3)
    assert shapes == [(2, 1, 64)] * 3


def test_float16_that_overflows_is_an_error_that_names_it():
    """Not an answer of "!!!!": the argmax of NaN is token 0."""
    model = small_model(tied=False).half()
    with torch.no_grad():
        model.lm_head.weight.fill_(6e4)
    with pytest.raises(ValueError, match="not finite in torch.float16; .*bfloat16 or float32"):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=1)


def prefer(model: Qwen2VLForConditionalGeneration, ids: list[int]) -> None:
    """Make the model write these ids, the last the most likely."""
    bonus = torch.zeros(model.config.text_config.vocab_size)
    bonus[ids] = 100 + 10 * torch.arange(len(ids), dtype=torch.float32)
    model.lm_head.register_forward_hook(lambda _, args, output: output + bonus)


def test_vision_tokens_are_never_written():
    """They would announce a picture that is not there."""
    model = small_model()
    start, video_pad = model.config.vision_start_token_id, model.config.video_token_id
    prefer(model, [7, start - 1, *range(start, video_pad + 1)])
    prompt = torch.tensor([[1, 2, 3]])
    assert model.generate(prompt, max_new_tokens=3)[0, 3:].tolist() == [start - 1] * 3
    # allowed all the same, it is an id like others when it is read: no picture is missed
    assert model.generate(prompt, max_new_tokens=3, suppress_tokens=[])[0, 3:].tolist() == [video_pad] * 3
    assert model.generate(prompt, max_new_tokens=1, suppress_tokens=[video_pad])[0, 3:].tolist() == [video_pad - 1]


def test_rows_end_by_themselves_and_are_padded():
    model = small_model()
    model.generation_config = {"eos_token_id": [11, 12], "pad_token_id": 0}
    model.lm_head.register_forward_hook(lambda _, args, output: torch.full_like(output, -1.0))
    script = iter([[5, 11], [6, 8], [12, 8], [9, 9]])  # what each step's rows would like to write

    def write(_, args, output):
        return output.scatter(2, torch.tensor(next(script)).view(2, 1, 1), 1.0)

    model.lm_head.register_forward_hook(write)
    ids = model.generate(torch.tensor([[1, 2], [3, 4]]), max_new_tokens=9)
    assert ids.tolist() == [[1, 2, 5, 6, 12], [3, 4, 11, 0, 0]]


def test_context_length_is_a_limit():
    model = small_model(context=20)
    inputs = make_inputs(model.config, [[2, image(4, 4), 4]])  # 12 tokens
    assert model.generate(**inputs, max_new_tokens=8).shape[1] == 20
    with pytest.raises(ValueError, match="12 tokens and 9 new ones do not fit the model's context of 20; lower"):
        model.generate(**inputs, max_new_tokens=9)
    cache = KVCache(model.config.text_config, 1, 20, dtype=torch.float32)
    model.generate(**inputs, max_new_tokens=4, cache=cache)
    with pytest.raises(ValueError, match="do not fit the model's context of 20"):
        model.generate(torch.tensor([[5]]), max_new_tokens=8, cache=cache)


# --- sampling --------------------------------------------------------------------------------------------------------

RELEASED = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.05}
GREEDY = {"do_sample": False}
NEUTRAL = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({}, GREEDY),  # the file's top_k 1 means greedy
        ({"do_sample": False}, GREEDY),
        ({"temperature": 0.0}, GREEDY),
        ({"do_sample": False, "temperature": 0.7}, GREEDY),
        ({"top_k": 1}, GREEDY),
        ({"do_sample": True}, NEUTRAL),
        ({"temperature": 0.7}, NEUTRAL | {"temperature": 0.7}),  # not held to the file's top_k 1 and top_p 0.001
        ({"top_p": 0.9}, NEUTRAL | {"top_p": 0.9}),
        ({"top_k": 5}, NEUTRAL | {"top_k": 5}),
        (
            {"temperature": 0.7, "top_p": 0.9, "top_k": 5},
            {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "do_sample": True},
        ),
        ({"temperature": None, "top_p": None}, GREEDY),  # None is "not asked for"
    ],
    ids=str,
)
def test_sampling_settings(asked, expected):
    model = small_model()
    model.generation_config = dict(RELEASED)
    settings = sampling_settings(model.generation_config, **asked)
    assert {name: settings[name] for name in expected} == expected
    assert settings["repetition_penalty"] == 1.05  # the file's, unless asked otherwise
    assert sampling_settings(model.generation_config, **asked, repetition_penalty=1.3)["repetition_penalty"] == 1.3
    assert model.generation_config == RELEASED
    model.generation_config = {}
    assert sampling_settings(model.generation_config)["do_sample"] is False


@pytest.mark.parametrize(
    "asked", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"repetition_penalty": 0.0}]
)
def test_sampling_settings_out_of_range_are_refused(asked):
    with pytest.raises(ValueError, match="temperature ≥ 0|repetition_penalty must be above 0"):
        sampling_settings({}, **asked)


def drawn(probabilities: list[float], **settings) -> list[float]:
    """How often each id is drawn in 20 000 draws."""
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0} | settings
    rows = torch.tensor(probabilities).log().expand(20_000, -1)
    ids = choose(rows, torch.zeros(20_000, 0, dtype=torch.long), settings, torch.Generator().manual_seed(0))
    return (ids.bincount(minlength=len(probabilities)) / 20_000).tolist()


P = [0.1, 0.4, 0.2, 0.3]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, P),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),  # p², renormalised
        ({"temperature": 100.0}, [0.25] * 4),  # nearly
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 4}, P),
        ({"top_k": 50}, P),  # more than there are
        ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),  # 0.4 is not enough, 0.4 + 0.3 is
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.001}, [0, 1, 0, 0]),  # one always stays
        ({"top_k": 3, "top_p": 0.4}, [0, 1, 0, 0]),  # top_p counts what top_k has left: 4/9 is enough
        ({"temperature": 0.5, "top_p": 0.5}, [0, 1, 0, 0]),  # and what temperature has made: 16/30
        ({"do_sample": False}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_draws_follow_the_distribution_worked_out_by_hand(settings, expected):
    found = drawn(P, **settings)
    assert found == pytest.approx(expected, abs=0.015)
    assert [p == 0 for p in found] == [p == 0 for p in expected]


def test_repetition_penalty_by_hand():
    """Ids that were read lose: a positive logit is divided, a negative one multiplied, once however often it came."""
    logits, seen = torch.tensor([[2.0, 1.8, -1.0, -1.1]]), torch.tensor([[0, 0, 2]])
    greedy = {"do_sample": False, "repetition_penalty": 1.2}
    assert choose(logits, seen, greedy, None).tolist() == [1]  # 2 / 1.2 = 1.67 < 1.8
    assert choose(logits, seen, greedy | {"repetition_penalty": 1.1}, None).tolist() == [0]  # 2 / 1.1 = 1.82
    only_low = torch.tensor([[-9.0, -9.0, -1.0, -1.1]])
    assert choose(only_low, seen, greedy, None).tolist() == [3]  # -1 · 1.2 = -1.2 < -1.1


def test_repetition_penalty_does_not_count_padding():
    """Or the padding's id (here 0) would be punished in the shorter rows of a batch, and in no row alone."""
    model = small_model(tied=False)
    prefer(model, [7, 0])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    batch = {"input_ids": torch.tensor([[1, 2, 0, 3], [0, 0, 4, 5]]), "attention_mask": mask}
    new = model.generate(**batch, max_new_tokens=1, repetition_penalty=2.0)[:, -1]
    assert new.tolist() == [7, 0]  # the first row did read a 0


def test_a_seed_makes_sampling_repeatable():
    model, prompt = shared_model(), torch.tensor([[1, 2, 3]])
    sample = lambda seed: model.generate(prompt, max_new_tokens=20, temperature=1.5, seed=seed).tolist()  # noqa: E731
    assert sample(3) == sample(3) != sample(4)
    torch.manual_seed(0)
    free = sample(None)
    assert sample(None) != free  # without one, the draws go on


def test_given_positions_hold_for_the_prompt_and_the_answer_goes_on_behind_them():
    """Those of get_rope_index, handed in, change nothing; others are used, at the next step too."""
    model = shared_model()
    inputs = make_inputs(model.config, [[3, image(4, 6), 2], [4, video(2, 4, 4)]])
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw", "attention_mask")}
    position_ids, _ = get_rope_index(model.config, inputs["input_ids"], **grids)
    expected = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(model.generate(**inputs, position_ids=position_ids, max_new_tokens=6), expected)

    cache = KVCache(model.config.text_config, 2, 64, dtype=torch.float32)
    with torch.no_grad():
        model(**inputs, position_ids=position_ids + 7, cache=cache)
        later = model(torch.tensor([[5], [6]]), cache=cache)
    assert torch.equal(later.position_ids, (position_ids + 7).amax(dim=(0, 2))[None, :, None].expand(3, -1, -1) + 1)


# --- streaming -------------------------------------------------------------------------------------------------------


class ByteTokenizer:
    """One id a byte, as in the worst case of a byte-level vocabulary."""

    def decode(self, ids, skip_special_tokens=True) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ("plain", "a 😀 b", "日本語", "é̂", "👩‍👩‍👧"))
def test_stream_never_shows_half_a_character(monkeypatch, text):
    model = shared_model()
    steps = lambda *args, **options: (torch.tensor([byte]) for byte in text.encode())  # noqa: E731
    monkeypatch.setattr(model, "generate_steps", steps)
    pieces = list(model.stream(ByteTokenizer(), torch.tensor([[1]])))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == len(text)  # and as soon as each is whole


def test_stream_shows_what_is_left_when_it_ends_inside_a_character(monkeypatch):
    steps = lambda *args, **options: (torch.tensor([byte]) for byte in "ok 😀".encode()[:-1])  # noqa: E731
    monkeypatch.setattr(shared_model(), "generate_steps", steps)
    assert "".join(shared_model().stream(ByteTokenizer(), torch.tensor([[1]]))) == "ok \ufffd"


def test_stream_writes_what_generate_writes():
    model, prompt = shared_model(), torch.tensor([[1, 2, 3]])

    class Numbers:
        def decode(self, ids, skip_special_tokens=True) -> str:
            return "".join(f" {i}" for i in ids)

    expected = "".join(f" {i}" for i in model.generate(prompt, max_new_tokens=8)[0, 3:].tolist())
    assert "".join(model.stream(Numbers(), prompt, max_new_tokens=8)) == expected


def test_a_padded_later_turn_is_refused():
    """The cache remembers the padding of the first turn only; a mask over the whole sequence, as some pass, is fine."""
    model = shared_model()
    inputs = make_inputs(model.config, [[3], [5]])
    cache = KVCache(model.config.text_config, 2, 10, dtype=torch.float32)
    with torch.no_grad():
        model(inputs["input_ids"], attention_mask=inputs["attention_mask"], cache=cache)
        later = torch.tensor([[0, 7], [8, 9]])
        with pytest.raises(ValueError, match="later turn cannot be padded"):
            model(later, attention_mask=torch.tensor([[0, 1], [1, 1]]), cache=cache)
        whole = torch.cat([inputs["attention_mask"], torch.ones(2, 2, dtype=torch.long)], dim=1)
        assert model(later, attention_mask=whole, cache=cache).logits.shape[1] == 2
