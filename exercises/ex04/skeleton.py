"""Exercises of notebook 04, the vision tower. `python -m exercises check 4.1` says how you do."""

# %% imports
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from qwen2vl_mini import patchify, unpatchify, vision_angles


# %% 4.1
def shapes_in_the_tower() -> dict[str, tuple[int, ...]]:
    """Seven shapes. One call of the 2B's tower gets a picture of 56×84 pixels and a clip of 4 frames of 56×56.

    The tower has 1280 channels, 16 heads of 80 and a decoder of width 1536. Return a dict with the shapes of
      "pixel_values"   the tower's input               "embedded"  after the patch embedding
      "cos"            the cosines of the positions    "tokens"    the tower's output
      "scores_picture" the scores of all heads, for the picture: (heads, queries, keys)
      "scores_pair"    the same for one pair of frames of the clip
      "merger_rows"    what the merger's first Linear sees
    """
    raise NotImplementedError


# %% 4.2
def still_matrix(kernel: Tensor) -> Tensor:
    """The smaller matrix with which a still picture, given once, has the embedding that it has as two frames.

    `kernel` is the Conv3d's weight, (C, 3, frames, P, P). The answer M has the shape (3·P·P, C), so that
    `rows @ M` are the embeddings of `rows` (N, 3·P·P). These hold one frame: colour, row, column, the last fastest.
    For P = 1 and two frames that weigh red, green, blue by 1, 3, 5 and by 2, 4, 6, M is [[3], [7], [11]].
    """
    raise NotImplementedError


# %% 4.3
def attend(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], attention: Callable) -> Tensor:
    """Attention (N, D) of the patches of several pictures and clips. In some calls it leaks: mend it.

    q, k, v: (N, D). grids: (t, h, w) of each picture. `attention(q, k, v, hidden=None)` takes (…, L, D); `hidden`
    is true where a query must not look. No query may even be *scored* with a key that it must not see: scores
    cost time. On some probes `attention` only counts: row i says how many keys of each segment patch i met.
    """
    counts = Counter(h * w for t, h, w in grids for _ in range(t))  # those of equal length share a call
    outputs = []
    first = 0
    for length, count in counts.items():
        last = first + count * length
        parts = [x[first:last].reshape(count, length, -1) for x in (q, k, v)]
        outputs.append(attention(*parts).flatten(0, 1))
        first = last
    return torch.cat(outputs)


# %% 4.4
def crop_angles(top: int, left: int, h: int, w: int, head_dim: int) -> Tensor:
    """The angles (h·w, head_dim / 2) of a crop, counted from the corner of the picture that it was cut from.

    The crop has h rows and w columns of patches, both even; its first patch stands in row `top` and column `left`
    of the picture, odd or even. List the angles in the order in which `patchify` lists the patches *of the crop*.
    (Two crops that see each other in one segment need this. The picture between them then costs nothing.)
    """
    raise NotImplementedError


# %% 4.5
def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, grids: list[tuple], window: int, attention: Callable) -> Tensor:
    """Attention (N, D) as in most blocks of Qwen2.5-VL: each patch sees its window, and no further.

    Windows have `window` × `window` *tokens* of 2×2 patches, laid from the top left of each frame pair; those at
    the right and lower edges are smaller. The rest is as in 4.3: q, k, v (N, D) and the answer are in the order of
    `patchify`, `attention(q, k, v)` takes (…, L, D), and no hidden key is scored.
    """
    raise NotImplementedError
