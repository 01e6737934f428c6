# %% [markdown]
# # 05 · M-RoPE
#
# A word has a place in a line. A piece of a picture has a row and a column, and in a clip a time. M-RoPE
# gives every token three positions, and lets attention feel the distance on each of the three axes.
#
# **Afterwards you can** write the three positions of any prompt by hand, say where text goes on after a
# picture or a clip, name the axis that turns any channel of a query, and find a chat whose second turn stands
# at wrong positions.
#
# **It takes** about 35 minutes to read and 105 to practise. **You need** notebook 01, and what attention is.
# It runs in about 20 seconds on two CPU cores.

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
# Attention compares every token with every other, and has no idea where they stand. So each token gets a
# position, and what attention sees is the *distance* between two positions. For a line of words this is all
# there is to say.
#
# Now number the cells of a picture like words, row by row. *Before you go on:* in a picture of 46 columns,
# how far is a cell from its right neighbour, and how far from the one below it?

# %%
for columns in (3, 10, 46):
    number = torch.arange(4 * columns).view(4, columns)  # cells numbered like words
    right = number[1, 1] - number[1, 0]
    below = number[2, 0] - number[1, 0]
    print(f"{columns:2} columns: right neighbour {right} away, the one below {below:2} away")

# %% [markdown]
# Two neighbours are 46 apart, and in a picture of another width they are not. Worse, the last cell of a row
# is "next to" the first of the row below. A line of numbers cannot describe a plane. Two numbers can, and a
# clip needs a third.
#
# ## A toy: 3 words, a picture, 2 words
#
# Three rules make the three positions (t, h, w), time, height and width:
#
# 1. A word takes the next free position, the same one on all three axes.
# 2. A picture that starts at p has t = p, h = p + row, w = p + column. (In a clip, t = p + the number of the
#    pair of frames.) Rows and columns are those of *cells*: the merged tokens of 28×28 pixels.
# 3. What follows starts at the largest position so far, on any axis, + 1.
#
# *Write it down before you run it:* 3 words, a picture of 2×3 cells, 2 words. Where does the last word stand?

# %%
from notebooks import play
from qwen2vl_mini import Qwen2VLConfig, get_rope_index

config = Qwen2VLConfig()  # the 2B model's; positions need no weights
prompt = play.as_prompt("3 words, 2x3, 2 words")
position_ids, deltas = get_rope_index(config, **prompt)
for axis, lane in zip("thw", position_ids[:, 0].tolist()):
    print(axis, *lane)

# %% [markdown]
# The picture starts at 3. Its largest position is 5, in the width of its last column. So the next word stands
# at 6, and the last at 7, although it is the eleventh token.
#
# ## Three lanes
#
# The same for a prompt with words, a picture, and a clip of two pairs of frames of 1×2 cells:

# %%
play.positions("4 words, 2x3, 2 words, 2x1x2, 2 words")

# %% [markdown]
# **What to see:** over words (grey) the three lanes agree. Over the picture (blue) time stands still, height
# changes from row to row, and width runs along each row. Over the clip (orange) time moves too, one step for
# a pair of frames, and rows and columns begin anew in each pair.
#
# Try prompts of your own: `play.positions("2x2x3")`, two pictures in a row, a high picture, a wide one.
#
# Here are the rules as code. `grids` are iterators, so that the next picture of a prompt takes the next grid:

# %%
from qwen2vl_mini import row_positions

play.show(row_positions)

# %% [markdown]
# ## The real shape
#
# A photograph of 720×1280 pixels is 26×46 cells (notebook 01), 1,196 tokens. *Predict:* between 20 words and
# 30 words, by how much does it move the text on?

# %%
play.positions("20 words, 26x46, 30 words")

# %% [markdown]
# **What to see:** the whole picture lives between positions 20 and 65. Width (green) runs through its 46
# columns 26 times, height (orange) climbs once, time (blue) waits. If cells were numbered like words
# (dotted), the text after it would stand beyond 1,200.

# %%
prompt = play.as_prompt("20 words, 26x46, 30 words")
position_ids, deltas = get_rope_index(config, **prompt)
tokens, following = prompt["input_ids"].shape[1], position_ids.max().item() + 1
print(f"{tokens} tokens; the next free position is {following}; rope_delta = {deltas.item()}")
assert following == tokens + deltas.item()

