"""Exercises of notebook 02, token counting. `python -m exercises check 2.1` says how you do."""

# %% imports
import torch

from qwen2vl_mini import Qwen2VLTextConfig, smart_resize


# %% 2.1
def cheapest_first() -> list[str]:
    """Five prompts, the cheapest first. Their words are the same: count all other tokens.

    A: one picture of 2800×2800 pixels, with max_pixels = 64·784   B: fifteen pictures of 56×56
    C: one picture of 252×252   D: a clip of four frames of 168×168, which keep their size
    E: ten pictures of 20×20 (the limits are 4 and 1,280 tokens, as by default)
    """
    raise NotImplementedError


# %% 2.2
def count(messages: list[dict]) -> int:
    """How many tokens does the model read before its first word? From sizes alone, in pixels.

    A message is {"role": "user", "content": items}. An item is one of
      {"type": "text", "tokens": 7}            words, counted by the tokenizer
      {"type": "image", "height": 30, "width": 40}               limits: 4 and 1,280 tokens
      {"type": "video", "frames": 5, "height": 56, "width": 84}  has the tower's size already
    A message costs 5 tokens besides its items. Without a system message, one of 11 comes first.
    At the end, 3 open the answer. One user message of 7 words' tokens: 11 + 5 + 7 + 3 = 26.
    """
    raise NotImplementedError


# %% 2.3
def cache_bytes(config: Qwen2VLTextConfig, tokens: int, dtype: torch.dtype) -> int:
    """The bytes that the key-value cache of one conversation needs for `tokens` tokens.

    Read what you need from `config`; Qwen2VLTextConfig() is that of the 2B model. There, one token
    in torch.bfloat16 takes 28,672 bytes.
    """
    raise NotImplementedError


# %% 2.4
def fit(pictures: list[tuple], words: int, context: int, answer: int) -> list[tuple]:
    """The (height, width) at which each picture of a chat goes in, as sharp as the context allows.

    One limit holds for all: the largest of 4, 5 … 1280 tokens with which everything fits into
    `context` tokens: the `words` tokens of text and chat format, the pictures, each between two
    markers, and an answer of `answer` tokens. `pictures` are (height, width) as on the disk, in
    pixels. With a limit of 4 tokens it always fits.
    """
    raise NotImplementedError


# %% 2.5
def crossover(channels: int, mlp_width: int, heads: int, pictures: int) -> int:
    """From which side of a square on does the tower spend more on attention than on its MLPs?

    In pixels, the smallest multiple of 28; no limit of size. `pictures` equal ones share a call.
    Compare the multiplications of one block: those of the two products inside attention, q·kᵀ and
    weights·v (not qkv and proj), with those of the MLP, channels → mlp_width → channels.
    The released tower is crossover(1280, 5120, 16, 1). Say why in a comment.
    """
    raise NotImplementedError
