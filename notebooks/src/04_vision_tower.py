# %% [markdown]
# # 04 · Vision tower
#
# The vision tower turns patches into visual tokens. It is a transformer with three parts of its own: a patch
# embedding that is one product, positions that turn, and a merger that makes one token of four patches. This
# notebook goes through all of it, and compares every layer with the official one.
#
# **Afterwards you can** write down the shape of every step, say how a patch knows where it is and what it sees, look
# into the attention of any patch, and find the faults that other implementations of the tower had.
#
# **It takes** about 40 minutes to read and 105 to practise. **You need** notebook 01 (the order of the rows) and
# attention with queries, keys and values. It runs in about 15 seconds on two CPU cores.

# %% tags=["volatile"]
import sys
from pathlib import Path

here = Path.cwd().resolve()
repository = next(folder for folder in (here, *here.parents) if (folder / "qwen2vl_mini.py").exists())
sys.path.insert(0, str(repository))  # first: an installed copy may be older than the file you read

import torch

import qwen2vl_mini

print(Path(qwen2vl_mini.__file__).relative_to(repository), "with torch", torch.__version__)

# %% [markdown]
# ## The problem
#
# The tower gets one long table. Each row is a patch, 1176 numbers, and the patches of all pictures of a call stand
# in it, one picture after the other. Three things are missing:
#
# 1. A row does not say *where* its patch was.
# 2. The table does not say which rows *belong together*.
# 3. There are too many rows for the decoder, which pays for each of them.
#
# *Before you go on:* a picture of 168×224 pixels has 192 patches. One head compares each patch with each. How many
# comparisons are that? And how many in a call with ten such pictures, if no picture may see another?

# %%
from notebooks import play

model, processor = play.loaded("tiny")  # the bundled checkpoint, in float32
tower = model.visual
scene = play.picture("scene.png")
inputs = processor.image_processor.preprocess([scene])
pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
with torch.no_grad():
    tokens = tower(pixels, grids)
print("in: ", tuple(pixels.shape), "with the grid (t, h, w)", tuple(grids[0].tolist()))
print("out:", tuple(tokens.shape))

# %% [markdown]
# One picture: 192² = 36,864 comparisons. Ten pictures: ten times as many, 368,640, and not 1,920² = 3,686,400.
#
# 192 rows go in, and 48 tokens come out, each as wide as the decoder. Between them are three stations: the patch
# embedding, the blocks, the merger.
#
# ## Patch embedding: a toy
#
# The released files hold the weight of a `Conv3d`. A convolution slides a kernel over the picture. Here it slides by
# its own size, so each patch is seen exactly once, and nothing overlaps. Then there is no need to slide.
#
# A picture of 2×4 numbers, a kernel of 2×2, so two patches. *Before you run it:* what are the two results?

# %%
import torch.nn.functional as F

picture = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
kernel = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
slid = F.conv2d(picture[None, None], kernel[None, None], stride=2)
rows = torch.tensor([[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]])  # a row for each patch
print("slid:   ", slid.flatten().tolist())
print("product:", (rows @ kernel.flatten()).tolist())

# %% [markdown]
# 1·1 + 2·10 + 5·100 + 6·1000 = 6521. The kernel, laid out as one column, and a product of each row with it: that is
# all. In three dimensions it is the same, since `patchify` lists the numbers of a patch in the order in which the
# kernel holds its own: colour, frame, row, column. For a channel the tower has one such column, 1,280 in the released
# models.

# %%
play.show(qwen2vl_mini.PatchEmbed)

# %% [markdown]
# The module still *holds* a `Conv3d`, so that the released weights fit under their own name. It never runs it:
# on some builds a `Conv3d` of this kind is very slow, and on others it is missing. Is the result the same?

# %%
with torch.no_grad():
    product = tower.patch_embed(pixels)
    slid = tower.patch_embed.proj(pixels.view(-1, 3, 2, 14, 14)).flatten(1)
largest = (product - slid).abs().max() / slid.abs().max()
assert largest < 1e-5
print("rows of", tuple(product.shape), "· as the Conv3d gives them, to 1e-5 of the largest number")