# %% [markdown]
# A picture spends many tokens, but hardly any positions. `rope_delta`, the difference, is what generation
# needs. The answer's first id stands at its place in the sequence + `rope_delta`, and each further id one
# later.
#
# ## One pair of numbers, turned by hand
#
# How does attention feel a distance? RoPE takes the channels of a query and of a key two at a time, as points
# in a plane, and turns each point by an angle: position × speed. A product of two turned points depends on
# the *difference* of the angles only. Here are two numbers, turned by 0.5 radians a position. *Before you run
# it:* which lines will show the same product?

# %%
import math


def turned(x: float, y: float, position: int, speed: float = 0.5) -> tuple[float, float]:
    cos, sin = math.cos(position * speed), math.sin(position * speed)
    return x * cos - y * sin, y * cos + x * sin


for query_at, key_at in ((5, 3), (6, 4), (1005, 1003), (3, 5), (5, 5), (9, 3)):
    q, k = turned(1.0, 0.0, query_at), turned(0.8, 0.6, key_at)
    print(f"query at {query_at:4}, key at {key_at:4}: product {q[0] * k[0] + q[1] * k[1]:+.4f}")

# %% [markdown]
# The first three agree, since the distance is 2 in each. Where the whole prompt begins does not matter. The
# fourth has distance −2 and differs: a turned pair knows before from behind.
#
# ## Which axis turns which pair
#
# A head of the released models has 128 channels, which are 64 pairs, each with a speed of its own. RoPE would
# turn them all by one position. M-RoPE gives the first 16 pairs to time, the next 24 to height, and the last
# 24 to width. The list is `mrope_section`:

# %%
from qwen2vl_mini import mrope_angles

play.show(mrope_angles)

# %%
text_config = config.text_config
corner = torch.tensor([10, 20, 30]).view(3, 1, 1)  # one token at t = 10, h = 20, w = 30
angles = mrope_angles(corner, text_config)[0, 0]
speeds = qwen2vl_mini.inverse_frequencies(64, text_config.rope_theta, "cpu")
turned_by = (angles / speeds).round().int()  # the position that made each angle
for position, count in zip(*turned_by.unique_consecutive(return_counts=True)):
    print(f"{count} pairs are turned by position {position}")

# %% [markdown]
# A block of neighbours for each axis: *chunked*, not dealt out in turn. Channel i and channel i + 64 are a
# pair (see `rotate`), so channel 100 turns with pair 36, and with height.
#
# If the three positions are equal, the axis makes no difference, and M-RoPE is plain RoPE. Text alone cannot
# tell them apart, so Qwen2's language model could be taken over as it was. It also means that tests with text
# alone find no fault in any of this.

# %%
from dataclasses import replace

plain = replace(text_config, mrope_section=None)  # one axis, as in Qwen2
words = torch.arange(500).expand(3, 1, -1)
assert torch.equal(mrope_angles(words, text_config), mrope_angles(words, plain))
print("500 words: M-RoPE and plain RoPE give the same angles")

# %%
bundled = Qwen2VLConfig.from_pretrained(repository / "checkpoints" / "tiny").text_config
play.pairs({"released (2B)": text_config, "bundled": bundled})

# %% [markdown]
# **What to see:** time gets the fast pairs, width the slow ones. In the released models the fastest width
# pair needs more than 30,000 positions for a full turn, and our photograph has 46 columns. The bundled model
# has a base of 20: even its slowest pair turns once in about a hundred positions.
#
# One step to the next row or column turns the fastest pair of its axis by:

# %%
for name, section in (("released (2B)", text_config), ("bundled", bundled)):
    half = section.head_dim // 2
    speeds = qwen2vl_mini.inverse_frequencies(half, section.rope_theta, "cpu")
    first_h, first_w = section.mrope_section[0], half - section.mrope_section[2]
    print(f"{name:13} one row turns {speeds[first_h]:.4f} rad, one column {speeds[first_w]:.5f} rad")

# %% [markdown]
# So in the released models a step to the right changes hardly anything in the angles. They can still know
# columns from elsewhere: the tower turns its own queries and keys by row and column (notebook 04). Qwen3-VL
# gave the blocks up. It deals the pairs out in turn, so that each axis has fast and slow ones. Code for one
# of the two models, used for the other, runs without a complaint.
#
# ## Does the model use them?
#
# An experiment with the bundled model. It is asked where a thing is, four times with the right positions, and
# four times with height and width swapped, everything else being equal. *Predict:* what happens to the boxes?

# %%
from tiny_world.scenes import TEST_SEED, make_sample

