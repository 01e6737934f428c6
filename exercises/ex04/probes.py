"""Exercises of notebook 04: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exercises.book import Exercise, Probe
from qwen2vl_mini import (
    PatchEmbed,
    Qwen2VLVisionConfig,
    VisionAttention,
    VisionTower,
    patchify,
    unpatchify,
    vision_angles,
)

# ── 4.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

GRIDS = [[1, 4, 6], [2, 4, 4]]  # a picture of 56×84 pixels, a clip of 4 frames of 56×56


@torch.no_grad()
def shapes_seen() -> dict[str, tuple[int, ...]]:
    """The shapes in a call of the 2B's tower, of which one block is enough; on "meta" nothing is computed."""
    with torch.device("meta"):
        tower = VisionTower(Qwen2VLVisionConfig(depth=1))
        grids = torch.tensor(GRIDS, device="cpu")
        pixels = torch.empty(int(grids.prod(1).sum()), patchify(torch.empty(1, 3, 28, 28))[0].shape[1])
    seen = {"pixel_values": tuple(pixels.shape)}
    scores = []

    def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        scores.append(tuple((q @ k.mT).shape[1:]))
        return v

    def note(name: str, value: Tensor) -> None:
        seen[name] = tuple(value.shape)

    tower.patch_embed.register_forward_hook(lambda module, args, output: note("embedded", output))
    tower.blocks[0].register_forward_hook(lambda module, args, output: note("cos", args[1]))
    tower.merger.mlp[0].register_forward_hook(lambda module, args, output: note("merger_rows", args[0]))
    note("tokens", tower(pixels, grids, attention))
    return seen | {"scores_picture": scores[0], "scores_pair": scores[1]}


# ── 4.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def by_single_pixels(kernel: Tensor) -> Tensor:
    """What the tower's embedding makes of pictures in which one number is 1 and all others are 0."""
    channels, colours, frames, size, _ = kernel.shape
    layer = PatchEmbed(Qwen2VLVisionConfig(embed_dim=channels, patch_size=size, temporal_patch_size=frames))
    layer.proj.weight.copy_(kernel)
    pictures = torch.eye(colours * size * size).view(-1, 1, colours, size, size)
    rows = [patchify(picture, size, frames, merge_size=1)[0] for picture in pictures]
    return layer(torch.cat(rows))


def whole_numbers(*shape: int) -> Tensor:
    return torch.arange(1.0, math.prod(shape) + 1).view(shape)


def random_kernel(rng: random.Random) -> tuple:
    size = rng.randint(1, 4)
    return (torch.randn(rng.randint(1, 5), 3, 2, size, size, generator=generator(rng)),)


def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**31))


# ── 4.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Real attention: q, k, v (…, L, D)."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v


