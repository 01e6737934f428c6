"""Exercises of notebook 06: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import random
from functools import cache

import torch
from torch import Tensor

import weights_loader
from exercises.book import Exercise, Probe
from qwen2vl_mini import Qwen2VLProcessor, attention_weights, eager_attention, keep_top_p, row_positions

# ── 6.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

EIGHT = [(7, 7, True), (1, 8, True), (5, 14, True), (1, 1, True)]  # queries, keys, causal
EIGHT += [(24, 24, False), (69, 69, True), (70, 170, True), (8, 8, True)]


def allowed(queries: int, keys: int, causal: bool = True, padding: int = 0) -> Tensor:
    """Where attention may look, (Q, S): all scores are equal, so what is hidden is what gets no weight."""
    weights = attention_weights(torch.zeros(1, 1, queries, 2), torch.zeros(1, 1, keys, 2), causal, [padding])
    return weights[0, 0] > 0


def eight_masks() -> list[str]:
    hides = [not allowed(*each).all() for each in EIGHT]
    return [("square" if Q == S else "corner") if hidden else "none" for (Q, S, _), hidden in zip(EIGHT, hides)]


# ── 6.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watched(Tensor):
    """Keys and values that notice a copy of them which is larger than they are."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "scaled_dot_product_attention":
            raise ValueError("F.scaled_dot_product_attention does it all: write the two products and the softmax")
        result = super().__torch_function__(function, types, args, kwargs or {})
        parts = [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else [arg])]
        with torch._C.DisableTorchFunctionSubclass():  # counting is not watched
            sizes = {part.data_ptr(): part.numel() for part in parts if isinstance(part, Watched)}
            size, known = result.numel() if isinstance(result, Tensor) else 0, sum(sizes.values())
        if sizes and size > max(known, LARGEST):
            raise ValueError(f"this makes {size} numbers of {known}: are keys or values repeated?")
        return result

    def __deepcopy__(self, memo):
        return self.as_subclass(Tensor).clone().as_subclass(Watched)


LARGEST = 64  # so small a tensor harms nobody, whatever it is
SHAPES = ((1, 1, 4, 2, 1, 8), (1, 1, 12, 4, 2, 8), (2, 3, 20, 6, 2, 16))  # B, Q, S, H, Hkv, D


def heads(B: int, Q: int, S: int, H: int, Hkv: int, D: int, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, Q, H, D, generator=generator)
    k, v = torch.randn(2, B, S, Hkv, D, generator=generator)
    return q, k.as_subclass(Watched), v.as_subclass(Watched)


def by_our_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    by_head = [part.as_subclass(Tensor).transpose(1, 2) for part in (q, k, v)]  # (B, heads, tokens, D)
    return eager_attention(*by_head, causal=False).transpose(1, 2).flatten(2)


def as_tensor(answer, *args):
    """The answer without the watch."""
    return answer.as_subclass(Tensor) if isinstance(answer, Tensor) else answer


def shapes_shown(B: int, Q: int, S: int, H: int, Hkv: int, D: int) -> str:
    return f"grouped_attention(q {(B, Q, H, D)}, k and v {(B, S, Hkv, D)})"


def random_heads(rng: random.Random) -> tuple:
    Hkv, G, Q = rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 3)
    return heads(rng.randint(1, 2), Q, rng.randint(16, 24), Hkv * G, Hkv, 16, seed=rng.randrange(10**6))


# ── 6.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def positions_of(*items, padding: int = 0) -> Tensor:
    """M-RoPE positions (3, S) of counts of words and of pictures given as (rows, columns) in tokens."""
    ids, grids = [], []
    for item in items:
        if isinstance(item, tuple):
            grids.append([1, 2 * item[0], 2 * item[1]])
            ids += [1] * (item[0] * item[1])
        else:
            ids += [0] * item
    positions, _ = row_positions(ids, {1: iter(grids)}, merge_size=2, row=0)
    return torch.tensor([(0, 0, 0)] * padding + positions).T.contiguous()


def by_our_mask(positions: Tensor, new: int, padding: int) -> Tensor:
    return allowed(new, positions.shape[1], padding=padding)


def mask_probe(why: str, text: str, new: int, *items, padding: int = 0) -> Probe:
    shown = f"may_look(positions of {text}, new={new}, padding={padding})"
    return Probe((positions_of(*items, padding=padding), new, padding), why, shown)