# %% [markdown]
# ## Where is a patch? Turning
#
# Attention compares a query with a key, and does not know where either was. So both are *turned* before they meet:
# a pair of numbers is a point in the plane, and the point is turned by an angle that grows with its position. If both
# are turned by the same angle, their product stays as it was. Only the *difference* of the angles matters.
#
# A toy: the pair (1, 0) as query and as key, turned by half a radian for each position. *Which two of these four
# products are equal?*

# %%
from qwen2vl_mini import cos_sin, rotate

pair = torch.tensor([1.0, 0.0])
for query, key in ((0, 1), (5, 6), (5, 8), (5, 12)):
    turned = [rotate(pair, *cos_sin(torch.tensor([0.5 * place]))) for place in (query, key)]
    product = float(turned[0] @ turned[1])
    print(f"query at {query}, key at {key:2}: {product:6.3f}, which is cos(0.5 · {key - query})")

# %% [markdown]
# The first two: one step apart is one step apart, wherever it is. That is what a picture needs. A thing that moves by
# three patches is still the same thing.
#
# A picture has two directions. So half of the pairs of a head turn with the *row* of a patch, the other half with its
# *column*. Each pair has its own speed: the first turns by one radian a patch, the others ever slower.
#
# With heads of 8 numbers there are four pairs: two for the row, with speeds 1 and 0.01, and two for the column.
# *Before you run it:* a picture of 4×4 patches. Which angles has row 2 of the table, and which has row 4?

# %%
from qwen2vl_mini import vision_angles

angles = vision_angles([[1, 4, 4]], head_dim=8, merge_size=2, device="cpu")
table = [[i, *(f"{angle:g}" for angle in angles[i].tolist())] for i in range(6)]
play.show_table(["table row", "pair 0: row", "pair 1: row/100", "pair 2: column", "pair 3: column/100"], table)

# %% [markdown]
# Row 2 of the table is the patch *below* the first one, (1, 0). Row 4 begins the second window: row 0, column 2. The
# angles must be listed in the order of `patchify`, window by window. Whoever lists them line by line tells most
# patches a wrong place.

# %%
play.show(vision_angles)

# %% [markdown]
# This is how it looks for the scene, 12×16 patches, with heads of 32 numbers as the bundled model has: 16 pairs, of
# which 8 turn with the row.

# %%
play.turns(12, 16, head_dim=32)

# %% [markdown]
# **What to see:** pairs 0 to 2 change from line to line only, pairs 8 to 10 from column to column only. The fast pairs
# (left) tell neighbours apart, but repeat after six patches. The slow ones (right) tell one side of the picture from
# the other. Together they name every place.
#
# Which two numbers make a pair? In this model it is number i and number i + D/2, not two neighbours. So cosines are
# laid out *tiled*, a b c … a b c …, and not *interleaved*, a a b b c c …: `cos_sin` joins the angles with themselves.

# %%
play.show(rotate)
play.show(cos_sin)

# %% [markdown]
# ## What does a patch see?
#
# All patches of its own picture, and no others. In a clip, all patches of its own pair of frames. The tower never
# looks from one pair of frames into the next; that is left to the decoder.
#
# So the table is cut into *segments*, h·w rows each, one for each picture and one for each pair of frames. *Before you
# run it:* two pictures in one call. We change every pixel of the second. What happens to the tokens of the first?

# %%
strip = scene.crop((0, 70, 210, 150))
both = processor.image_processor.preprocess([scene, strip])
rows, two_grids = both["pixel_values"], both["image_grid_thw"]
changed = rows.clone()
changed[192:] += 1.0  # the first 192 rows are the scene's
with torch.no_grad():
    before, after = tower(rows, two_grids), tower(changed, two_grids)
assert torch.equal(before[:48], after[:48]) and not torch.equal(before[48:], after[48:])
assert (before[:48] - tokens).abs().max() < 1e-5 * tokens.abs().max()
print("Grids", two_grids.tolist(), "· the first picture's tokens do not change")

# %% [markdown]
# Nothing, to the last bit. And they are the tokens that the scene had when it was alone.
#
# What does it cost? One score is one query against one key, in one head. How many are they, if we score
# by segment, and if we score all with all?