def sum_of_all(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Stands in for attention: each query gets the sum of the values of all keys it was scored with."""
    total = v.sum(-2, keepdim=True)  # (…, 1, D)
    return total.expand(*total.shape[:-2], q.shape[-2], -1)


class Given(nn.Module):
    """A layer that gives one tensor, whatever it gets."""

    def __init__(self, tensor: Tensor):
        super().__init__()
        self.tensor = tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.tensor


def by_our_layer(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], attention: Callable) -> Tensor:
    """The tower's own attention, with its two Linears taken out and no turning."""
    channels = q.shape[1]
    even = [F.pad(x, (0, channels % 2)) for x in (q, k, v)]  # turning is of pairs
    layer = VisionAttention(Qwen2VLVisionConfig(embed_dim=even[0].shape[1], num_heads=1))
    layer.qkv = Given(torch.cat(even, dim=1))
    layer.proj = nn.Identity()
    segments = [h * w for t, h, w in grids for _ in range(t)]
    one, zero = torch.ones(1), torch.zeros(1)
    return layer(even[0], one, zero, segments, lambda q, k, v, causal: attention(q, k, v))[:, :channels]


def counting(grids: list[tuple], owners: list[int], *more) -> tuple:
    """Values that are 1 in the column of their owner, so that `sum_of_all` counts the keys of each owner."""
    values = F.one_hot(torch.tensor(owners))
    nothing = torch.zeros(len(owners), values.shape[1])
    return nothing, nothing, values.float(), grids, *more, sum_of_all


def counting_segments(grids: list[tuple]) -> tuple:
    lengths = [h * w for t, h, w in grids for _ in range(t)]
    return counting(grids, [i for i, length in enumerate(lengths) for _ in range(length)])


def real(grids: list[tuple], seed: torch.Generator, *more) -> tuple:
    patches = sum(math.prod(grid) for grid in grids)
    q, k, v = torch.randn(3, patches, 4, generator=seed)
    return q, k, v, grids, *more, softmax_attention


def random_segments(rng: random.Random) -> tuple:
    sizes = [(1, 1, 2), (1, 1, 3), (2, 1, 2), (1, 2, 2), (3, 2, 3), (2, 2, 1)]
    return real(rng.choices(sizes, k=rng.randint(1, 5)), generator(rng))


def as_counts(answer, *args):
    """Counts are whole numbers, which the checker draws."""
    counts = args[-1] is sum_of_all and isinstance(answer, Tensor) and answer.is_floating_point()
    return answer.round().long() if counts and answer.isfinite().all() else answer


def attend_as_ours(*args) -> Tensor:
    return as_counts(by_our_layer(*args), *args)


# ── 4.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut_from_the_whole(top: int, left: int, h: int, w: int, head_dim: int) -> Tensor:
    """The angles of the whole picture, laid out as one, cropped, and listed as `patchify` does."""
    whole = [1, 2 * math.ceil((top + h) / 2), 2 * math.ceil((left + w) / 2)]
    angles = vision_angles([whole], head_dim, 2, "cpu")  # (patches of the picture, D/2)
    laid_out = unpatchify(angles, whole, patch_size=1, temporal_patch_size=1)  # (1, D/2, rows, columns)
    crop = laid_out[:, :, top : top + h, left : left + w]
    return patchify(crop, patch_size=1, temporal_patch_size=1)[0]


def random_crop(rng: random.Random) -> tuple:
    return rng.randint(0, 9), rng.randint(0, 9), 2 * rng.randint(1, 4), 2 * rng.randint(1, 4), rng.choice((4, 8, 32))


# ── 4.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_official_windows(
    q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], window: int, attention: Callable
) -> Tensor:
    """Attention between the bounds that transformers gives for Qwen2.5-VL, put back by its order."""
    from transformers.vision_utils import get_vision_window_index

    tokens, bounds = get_vision_window_index(torch.tensor(grids), 2, 28 * window, 14)
    order = (4 * tokens[:, None] + torch.arange(4)).flatten()  # of patches
    answer = torch.empty_like(v)
    for first, last in zip(bounds.tolist(), bounds.tolist()[1:]):
        members = order[first:last]
        answer[members] = attention(q[members], k[members], v[members])
    return as_counts(answer, attention)