def random_turn(rng: random.Random) -> tuple:
    padding = rng.randint(0, 3)
    items = [rng.randint(1, 4), (rng.randint(1, 3), rng.randint(1, 3)), rng.randint(1, 3)]
    positions = positions_of(*items, padding=padding)
    return positions, rng.randint(1, positions.shape[1]), padding


# ── 6.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_our_top_p(probabilities: Tensor, p: float) -> Tensor:
    return keep_top_p(probabilities.log(), p).softmax(dim=-1)


def random_probabilities(rng: random.Random) -> tuple:
    generator = torch.Generator().manual_seed(rng.randrange(10**6))
    return (2 * torch.randn(2, 7, generator=generator)).softmax(dim=-1), round(rng.uniform(0.2, 0.97), 3)


# ── 6.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class CountingModel:
    """The bundled model, loaded when it is first used. It counts the tokens that each forward pass reads.

    A check hands out copies of the arguments, one to the answer and the next to `verdict_on`. Copying here gives the
    model itself and starts a new count; `finished` is the count before.
    """

    def __init__(self):
        self.counts, self.finished = [], []

    def __deepcopy__(self, memo):
        self.counts, self.finished = [], self.counts
        return self

    def __call__(self, *args, **kwargs):
        return bundled()(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(bundled(), name)


MODEL = CountingModel()


@cache
def bundled():
    model, _ = weights_loader.load("tiny", dtype="float32", device="cpu")
    model.model.register_forward_pre_hook(lambda _, inputs: MODEL.counts.append(inputs[0].shape[1]))
    return model.requires_grad_(False)


def chat(question: str, said: str) -> Tensor:
    """Ids of a chat in which a question was answered and is asked again."""
    turns = [("user", question), ("assistant", said), ("user", question)]
    conversation = [{"role": role, "content": text} for role, text in turns]
    processor = Qwen2VLProcessor.from_pretrained("tiny")
    inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=True)
    return inputs["input_ids"]


WHO, WHAT = "Who are you?", "What can you do?"
SAID = "I am a very small teaching model that knows colored shapes and short texts."
SAID_OTHERWISE = "I am a very small teaching robot that knows colored shapes and tall texts."
ANOTHER_ORDER = "I can find and compare simple shapes, and read short texts, describe and count."
RIGHT = "the ids of greedy decoding, in at most half as many passes"


@cache
def greedy(ids: tuple[int, ...], new: int) -> list[int]:
    """The ids that our own generation writes."""
    options = {"do_sample": False, "eos_token_id": [], "suppress_tokens": []}
    return bundled().generate(torch.tensor([ids]), max_new_tokens=new, **options)[0, len(ids) :].tolist()


def verdict_on(answer, model: CountingModel, ids: Tensor, new: int) -> str | None:
    """What is right or wrong with the ids, and with the number of passes that they took."""
    passes, tokens = len(model.finished), sum(model.finished)
    if answer is None:
        return None
    answer = torch.as_tensor(answer).flatten().tolist()
    right = greedy(tuple(ids[0].tolist()), new)
    if len(answer) != new:
        return f"{len(answer)} ids instead of {new}"
    if answer != right:
        first = next(i for i in range(new) if answer[i] != right[i])
        return f"the first {first} ids are right, the next is not"
    if passes >= new:
        return "the right ids, but in no fewer passes than ids"
    if tokens > ids.shape[1] + 20 * passes:  # the prompt once, and then a few a pass
        return "the right ids, but old tokens are read again"
    return RIGHT if 2 * passes <= new else f"the right ids, but in {passes} passes for {new} ids"


def chat_probe(why: str, question: str, said: str, new: int) -> Probe:
    text = f"speculate(model, ids of {question!r} asked again after {said!r}, {new})"
    return Probe((MODEL, chat(question, said), new), why, text)


