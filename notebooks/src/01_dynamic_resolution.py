# %% [markdown]
# # 01 · Dynamic resolution
#
# Qwen2-VL looks at a picture in the picture's own shape. There is no square that everything is squeezed
# into. This notebook follows a picture from its size on the disk to the rows of numbers that the model
# reads, and back.
#
# **Afterwards you can** say what size a picture is seen at and what it costs, name the patch and the
# pixels behind any row of `pixel_values`, and turn rows back into a picture.
#
# **It takes** about 25 minutes to read and 75 to practise. **You need** PyTorch's `reshape` and
# `permute`. It runs in about 15 seconds on two CPU cores.

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
# Most vision models before it saw squares: a page of text, a panorama and a portrait were all squashed to
# 224×224 or 336×336 pixels. Below, a wide picture is squashed, and at its own shape.
#
# *Before you go on:* a model that only ever sees squares is asked how wide a thing is, compared with its
# height. Can it know?

# %%
from notebooks import play

scene = play.picture("scene.png")  # 176×210 pixels, height×width as everywhere here
wide = scene.crop((0, 70, 210, 150))  # a wide strip of it
play.side_by_side(
    [wide.resize((224, 224)), wide],
    ["squashed: 224×224", f"its own shape: {wide.height}×{wide.width}"],
    "A wide strip of the scene: squashed into a square, all things are too narrow; at its own shape they are not.",
)

# %% [markdown]
# **What to see:** in the square all things are less than half as wide as they are, and nothing in it says
# so. The model cannot know. A line of text would be a row of needles.
#
# ## Three rules
#
# Qwen2-VL keeps the shape, as well as it can:
#
# 1. Each side becomes the nearest multiple of 28 pixels. (A patch has 14, and the merger joins 2×2 of
#    them.)
# 2. If the area is now above `max_pixels`, both sides shrink by the same number, and are rounded *down*.
# 3. If it is below `min_pixels`, both grow by the same number, and are rounded *up*.

# %%
from qwen2vl_mini import smart_resize

for height, width in ((70, 70), (42, 42), (720, 1280), (10, 15), (3000, 4000)):
    new_height, new_width = smart_resize(height, width)
    tokens = new_height * new_width // (28 * 28)
    print(f"{height:5}×{width:<5} → {new_height:4}×{new_width:<5} {tokens:5} tokens")

# %% [markdown]
# Why does 70 become 56, and not 84? Both are 14 away. 70 / 28 is 2.5, and Python's `round` goes to the
# *even* neighbour: 2. C's `round` goes away from zero, to 3. Ports to C++ or JavaScript have been wrong
# here. Of all sizes from 100 to 1,000 pixels a side, one in 29 then gets another number of tokens, and
# everything after the picture is shifted.
#
# This is the function, as it stands in the file that everything in this course imports:

# %%
play.show(smart_resize)

# %% [markdown]
# *Say what you expect before you run it:* a picture of 176×210 pixels under limits of 4, 9, 24 and 100
# tokens.

# %%
play.look(176, 210, [4, 9, 24, 100])

# %% [markdown]
# **What to see:** each black cell is one token, 28×28 pixels of the *resized* picture. Under a lower
# limit a token sees more of the scene, more coarsely. Under 24 tokens the picture has only 20: both sides
# are rounded down. From 100 on nothing changes any more: the picture has its own size, 48 tokens.
#
# ## What it costs
#
# A token is what you pay: in time, and in memory of the decoder. Three limits for the same photograph of
# 12 megapixels, that of the bundled model, the default where a checkpoint says nothing, and that of the
# released models:

# %%
for name, limit in (("bundled", 256), ("default", 1280), ("released", 16384)):
    height, width = smart_resize(3000, 4000, max_pixels=limit * 28 * 28)
    tokens = height * width // (28 * 28)
    print(
        f"{name:9} at most {limit:6,}: {height:4}×{width:<4} = {tokens:6,} tokens, {4 * tokens:6,} patches in the tower"
    )

# %% [markdown]
# ### A limit that breaks
#
# `max_pixels` is not a promise. No side may fall below 28, so a very long and thin picture cannot shrink
# on its short side. Its area then falls only as fast as *one* side does.

# %%
for height, width in ((28, 4452), (28, 5544)):
    new_height, new_width = smart_resize(height, width, max_pixels=128 * 28 * 28)
    print(f"{height}×{width} under 128 tokens: {new_height}×{new_width}, {new_height * new_width // 784} tokens")