samples = [make_sample(TEST_SEED + i, "where", 168, 168) for i in (4, 5, 6, 7)]
right = play.boxes_with([0, 1, 2], samples)
swapped = play.boxes_with([0, 2, 1], samples)  # t, w, h
play.draw_two(samples, right, swapped)

# %% [markdown]
# **What to see:** with the right positions the box (solid) lies around the thing. With swapped ones (dashed)
# it lies near the thing's mirror image in the diagonal, in three of four; the small diamond's box goes
# astray.
#
# The pixels and the tower were the same. So this decoder reads *where* largely from M-RoPE. The four are
# scenes 4 to 7 of the test set, one after the other. Try scene 12: its cross lies on the diagonal, and
# nothing shows. The released models were not tried.
#
# ## A later turn of a chat
#
# In a chat the keys of all earlier tokens are in a cache, already turned. A later turn must go on behind
# them, at the next free *position*. That is not the number of tokens in the cache. Our cache keeps it for
# each row.

# %%
from qwen2vl_mini import KVCache
from tests.small_models import image, make_inputs, relative_difference, small_model

model = small_model()
first = make_inputs(model.config, [[3, image(4, 6), 2]], seed=1)
second = make_inputs(model.config, [[2, image(8, 4), 1]], seed=2)
cache = KVCache(model.config.text_config, rows=1, capacity=40)
for turn in (first, second):
    with torch.no_grad():
        output = model(**turn, cache=cache)
    print(f"{cache.length} tokens in the cache, next position {cache.next_position.item()}")

# %% [markdown]
# Is that right? The test: both turns as one prompt, without a cache, must give the same logits.

# %%
ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
grids = torch.cat([first["image_grid_thw"], second["image_grid_thw"]])
with torch.no_grad():
    at_once = model(ids, pixel_values=pixels, image_grid_thw=grids)
difference = relative_difference(output.logits, at_once.logits[:, first["input_ids"].shape[1] :])
assert difference < 1e-5, difference
print("through the cache and at once: the same logits, to a relative 1e-5")

# %% [markdown]
# Positions are *not* what makes attention causal. The cells of a picture share positions, and the width of
# the next cell is smaller where a new row begins. Who may look at whom goes by the place in the sequence
# (notebook 06).
#
# ## The official implementation
#
# 200 random prompts: up to three in a batch, words and pictures and clips in any order, and padding. Are the
# positions and the deltas those of transformers? (Clips here are not longer than wide or high: see below.)

# %%
from transformers import Qwen2VLConfig as OfficialConfig
from transformers import Qwen2VLModel as OfficialModel

none = {"bos_token_id": None, "eos_token_id": None}  # the small model has no such tokens
official_config = OfficialConfig.from_dict(model.config.to_dict() | none)
with torch.device("meta"):  # without weights: positions need none
    official = OfficialModel(official_config)

# %%
import random

from tests.small_models import video


