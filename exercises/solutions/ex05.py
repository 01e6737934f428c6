"""Solutions of the exercises of notebook 05."""

import itertools as it

import torch

import qwen2vl_mini as q


def position_table():
    picture = [(2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 3, 3), (2, 3, 4)]
    clip = [(6, 6, 6), (6, 6, 7), (7, 6, 6), (7, 6, 7)]
    return [(0, 0, 0), (1, 1, 1), *picture, (5, 5, 5), *clip, (8, 8, 8)]


def where_text_resumes(parts):
    free = 0
    for item in parts:
        if isinstance(item, int):
            free += item
        else:
            pairs = (item[0] + 1) // 2 if len(item) == 3 else 1
            free += max(pairs, item[-2] // 28, item[-1] // 28)
    return free


def axis_of_channel(i, head_dim, sections):
    owners = "t" * sections[0] + "h" * sections[1] + "w" * sections[2]
    return owners[i % (head_dim // 2)]


def chat_positions(config, turns, answers):
    columns, free = [], 0
    for turn, count in zip(turns, answers):
        here = q.get_rope_index(config, **turn)[0].squeeze(1) + free
        free = int(here.max()) + 1
        columns += [here, torch.arange(free, free + count).repeat(3, 1)]
        free += count
    return torch.cat(columns, 1)


def positions_by_seconds(parts, tokens_per_second):
    rows, free = [], 0
    for item in parts:
        if isinstance(item, int):
            block = [(free + n,) * 3 for n in range(item)]
        else:
            t, h, w, gap = (1, *item, 0) if len(item) == 2 else item
            ticks = [int(n * gap * tokens_per_second) for n in range(t)]
            cells = it.product(ticks, range(h), range(w))
            block = [tuple(free + x for x in cell) for cell in cells]
        rows += block
        free = max(map(max, block)) + 1
    return torch.tensor(rows).T
