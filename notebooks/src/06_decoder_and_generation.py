# %% [markdown]
# # 06 · Decoder and generation
#
# The decoder turns a prompt, words and visual tokens alike, into the scores of one next id. An answer is that step,
# done again and again. This notebook takes the step apart, and shows why the second one is so much cheaper than the
# first.
#
# **Afterwards you can** say which mask an attention needs, what the cache holds and what it saves, share keys between
# heads, and turn scores into ids by temperature, top-k and top-p.
#
# **It takes** about 35 minutes to read and 100 to practise. **You need** attention and softmax, and positions from
# [notebook 05](05_mrope.ipynb). It runs in about 20 seconds on two CPU cores.

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
# A language model answers one question only: which id comes next? An answer of 200 ids is 200 such questions, each
# about a text that is one id longer.
#
# *Before you go on:* for the 200th id, must the model read the 199 before it again? Which of the numbers that it once
# computed for an old token could change when a new one is put behind it?
#
# ## Attention by hand: a toy
#
# Four tokens. Each has a key and a value, of one number (D = 1). There are two query heads, A and B, but only *one*
# head of keys and values: A and B share it. Head A asks 0 for every token, so all its scores are 0. Head B asks ln 2,
# so a key of 1 doubles a weight, and a key of 2 doubles it twice.

# %%
import math

from qwen2vl_mini import attention_weights, eager_attention

k = torch.tensor([0.0, 1.0, 0.0, 2.0]).view(1, 1, 4, 1)  # (B, Hkv, S, D)
v = torch.tensor([6.0, 3.0, 9.0, 2.0]).view(1, 1, 4, 1)
q = torch.tensor([0.0, math.log(2)]).view(1, 2, 1, 1).expand(1, 2, 4, 1)  # (B, H, Q, D)
print("keys  ", k.flatten().tolist())
print("values", v.flatten().tolist())

# %% [markdown]
# *Say it before you run it:* the weights of head B in the last row are in the ratio 1 : 2 : 1 : 4. What is its output?
# And what stands to the right of the diagonal?

# %%
weights = attention_weights(q, k, causal=True)[0]  # (H, Q, S)
outputs = eager_attention(q, k, v, causal=True)[0, :, :, 0]  # (H, Q)
for head in range(2):
    print("head", "AB"[head])
    for row, output in zip(weights[head], outputs[head]):
        print("  ", "  ".join(f"{weight:.3f}" for weight in row), f"  → {output:.3f}")

# %% [markdown]
# Head A is the mean of the values so far: 6, 4.5, 6, 5. Head B ends at (1·6 + 2·3 + 1·9 + 4·2) / 8 = 3.625. To the
# right of the diagonal all is 0: no token sees what comes after it. So a token that is put behind these four changes
# none of these rows. Here is the function:

# %%
from notebooks import play

play.show(attention_weights)

# %% [markdown]
# ### Why heads share keys
#
# `repeat_interleave` gives query heads 0 … G−1 the first key head, the next G the second, and so on. Sharing is for
# the memory: keys and values of all old tokens are kept, queries are not.

# %%
from qwen2vl_mini import Qwen2VLTextConfig

for name, heads in (("one key head for each query head", 12), ("as it is, 12 heads share 2", 2)):
    text = Qwen2VLTextConfig(num_key_value_heads=heads)  # the 2B model
    numbers = text.num_hidden_layers * 2 * heads * text.head_dim  # keys and values of one token
    size = 2 * numbers  # bytes in bfloat16
    print(f"{name}: {size:,} bytes a token, {size * 32768 / 1e9:.2f} GB for 32,768 tokens")

# %% [markdown]
# ## Which mask when?
#
# Q queries meet S keys. In a first pass Q = S. With older tokens in the cache the queries are the *last* Q of S.
#
# *Before you look:* of a prompt of six tokens, of the id after it, and of a second turn of three tokens behind six,
# which needs a mask, and of what shape?

# %%
cases = []
for title, Q, S in (("first pass", 6, 6), ("the next id", 1, 7), ("a later turn", 3, 9)):
    scores_equal = torch.zeros(1, 1, Q, 4), torch.zeros(1, 1, S, 4)
    allowed = attention_weights(*scores_equal, causal=True)[0, 0] > 0  # (Q, S)
    cases.append((f"{title}:\nQ = {Q}, S = {S}", allowed))
