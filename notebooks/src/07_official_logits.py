# %% [markdown]
# # 07 · Official logits
#
# A model with a fault in it still writes sentences, and some of them are right. So no answer shows that an
# implementation is correct. This notebook compares ours with the official one, layer by layer, on the same weights,
# and then finds faults by it.
#
# **Afterwards you can** say how close two right implementations are, compare two models so that the comparison can
# fail, go from a table of differences to the faulty line, and load weights so that none is left out.
#
# **It takes** about 30 minutes to read and 80 to practise. **You need** the parts of the model by name (notebooks 04
# to 06). It runs in about 25 seconds on two CPU cores.

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
# Here are six models. All have the weights of the bundled checkpoint, and all describe the scene below. One of them
# is our implementation as it is. The other five are copies of it with one bug each, such as people really make.

# %%
from notebooks import play

play.side_by_side(
    [play.picture("scene.png")],
    ["What is in it?"],
    "The example scene: a purple triangle, an orange heart and a green diamond on a pale ground.",
)

# %% [markdown]
# **What to see:** three things, far apart, in three colours: an easy picture.

# %% tags=["volatile"]
answers = {number: play.say(bug) for number, bug in enumerate((4, 3, 0, 5, 1, 2), 1)}
play.show_table(["model", "what it says"], [[str(number), text] for number, text in answers.items()])

# %% [markdown]
# *Before you go on:* which models are broken?
#
# Models 2 and 6 are, that is clear, and model 4 takes a heart for a star. The other three say the same, right
# sentence, and **two of these three are broken**. Nobody can tell by reading one answer.
#
# By many answers, then? We gave those three 60 harder drawings (448×448 pixels, `make_sample(TEST_SEED + k,
# "describe", 448, 448)` for k from 0 to 59). The healthy one got 12 wrong. Each of the broken ones got 12 wrong, too:
# they wrote something else than the healthy one for one drawing and for two. No score finds such a bug.
#
# So we do not read answers. We compare numbers.
#
# ## When are two numbers the same?
#
# Not when they are equal. A float32 holds about seven digits, so the *order* of a sum matters. Three numbers are
# enough to see it. *Say what the next cell prints:* mathematics says 1.0 twice.

# %%
a, b, c = torch.tensor([1.0, 1e8, -1e8])
print("(a + b) + c =", float((a + b) + c))
print("a + (b + c) =", float(a + (b + c)))

# %% [markdown]
# Near 100,000,000 the next float32 is 8 away, so the 1 is lost in the first line. Another library adds the same
# products in another order. Both are right, and they differ.
#
# What counts is the difference *relative* to the size of the numbers. Take three numbers, and move one of them by
# 0.00002:

# %%
official = torch.tensor([0.5, -20.0, 3.0])
ours = official + torch.tensor([0.0, 0.00002, 0.0])
difference = (ours - official).abs().max()
print(f"absolute: {difference:.0e}")
print(f"relative: {difference / official.abs().max():.0e}   (divided by the largest, {official.abs().max():g})")

# %% [markdown]
# 2e-5 sounds worse than 1e-6, and it is the same. Whether 2e-5 is much depends on the numbers it is found in:
#
# | | max \|Δ\| | max \|official\| | relative | |
# |---|---|---|---|---|
# | these three | 0.00002 | 20 | 1e-6 | rounding |
# | a layer with small numbers | 0.00002 | 0.02 | 1e-3 | a bug |
#
# In a whole tensor we take the largest difference, never the mean: a bug in one of a thousand numbers would vanish
# in a mean. And we divide by the largest official number of the tensor, not number by number: next to 20, a number
# that should be 0 and is 0.000001 is no fault.

# %%
from tests.small_models import relative_difference

play.show(relative_difference)
print(f"{relative_difference(ours, official):.0e}")

# %% [markdown]
# ### Where the bound comes from
#
# A float32 has a precision of 2⁻²³, about 1.2e-7, and a layer is a product of matrices: sums of hundreds or thousands
# of products. We compare one with float64, which has twice the digits. First as PyTorch's library adds them up, in
# blocks, and then one after the other, which is the worst order in use:

# %% tags=["volatile"]
generator = torch.Generator().manual_seed(0)
for length in (192, 1536, 8960):  # the bundled model's width; the 2B model's, and its MLP's
    x = torch.randn(79, length, generator=generator)
    weight = torch.randn(length, 192, generator=generator)
    right = x.double() @ weight.double()
    in_turn = sum(x[:, i : i + 1] * weight[i] for i in range(length))
    both = relative_difference(x @ weight, right), relative_difference(in_turn, right)
    print(f"{length:5} products: {both[0]:.0e} in blocks, {both[1]:.0e} one after the other")

# %% [markdown]
# So two right programs may be some 1e-7 to 3e-6 apart after one product. From layer to layer it hardly grows, because
# every layer only *adds* a little to what comes in. Our bound is **1e-5**: above all that rounding does, and, as you
# will see, hundreds of times below what a bug does.
#
# ## Two models, the same weights
#
# The official class of transformers reads the bundled checkpoint, because it has the released layout. Both models
# are float32. In bfloat16 a comparison is worth little, as we will see.

# %%
import transformers

theirs = play.official()
assert isinstance(theirs, transformers.Qwen2VLForConditionalGeneration)
ours = play.ours()
inputs = play.asked("scene.png", "Describe this image.")
print("official:", type(theirs).__module__.split(".models.")[1])
for name, value in inputs.items():
    print(f"{name:18} {tuple(value.shape)}")

# %% [markdown]
# 79 tokens, of which 48 are the picture. `mm_token_type_ids` says which; the official class wants it. Now the
# comparison that gives this notebook its name. If someone breaks `qwen2vl_mini.py`, this cell fails.

# %%
with torch.no_grad():
    our_logits, their_logits = ours(**inputs).logits, theirs(**inputs).logits
print("logits", tuple(our_logits.shape))
assert relative_difference(our_logits, their_logits) <= 1e-5
assert torch.equal(our_logits.argmax(-1), their_logits.argmax(-1))
print("The logits agree within 1e-5, and the likeliest token is the same at all", our_logits.shape[1], "places.")

# %% [markdown]
# ## Every layer, not only the last
#
# Logits say *that* something is wrong. To know *where*, we need what every layer gives. A hook does that: a function
# that PyTorch calls after a module has run. Three layers of one number each, as a toy:

# %%
from torch import nn

toy = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
for parameter in toy.parameters():
    nn.init.constant_(parameter, 2.0)
seen = {}
for name, module in toy.named_children():
    module.register_forward_hook(lambda module, given, result, name=name: seen.update({name: result.item()}))
toy(torch.tensor([-1.0]))
print({name: round(value, 3) for name, value in seen.items()})

# %% [markdown]
# 2·(−1) + 2 = 0, tanh 0 = 0, 2·0 + 2 = 2. The model was not changed for it, and that is the point: you can hook a
# class that you did not write. `tests/layer_debugger.py` hooks all layers of both models, gives them the same names,
# and compares:

# %%
from tests import layer_debugger

play.show(layer_debugger.record)

# %%
rows = layer_debugger.compare(ours, theirs, inputs)
for row in rows:
    assert row.relative <= 1e-5, f"{row.layer} differs by {row.relative:.1e}"
print(f"{len(rows)} layers, from {rows[0].layer} to {rows[-1].layer}: all agree within 1e-5")

# %% tags=["volatile"]
table = [[row.layer, "×".join(map(str, row.shape)), f"{row.relative:.0e}"] for row in rows]
play.show_table(["layer", "shape", "relative difference"], table)

# %% [markdown]
# ## A bug in the figure
#
# Now a copy of our model with a bug in it, bug 1, beside the healthy one. *Before you run it:* a bug in the middle of
# the decoder, what will the points before it look like, and those after it?

# %%
play.compare(bug=1)