# %% [markdown]
# Whoever reserves memory by `max_pixels` alone does not have enough for such a picture. In exercise 1.5
# you find such sizes for any limit.
#
# ## From pixels to rows: a toy
#
# A picture of 8×8 pixels whose "colours" are the numbers 0 to 63, cut into patches of 2×2 pixels. All
# three colour channels get the same numbers, so we look at one.

# %%
from qwen2vl_mini import patchify, unpatchify

numbers = torch.arange(64.0).view(8, 8)
frame = numbers.expand(1, 3, 8, 8)  # (T, 3, height, width)
print(numbers.int())

# %% [markdown]
# 16 patches of 2×2 pixels. *Before you run the next cell:* which four numbers stand in the first row?
# Which in the second, and which in the third?

# %%
rows, grid = patchify(frame, patch_size=2)
print("rows:", tuple(rows.shape), " grid (t, h, w):", grid)
for i in range(6):
    print(f"row {i}:", rows[i].view(3, 2, 2, 2)[0, 0].int().flatten().tolist())

# %% [markdown]
# Row 2 holds 16, 17, 24, 25: the patch *below* row 0, not the third one of the first line. Rows go
# through a window of 2×2 patches before they go on.

# %%
play.row_path(4, 4)

# %% [markdown]
# **What to see:** the black frames are tokens. The path visits all four patches of a frame before it
# leaves it. So the merger needs no gather and no index: four neighbouring rows, read as one long row, are
# a token. `x.view(M, 4·C)` is all.
#
# ## The real shape
#
# With patches of 14×14 pixels a row holds 3·2·14·14 = 1176 numbers: colour, frame, row, column, the last
# one fastest. Which number is which pixel? We mark a single pixel and look where it goes.

# %%
frame = torch.zeros(1, 3, 56, 84)
frame[0, 2, 30, 45] = 1.0  # blue, row 30, column 45
rows, grid = patchify(frame)
print("rows:", tuple(rows.shape), " grid:", grid)
for row, place in rows.nonzero().tolist():
    colour, rest = divmod(place, 392)
    time, rest = divmod(rest, 196)
    down, across = divmod(rest, 14)
    print(f"row {row}, number {place} = {colour}·392 + {time}·196 + {down}·14 + {across}")

# %% [markdown]
# Number = colour·392 + frame·196 + row·14 + column: blue is colour 2, 30 = 2·14 + 2, and 45 = 3·14 + 3.
# The patch stands in line 2 and column 3 of a grid of 4×6. Three windows of the first two lines come
# before, and one of the next two: 4 windows of 4 patches, then the second patch of the fifth window. So
# it is row 17.
#
# And why twice? A patch spans *two* frames, because clips are read in pairs of frames. A still picture is
# one frame, seen twice:

# %%
still = torch.rand(1, 3, 56, 84)
rows, grid = patchify(still)
clip_rows, clip_grid = patchify(torch.cat([still, still]))
assert grid == clip_grid == (1, 4, 6)
assert torch.equal(rows, clip_rows)
print("One frame and two equal frames give the same rows, and the same grid", grid)

# %% [markdown]
# All of it is one reshape, one permute and one more reshape:

# %%
play.show(patchify)

# %% [markdown]
# ## And back
#
# `unpatchify` is the inverse. We prepare the scene as the model gets it, go back, undo the normalisation,
# and look.

# %%
from qwen2vl_mini import Qwen2VLImageProcessor

processor = Qwen2VLImageProcessor()
size = smart_resize(scene.height, scene.width)
pixels = processor.pixels_of(scene, size)  # (3, height, width), normalised
rows, grid = patchify(pixels[None])
print("picture", (scene.height, scene.width), "→ resized", size, "→ rows", tuple(rows.shape), "grid", grid)
print(f"numbers from {pixels.min():.2f} to {pixels.max():.2f}")

# %%
from PIL import Image

back = unpatchify(rows, grid)[0]  # (3, height, width)
assert torch.equal(back, pixels)
mean = torch.tensor(processor.image_mean)[:, None, None]
std = torch.tensor(processor.image_std)[:, None, None]
whole = ((back * std + mean) * 255).round().byte()
seen = Image.fromarray(whole.movedim(0, 2).numpy())
play.side_by_side(
    [scene, seen],
    [f"on the disk: {scene.height}×{scene.width}", f"what the tower sees: {seen.height}×{seen.width}"],
    "The scene as it is on the disk, and as it comes back from the rows: the same, a little wider and lower.",
)