play.masks(cases)

# %% [markdown]
# **What to see:** left of the black line are the keys of the cache, one row is one query, and grey is hidden. A single
# query has no future: nothing is hidden, so it needs no mask. In a later turn only the new tokens hide from each
# other, so the triangle stands at the right end.
#
# That is why the fast version has three branches:

# %%
from qwen2vl_mini import sdpa_attention

play.show(sdpa_attention)

# %% [markdown]
# In the first branch a trick: with one query, nothing is hidden, and the G heads of a group can pose as G queries of
# one head. Then keys are not repeated at all. (In exercise 6.2 you do it for several queries.)
#
# The last branch is where ports go wrong. PyTorch's own flag, `is_causal=True`, puts the triangle in the upper *left*
# corner when Q and S differ. All scores are equal here, so that the rows show the weights alone:

# %%
import torch.nn.functional as F

q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 4, 4)  # 2 new tokens behind 2 old ones
v = torch.eye(4)[None, None]  # so the output is the weights
by_flag = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0, 0]
by_ours = sdpa_attention(q, k, v, True)[0, 0]
print("is_causal=True:", [[round(x, 2) for x in row] for row in by_flag.tolist()])
print("lower right:   ", [[round(x, 2) for x in row] for row in by_ours.tolist()])

# %% [markdown]
# With the flag the new tokens do not even see themselves. Nothing crashes. The second turn of a chat is a little
# stupid, and nobody knows why.
#
# Do both of our versions agree, at the shape of the 2B model? The bound is that of float32: sums of some hundred
# terms, each rounded to 6e-8 of itself.

# %%
generator = torch.Generator().manual_seed(0)
for Q, S in ((40, 40), (1, 41), (9, 50)):
    q = torch.randn(1, 12, Q, 128, generator=generator)
    k, v = torch.randn(2, 1, 2, S, 128, generator=generator)
    formula, fused = eager_attention(q, k, v, True), sdpa_attention(q, k, v, True)
    difference = (formula - fused).abs().max() / formula.abs().max()
    assert difference <= 1e-5, difference
    print(f"Q = {Q:2}, S = {S}: {tuple(fused.shape)}, equal within 1e-5")

# %% [markdown]
# ## One layer
#
# Each layer adds two things to a token's vector: what attention found in other tokens, and what an MLP makes of the
# token alone. Both read a *normed* copy. The vector itself runs through untouched, from the embedding to the end.

# %%
from qwen2vl_mini import MLP, DecoderLayer, RMSNorm

play.show(DecoderLayer)

# %% [markdown]
# RMSNorm divides a vector by the root of the mean of its squares. Nothing is subtracted. *In your head:* 1 and 7 have
# the squares 1 and 49; what do they become?
# And what becomes of numbers a hundred times as large?

# %%
norm = RMSNorm(2, eps=1e-6)
for pair in ([1.0, 7.0], [100.0, 700.0]):
    print(pair, "→", [round(x, 3) for x in norm(torch.tensor(pair)).tolist()])

# %% [markdown]
# The MLP is SwiGLU. One wide product goes through silu and becomes a gate; it is multiplied with another wide product.

# %%
play.show(MLP)

# %% [markdown]
# The real shape: a layer of the 2B model, on the "meta" device, where tensors have a shape and no memory. *Guess
# first:* how much of it is attention?

# %%
from qwen2vl_mini import Qwen2VLConfig, Qwen2VLForConditionalGeneration

with torch.device("meta"):
    two_b = Qwen2VLForConditionalGeneration(Qwen2VLConfig())
layer = two_b.model.layers[0]
total = sum(p.numel() for p in layer.parameters())
table = []
for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp"):
    numbers = sum(p.numel() for p in layer.get_submodule(name).parameters())
    table.append([name, f"{numbers:,}", f"{100 * numbers / total:.1f}"])

# %%
play.show_table(["part", "numbers", "percent of the layer"], table)

# %% [markdown]
# Nearly nine tenths are the MLP. k and v are small, because two heads serve twelve.
#
# ## The cache
#
# The mask gives the answer to the question at the beginning. An old token never sees a new one. So its vector in each
# layer stays the same, and with it its key and its value. They are stored, and never computed again:

# %%
from qwen2vl_mini import KVCache

play.show(KVCache.append)