def random_row(rng: random.Random) -> list:
    row = []
    for _ in range(rng.randint(1, 5)):
        h, w = 2 * rng.randint(1, 6), 2 * rng.randint(1, 6)  # in patches
        clip = video(rng.randint(1, max(h, w) // 2), h, w)
        row.append(rng.choice((rng.randint(1, 9), image(h, w), clip)))
    return row


# %%
rng = random.Random(0)
for number in range(200):
    batch = [random_row(rng) for _ in range(rng.randint(1, 3))]
    inputs = make_inputs(model.config, batch, padding=rng.choice((0, 1, 5)))
    inputs = {name: value for name, value in inputs.items() if "pixel" not in name}
    theirs = official.get_rope_index(**inputs)
    del inputs["mm_token_type_ids"]  # ours reads the ids
    ours = get_rope_index(model.config, **inputs)
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b), f"prompt {number}: {batch}"
print("200 of 200 prompts: equal positions, equal deltas")

# %% [markdown]
# And the angles: cosines and sines of the official class beside ours. They are float32 numbers, made in
# another order of operations: a speed may differ in its last bits, and the angle at position p by p times
# that. With positions below 60 that stays under 1e-5.

# %%
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

rotary = Qwen2VLRotaryEmbedding(official_config.text_config)
assert rotary.mrope_section == model.config.text_config.mrope_section
position_ids = ours[0].clamp(max=59)
ours_now = qwen2vl_mini.cos_sin(mrope_angles(position_ids, model.config.text_config))
theirs_now = rotary(torch.zeros(1), position_ids)
for a, b in zip(ours_now, theirs_now):
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-5
print("cosines and sines agree to 1e-5, shape", tuple(a.shape))

# %% [markdown]
# ### Where official sources disagree
#
# Rule 3 says: the largest position on *any* axis, + 1. The paper says so, and transformers 4.57 does so.
# transformers 5 goes on after the larger of rows and columns, and leaves time out. For a picture this is the
# same. For a clip with more pairs of frames than rows and columns it is not.

# %%
prompt = play.as_prompt("2 words, 4x2x2, 4 words")
types = 2 * (prompt["input_ids"] == config.video_token_id).int()  # 0 is a word, 2 a clip
theirs, _ = official.get_rope_index(**prompt, mm_token_type_ids=types)
ours, _ = get_rope_index(config, **prompt)
play.positions("2 words, 4x2x2, 4 words", ours, "the paper, transformers 4.57, and ours")
play.positions("2 words, 4x2x2, 4 words", theirs, "transformers 5")

# %% [markdown]
# **What to see:** in transformers 5 the first words after the clip stand at 4 and 5, on the time axis beside
# the last pairs of frames, as if they were said while the clip still runs.

# %%
assert torch.equal(ours[..., :-4], theirs[..., :-4])  # the clip and all before it
later = ours[..., -4:] - theirs[..., -4:]
assert later.eq(4 - 2).all(), "transformers has changed its rule"
print("the text after the clip stands", later.unique().item(), "positions earlier there")

# %% [markdown]
# We follow the paper. Nothing else differs: handed the positions of transformers 5, our logits are the
# official ones. A test of this repository pins the difference, and will say so when it is gone.
#
# ### What came after: seconds
#
# Qwen2-VL counts pairs of frames: at 2 frames a second and at 8, time goes on by 1 a pair. Qwen2.5-VL counts
# *seconds*, so that the same second has the same length in any clip. Its official class, for a clip of four
# pairs, one each second, with two positions a second:

# %%
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

small = {"num_hidden_layers": 1, "bos_token_id": None, "eos_token_id": None}
with torch.device("meta"):
    newer = Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=small, vision_config={"tokens_per_second": 2}))
prompt = play.as_prompt("2 words, 4x1x2")
types = 2 * (prompt["input_ids"] == config.video_token_id).int()
positions, _ = newer.get_rope_index(**prompt, mm_token_type_ids=types, second_per_grid_ts=[1.0])
print("time:", *positions[0, 0].tolist())

# %% [markdown]
# Exercise 5.5 builds it. There is a trap: a pair every 0.75 seconds. Cut to whole seconds too early, all
# pairs stand at one position. transformers 4.57 does that, 4.49 did not.
#
# ## Five sentences to remember
#
# 1. Every token has three positions, (t, h, w); for words they are equal.
# 2. A picture that starts at p has t = p, h = p + row, w = p + column, in cells of 28 pixels; a clip adds its
#    pairs to t.
# 3. Text resumes at the largest position on any axis + 1, so a picture costs many tokens and few positions.
# 4. Each axis turns one block of rotary pairs, `mrope_section`, and pair i is channels i and i + D/2.
# 5. A later id or turn stands at the next free position, which belongs to the conversation, never to the
#    model.
#
# **Where others went wrong:** pairs dealt out in turn instead of in blocks; M-RoPE switched on by the name of
# a type, which changed between releases, instead of by `mrope_section`; flat positions for all that follows
# the first picture; `rope_delta` kept on the model, so that the next prompt, the next turn or another row of
# the batch found the wrong one; a causal mask made from positions, which repeat inside a picture; padding
# counted; angles in bfloat16, which cannot tell position 1001 from 1000.
#
# ## Exercises
#
# `check(function)` says how you do and what helps. The same exercises are in `exercises/`: see `python -m
# exercises`.

# %%
# exercises

# %%
# exercise 5.1

# %%
# exercise 5.2

# %%
# exercise 5.3

# %%
# exercise 5.4

# %%
# exercise 5.5

# %% [markdown]
# ## To recall
#
# <details><summary>A picture of 10×4 cells starts at position 7. Where does the next word stand?</summary>At
# 17: its rows are 7 to 16, its columns 7 to 10.</details>
#
# <details><summary>Two cells have the same column and the same time. Which channels of their queries are
# turned differently?</summary>Those of the height pairs: 16 to 39 and 80 to 103 of 128 in the released
# models.</details>
#
# <details><summary>You test your M-RoPE with text only and all is well. What do you know?</summary>Very
# little: with three equal positions it does not matter which axis turns which pair.</details>
#
# **Next:** [06 · Decoder and generation](06_decoder_and_generation.ipynb), in which the turned queries and
# keys meet.
