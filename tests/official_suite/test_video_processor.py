"""What test_video_processing_qwen2_vl.py and test_video_processing_common.py check of clips given as frames.

Files of clips have tests of their own: the official ones read them with other libraries, and choose frames otherwise.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import Qwen2VLVideoProcessor

from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor
from tests.official_suite.pairs import TINY, assert_same_inputs, clip, our_processor, picture

LIMITS = {"min_pixels": 784, "max_pixels": 16 * 784}


def official_clips(videos, **options):
    """The official call, without the budget of the whole clip, which tests/test_parity_video.py compares."""
    options = LIMITS | {"cap_pixels_per_frame": False} | options
    size = {"shortest_edge": options.pop("min_pixels"), "longest_edge": options.pop("max_pixels")}
    return Qwen2VLVideoProcessor(size=size)(videos, return_tensors="pt", **options)


def our_clips(videos, **options):
    return Qwen2VLImageProcessor()(videos=videos, **LIMITS | options)


# --- what a clip may be -----------------------------------------------------------------------------------------------

FORMS = {
    "PIL frames": lambda frames: [Image.fromarray(frame) for frame in frames],
    "arrays": lambda frames: list(frames),
    "an array": lambda frames: frames,
    "a tensor": lambda frames: torch.from_numpy(frames).movedim(-1, 1),
    "tensors": lambda frames: list(torch.from_numpy(frames).movedim(-1, 1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", (1, 2))
def test_clips_in_every_form(form, count):
    clips = [clip(4, 60, 80, 1), clip(6, 100, 56, 9)][:count]
    given = [FORMS[form](frames) for frames in clips]
    expected = official_clips([list(map(Image.fromarray, frames)) for frames in clips])
    assert_same_inputs(our_clips(given), expected)
    assert_same_inputs(official_clips(given), expected)


@pytest.mark.parametrize("form", FORMS)
def test_one_clip_needs_no_list_around_it(form):
    given = FORMS[form](clip(4, 60, 80))
    assert_same_inputs(our_clips(given), official_clips(given))


def test_clips_in_one_tensor():
    """(clips, frames, colours, height, width): read as officially, or refused with a sentence."""
    frames = np.stack([clip(4, 60, 80, seed) for seed in (1, 9)])
    given = torch.from_numpy(frames).movedim(-1, 2)
    expected = official_clips(given)
    assert len(expected["video_grid_thw"]) == 2
    try:
        found = our_clips(given)
    except ValueError as error:
        assert "video" in str(error) and "\n" not in str(error)
    else:
        assert_same_inputs(found, expected)


@pytest.mark.parametrize("frames", (1, 2, 3, 5, 7))
def test_odd_numbers_of_frames(frames):
    """The last frame is repeated to a whole pair; a single one, too."""
    given = [clip(frames, 56, 84)]
    found = our_clips(given)
    assert_same_inputs(found, official_clips(given))
    assert found.video_grid_thw[0, 0] == (frames + 1) // 2


def test_frames_of_different_sizes_are_no_clip():
    mixed = [picture(56, 56), picture(56, 84)]
    for call in (our_clips, official_clips):
        with pytest.raises((ValueError, RuntimeError)):
            call([mixed])


NO_CLIPS = {"no file": "no file.mp4", "an object": object(), "a number": 3, "a list of objects": [object()]}


@pytest.mark.parametrize("bad", NO_CLIPS.values(), ids=NO_CLIPS)
def test_what_is_no_clip(bad):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        our_clips([bad])
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("nothing", (None, []), ids=str)
def test_a_call_without_pictures_and_clips(nothing):
    with pytest.raises(ValueError):
        Qwen2VLImageProcessor()(nothing, nothing)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("high", (784, 6 * 784, 100 * 784))
@pytest.mark.parametrize("how", ("pixels", "size", "nested"))
def test_limits_of_a_frame(high, how):
    given = [clip(4, 120, 160)]
    size = {"shortest_edge": 784, "longest_edge": high}
    options = {
        "pixels": {"min_pixels": 784, "max_pixels": high},
        "size": {"size": size},
        "nested": {"videos_kwargs": {"min_pixels": 784, "max_pixels": high}},
    }[how]
    found = Qwen2VLImageProcessor()(videos=given, **options)
    assert_same_inputs(found, official_clips(given, max_pixels=high))


def test_frames_that_are_chosen_already_are_all_taken():
    """do_sample_frames=False, officially the default for frames."""
    given = [clip(6, 56, 84)]
    expected = official_clips(given, do_sample_frames=False)
    assert_same_inputs(our_clips(given, do_sample_frames=False), expected)
    assert expected["video_grid_thw"][0, 0] == 3


@pytest.mark.parametrize("count", (2, 4, 6))
@pytest.mark.parametrize("name", ("num_frames", "nframes"))
def test_a_number_of_frames_is_taken(count, name):
    """… of eight: as many as asked for. Which ones is qwen-vl-utils' rule here, another officially."""
    given = [clip(8, 56, 84)]
    expected = official_clips(given, num_frames=count, do_sample_frames=True)
    assert our_clips(given, **{name: count}).video_grid_thw.tolist() == expected["video_grid_thw"].tolist()