# %% [markdown]
# Is it true? We ask the bundled model about a picture, all at once. Then we read the same prompt with a cache: all but
# the last six ids first, and these one by one.

# %%
model, processor = play.loaded()
scene = play.picture("scene.png")
ask = [{"type": "image", "image": scene}, {"type": "text", "text": "What color is the heart?"}]
chat = [{"role": "user", "content": ask}]
options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
inputs = processor.apply_chat_template(chat, **options)
ids = inputs["input_ids"]
pixels = {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
print("prompt", tuple(ids.shape), " pixels", tuple(pixels["pixel_values"].shape))

# %%
with torch.no_grad():
    at_once = model(ids, **pixels).logits[0]  # (S, V)
    cache = KVCache(model.config.text_config, rows=1, capacity=ids.shape[1])
    pieces = [model(ids[:, :-6], **pixels, cache=cache).logits[0]]
    for i in range(ids.shape[1] - 6, ids.shape[1]):
        pieces.append(model(ids[:, i : i + 1], cache=cache).logits[0])
difference = (torch.cat(pieces) - at_once).abs().max() / at_once.abs().max()
assert difference <= 1e-5, difference
print("logits equal within 1e-5")
print("cache (layers, k and v, B, Hkv, S, D):", tuple(cache.data.shape))

# %% [markdown]
# ### What it saves
#
# We count the multiply-adds of one more id for the 2B model. Counting needs shapes alone, so it runs on the meta
# device. `held` tokens are in the cache, `new` ones are read. (The written-out attention also multiplies what is
# hidden. That is counted.)

# %%
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def multiply_adds(new, held):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        cache = KVCache(two_b.config.text_config, rows=1, capacity=held + new)
        cache.length = held
        x, positions = torch.zeros(1, new, 1536), torch.zeros(3, 1, new)
        x = two_b.model(x, positions, cache, [0], eager_attention)
        two_b.lm_head(x[:, -1:])  # (B, 1, V): the last place only
    return counter.get_total_flops() // 2  # a multiplication and an addition


# %% [markdown]
# *Before you run it:* behind 1,000 tokens, how many times dearer is an id without the cache? Behind 10,000?

# %%
before = [1, 10, 100, 1000, 10000, 32767]
with_cache = [multiply_adds(1, held) for held in before]
without = [multiply_adds(held + 1, 0) for held in before]
table = []
for n, a, b in zip(before, with_cache, without):
    table.append([f"{n:,}", f"{b / 1e9:,.2f}", f"{a / 1e9:,.2f}", f"{b / a:,.0f}"])
play.show_table(["tokens before", "without, billions", "with cache, billions", "times"], table)

# %% [markdown]
# Why not 1,001 times behind 1,000 tokens? The output matrix is the same either way: only the last place needs scores.

# %%
play.work_curves(before, {"everything again": without, "with the cache": with_cache})

# %% [markdown]
# **What to see:** with the cache the curve is flat for a long time: 1.5 billion products with the weights, whatever
# came before. At the right end it rises, because one query still meets all old keys. Without it the work grows with
# the length from the start, and faster than that at the end.
#
# Where do old keys cost as much as all weights?

# %%
weights_alone = multiply_adds(1, 0)
per_old_token = multiply_adds(1, 1000) - multiply_adds(1, 999)
print(f"{weights_alone:,} for the weights, {per_old_token:,} for each old token")
print(f"equal at about {weights_alone / per_old_token:,.0f} tokens")

# %% [markdown]
# The clock, on the bundled model and this machine (so your numbers differ): one more id behind 500.

# %% tags=["volatile"]
import time

many = torch.randint(0, 400, (1, 501), generator=generator)
cache = KVCache(model.config.text_config, rows=1, capacity=501)
with torch.no_grad():
    model(many[:, :500], cache=cache)
    ways = {"with the cache": (many[:, 500:], cache), "everything again": (many, None)}
    for name, (more, held) in ways.items():
        began = time.perf_counter()
        model(more, cache=held, logits_to_keep=1)
        print(f"{name}: {1000 * (time.perf_counter() - began):.0f} ms")

# %% [markdown]
# ### A second turn
#
# The cache outlives the answer. A second question about the same picture reads only what is new; the picture is not
# looked at again. (Three new things happen at once here: the mask in the corner, positions that go on behind a
# picture, and the `<|im_end|>` that was written but not read.)

# %%
cache = KVCache(model.config.text_config, rows=1, capacity=200)
answer = model.generate(ids, **pixels, cache=cache, max_new_tokens=20)[:, ids.shape[1] :]
said = processor.decode(answer[0], skip_special_tokens=True)
print(said, "·", cache.length, "tokens are in the cache")
chat += [{"role": "assistant", "content": said}]
chat += [{"role": "user", "content": "What shape is the green object?"}]
both_turns = processor.apply_chat_template(chat, **options)["input_ids"]
unread = both_turns[:, cache.length :]
print("both turns:", both_turns.shape[1], "tokens, of which", unread.shape[1], "are not read yet")

# %%
import copy

with torch.no_grad():
    full = model(both_turns, **pixels).logits[0, -1]
    short = model(unread, cache=copy.deepcopy(cache)).logits[0, -1]
difference = (short - full).abs().max() / full.abs().max()
assert difference <= 1e-5, difference
reply = model.generate(unread, cache=cache, max_new_tokens=20)[0, unread.shape[1] :]
print(unread.shape[1], "tokens give the logits of", both_turns.shape[1], "within 1e-5")
print(processor.decode(reply, skip_special_tokens=True))

# %% [markdown]
# ## From scores to an id
#
# A toy of four ids, with logits whose exponentials are 8, 4, 2 and 2. *In your head:* at temperature 1, what are the
# probabilities? Temperature 0.5 doubles the logits, so it squares 8, 4, 2, 2. What does temperature 2 do?

# %%
from qwen2vl_mini import keep_top_k, keep_top_p

logits = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).log()
versions = {f"temperature {t:g}": logits / t for t in (0.5, 1, 2)}
versions |= {"top_k = 2": keep_top_k(logits, 2), "top_p = 0.6": keep_top_p(logits, 0.6)}
table = [[name, *(f"{x:.3f}" for x in some.softmax(-1)[0])] for name, some in versions.items()]
play.show_table(["", "id 0", "id 1", "id 2", "id 3"], table)

