"""Exercises of notebook 05: right answers, and the inputs that tell the wrong ones apart."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from exercises.book import Exercise, Probe
from qwen2vl_mini import Qwen2VLConfig, Qwen2VLTextConfig, get_rope_index, mrope_angles

CONFIG = Qwen2VLConfig()  # that of the 2B model: no weight is needed for positions


def prompt_of(cells: list[int | tuple[int, ...]]) -> dict[str, Tensor]:
    """Words, pictures (h, w) and clips (t, h, w), in cells, as get_rope_index takes them."""
    ids, grids = [], {"image_grid_thw": [], "video_grid_thw": []}
    for part in cells:
        if isinstance(part, int):
            ids += [1] * part
            continue
        t, h, w = (1, *part) if len(part) == 2 else part
        grids["image_grid_thw" if len(part) == 2 else "video_grid_thw"].append([t, 2 * h, 2 * w])
        ids += [CONFIG.image_token_id if len(part) == 2 else CONFIG.video_token_id] * (t * h * w)
    found = {name: torch.tensor(grid) for name, grid in grids.items() if grid}
    return {"input_ids": torch.tensor([ids])} | found


# ── 5.1 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def table_by_our_file() -> list[tuple[int, ...]]:
    position_ids, _ = get_rope_index(CONFIG, **prompt_of([2, (2, 3), 1, (2, 1, 2), 1]))
    return [tuple(column) for column in position_ids[:, 0].T.tolist()]


# ── 5.2 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_cells(part: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Pixels and frames → cells and frame pairs."""
    if isinstance(part, int):
        return part
    *frames, height, width = part
    return (*[-(-count // 2) for count in frames], height // 28, width // 28)


def next_free_position(parts: list) -> int:
    prompt = prompt_of([in_cells(part) for part in parts])
    _, delta = get_rope_index(CONFIG, **prompt)
    return prompt["input_ids"].shape[1] + int(delta)


def random_parts(rng: random.Random) -> tuple:
    parts = [rng.randint(1, 5)]
    for _ in range(rng.randint(1, 4)):
        size = (28 * rng.randint(1, 6), 28 * rng.randint(1, 6))
        clip = (rng.randint(1, 16), *size)
        parts.append(rng.choice((rng.randint(1, 5), size, clip)))
    return (parts,)


# ── 5.3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def axis_that_turns(i: int, head_dim: int, sections: list[int]) -> str:
    """The only axis that has an angle in this channel when it alone is at position 1."""
    config = Qwen2VLTextConfig(hidden_size=head_dim, num_attention_heads=1, mrope_section=sections)
    angles = mrope_angles(torch.eye(3).long()[:, :, None], config)[:, 0]  # (3 axes in turn, D/2)
    return "thw"[int(angles.repeat(1, 2)[:, i].nonzero())]


def random_channel(rng: random.Random) -> tuple:
    sections = rng.choice(([16, 24, 24], [4, 6, 6], [2, 3, 3], [8, 12, 12], [1, 2, 5]))
    head_dim = 2 * sum(sections)
    return rng.randrange(head_dim), head_dim, sections


# ── 5.4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def positions_of_the_whole(config: Qwen2VLConfig, turns: list[dict], answers: list[int]) -> Tensor:
    """One prompt of all that was said, answers too, read at once and without a cache."""
    ids = [row for turn, n in zip(turns, answers) for row in (turn["input_ids"], torch.ones(1, n, dtype=torch.long))]
    grids = {}
    for name in ("image_grid_thw", "video_grid_thw"):
        found = [turn[name] for turn in turns if name in turn]
        grids |= {name: torch.cat(found)} if found else {}
    return get_rope_index(config, torch.cat(ids, dim=1), **grids)[0][:, 0]


def chat(turns: list[list], answers: list[int], why: str = "") -> Probe:
    shown = f"chat_positions(config, {[in_words(turn) for turn in turns]}, {answers})"
    return Probe((CONFIG, [prompt_of(turn) for turn in turns], answers), why, shown)


def in_words(cells: list) -> str:
    """A turn as `play.as_prompt` of the notebook takes it: "1 word, 2x2, 2 words"."""
    words = {1: "1 word"}
    parts = [words.get(part, f"{part} words") if isinstance(part, int) else "x".join(map(str, part)) for part in cells]
    return ", ".join(parts)


def random_chat(rng: random.Random) -> tuple:
    turns = []
    for _ in range(rng.randint(2, 4)):
        medium = rng.choice(((rng.randint(1, 3), rng.randint(1, 4)), (rng.randint(1, 5), 1, 2)))
        turns.append([rng.randint(1, 3), *([medium] if rng.random() < 0.7 else []), rng.randint(1, 3)])
    return CONFIG, [prompt_of(turn) for turn in turns], [rng.randint(1, 4) for _ in turns]


# ── 5.5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

# What the official class said when Qwen2.5-VL came out (get_rope_index of transformers 4.49.0): a line for each axis.
# Stored, since later versions differ: 4.57 cuts `seconds` first, 5.24 lets text resume before a long clip has ended.
BY_SECONDS = {
    (2, (2, 3), 1): (2, "0 1 2 2 2 2 2 2 5", "0 1 2 2 2 3 3 3 5", "0 1 2 3 4 2 3 4 5"),
    (1, (3, 1, 2, 1.0), 1): (2, "0 1 1 3 3 5 5 6", "0 1 1 1 1 1 1 6", "0 1 2 1 2 1 2 6"),
    (1, (4, 1, 1, 0.75), 2): (2, "0 1 2 4 5 6 7", "0 1 1 1 1 6 7", "0 1 1 1 1 6 7"),
    (1, (4, 1, 1, 0.25), 2): (2, "0 1 1 2 2 3 4", "0 1 1 1 1 3 4", "0 1 1 1 1 3 4"),
    (1, (5, 1, 2, 0.125), 1): (
        25,
        "0 1 1 4 4 7 7 10 10 13 13 14",
        "0 1 1 1 1 1 1 1 1 1 1 14",
        "0 1 2 1 2 1 2 1 2 1 2 14",
    ),
    (2, (3, 2, 1, 2.0), 1, (1, 2), 2): (
        2,
        "0 1 2 2 6 6 10 10 11 12 12 14 15",
        "0 1 2 3 2 3 2 3 11 12 12 14 15",
        "0 1 2 2 2 2 2 2 11 12 13 14 15",
    ),
    (1, (2, 1, 3, 0.5), 1, (3, 1, 2, 1.5), 2): (
        2,
        "0 1 1 1 2 2 2 4 5 5 8 8 11 11 12 13",
        "0 1 1 1 1 1 1 4 5 5 5 5 5 5 12 13",
        "0 1 2 3 1 2 3 4 5 6 5 6 5 6 12 13",
    ),
    (1, (3, 2, 2, 0.375), 3): (
        4,
        "0 1 1 1 1 2 2 2 2 4 4 4 4 5 6 7",
        "0 1 1 2 2 1 1 2 2 1 1 2 2 5 6 7",
        "0 1 2 1 2 1 2 1 2 1 2 1 2 5 6 7",
    ),
    (1, (2, 1), 1, (4, 2, 1, 1.25), 1): (
        1,
        "0 1 1 3 4 4 5 5 6 6 7 7 8",
        "0 1 2 3 4 5 4 5 4 5 4 5 8",
        "0 1 1 3 4 4 4 4 4 4 4 4 8",
    ),
}


def as_recorded(parts: list, tokens_per_second: int) -> Tensor:
    _, *lanes = BY_SECONDS[tuple(parts)]
    return torch.tensor([[int(number) for number in lane.split()] for lane in lanes])


EXERCISES = (
    Exercise(
        number="5.1",
        title="The table by hand",
        function="position_table",
        kind="P",
        stars=1,
        minutes=10,
        expected=table_by_our_file,
        probes=(Probe((), "a picture that is no square, and a clip"),),
        hints=(
            "The picture starts where the next word would stand, at 2. All its cells have t = 2.",
            "Its first row has h = 2, and w = 2, 3, 4. Its last cell is the largest on the width axis: what comes "
            "next?",
            "The word after it stands at 5 on all axes, so the clip starts at 6. Its second pair has t = 7, and rows "
            "and columns start at 6 again.",
        ),
    ),
    Exercise(
        number="5.2",
        title="Where text resumes",
        function="where_text_resumes",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=next_free_position,
        blocked=("get_rope_index", "row_positions"),
        probes=(
            Probe(([3],)),
            Probe(([3, (56, 84), 2],), "token count, patches, last token + 1"),
            Probe(([1, (112, 28)],), "higher than wide, and the prompt ends with it"),
            Probe(([2, (8, 56, 56), 2],), "a clip longer than wide; frames go in pairs"),
            Probe(([1, (5, 28, 56)],), "the last frame is single"),
            Probe(([4, (84, 28), 1, (112, 56), 2, (2, 56, 140), 1],)),
        ),
        random_probe=random_parts,
        hints=(
            "A word moves the next position on by 1. By how much does a picture of 2×3 cells move it on?",
            "A picture that starts at p reaches p + rows − 1 down and p + columns − 1 across. A clip also reaches "
            "p + pairs − 1 in time. What follows comes after the largest.",
            "Pixels to cells: divide by 28. Frames to pairs: divide by 2 and round up. Then a picture or clip adds the "
            "largest of its two or three numbers.",
        ),
    ),
    Exercise(
        number="5.3",
        title="Which axis turns this channel?",
        function="axis_of_channel",
        kind="I",
        stars=2,
        minutes=15,
        core=True,
        expected=axis_that_turns,
        blocked=("mrope_angles",),
        probes=(
            Probe((0, 32, [4, 6, 6])),
            Probe((1, 128, [16, 24, 24]), "interleaved"),
            Probe((16, 128, [16, 24, 24]), "sections over D"),
            Probe((40, 128, [16, 24, 24])),
            Probe((64, 128, [16, 24, 24]), "the second half"),
            Probe((85, 128, [16, 24, 24])),
            Probe((127, 128, [16, 24, 24])),
            Probe((17, 32, [4, 6, 6])),
            Probe((20, 32, [4, 6, 6])),
        ),
        random_probe=random_channel,
        hints=(
            "Channels are turned in pairs. Look at rotate(): which channel is the partner of channel 0?",
            "Channel i and channel i + D/2 are a pair and share one angle. So there are D/2 pairs, numbered 0 to D/2 "
            "− 1.",
            "pair = i % (head_dim // 2). The first sections[0] pairs belong to t, the next sections[1] to h, the rest "
            "to w.",
        ),
    ),
    Exercise(
        number="5.4",
        title="A fault that waits for the second turn",
        function="chat_positions",
        kind="F",
        stars=3,
        minutes=25,
        expected=positions_of_the_whole,
        probes=(
            chat([[2], [1]], [1, 2], "only words"),
            chat([[1, (2, 2), 1], [2]], [2, 1], "a picture in the first turn"),
            chat([[1, (2, 2), 2], [1, (2, 3), 1]], [1, 2], "a picture in both"),
            chat([[2], [1, (2, 3), 1]], [1, 3], "a picture in the second"),
            chat([[1, (4, 1, 2), 1], [2, (2, 3), 1], [3]], [2, 1, 1], "a long clip, and three turns"),
        ),
        random_probe=random_chat,
        hints=(
            'Try two turns, a picture in the first one only; play.as_prompt("1 word, 2x2, 1 word") makes such a '
            "turn. Which column is the first that is wrong? What is `delta` at that moment, and which turn does it "
            "belong to?",
            "`delta` says how far the positions lag behind the places, for *one* prompt, and the loop overwrites it. "
            "What must be known is how far all turns together lag behind.",
            "Keep one number: the next free position. A prompt starts there, and leaves it at its largest position on "
            "any axis + 1; an answered id takes it and adds 1. Then neither `held` nor `delta` is needed.",
        ),
    ),
    Exercise(
        number="5.5",
        title="Time in seconds",
        function="positions_by_seconds",
        kind="E",
        stars=3,
        minutes=40,
        expected=as_recorded,
        probes=tuple(Probe((list(parts), answer[0])) for parts, answer in BY_SECONDS.items()),
        hints=(
            "Begin with what you know: words, pictures, and clips whose pair i stands at start + i. Then change only "
            "the time of clips.",
            "The time of pair i is start + int(i · seconds · tokens_per_second). Cut after all has been multiplied: "
            "three steps of 0.75 are 2.25, and three times int(0.75) is 0.",
            "Go through the parts with the next free position: a word takes it, a block starts there. After a block "
            "it is the largest number on any axis of that block, + 1. itertools.product gives the cells in order.",
        ),
    ),
)