@pytest.mark.parametrize("options", ({"fps": 2, "num_frames": 4}, {"fps": 2, "nframes": 4}), ids=str)
def test_a_rate_and_a_number_exclude_each_other(options):
    with pytest.raises(ValueError):
        our_clips([clip(8, 56, 84)], **options)
    with pytest.raises(ValueError):
        official_clips([clip(8, 56, 84)], do_sample_frames=True, fps=2, num_frames=4)


NAMES = (
    *("do_resize", "do_normalize", "do_rescale", "do_convert_rgb", "image_mean", "image_std"),
    *("patch_size", "temporal_patch_size", "merge_size", "size", "model_input_names"),
)


@pytest.mark.parametrize("name", NAMES)
def test_official_names_of_the_settings(name):
    """Officially there is a second processor for clips; here it is a view of the one for both."""
    found = getattr(our_processor().video_processor, name)
    expected = getattr(transformers.AutoVideoProcessor.from_pretrained(TINY), name)
    if name == "model_input_names":  # one processor makes the inputs of pictures and of clips
        assert set(expected) <= set(found)
    elif name == "size":
        assert {edge: found[edge] for edge in ("shortest_edge", "longest_edge")} == dict(expected)
    else:
        assert found == expected or list(found) == list(expected)


def test_the_processors_own_video_processor():
    given = [clip(4, 120, 160)]
    size = {"shortest_edge": 784, "longest_edge": 6 * 784}
    found = our_processor().video_processor(given, size=size, return_tensors="pt")
    assert_same_inputs(found, official_clips(given, max_pixels=6 * 784))


def test_limits_of_the_constructor_are_kept_in_files(tmp_path):
    """min_pixels and max_pixels are older than the file for clips; they hold for frames, and survive saving."""
    processor = Qwen2VLProcessor.from_pretrained(str(TINY), min_pixels=784, max_pixels=4 * 784)
    given = [clip(4, 120, 160)]
    expected = official_clips(given, max_pixels=4 * 784)
    place = "<|vision_start|><|video_pad|><|vision_end|>"
    assert torch.equal(processor(text=place, videos=given).video_grid_thw, expected["video_grid_thw"])
    processor.save_pretrained(tmp_path)
    again = Qwen2VLProcessor.from_pretrained(str(tmp_path))(text=place, videos=given)
    assert torch.equal(again.pixel_values_videos, expected["pixel_values_videos"])
    official = transformers.AutoVideoProcessor.from_pretrained(tmp_path)
    found = official(given, cap_pixels_per_frame=False, return_tensors="pt")
    assert torch.equal(found["video_grid_thw"], expected["video_grid_thw"])


def test_settings_as_json():
    content = json.loads(our_processor().video_processor.to_json_string())
    assert content["patch_size"] == 14 and content["temporal_patch_size"] == 2


@pytest.mark.parametrize("target", (torch.float16, torch.bfloat16))
def test_pixels_are_cast_and_grids_are_not(target):
    for call in (our_clips, official_clips):
        inputs = call([clip(2, 56, 56)])
        assert inputs["pixel_values_videos"].dtype == torch.float32
        cast = inputs.to(target)
        assert cast["pixel_values_videos"].dtype == target and cast["video_grid_thw"].dtype == torch.long


@pytest.mark.parametrize("size", ((4, 100, 140), (7, 56, 56)))
def test_tokens_are_counted_without_the_clip(size):
    expected = Qwen2VLVideoProcessor(size={"shortest_edge": 784, "longest_edge": 16 * 784})
    patches = expected.get_num_of_video_patches(*size, {})
    found = Qwen2VLImageProcessor().num_video_tokens(*size, **LIMITS)
    made = our_clips([clip(*size)])
    assert found * 4 == len(made.pixel_values_videos)
    if size[0] % 2 == 0:  # officially the repeated frame of an odd clip is not counted, though it is made
        assert found * 4 == patches