# %% [markdown]
# Temperature changes the ratios and drops nothing. Top-k and top-p drop ids and keep the ratios of the rest: 2 to 1,
# in both rows. Top-p keeps the id that *crosses* p: 0.5 alone does not reach 0.6.

# %%
from qwen2vl_mini import choose

play.show(keep_top_p)
play.show(choose)

# %% [markdown]
# Now the bundled model. It is asked for the colour of a heart, and there is no picture. *Before you look:* what should
# an honest model be sure of?

# %%
play.next_words("What color is the heart?", [0.5, 1, 2])

# %% [markdown]
# **What to see:** it is sure that a colour comes, and of none in particular. A low temperature makes it *sound* sure:
# the first of a long list gets more than half. Greedy decoding, temperature 0, always says the same colour, and hides
# that it is a guess. Now with the picture:

# %%
play.next_words("What color is the heart?", [0.5, 1, 2], image=scene)

# %% [markdown]
# **What to see:** where the model knows, temperature matters little, until it is high. Try your own questions.
#
# An id that is chosen is never taken back. The scene shows a purple triangle, an orange heart and a green diamond. *Say
# what you expect:* what comes after "A purple triangle, an", and what after "A purple triangle, a"?

# %%
play.next_words("Describe this image.", image=scene, so_far="A purple triangle, an")

# %% [markdown]
# **What to see:** one id has nearly everything. And with the wrong article?

# %%
play.next_words("Describe this image.", image=scene, so_far="A purple triangle, a")

# %% [markdown]
# **What to see:** after "a" yellow leads, though no object is yellow. One unlucky draw, and all that follows has to fit
# it: that is the price of a high temperature.
#
# ### "Temperature does nothing"
#
# The released `generation_config.json` says temperature 0.01 and **top_k 1**. Whoever sets temperature 1 and keeps the
# rest still gets the likeliest id each time. So when you name a temperature, our `generate` drops the checkpoint's
# top_k and top_p:

# %%
from qwen2vl_io.options import generation_settings

names = ("do_sample", "temperature", "top_p", "top_k")
print("the checkpoint says ", {name: model.generation_config[name] for name in names})
for asked in ({}, {"temperature": 1.0}):
    settings, _ = generation_settings(model.generation_config, dict(asked))
    print(f"you say {str(asked):20}", {name: settings[name] for name in names})