# %%
lines = []
for name, segments in (("the scene", [192]), ("ten scenes", [192] * 10), ("photo, 12 MP", [61204])):
    scores = sum(length**2 for length in segments)
    lines.append([name, f"{sum(segments):,}", f"{scores:,}", f"{sum(segments) ** 2:,}"])
play.show_table(["call", "patches", "by segment", "all with all"], lines)

# %% [markdown]
# By segment, ten pictures cost ten times what one costs. With a mask over the whole table they would cost a hundred
# times as much, and nine tenths of it would be thrown away.
#
# The photograph has 61,204 patches under the limit of the released models, and 3.7 billion scores a head. In float32
# and with 16 heads they would fill 240 GB. So they are never written down: PyTorch's fused attention goes through
# the keys piece by piece. It can only do so if nobody asks it for a table or hands it a mask of that size.

# %%
play.show(qwen2vl_mini.VisionAttention)

# %% [markdown]
# Neighbours of equal length share a call of `attention`, (n, heads, L, D). In exercise 4.3 somebody has shared too
# much.
#
# ## Looking into it
#
# `attention` is a parameter of the tower. So we can hand it one that keeps its weights:

# %%
from qwen2vl_mini import attention_weights

kept = []


def attention_that_keeps(q, k, v, causal):
    kept.append(attention_weights(q, k, causal))  # softmax(q·kᵀ / √D), written out
    return kept[-1] @ v


# %%
with torch.no_grad():
    tower(pixels, grids, attention_that_keeps)
print(len(kept), "blocks, each with weights (segments, heads, queries, keys):", tuple(kept[0].shape))

# %% [markdown]
# 16 heads, and 192 queries in each: too many to look at, and it would be easy to pick a pretty one. So a rule picks.
# In each block it takes the head whose weights for *this* patch have the lowest entropy: the one that has decided most
# clearly where to look. With entropy H a head looks at about exp(H) patches.
#
# Here is a patch of the triangle. *Change x and y, and the rule to "highest"; try the background, and an edge.*

# %%
play.attention_from(48, 75)

# %% [markdown]
# **What to see:** in block 1 the chosen head looks at the patch to the *right*, in blocks 2 and 3 at the patch *above*.
#
# Is that so for this patch only? For three heads we count the patches whose largest weight is on one neighbour:

# %%
place = play.by_place(torch.arange(192)[:, None], (1, 12, 16))[0]  # (12, 16): the row number of each patch
pairs = {"right": (place[:, :-1], place[:, 1:]), "left": (place[:, 1:], place[:, :-1])}
pairs["above"] = (place[1:], place[:-1])
for block, head, side in ((1, 3, "right"), (2, 3, "left"), (2, 0, "above")):
    patches, neighbours = pairs[side]
    favourites = kept[block][0, head].argmax(dim=1)
    hits = int((favourites[patches] == neighbours).sum())
    print(f"block {block}, head {head}: the neighbour {side:5} for {hits} of {patches.numel()} patches")

# %% [markdown]
# These heads hardly care for colours and shapes. They look for a *place*, one step away, on the background as on a
# thing. The turning is what lets them: one step is the same difference of angles everywhere.
#
# Now the other rule, for a patch at the upper edge of the heart: the heads that spread most.

# %%
play.attention_from(77, 130, rule="highest")

# %% [markdown]
# **What to see:** in block 1 the chosen head looks at the
# background and leaves all three things out. In block 2 it looks along its own *row*. In block 3 it has come down to
# the heart, and to what is around it.
#
# A warning: weights say where a head looks, not what it takes from there, nor what later layers do with it. They are a
# place to begin with, and no explanation.
#
# ## The rest of a block
#
# After attention each patch goes through two Linears alone. Between them is a "quick GELU", x·σ(1.702 x), a
# cheap approximation of the GELU. How far is it from the exact one?

# %%
x = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0])
quick, exact = x * torch.sigmoid(1.702 * x), F.gelu(x)
table = [[f"{a:g}", f"{b:.3f}", f"{c:.3f}", f"{b - c:.3f}"] for a, b, c in zip(x, quick, exact)]
play.show_table(["x", "quick", "exact", "difference"], table)

