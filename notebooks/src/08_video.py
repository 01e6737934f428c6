# %% [markdown]
# # 08 · Video
#
# A clip is a pile of pictures, and far too many of them. This notebook follows a clip from its file to the rows
# that the model reads: which frames are taken, why they go in pairs, how small each becomes, and what is left of
# time in the end.
#
# **Afterwards you can** say which frames of a clip the model sees, when a token was filmed, and what a clip costs
# before a single frame is decoded.
#
# **It takes** about 30 minutes to read and 85 to practise. **You need** notebooks
# [02](02_token_counting.ipynb) and [05](05_mrope.ipynb). It runs in about 15 seconds on two CPU cores.

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
# What would a minute of film cost, if each of its frames were a picture?

# %%
from qwen2vl_mini import smart_resize

height, width = smart_resize(720, 1280)
tokens = height * width // 784
print(f"{60 * 30:,} frames of {tokens:,} tokens: {60 * 30 * tokens:,} tokens, and the context has 32,768")

# %% [markdown]
# That is about 66 times the context, for one minute. Three things are done about it:
#
# 1. **Few frames.** Two for each second, not thirty.
# 2. **Pairs.** Two frames go into one patch, so two cost what one picture costs.
# 3. **A budget.** The more frames there are, the smaller each of them becomes.
#
# *Before you go on:* which of the three could hide from the model that a ball moves to the left?
#
# ## Pairs: a toy
#
# Six frames of 28×28 pixels. Frame by frame they are filled with a single number: 10, 20, 30, 40, 50, 60. One
# frame is 2×2 patches, which is one token. *Say it before you run it:* how many rows come out? Which numbers stand
# in row 0, in row 3 and in row 4?

# %%
from qwen2vl_mini import patchify

values = torch.tensor([10.0, 20, 30, 40, 50, 60])
frames = values.view(6, 1, 1, 1).expand(6, 3, 28, 28)  # (T, 3, height, width)
rows, grid = patchify(frames)
print("rows:", tuple(rows.shape), " grid (t, h, w):", grid)
for i in (0, 3, 4, 8):
    print(f"row {i} holds", rows[i].unique().int().tolist())

# %% [markdown]
# Twelve rows, not 24. The first axis of the grid counts *pairs*: t = 3. Each row holds the same 14×14 pixels of two
# frames, and the tower's first layer, which has a weight for each of the 1176 numbers, sees both at once.
#
# And five frames? The last one has no partner.

# %%
rows, grid = patchify(frames[:5])
print("rows:", tuple(rows.shape), " grid:", grid)
print("row 8 holds", rows[8].unique().int().tolist())
assert torch.equal(rows, patchify(torch.cat([frames[:5], frames[4:5]]))[0])

# %% [markdown]
# It is repeated, and costs as much as a pair. A still picture is the same thing: one frame, seen twice.
#
# ## Which frames
#
# Four rules, those of the authors' own package, qwen-vl-utils:
#
# 1. The number wanted is seconds × 2 (`fps`), but at least 4 and at most 768.
# 2. It is made even: halved, rounded with Python's `round`, doubled. 7 becomes 8, and 5 becomes 4.
# 3. There are never more than the clip has. (Of 5 frames, 4.)
# 4. They are spread evenly from the first frame to the last, and both of these are taken.
#
# *Your turn:* 75 frames, 25 in a second. How many are taken, and which?

# %%
from notebooks import play

play.sample(75, 25)

# %% [markdown]
# **What to see:** six frames make three pairs, drawn as brackets. The gaps are 15, 15, 14, 15 and 15 frames: 0.6
# seconds, not the half second that "2 a second" promises, because the last frame is taken too. Pairs do not
# overlap, and nothing between the dots is ever looked at.
#
# Short clips show the rules best:

# %%
from qwen2vl_io.videos import frame_indices, smart_nframes

table = []
for total, rate in ((30, 30), (50, 20), (70, 20), (75, 25), (5, 30), (3, 30), (1, 30)):
    number = smart_nframes(total, rate)
    which = " ".join(map(str, frame_indices(total, number)))
    table.append([f"{total} at {rate}", f"{total / rate * 2:.1f}", number, which])
play.show_table(["frames a second", "wanted", "taken", "which"], table)

# %% [markdown]
# Look at the odd numbers. 50 frames at 20 a second want 5, and 2.5 pairs are rounded to 2, the even neighbour; 7 are
# 3.5 pairs, and rounded to 4. You write these two functions yourself in exercise 8.2, so their code is not shown here.
#
# ## How small each frame becomes
#
# A pair of frames may cost 128 to 768 tokens. All pairs of a clip share a budget of 24,576 tokens. So up to 32
# pairs can have 768 each, and from there on the share falls. This is the rule as it stands, in pixels:

# %%
from qwen2vl_mini import Qwen2VLImageProcessor

play.show(Qwen2VLImageProcessor.frame_size)

# %%
from qwen2vl_io import limits

play.show(limits.of_frame)

# %% [markdown]
# `share` is the area that a frame may have if all pairs share the budget; a pair is paid once. Then look at `limit`:
# the share is one limit, 768 tokens another, and the smaller of them counts, *but* between defaults it is never less
# than 1.05 times the minimum. *What does that do to a clip of an hour?* (`is_set` tells what somebody asked for from
# what is only a default. A budget that you set yourself has no such floor.)

# %%
processor = Qwen2VLImageProcessor()  # the defaults of qwen-vl-utils
table = []
for name, seconds in (("10 s", 10), ("1 min", 60), ("2 min", 120), ("5 min", 300), ("1 h", 3600)):
    number = smart_nframes(seconds * 30, 30)
    size = processor.frame_size(number, 720, 1280)
    whole = processor.num_video_tokens(number, 720, 1280)
    table.append([name, number, f"{size[0]}×{size[1]}", whole // (number // 2), f"{whole:,}"])
play.show_table(["clip", "frames", "pixels", "a pair", "tokens"], table)

# %%
play.budget_curve(720, 1280)

# %% [markdown]
# **What to see:** above, a pair costs 720 tokens as long as it can, then less and less, in steps, since sides are
# whole cells. Below, the clip's bill climbs, stays just under the budget, and climbs again: frames cannot get any
# smaller. From there on the budget is not a limit, and soon the context is none either.

# %%
for limit in (24576, 32768):
    number = 4
    while processor.num_video_tokens(number, 720, 1280) <= limit:
        number += 2
    print(f"more than {limit:,} tokens from {number} frames on, {number / 2:.0f} seconds")

# %% [markdown]
# (A pair of 120 tokens costs less than the minimum of 128: sides are rounded down after shrinking, and nobody looks at
# the minimum again.)
#
# A film of five minutes does not fit the context with these defaults. Ask for fewer frames (`fps`, `nframes`), or
# for smaller ones (`max_pixels` of a frame, `total_pixels` of the clip; each holds beside the other).
#
# ## A real clip
#
# `assets/clip.mp4` has 8 frames of 112×160 pixels, 4 a second. `load_video` reads its table of contents and
# chooses; pixels are decoded only when they are asked for.

# %%
from PIL import Image

from qwen2vl_io.videos import load_video

clip = load_video(repository / "assets" / "clip.mp4")
print(f"{clip.num_frames} of {clip.total_frames} frames, shown at second {clip.seconds}")
play.side_by_side(
    [Image.fromarray(frame) for frame in clip.frames()],
    [f"pair {i // 2}\nsecond {second}" for i, second in enumerate(clip.seconds)],
    "Four frames of a drawn clip: a yellow cross moves up from frame to frame, a yellow star stays.",
)

# %% [markdown]
# **What to see:** the cross moves up, and the star stays. Look at the seconds: the frames 0, 2, 5 and 7 were taken, so
# the gaps are not even equal. The model is not told.
#
# Now the real shape. The bundled model was trained with small clips, and its files allow a pair to cost 4 tokens.

# %%
model, bundled = play.loaded()
inputs = bundled.image_processor.preprocess(videos=str(repository / "assets" / "clip.mp4"))
rows, grid = inputs.pixel_values_videos, inputs.video_grid_thw
print("rows:", tuple(rows.shape), " grid:", grid.tolist(), " tokens:", len(rows) // 4)

# %% [markdown]
# Two pairs of 8×12 patches, 24 tokens each. (112×160 pixels became 112×168.) The rows come pair by pair, so a clip
# is stored like pictures one after the other. The whole way there is a loop over pairs:

# %%
play.show(Qwen2VLImageProcessor.patches_of)

# %% [markdown]
# ## What is left of time
#
# Time could be seen in three places. *Which of them know it?* In the first layer, two frames meet in one patch. In
# the tower's attention, frames might look at each other. In the decoder, tokens have a position in time.
#
# The tower first. If pairs do not see each other there, each pair alone must give the same tokens:

# %%
from tests.small_models import relative_difference

with torch.no_grad():
    together = model.visual(rows, grid)  # (48, C)
    one_pair = torch.tensor([[1, 8, 12]])
    alone = torch.cat([model.visual(pair, one_pair) for pair in rows.split(8 * 12)])
assert relative_difference(alone, together) < 1e-5
print("the tower sees each pair as a picture of its own:", tuple(together.shape))

# %% [markdown]
# So a tower token knows what happened *inside* its pair, and nothing else. All the rest is left to the decoder,
# which gets the pair's number as the first of the three positions (notebook 05):

# %%
from qwen2vl_mini import get_rope_index

ids = torch.full((1, 48), model.config.video_token_id)
positions, _ = get_rope_index(model.config, ids, video_grid_thw=grid)
for name, axis in zip(("time", "height", "width"), positions[:, 0]):
    print(f"{name:6} of tokens 0, 1, 23, 24, 47:", axis[[0, 1, 23, 24, 47]].tolist())

# %% [markdown]
# Time is 0 for the first pair and 1 for the second, whether they are half a second apart or an hour. Qwen2-VL counts
# pairs; it has no idea how long a second is. (Qwen2.5-VL's positions go by seconds: exercise 5.5.)
#
# Does the order reach the answer? We draw twelve clips with one thing that changes, play each forwards and
# backwards, and ask the bundled model. *What should happen to "moves left"?*

# %% tags=["volatile"]
from tiny_world.scenes import TEST_SEED, make_sample

samples = [make_sample(TEST_SEED + i, "motion", 160, 112, max_things=3, frames=8) for i in range(12)]
table = []
for sample in samples[:6]:
    film = sample.images
    answers = [play.watch(sample.question, frames) for frames in (film, film[::-1], film[:1])]
    table.append([sample.answer, *answers])
play.show_table(["what is true", "forwards", "backwards", "the first frame alone"], table)

# %%
opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}


def direction(answer: str) -> str:
    return answer.lower().strip(".").split()[-1]


moving = [sample for sample in samples if direction(sample.answer) in opposite]
found = [direction(play.watch(sample.question, sample.images)) for sample in moving]
turned = [direction(play.watch(sample.question, sample.images[::-1])) for sample in moving]

# %% tags=["volatile"]
true = [direction(sample.answer) for sample in moving]
print("true:     ", *true)
print("forwards: ", *found)
print("backwards:", *turned)
right = sum(map(str.__eq__, found, true))
flipped = sum(opposite[way] == other for way, other in zip(true, turned))
print(f"{right} of {len(true)} right forwards, {flipped} of {len(true)} the other way backwards")

# %% [markdown]
# The same pixels in another order give the opposite answer, so the order of pairs arrives. A single frame has none, and
# leaves the model to guess. (It is a small model, and not always right: the third clip begins with a *green* diamond.)
#
# And the question of the beginning? All three savings can hide the ball. It may cross the scene between two frames that
# are taken. It may move inside one pair only, which the decoder sees as one moment. And in a long clip frames are so
# small that the ball is a few pixels wide.
#
# ## Play
#
# Change the numbers: another length, another rate, several `fps` at once, another size.

# %%
play.sample(300, 30, fps=[0.5, 2, 8], height=720, width=1280)

# %% [markdown]
# **What to see:** four times as many frames cost little more than three times as many tokens, since the budget
# makes them smaller: 504×924 pixels in place of 560×1008. At 0.5 a second the clip would get 5 frames, and gets 4.
#
# ## The official processor
#
# transformers has a class for clips. Random bytes are the hardest frames to resize; eight clips of them, with odd
# numbers of frames and odd shapes, under three limits:

# %%
from transformers import Qwen2VLVideoProcessor as OfficialVideo

noise = torch.Generator().manual_seed(0)
shapes = [(4, 48, 64), (6, 64, 48), (2, 90, 200), (5, 100, 70)]
shapes += [(1, 56, 56), (3, 84, 112), (7, 30, 300), (4, 150, 150)]
clips = [torch.randint(0, 256, (n, 3, h, w), generator=noise).byte() for n, h, w in shapes]
areas = [(784, 768 * 784), (4 * 784, 9 * 784), (16 * 784, 20 * 784)]  # pixels of a frame, at least and at most

# %%
table = []
for frames, shape in zip(clips, shapes):
    line = ["×".join(map(str, shape))]
    for low, high in areas:
        theirs = OfficialVideo(size={"shortest_edge": low, "longest_edge": high})
        theirs = theirs(videos=[frames], cap_pixels_per_frame=False, return_tensors="pt")
        processor = Qwen2VLImageProcessor(video_min_pixels=low)
        ours = processor.preprocess(videos=[frames], max_pixels=high)
        assert torch.equal(ours.video_grid_thw, theirs.video_grid_thw)
        assert torch.equal(ours.pixel_values_videos, theirs.pixel_values_videos)
        line.append("×".join(map(str, ours.video_grid_thw[0].tolist())) + " =")
    table.append(line)

# %%
play.show_table(["clip", "1 to 768 tokens", "4 to 9", "16 to 20"], table)

# %% [markdown]
# The table shows the grids, and = where all pixels are equal to the bit: all 24. So the resizing (torchvision's bicubic
# on whole bytes, never Pillow's), the normalising, the order of the rows and the repeated last frame agree.
#
# The budget is in transformers too, if `cap_pixels_per_frame` is set; without it a clip has no limit as a whole.
# Its budget is 90 % of `max_video_tokens`, so we set that to 300 / 0.9.

# %%
processor = Qwen2VLImageProcessor(video_min_pixels=4 * 784, video_total_pixels=300 * 784)
official = OfficialVideo(min_pixels=4 * 784, max_video_tokens=300 / 0.9 + 1e-6)
for shape in ((40, 120, 160), (4, 480, 640), (5, 400, 300)):
    frames = torch.randint(0, 256, (shape[0], 3, *shape[1:]), generator=noise).byte()
    theirs = official(videos=[frames], cap_pixels_per_frame=True, return_tensors="pt").pixel_values_videos
    ours = processor.preprocess(videos=frames).pixel_values_videos
    alone = processor.num_tokens(shape[0], *processor.target_size(*shape[1:]))
    same = "equal" if torch.equal(ours, theirs) else "different"
    print(f"{shape}: ours {len(ours) // 4} tokens, theirs {len(theirs) // 4}, without a budget {alone}; {same}")

# %% [markdown]
# The last clip has an odd number of frames, and there we differ on purpose. The official rule shares by frames, but
# five frames are three pairs, so it spends 324 tokens of 300. Ours shares by pairs. (Frames chosen from a file are even
# in number, or a single one; a list of frames that you hand over need not be.) In exercise 8.4 you share a budget so
# that it holds.
#
# ### Where the official sources disagree
#
# Choosing frames is another matter. transformers rounds the number *down* to an even one, and steps through the clip
# without reaching its end. Here are both rules side by side.

# %%
from transformers.video_utils import VideoMetadata

table = []
for total, rate in ((75, 25), (70, 20), (50, 20), (300, 30)):
    film = VideoMetadata(total_num_frames=total, fps=rate)
    theirs = OfficialVideo().sample_frames(film, fps=2).tolist()
    ours = frame_indices(total, smart_nframes(total, rate))
    table.append([f"{total} at {rate}", *(f"{len(x)}: {x[:3]} … {x[-1]}" for x in (ours, theirs))])
play.show_table(["clip", "qwen-vl-utils, and ours", "transformers"], table)

# %% [markdown]
# Neither is a bug. But whoever compares the logits of two programs on "the same clip" compares answers about other
# pictures: hand both programs the same frames. (The official sources also disagree about the positions of the text
# after a long clip: notebook 05.)
#
# **Where others went wrong:** an odd number of frames that crashes, or loses its last; a clip of one frame; more
# frames asked for than there are, and no word about it; all frames decoded for the sake of eight; frames spread by
# number although the film's rate varies; and a telephone's film that lies on its side. (`tests/test_video.py` and
# `tests/test_parity_video.py` look for all of these.)
#
# ## Five sentences to remember
#
# 1. Two frames a second are taken, an even number of 4 to 768, spread from the first frame to the last.
# 2. Two frames are one pair, and a pair costs what a picture of its size costs; a last odd frame is repeated.
# 3. All pairs share 24,576 tokens, but no share falls below 1.05 · 128 by default, so that a long clip breaks the
#    budget.
# 4. To the tower a clip is a row of pictures; only inside a pair do frames meet.
# 5. The decoder knows the order of the pairs from their positions, and not how many seconds lie between them.
#
# ## Exercises
#
# `check(function)` says how you do and what helps. The same exercises are in `exercises/`: see `python -m
# exercises`.

# %%
# exercises

# %%
# exercise 8.1

# %%
# exercise 8.2

# %%
# exercise 8.3

# %%
# exercise 8.4

# %%
# exercise 8.5

# %% [markdown]
# ## To recall
#
# <details><summary>A clip has the grid (3, 8, 12). How many frames were taken, and how many tokens does it
# cost?</summary>Six (or five, the last repeated), and 3·8·12 / 4 = 72 tokens.</details>
#
# <details><summary>You ask for 4 frames a second in place of 2, and the bill hardly changes. Why?</summary>The budget
# was reached already: there are twice as many pairs, each of half the area.</details>
#
# <details><summary>Can the model tell a slow film from a fast one?</summary>Not from the positions, which count pairs.
# Only from how far things move between frames.</details>
#
# **Next:** [09 · Train your own](09_train_your_own.ipynb), where a model learns while you watch.
