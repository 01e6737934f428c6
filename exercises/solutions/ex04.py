"""Solutions of the exercises of notebook 04."""

import torch

import qwen2vl_mini as q2


def shapes_in_the_tower():
    return {
        "pixel_values": (24 + 32, 1176),
        "embedded": (56, 1280),
        "cos": (56, 80),
        "scores_picture": (16, 24, 24),
        "scores_pair": (16, 16, 16),
        "merger_rows": (14, 5120),
        "tokens": (14, 1536),
    }


def still_matrix(kernel):
    one_frame = kernel.sum(dim=2)  # x·a + x·b = x·(a + b)
    return one_frame.flatten(1).t()


def attend(q, k, v, grids, attention):
    result = torch.empty_like(v)
    start = 0
    for t, h, w in grids:
        for _ in range(t):  # in order, so that no slice crosses a border
            mine = slice(start, start + h * w)
            result[mine] = attention(q[mine], k[mine], v[mine])
            start = mine.stop
    return result


def crop_angles(top, left, h, w, head_dim):
    i = torch.arange(h * w)
    row = i // (2 * w) * 2 + i // 2 % 2  # the row of windows, then inside
    column = i % (2 * w) // 4 * 2 + i % 2
    speeds = q2.inverse_frequencies(head_dim // 4, 1e4, None)
    parts = [torch.outer(row + top, speeds), torch.outer(column + left, speeds)]
    return torch.cat(parts, dim=1)


def attend_in_windows(q, k, v, grids, window, attention):
    result = torch.empty_like(v)
    token = 0
    for t, h, w in grids:
        for _ in range(t):
            table = token + torch.arange(h * w // 4).view(h // 2, w // 2)
            token += table.numel()
            for down in range(0, h // 2, window):
                for across in range(0, w // 2, window):
                    square = table[down : down + window, across : across + window]
                    rows = (square.reshape(-1, 1) * 4 + torch.arange(4)).view(-1)
                    result[rows] = attention(q[rows], k[rows], v[rows])
    return result