# %% [markdown]
# Never more than 0.0203, and yet it must be the one that the weights were trained with: the differences add up from
# block to block, and nothing crashes. In this model the *blocks* use the quick one, and
# the *merger* the exact one.

# %%
play.show(qwen2vl_mini.VisionMLP)
play.show(qwen2vl_mini.VisionBlock)

# %% [markdown]
# Each half normalises first and then *adds* to what it got. What a patch is goes straight through all blocks, and each
# block adds its part.
#
# ## The merger: a toy
#
# Four patches become one token. They are neighbours in the picture, and thanks to `patchify` they are neighbours in
# the table, too. A picture of 2×4 patches, whose two "channels" are the row and the column:

# %%
from qwen2vl_mini import patchify

places = torch.cartesian_prod(torch.arange(2), torch.arange(4)).view(1, 2, 4, 2).movedim(3, 1)
rows, _ = patchify(places, patch_size=1, temporal_patch_size=1)
print("rows:    ", rows.tolist())
for token in rows.view(-1, 8).tolist():
    print("a token: ", token)

# %% [markdown]
# The first token holds the patches (0, 0), (0, 1), (1, 0), (1, 1): a square. One `view` did it. Then two Linears make
# the row as wide as the decoder. LayerNorm comes *before* the view, so it sees each patch by itself.

# %%
play.show(qwen2vl_mini.PatchMerger)

# %% [markdown]
# ## The real shape
#
# The tower of all released models, for a picture of 224×224 pixels. On the device "meta" tensors have a shape and no
# content, so it costs nothing. *Before you run it:* which of the three parts has most of the 665 million weights?

# %%
from qwen2vl_mini import Qwen2VLVisionConfig, VisionTower

with torch.device("meta"):
    released = VisionTower(Qwen2VLVisionConfig())
    patches = torch.empty(256, 1176)
table, parts = [], {"patch_embed": released.patch_embed, "32 blocks": released.blocks, "merger": released.merger}
shapes = {"patch_embed": (256, 1280), "32 blocks": (256, 1280), "merger": (64, 1536)}
assert released.merger(released.patch_embed(patches)).shape == shapes["merger"]
for name, part in parts.items():
    table.append([name, f"{sum(weight.numel() for weight in part.parameters()):,}", shapes[name]])
play.show_table(["part", "weights", "gives"], table)

# %% [markdown]
# The blocks, with 95 % of them. And the table keeps its 256 rows through all 32 blocks; only the last step makes it
# shorter. So the tower works on four times as many rows as the decoder gets from it.
#
# ## The official tower
#
# transformers' class gets the weights of the bundled model. Two pictures and a clip go in: the scene, the
# strip, and four frames. Every layer that both have is compared.

# %%
from dataclasses import asdict

from transformers.models.qwen2_vl import modeling_qwen2_vl as official_file
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig as OfficialConfig

config = OfficialConfig(**asdict(model.config.vision_config))
official = official_file.Qwen2VisionTransformerPretrainedModel(config).eval()
official.load_state_dict(tower.state_dict())  # the names are the same

# %%
clip, clip_grid = patchify(torch.randn(4, 3, 56, 84, generator=torch.Generator().manual_seed(0)))
all_pixels = torch.cat([both["pixel_values"], clip])
all_grids = torch.cat([two_grids, torch.tensor([clip_grid])])
print("grids:", all_grids.tolist())


# %%
from functools import partial


def note(seen: dict, name: str, layer, given, output) -> None:
    seen[name] = output


# %%
def outputs(tower) -> dict:
    """What each layer of a tower gives, by its name."""
    seen, hooks = {}, []
    for name, layer in tower.named_modules():
        hooks.append(layer.register_forward_hook(partial(note, seen, name)))
    with torch.no_grad():
        tower(all_pixels, all_grids)
    for hook in hooks:
        hook.remove()
    return seen


