"""Solutions of the exercises of notebook 08."""

import torch

import qwen2vl_mini as q


def five_bills():
    # 2: 5.0 frames are 2.5 pairs, so 2; 4: 120 pairs of 14×14 cells; 5: 300 pairs of 11×11
    return [(6, 1200), (4, 800), (4, 800), (240, 23520), (600, 36300)]


def frames_picked(total_frames, video_fps, fps=2.0):
    seconds = total_frames / video_fps
    count = 2 * round(sorted((4, seconds * fps, 768))[1] / 2)
    if count > total_frames:
        count = max(1, total_frames - total_frames % 2)
    if count == 1:
        return [0]
    gap = (total_frames - 1) / (count - 1)
    return [round(gap * place) for place in range(count)]


def seconds_of_token(k, grid, picked, video_fps):
    _, h, w = grid
    pair = k // (h * w // 4)
    both = picked[2 * pair : 2 * pair + 2]
    return both[0] / video_fps, both[-1] / video_fps


def sizes_under_budget(clips, budget):
    pairs = sum((frames + 1) // 2 for frames, _, _ in clips)
    area = 784 * min(768, budget / pairs)
    return [q.smart_resize(high, wide, max_pixels=area) for _, high, wide in clips]


def changed_pairs(patches, grid, threshold):
    t, h, w = grid
    by_pair = patches.view(t, -1)
    kept = [0]
    for pair in range(1, t):
        moved = (by_pair[pair] - by_pair[kept[-1]]).abs().mean()
        if moved > threshold:
            kept.append(pair)
    axes = torch.tensor(kept), torch.arange(h // 2), torch.arange(w // 2)
    return kept, torch.cartesian_prod(*axes).T