# %% [markdown]
# **What to see:** up to decoder layer 2 the two lines are one. At decoder layer 3 the broken one jumps by almost four
# powers of ten, and it never comes back. Everything after the fault is wrong, because it is fed with wrong numbers.
# The largest difference is at the final norm, where nothing is broken.
#
# So read such a figure from the left: **the first point above the bound counts, and never the highest.**
#
# This is model 5 of the table above, one of the two that say the right sentence. Its logits are off by about 1 %.
#
# ## From the layer to the line
#
# A decoder layer has nine modules with code or weights of their own. `inside` compares them, in the order in which
# they run:

# %%
play.inside(1, "decoder layer 3")

# %% [markdown]
# The first that differs is `v_proj`. What goes into it, the output of `input_layernorm`, agrees. It is a plain
# `nn.Linear`, and there is nothing in its code to get wrong. So its **weights** are: here the bias was left at zero,
# as happens when a loader skips what it does not know.
#
# | the first module that differs | so the fault is |
# |---|---|
# | a Linear or a norm that gets the right input | in its weights, or in the norm's formula |
# | `o_proj`, and q, k, v agree | between them: rotation, mask, scale, softmax, grouping of heads |
# | `down_proj` or `fc2`, and what is before it agrees | in the activation |
# | the first module of a layer, and the layer before differs too | further up: you are in the wrong layer |
#
# Hooks see modules only. What happens *between* two of them you find by reading a few lines, and now you know which.
# Try it with another one. *Which layer will you look into?*

# %%
play.compare(bug=5)

# %% [markdown]
# **What to see:** the patch embedding agrees, and vision block 0 does not. One block later the difference is more than
# 20 times as large, by the same fault.

# %%
play.inside(5, "vision block 0")

# %% [markdown]
# `attn.qkv` agrees, `attn.proj` does not, so the fault lies between them: rotation, segments, scale or softmax? It is
# the rotation. Bug 5 exchanges rows and columns in the angles of the tower.
#
# Change the arguments: another `image` of `assets/`, another `prompt`, another bug. The bugs 2, 3 and 4 are those of
# the exercises.
#
# ## What a comparison cannot see
#
# A check can fail only where it looks. Here is bug 5 again, and the prompt has no picture:

# %%
play.compare(bug=5, image=None, prompt="What is a triangle?")

# %% [markdown]
# **What to see:** the broken model agrees everywhere: the tower never ran. (The embeddings are equal to the bit, and
# are drawn at the lower edge.) Other ways to see nothing:
#
# - **Special weights.** In an untrained official model all biases are 0 and all norms 1, so whoever forgets them is
#   not found out. Our tests make all of them random.
# - **Special shapes.** With as many key heads as query heads, a wrong grouping does not show. With a square picture, a
#   grid of (t, w, h) in place of (t, h, w) does not.
# - **One row.** Padding, and which picture belongs to whom, need a batch.
# - **Half precision.** Let us measure that one.

# %%
import copy

half = copy.deepcopy(ours).bfloat16()
with torch.no_grad():
    half_logits = half(**inputs).logits.float()
    bugs = {number: play.with_bug(number)(**inputs).logits for number in (1, 4)}
rounding = relative_difference(half_logits, their_logits)
print("float32, healthy:  below 1e-5", relative_difference(our_logits, their_logits) < 1e-5)
print("bfloat16, healthy: above 1e-3", rounding > 1e-3)

# %% tags=["volatile"]
print(f"bfloat16, no bug: {rounding:.1%}")
for number, logits in bugs.items():
    print(f"float32, bug {number}:   {relative_difference(logits, their_logits):.1%}")

# %% [markdown]
# A bfloat16 keeps 8 bits, so a healthy model in bfloat16 is as far from the official one as a model with a real bug.
# Compare in float32, then run in what you like.
#
# ## Weights: every one exactly once
#
# The same parameters have two names. Released files, and our modules, use the left one. The official class of today
# uses the right one in memory:

# %%
from tests.official import official_name