# %%
ours, theirs = outputs(tower), outputs(official)
differences = {}
for name in (name for name in ours if name and name in theirs):  # in the order in which they run
    largest = (ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()
    differences[name] = largest.item()
    assert differences[name] <= 1e-5, f"{name}: {differences[name]}"
print(len(differences), "layers compared, none further than 1e-5 from the official one")

# %% tags=["volatile"]
stations = ["patch_embed", "blocks.0.attn", "blocks.0.mlp", *(f"blocks.{i}" for i in range(4)), "merger"]
table = [[name, tuple(ours[name].shape), f"{differences[name]:.1e}"] for name in stations]
play.show_table(["layer", "shape", "largest difference / largest number"], table)

# %% [markdown]
# ## Where others went wrong
#
# Nothing stops you from giving the tower wrong cosines: all shapes are right, and no error comes. Here are three
# faults that other implementations had, put into ours. *Before you run it:* will the bundled model still name the
# three things of the scene?

# %%
faults = {
    "none": lambda cos: cos,
    "rows and columns swapped": lambda cos: cos.unflatten(1, (2, 2, -1)).flip(2).flatten(1),
    "interleaved": lambda cos: cos[:, : cos.shape[1] // 2].repeat_interleave(2, dim=1),
    "listed line by line": lambda cos: play.by_place(cos, (1, 12, 16)).flatten(1).T,
}


# %%
def put_in(fault, layer, given) -> tuple:
    x, cos, sin, *rest = given
    return x, fault(cos), fault(sin), *rest


# %%
def with_fault(fault) -> tuple[float, str]:
    """How far the scene's tokens move, and what the model says, with a fault in all cosines and sines."""
    hooks = [block.attn.register_forward_pre_hook(partial(put_in, fault)) for block in tower.blocks]
    with torch.no_grad():
        moved = (tower(pixels, grids) - tokens).abs().max() / tokens.abs().max()
    said = play.answer("Describe this image.", scene)
    for hook in hooks:
        hook.remove()
    return moved.item(), said


# %% tags=["volatile"]
table = [[name, *with_fault(fault)] for name, fault in faults.items()]
for line in table:
    assert (line[1] > 0.01) == (line[0] != "none")  # the faults are really there
    line[1] = f"{100 * line[1]:.0f} %"
play.show_table(["fault", "tokens move by", "answer"], table)

# %% [markdown]
# Two of the faults make the model see things twice. The other is worse, since it looks like no fault at all: two of
# three things are right, the heart has become a star, and whoever reads it blames the training.
#
# More that went wrong elsewhere:
#
# - attention across pictures, or across the frames of a clip (exercise 4.3);
# - positions given to the first pair of frames only, not to each;
# - pictures of one call resized to one common size, so that they fit into a batch;
# - a mask of all patches with all, which ends in an error about memory, but only for large pictures.
#
# ## Five sentences to remember
#
# 1. The patch embedding is one product: a `Conv3d` that slides by its own size sees each patch once.
# 2. Half of a head's pairs turn with the row of a patch, half with its column, so that only distances count.
# 3. A patch sees its own picture, or its own pair of frames, and the tower never builds a table of all with all.
# 4. All blocks work on patches; the merger comes last, and makes one token of four rows by a `view`.
# 5. Wrong positions, segments or GELUs raise no error: only a comparison of numbers, layer by layer, shows them.
#
# ## Exercises
#
# `check(function)` says how you do and what helps. The same exercises are in `exercises/`: see `python -m exercises`.

# %%
# exercises

# %%
# exercise 4.1

# %%
# exercise 4.2

# %%
# exercise 4.3

# %%
# exercise 4.4

# %%
# exercise 4.5

# %% [markdown]
# ## To recall
#
# <details><summary>All rows of a picture count from 100 instead of 0. What changes in its tokens?</summary>Nothing but
# the last digits. All queries and keys turn by the same angle more, and only differences count.</details>
#
# <details><summary>A clip has 8 frames of 56×56 pixels. How many scores has one head, and how many tokens come
# out?</summary>Four pairs of frames, 16 patches each: 4·16² = 1,024 scores. 64 patches make 16 tokens.</details>
#
# <details><summary>Why does the LayerNorm of the merger stand before the <code>view</code>?</summary>It normalises
# each patch by itself, over C numbers. After the view it would normalise four patches together, over 4·C, and the
# released weights of <code>ln_q</code>, C numbers, would not fit.</details>
#
# **Next:** [05 · M-RoPE](05_mrope.ipynb), how the decoder tells where a picture is.