# %% [markdown]
# **What to see:** hardly any difference. Cutting and normalising lose nothing. What is lost was lost
# before, in resizing: each side moved to a whole number of cells, here 176 → 168 and 210 → 224, so the
# things are a little wider than they were. Under a low `max_pixels` detail goes too, and no later layer
# can bring it back.
#
# ## The official processors
#
# transformers has two: one that resizes with Pillow, and one with torchvision, its default. They differ
# in the last bits, and ours has both (`resample="pillow"` and `"torch"`). For twelve sizes, are the
# numbers the same?

# %%
import numpy as np
from transformers import Qwen2VLImageProcessor as OfficialFast
from transformers import Qwen2VLImageProcessorPil as OfficialPil

rng = np.random.default_rng(0)
sizes = [(56, 56), (70, 70), (42, 99), (224, 224), (210, 176), (28, 300), (100, 31)]
sizes += [(480, 640), (333, 500), (13, 17), (1080, 700), (29, 57)]
images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]

# %%
limits = {"min_pixels": 4 * 28 * 28, "max_pixels": 1280 * 28 * 28}
table = []
for image in images:
    line = [f"{image.height}×{image.width}"]
    for official, resample in ((OfficialPil, "pillow"), (OfficialFast, "torch")):
        theirs = official(**limits)(images=[image], return_tensors="pt")
        ours = Qwen2VLImageProcessor(resample=resample, **limits).preprocess([image])
        assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
        difference = (ours["pixel_values"] - theirs["pixel_values"]).abs().max().item()
        assert difference == 0, f"{image.size} with {resample}: {difference}"
        line.append(f"{difference:g}")
    line.insert(1, ours["image_grid_thw"].prod().item() // 4)
    table.append(line)

# %%
play.show_table(["height×width", "tokens", "Pillow", "torchvision"], table)

# %% [markdown]
# The largest differences to both, for each size: equal to the bit, all twelve. (The numbers of the two
# resamplers differ from each other, though: a checkpoint trained with one and run with the other sees
# slightly other pixels.)
#
# ## Does resolution matter?
#
# The bundled model reads short texts. Here is one, in a picture of 168×224 pixels, seen with 4, 16 and 48
# tokens.

# %%
from tiny_world.scenes import TEST_SEED, make_sample

sample = make_sample(TEST_SEED + 9, "read", 224, 168)
shown, titles = [], []
for limit in (4, 16, 48):
    answer = play.answer("Read the text.", sample.images[0], max_pixels=limit * 28 * 28)
    height, width = smart_resize(168, 224, max_pixels=limit * 28 * 28)
    shown.append(sample.images[0].resize((width, height)))
    titles.append(f"{limit} tokens at most:\nreads {answer!r}")

# %% tags=["volatile"]
print("The text is", repr(sample.answer))
play.side_by_side(shown, titles, f"The text {sample.answer} at three resolutions, with what the model reads: {titles}")

# %% [markdown]
# **What to see:** with 4 tokens the letters are smaller than a pixel of what the tower sees, and it
# guesses. With 16 it reads the half of them. With 48 all are right. Nothing else was changed.
#
# ## Five sentences to remember
#
# 1. A picture keeps its shape: both sides become multiples of 28, and only its area is limited.
# 2. A visual token is 28×28 pixels, which is 2×2 patches of 14; a row of `pixel_values` is one patch,
#    1176 numbers.
# 3. Rows are listed window by window, so that the merger joins four patches by a reshape.
# 4. A still picture is two equal frames.
# 5. `max_pixels` trades detail for tokens, and a long thin picture can break it.
#
# **Where others went wrong:** rounding half up (C++), resizing twice (once in the loader, once in the
# processor), width and height swapped, Pillow where torchvision was meant, and patches listed row by row,
# which raises no error and mixes up the picture.
#
# ## Exercises
#
# `check(function)` says how you do and what helps. The same exercises are in `exercises/`: see `python -m
# exercises`.

# %%
# exercises

# %%
# exercise 1.1

# %%
# exercise 1.2

# %%
# exercise 1.3

# %%
# exercise 1.4

# %%
# exercise 1.5

# %% [markdown]
# ## To recall
#
# <details><summary>Why 28, when a patch has 14 pixels?</summary>The merger joins 2×2 patches into one
# token. Were a side an odd number of patches, a window would have only half of its patches.</details>
#
# <details><summary>Which patch is row 4 of a picture of 4×8 patches?</summary>The first patch of the
# second window: line 0, column 2.</details>
#
# <details><summary>A picture has 1,000 tokens. How many rows has
# <code>pixel_values</code>?</summary>4,000, of 1176 numbers each.</details>
#
# **Next:** [02 · Token counting](02_token_counting.ipynb), the bill before you pay it.