# %% [markdown]
# ## The official model
#
# Both models get the same random weights, with seven query heads on one key head, as in the 7B. The prompt has a
# picture of 4×6 patches between words. Do they write the same 32 ids?

# %%
import transformers

from tests.official import twins
from tests.small_models import image, make_inputs

ours, official = twins("gqa7-as-7b")
assert type(official) is transformers.Qwen2VLForConditionalGeneration
for each in (ours, official):
    count = sum(p.numel() for p in each.parameters())
    print(f"{type(each).__module__}: {count:,} numbers")

# %%
inputs = make_inputs(ours.config, [[5, image(4, 6), 7]])
length = inputs["input_ids"].shape[1]
all_ids = dict(eos_token_id=[], suppress_tokens=[])  # nothing ends it, nothing is forbidden
our_ids = ours.generate(**inputs, max_new_tokens=32, do_sample=False, **all_ids)
their_ids = official.generate(**inputs, max_new_tokens=32, do_sample=False)
assert torch.equal(our_ids, their_ids)
print(*our_ids[0, length:].view(2, 16).tolist(), sep="\n")

# %% [markdown]
# Equal ids could hide small errors. So we compare numbers: *our* logits with the cache, one id at a time, against the
# *official* ones of the whole text at once.

# %%
media = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
media["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, 32))  # for the official one
cache = KVCache(ours.config.text_config, rows=1, capacity=length + 32)
with torch.no_grad():
    theirs = official(our_ids, **media).logits[0, length - 1 :]  # (33, V)
    steps = [ours(our_ids[:, :length], **media, cache=cache, logits_to_keep=1).logits[0]]
    for i in range(length, length + 32):
        steps.append(ours(our_ids[:, i : i + 1], cache=cache).logits[0])
difference = (torch.cat(steps) - theirs).abs().max() / theirs.abs().max()
assert difference <= 1e-5, difference
likeliest, second = theirs.topk(2).values.T
print(f"33 rows equal within 1e-5; the likeliest leads by {(likeliest - second).min():.2f} or more")

# %% [markdown]
# The lead matters: were two ids closer than the rounding, both models could be right and write different texts.
#
# ## Where others went wrong
#
# - The mask of a later turn was aligned top left (above), or went by M-RoPE position: then the tokens of a picture,
#   which share one time, see their own future.
# - The position after a picture was kept on the *model*: the second conversation on the same model, or another row of
#   the batch, went on from the wrong place. Ours lives in the cache.
# - Logits of the whole prompt were computed to use the last row. With 151,936 ids and 10,000 tokens in float32 these
#   are 6 GB. `logits_to_keep=1` avoids it.
# - Float16 overflowed, the argmax of NaN is id 0, and the answer was `!!!!`. Our `generate` stops, and names the dtype.
# - One end id was read where the file lists two, or the repetition penalty forgot the prompt, which the official one
#   counts.
#
# ## Five sentences to remember
#
# 1. A token sees itself and what stands before it in the sequence, whatever the M-RoPE positions say.
# 2. So old keys and values never change, and the cache may keep them.
# 3. One query needs no mask, a first pass a square one, and a later turn one that is aligned at the lower right.
# 4. With the cache an id costs one pass through the weights, and a little for each old token.
# 5. Temperature changes ratios, top-k and top-p drop ids, and top_k 1 makes all of it greedy.
#
# ## Exercises
#
# `check(function)` says how you do and what helps. The same exercises are in `exercises/`: see `python -m exercises`.

# %%
# exercises

# %%
# exercise 6.1

# %%
# exercise 6.2

# %%
# exercise 6.3

# %%
# exercise 6.4

# %%
# exercise 6.5

# %% [markdown]
# ## To recall
#
# <details><summary>Why may keys be cached, but not queries?</summary>A query is used once, by its own token, at the
# moment when it is read. Keys and values are used by every later token, and the mask sees to it that they never
# change.</details>
#
# <details><summary>12 query heads share 2 key heads. Which key head does query head 7 use?</summary>The second,
# number 1: G = 6, and 7 // 6 = 1.</details>
#
# <details><summary>Probabilities 0.5, 0.3, 0.2 and top-p 0.7: which ids stay, and with what probabilities?</summary>The
# first two, because 0.5 alone does not reach 0.7. They become 0.625 and 0.375.</details>
#
# **Next:** [07 · Official logits](07_official_logits.ipynb), how to prove that two models are the same.