for name in ("visual.merger.ln_q.bias", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
    assert torch.equal(ours.state_dict()[name], theirs.state_dict()[official_name(name)])
    print(f"{name:34} {official_name(name)}")

# %% [markdown]
# `load_state_dict` refuses names that it does not know, and it has an option that silences it. *Guess before you
# run:* a fresh model of ours takes the official weights, not renamed, with `strict=False`. How many of the 154 arrive?

# %%
fresh = qwen2vl_mini.Qwen2VLForConditionalGeneration(ours.config)
result = fresh.load_state_dict(theirs.state_dict(), strict=False)
arrived = set(fresh.state_dict()) - set(result.missing_keys)
print(f"{len(arrived)} of {len(fresh.state_dict())} arrived: {sorted(arrived)}")
print(f"{len(result.missing_keys)} missing, {len(result.unexpected_keys)} unexpected, and no error")

# %% [markdown]
# One, and the model runs. If all is random, you notice. If it was only a bias, as in bug 1, you do not.
#
# And `lm_head.weight` here *is* the embedding: the two are tied, and a released 2B file does not store it at all. Our
# loader checks all names and shapes before it reads a single weight. In exercise 7.5 you write such an account.
#
# ## The real 2B
#
# Nothing above depends on the size. What you do with a real checkpoint, on a machine with some 20 GB of memory:
#
# 1. Get the folder, with 4.4 GB of weights: `git clone https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct` with Git LFS,
#    or the command line of huggingface_hub.
# 2. `python -m tests.layer_debugger CHECKPOINT_FOLDER assets/scene.png` loads both models in float32 and prints one
#    line for each of the 65 layers: 32 blocks, 28 decoder layers, and the five others of our table. It names the first
#    that differs.
# 3. If one differs: `play.inside(0, "decoder layer 3", checkpoint="CHECKPOINT_FOLDER")`, as above.
#
# `python -m pytest -m slow` does it without a download: the 2B shape with random weights, 2,208,985,600 parameters,
# written to the disk in two shards of bfloat16 and read by both models, one after the other (15 GB of memory, 5 GB of
# disk). In the README's run all layers agreed within 1.3e-6, and the likeliest token was the same at every place. The
# released weights themselves were not part of that run: step 2 is yours.
#
# ## Five sentences to remember
#
# 1. A right answer proves nothing; the numbers of every layer do.
# 2. Differences are relative to the largest official number, and in float32 two right models agree within 1e-5.
# 3. The first layer that differs counts, never the largest difference; in it, the last module that agrees and the
#    first that differs enclose the faulty line.
# 4. A check finds only what its inputs, its weights and its precision let it see.
# 5. Every weight is loaded exactly once, or the loader complains.
#
# **Where others went wrong:** comparing only the text of an answer; comparing in bfloat16 and widening the bound until
# it passed; `strict=False`, which left a layer at its random numbers; a base of the rotary angles, an activation or a
# tie flag taken from a default when the config had moved it; an eager and a fused attention that disagree with each
# other.
#
# ## Exercises
#
# Three ports of this model have one bug each. They are the bugs 2, 3 and 4. A port is a dict of short pieces of code
# that `compare` puts into a copy of our model, so that you can try your repair: `play.compare(port_a)`.
#
# `check(function)` says how you do and what helps.

# %%
# exercises

# %%
# exercise 7.1

# %%
# exercise 7.2

# %%
# exercise 7.3

# %%
# exercise 7.4

# %%
# exercise 7.5

# %% [markdown]
# ## To recall
#
# <details><summary>The logits differ by 30 %, the merger by 0.01 %, the patch embedding by 0.00003 %. Where do you
# look?</summary>Between the two: at the vision blocks, and at the merger if all of them agree. The logits only pass it
# on.</details>
#
# <details><summary>q_proj, k_proj and v_proj agree, o_proj does not. Name three suspects.</summary>The rotation (base,
# sections, positions), the mask, the grouping of heads; the scale and the softmax, too.</details>
#
# <details><summary>Why is a comparison in bfloat16 worth little?</summary>It keeps 8 bits, so a healthy model is off by
# about 1 %, as much as some bugs.</details>
#
# **Next:** [08 · Video](08_video.ipynb), a picture every half second.
