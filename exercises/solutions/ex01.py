"""Solutions of the exercises of notebook 01."""

import qwen2vl_mini as q


def six_sizes():
    return [(56, 56), (56, 56), (112, 196), (728, 1288), (980, 980), (56, 56)]


def patch_of_row(i, grid):
    _, h, w = grid
    i, inner_column = divmod(i, 2)
    i, inner_row = divmod(i, 2)
    i, window_across = divmod(i, w // 2)
    pair, window_down = divmod(i, h // 2)
    return pair, 2 * window_down + inner_row, 2 * window_across + inner_column


def pixels_of_token(k, grid, size):
    token_rows, token_columns = grid[1] // 2, grid[2] // 2
    row, column = divmod(k, token_columns)
    token_height, token_width = size[0] / token_rows, size[1] / token_columns
    left, top = column * token_width, row * token_height
    return left, top, left + token_width, top + token_height


def largest_max_pixels(sizes, tokens):
    fits, too_much = 4, 1281
    while too_much - fits > 1:
        middle = (fits + too_much) // 2
        targets = (q.smart_resize(*s, max_pixels=784 * middle) for s in sizes)
        if sum(h * w for h, w in targets) <= 784 * tokens:
            fits = middle
        else:
            too_much = middle
    return 784 * fits


def size_that_breaks(max_tokens):
    # The height of one token cannot shrink, so the area falls with the first power of the scale, not the second.
    return 28, 28 * 200