def counting_tokens(grids: list[tuple], window: int) -> tuple:
    patches = sum(math.prod(grid) for grid in grids)
    return counting(grids, [i // 4 for i in range(patches)], window)


def random_windows(rng: random.Random) -> tuple:
    count = rng.randint(1, 3)
    grids = [(rng.randint(1, 2), 2 * rng.randint(1, 6), 2 * rng.randint(1, 6)) for _ in range(count)]
    return real(grids, generator(rng), rng.randint(1, 4))


# ── All ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown_as(args: tuple, name: str, why: str = "") -> Probe:
    """A probe whose call is shown without the numbers of q, k and v."""
    rest = ", ".join(map(str, args[3:-1]))
    kind = "counting" if args[-1] is sum_of_all else "softmax"
    return Probe(args, why, f"{name}(q, k, v, {rest}, {kind})")


SEED = torch.Generator().manual_seed(4)
PAIR, APART = [(2, 1, 2)], [(1, 1, 2), (1, 1, 3), (1, 1, 2)]

EXERCISES = (
    Exercise(
        number="4.1",
        title="Seven shapes",
        function="shapes_in_the_tower",
        kind="P",
        stars=1,
        minutes=10,
        expected=shapes_seen,
        probes=(Probe((), "the merger comes last; a row holds two frames"),),
        hints=(
            "Count patches first: (t, h, w) of the picture and of the clip, in patches of 14×14 pixels and pairs of "
            "frames. The rows of all pictures stand in one tensor.",
            "All blocks work on patches. The merger is the last step: only there four rows become one. And a patch "
            "looks at the patches of its own picture, or of its own pair of frames.",
            "The picture is 1×4×6 and the clip 2×4×4. A row has 3·2·14·14 numbers; cos has one for each channel "
            "of a head; the merger lays four rows of 1280 side by side.",
        ),
    ),
    Exercise(
        number="4.2",
        title="One frame is enough",
        function="still_matrix",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=by_single_pixels,
        probes=(
            Probe((whole_numbers(1, 3, 2, 1, 1),), "time before colour"),
            Probe((whole_numbers(2, 3, 2, 2, 2),), "rows and columns"),
            Probe((whole_numbers(12, 3, 2, 2, 2),), "transposed, where the shape does not tell"),
            Probe((torch.randn(8, 3, 2, 14, 14, generator=SEED),), "the real size of a patch"),
        ),
        random_probe=random_kernel,
        tolerance=1e-6,  # a sum of two numbers: one rounding
        hints=(
            "Write the embedding of a row as a sum over colour, frame, row and column. In a still picture the pixel "
            "does not depend on the frame: what can be taken out of the sum?",
            "x·a + x·b = x·(a + b). Which axis of (C, 3, frames, P, P) is the frame?",
            "Sum over axis 2, flatten what is left of each channel, and transpose: `rows @ M` wants C in the columns.",
        ),
    ),
    Exercise(
        number="4.3",
        title="A leak between pictures",
        function="attend",
        kind="F",
        stars=2,
        minutes=20,
        core=True,
        expected=attend_as_ours,
        view=as_counts,
        probes=(
            shown_as(counting_segments([(1, 2, 2)]), "attend"),
            shown_as(counting_segments([(1, 1, 3), (1, 1, 2)]), "attend", "two pictures; sorted by length"),
            shown_as(counting_segments(PAIR), "attend", "two pairs of frames"),
            shown_as(counting_segments(APART), "attend", "equal lengths, but not neighbours"),
            shown_as(counting_segments([(2, 1, 2), (1, 1, 4)]), "attend", "a clip is as long as the picture"),
            shown_as(real([(1, 2, 2), (2, 2, 3), (1, 2, 2)], SEED), "attend"),
        ),
        random_probe=random_segments,
        tolerance=1e-5,  # float32, values near 1
        hints=(
            "Try one picture, two equal ones, two that differ, three. Which calls go wrong? In the picture that the "
            "checker draws, row i says how many keys of each segment patch i was scored with.",
            "Take grids (1, 1, 2), (1, 1, 3), (1, 1, 2): which rows does the first call of `attention` get, and which "
            "rows belong to the two pictures of two patches?",
            "Only segments that are *neighbours* may be cut out as one slice. Go through the segments one by one, in "
            "order (h·w patches, once for each frame pair), or group neighbours only.",
        ),
    ),
    Exercise(
        number="4.4",
        title="A crop keeps its place",
        function="crop_angles",
        kind="I",
        stars=2,
        minutes=20,
        expected=cut_from_the_whole,
        probes=(
            Probe((0, 0, 2, 2, 4), "rows and columns swapped"),
            Probe((0, 0, 2, 4, 4), "raster order"),
            Probe((2, 4, 2, 2, 4), "offset forgotten"),
            Probe((0, 1, 2, 2, 4), "the windows are those of the crop, not of the picture"),
            Probe((3, 2, 4, 6, 32), "several frequencies"),
        ),
        random_probe=random_crop,
        tolerance=1e-5,  # float32; a power of 10000 is off by some last bits
        hints=(
            "For head_dim 4 there is one frequency, 1: the angles are the coordinates themselves. Begin there.",
            "A patch of the crop in row r and column c stands in row top + r and column left + c of the picture. "
            "Rows go through 2×2 windows, as in notebook 01.",
            "`vision_angles` of a picture that is large enough has all the angles you need. `unpatchify` with patches "
            "of one pixel lays them out as a picture, which you can crop; `patchify` lists them again.",
        ),
    ),
    Exercise(
        number="4.5",
        title="The windows of Qwen2.5-VL",
        function="attend_in_windows",
        kind="E",
        stars=3,
        minutes=40,
        expected=by_official_windows,
        view=as_counts,
        probes=(
            shown_as(counting_tokens([(1, 2, 2)], 2), "attend_in_windows"),
            shown_as(counting_tokens([(1, 2, 6)], 2), "attend_in_windows", "the edge; patches for tokens"),
            shown_as(counting_tokens([(2, 2, 2)], 2), "attend_in_windows", "pairs of frames"),
            shown_as(real([(1, 2, 6)], SEED, 2), "attend_in_windows", "edges padded"),
            shown_as(real([(1, 4, 6)], SEED, 2), "attend_in_windows", "order not restored"),
            shown_as(real([(1, 10, 14), (2, 4, 4)], SEED, 4), "attend_in_windows", "the released window"),
        ),
        random_probe=random_windows,
        tolerance=1e-5,  # float32, values near 1
        hints=(
            "Four neighbouring rows are a token. Number the tokens of a frame pair in an h/2 × w/2 table of indices, "
            "and cut the table into squares.",
            "A slice beyond the edge is simply shorter: table[a : a + window, b : b + window]. Nothing must be padded: "
            "a padded key takes part in the softmax.",
            "The tokens of a square, times 4, plus 0…3, are its rows of q. Compute attention for those rows, and "
            "write the result back into *the same rows* of an output as large as v.",
        ),
    ),
)