EXERCISES = (
    Exercise(
        number="6.1",
        title="Which mask is needed when?",
        function="masks_needed",
        kind="P",
        stars=1,
        minutes=10,
        expected=eight_masks,
        probes=(Probe((), "one query; a later turn; the tower"),),
        hints=(
            "Count two things: the queries of this pass, and the keys that they meet, old and new.",
            "A mask hides the future. Does the last token have one? Do the patches of a picture?",
            "One query: none. As many queries as keys: square. Some queries behind older keys: corner. And the tower "
            "is not causal.",
        ),
    ),
    Exercise(
        number="6.2",
        title="Grouped heads without a copy",
        function="grouped_attention",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=by_our_attention,
        view=as_tensor,
        probes=tuple(
            Probe(heads(*shape), why, shapes_shown(*shape))
            for shape, why in zip(SHAPES, ("the scale", "strided groups", "the order of heads and tokens"))
        ),
        random_probe=random_heads,
        tolerance=1e-5,
        blocked=("attention_weights", "eager_attention", "sdpa_attention", "flash_attention", "attend_unpadded"),
        hints=(
            "Do not bring k to the shape of q. Bring q to the shape of k: split its axis of H heads in two.",
            "q.unflatten(2, (Hkv, G)) puts query head h at [h // G, h % G]. Then each key head meets G query heads.",
            'torch.einsum("bqngd,bsnd->bqngs", q, k) / √D are the scores; softmax over s; a second einsum with v '
            "gives bqngd; flatten the last three axes.",
        ),
    ),
    Exercise(
        number="6.3",
        title="The mask of a later turn",
        function="may_look",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=by_our_mask,
        probes=(
            mask_probe("True and False swapped", "2 words", 2, 2),
            mask_probe("aligned top left", "4 words", 2, 4),
            mask_probe("aligned top left, one query", "4 words", 1, 4),
            mask_probe("by M-RoPE position", "1 word, a picture of 2×2 tokens, 1 word", 6, 1, (2, 2), 1),
            mask_probe("padding forgotten", "2 paddings and 3 words", 5, 3, padding=2),
            mask_probe(
                "padding in the cache",
                "1 padding, 2 words, a picture of 1×2 tokens, 2 words",
                3,
                2,
                (1, 2),
                2,
                padding=1,
            ),
        ),
        random_probe=random_turn,
        blocked=("attention_weights", "eager_attention", "sdpa_attention", "flash_attention"),
        hints=(
            "Number the S tokens 0 to S − 1 in the order of the sequence. Which numbers do the new ones have?",
            "The last token has number S − 1 and sees all that is not padding. Query i of the new ones has number "
            "S − new + i.",
            "place = torch.arange(S). Allowed is place <= place[-new:, None], and place >= padding. Positions are for "
            "the rotary angles only.",
        ),
    ),
    Exercise(
        number="6.4",
        title="A broken top-p",
        function="nucleus",
        kind="F",
        stars=2,
        minutes=15,
        expected=by_our_top_p,
        probes=(
            Probe((torch.tensor([[0.5, 0.3, 0.2]]), 0.7), "the id that crosses p"),
            Probe((torch.tensor([[0.1, 0.6, 0.05, 0.25]]), 0.8), "the order of the vocabulary"),
            Probe((torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.05, 0.05, 0.1, 0.8]]), 0.85), "two rows"),
        ),
        random_probe=random_probabilities,
        tolerance=1e-5,
        blocked=("keep_top_p",),
        hints=(
            "Call it on [[0.5, 0.3, 0.2]] with p = 0.7, and add up what comes back. How many ids are left?",
            "The set must *reach* p, so the id that crosses p belongs to it. And p = 0.4 must leave one id, not none.",
            "Drop an id if those before it already reach p: reached − ordered. At the end divide each row by its sum.",
        ),
    ),
    Exercise(
        number="6.5",
        title="Several ids in one pass",
        function="speculate",
        kind="E",
        stars=3,
        minutes=45,
        expected=lambda model, ids, new: RIGHT,
        view=verdict_on,
        probes=(
            chat_probe("every guess is right", WHO, SAID, 16),
            chat_probe("guesses are rejected", WHO, SAID_OTHERWISE, 32),
            chat_probe("rejected early and often", WHAT, ANOTHER_ORDER, 28),
        ),
        hints=(
            "Begin with a loop that reads the prompt into the cache, then one id at a time, and takes the argmax. "
            "Then read the last id and the guess together: the logits at place i say what comes after place i.",
            "With the guess a, b, c behind the last id there are four rows of logits. The first judges a, the second "
            "b, if a was right. After the first that is wrong all others are worthless, but its own argmax is right.",
            "Then the cache must forget the rejected ids: cache.length = n, cache.token_ids = cache.token_ids[:, :n], "
            "and, for text alone, cache.next_position[:] = n, where n counts the ids read and kept.",
        ),
    ),
)
