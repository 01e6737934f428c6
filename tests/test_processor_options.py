"""What processors are given beyond messages: official names, nested lists, frame rates of clips, and wrong shapes."""

import numpy as np
import pytest
import torch
from PIL import Image

from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor, patchify, process_vision_info, unpatchify

TEMPLATE = {"tokenize": True, "return_dict": True}
PAD = "<|image_pad|>"


def picture(seed: int, height: int = 60, width: int = 90) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


A, B, C = (picture(seed) for seed in range(3))
FRAMES = [A, B, C, A]


@pytest.fixture(scope="module")
def processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained("tiny")


@pytest.fixture(scope="module")
def animation(tmp_path_factory) -> str:
    """Six seconds, two frames a second."""
    path = str(tmp_path_factory.mktemp("clips") / "animation.gif")
    stills = [picture(seed, 56, 56) for seed in range(12)]
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=500)
    return path


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- process_vision_info ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"fps": 1}, {"nframes": 6}, {"video_end": 3}, {"num_frames": 4}], ids=str)
def test_the_third_value_of_process_vision_info(processor, animation, options):
    """… goes back into the processor, as in the snippets of later models; it changes nothing."""
    content = [
        {"type": "image", "image": A},
        {"type": "video", "path": animation, "max_pixels": 4 * 784, **options},
        {"type": "video", "video": FRAMES, "fps": 3.0},
        {"type": "text", "text": "What is it?"},
    ]
    chat = [{"role": "user", "content": content}]
    expected = processor.apply_chat_template(chat, add_generation_prompt=True, **TEMPLATE)
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    for more in ({}, {"image_patch_size": 14}):
        images, videos, kwargs = process_vision_info(chat, return_video_kwargs=True, **more)
        assert list(kwargs) == ["fps"] and len(kwargs["fps"]) == len(videos) == 2 and len(images) == 1
        assert kwargs["fps"][1] == 3.0
        inputs = processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt", **kwargs)
        assert_same(inputs, expected)
    taken = {"nframes": 6, "num_frames": 4}.get(next(iter(options), ""))
    assert kwargs["fps"][0] == pytest.approx(taken / 6 if taken else {"{}": 2, "{'fps': 1}": 1}.get(str(options), 1))


def test_process_vision_info_without_media():
    chat = [{"role": "user", "content": "Hello"}]
    assert process_vision_info(chat) == (None, None)
    assert process_vision_info([chat, chat], return_video_kwargs=True) == (None, None, {})


@pytest.mark.parametrize("options", [{"image_patch_size": 16}, {"return_video_metadata": True}], ids=str)
def test_what_process_vision_info_does_for_other_models(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        process_vision_info([{"role": "user", "content": "Hello"}], **options)


def test_a_frame_rate_for_each_clip(processor, animation):
    clips = [{"type": "video", "video": animation}, {"type": "video", "video": animation, "nframes": 4}]
    text = "<|video_pad|>" * 2
    inputs = processor(text=text, videos=clips, fps=[1.0, 2])
    assert inputs.video_grid_thw[:, 0].tolist() == [3, 2]  # the second says itself how many
    inputs = processor.image_processor.preprocess(videos=[animation, animation], fps=(2, 1))
    assert inputs.video_grid_thw[:, 0].tolist() == [6, 3]
    inputs = processor(text=text, videos=[animation, FRAMES], videos_kwargs={"fps": [1, 1]})
    assert inputs.video_grid_thw[:, 0].tolist() == [3, 2]
    for wrong in ([1.0], [1, 2, 3], [1, 0], [1, "2"]):
        with pytest.raises(ValueError, match="fps"):
            processor(text=text, videos=clips, fps=wrong)


# --- frames and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["list", "array", "tensor", "item", "paths"])
def test_do_sample_frames_false_with_frames(processor, given, tmp_path):
    for number, frame in enumerate(FRAMES):
        frame.save(tmp_path / f"{number}.png")
    arrays = np.stack([np.array(frame) for frame in FRAMES])
    clip = {
        "list": FRAMES,
        "array": arrays,
        "tensor": torch.from_numpy(arrays).movedim(-1, 1),
        "item": {"type": "video", "video": FRAMES},
        "paths": [str(tmp_path / f"{number}.png") for number in range(4)],
    }[given]
    expected = processor(text="<|video_pad|>", videos=[FRAMES])
    for value in (False, True, None):
        assert_same(processor(text="<|video_pad|>", videos=[clip], do_sample_frames=value), expected)
    with pytest.raises(ValueError, match="contradict each other"):
        processor(text="<|video_pad|>", videos=[clip], do_sample_frames=False, nframes=2)


def test_do_sample_frames_false_with_a_file(processor, animation):
    for options in ({"do_sample_frames": False}, {"videos_kwargs": {"do_sample_frames": False}}):
        with pytest.raises(ValueError, match="of a file, nframes are taken"):
            processor(text="<|video_pad|>", videos=[animation], **options)
    with pytest.raises(ValueError, match="should be True or False"):
        processor(text="Hi", do_sample_frames="no")


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nested",
    [
        [[A, B], [C]],
        ([A], (B, C)),
        [A, B, C],
        [[A, B, C]],
        [[], [A, B, C]],
        np.stack([A, B, C]),
        torch.from_numpy(np.stack([A, B, C])).movedim(-1, 1),
        [np.stack([A, B]), np.stack([C])],
        [[{"type": "image", "image": A}, B], [C]],
    ],
    ids=range(9),
)
def test_nested_lists_of_pictures(processor, nested):
    expected = Qwen2VLImageProcessor().preprocess([A, B, C])
    assert_same(Qwen2VLImageProcessor().preprocess(nested), expected)
    assert_same(processor(images=nested), processor.image_processor.preprocess([A, B, C]))
    if not (isinstance(nested, list | tuple) and isinstance(nested[0], list | tuple | np.ndarray)):
        assert_same(processor(text=PAD * 3, images=nested), processor(text=PAD * 3, images=[A, B, C]))


def test_nested_lists_beside_texts(processor):
    texts = [PAD * 2, PAD]
    assert_same(processor(text=texts, images=[[A, B], [C]]), processor(text=texts, images=[A, B, C]))
    for wrong in ([[A], [B, C]], [[A, B, C]], [[A, B]]):
        with pytest.raises(ValueError, match="Each prompt needs"):
            processor(text=texts, images=wrong)


@pytest.mark.parametrize("form", ["lists", "arrays", "a batch", "nested", "paths"])
def test_lists_of_clips(processor, form, tmp_path):
    for name, frame in zip("abc", (A, B, C)):
        frame.save(tmp_path / f"{name}.png")
    paths = [[str(tmp_path / f"{name}.png") for name in names] for names in ("ab", "ca")]
    one, two = [A, B], [C, A]
    clips = {
        "lists": [one, two],
        "arrays": [np.stack(one), np.stack(two)],
        "a batch": np.stack([np.stack(one), np.stack(two)]),
        "nested": [[one], [two]],
        "paths": paths,
    }[form]
    expected = Qwen2VLImageProcessor().preprocess(videos=[one, two])
    assert expected.video_grid_thw[:, 0].tolist() == [1, 1]
    assert_same(Qwen2VLImageProcessor().preprocess(videos=clips), expected)
    text = ["<|video_pad|>"] * 2
    assert_same(processor(text=text, videos=clips), processor(text=text, videos=[one, two]))


# --- nothing, and too little ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [{}, {"images": []}, {"videos": []}, {"images": [[]]}, {"images": None, "videos": ()}])
def test_nothing_to_process(processor, call):
    for function in (processor, processor.image_processor, processor.image_processor.preprocess):
        with pytest.raises(ValueError, match="nothing to process; give images or videos .* a text"):
            function(**call)


FRAME = torch.rand(3, 56, 84)
PATCHES, GRID = patchify(FRAME[None])


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (FRAME, r"not a tensor of shape \(3, 56, 84\); a single picture is frames\[None\]"),
        (FRAME[None, None], "not a tensor of shape"),
        (FRAME[0], "not a tensor of shape"),
        (FRAME[None].numpy(), "not a ndarray"),
        (A, "not a Image"),
        (None, "not a NoneType"),
        ([FRAME], "not a list"),
        (FRAME[None, :, :50], "cells of 28×28 pixels; resize"),
        (FRAME[None, :, :, :70], "cells of 28×28 pixels; resize"),
        (FRAME[None, :, :42], "cells of 28×28 pixels; resize"),  # three patches, but not whole windows of two
        (FRAME[None, :, :0], "cannot be cut"),
        (FRAME[None][:0], "cannot be cut"),
        (torch.rand(1, 56, 84, 3), "cannot be cut"),  # as arrays have it
    ],
    ids=range(13),
)
def test_what_patchify_is_given(frames, says):
    with pytest.raises(ValueError, match=says) as caught:
        patchify(frames)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "grid", [GRID, list(GRID), torch.tensor(GRID), torch.tensor([GRID]), np.array(GRID), [list(GRID)]], ids=range(6)
)
def test_grids_in_every_form(grid):
    assert torch.equal(unpatchify(PATCHES, grid)[0], FRAME)


@pytest.mark.parametrize(
    ("patches", "grid", "says"),
    [
        (PATCHES, (1.0, 4.0, 6.0), "three whole numbers"),
        (PATCHES, torch.tensor(GRID).float(), "three whole numbers"),
        (PATCHES, (4, 6), "three whole numbers"),
        (PATCHES, (1, 3, 8), "multiples of 2"),
        (PATCHES, None, "three whole numbers"),
        (PATCHES, "146", "three whole numbers"),
        (PATCHES, (0, 4, 6), "three whole numbers"),
        (PATCHES, (1, 4, 8), r"patches of shape \(32, 1176\), not \(24, 1176\)"),
        (PATCHES[None], GRID, r"not \(1, 24, 1176\)"),
        (PATCHES[:, :1000], GRID, r"not \(24, 1000\)"),
        (PATCHES.numpy(), GRID, "belongs to patches"),
        (None, GRID, "belongs to patches"),
    ],
    ids=range(12),
)
def test_what_unpatchify_is_given(patches, grid, says):
    with pytest.raises(ValueError, match=says) as caught:
        unpatchify(patches, grid)
    assert "\n" not in str(caught.value)


# --- official options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({"do_resize": True}, {"do_rescale": True}, {"do_normalize": True}, {"do_convert_rgb": True}, {"resample": 3}),
        *({"resample": Image.Resampling.BICUBIC}, {"device": torch.device("cpu")}, {"rescale_factor": 1 / 255}),
        *({"disable_grouping": True}, {"do_center_crop": False}, {"do_pad": False}, {"cap_pixels_per_frame": True}),
        *({"video_metadata": None}, {"input_data_format": None}, {"data_format": "channels_first"}),
    ],
    ids=str,
)
def test_official_options_that_ask_for_nothing(processor, options):
    expected = processor(text=PAD, images=A)
    assert_same(processor(text=PAD, images=A, **options), expected)
    assert_same(processor(text=PAD, images=A, images_kwargs=options), expected)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({"do_resize": False}, "resized_height and resized_width"),
        ({"do_rescale": False}, "fractions from 0 to 1"),
        ({"do_normalize": False}, "normalised pixels"),
        ({"do_convert_rgb": False}, "RGB only"),
        ({"resample": 2}, "the constructor takes"),
        ({"resample": Image.Resampling.NEAREST}, "the constructor takes"),
        ({"resample": True}, "the constructor takes"),
        ({"input_data_format": "channels_last"}, r"\(height, width, 3\)"),
        ({"device": "cuda"}, r"\.to\(device\)"),
        ({"device": torch.device("cuda")}, r"\.to\(device\)"),
        ({"rescale_factor": 1}, "fractions"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "give it to the constructor"),
        ({"patch_size": 16}, "give it to the constructor"),
        ({"cap_pixels_per_frame": False}, "total_pixels"),
        ({"max_video_tokens": 1000}, "total_pixels"),
        ({"video_metadata": [{"fps": 2}]}, "frames that are given are all taken"),
        ({"audio": [0.1]}, "does not hear"),
        ({"return_offsets_mapping": True}, "one by one"),
    ],
    ids=str,
)
def test_official_options_that_ask_for_something_else(processor, options, way_out):
    for asked in (options, {"images_kwargs": options}, {"processor_kwargs": options}):
        with pytest.raises(ValueError, match=way_out):
            processor(text=PAD, images=A, **asked)


# --- what the processor gave, on its way to the model -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("pixel_values", lambda x: x[None], r"not a float32 tensor of shape \(1, "),
        ("pixel_values", lambda x: x.numpy(), "not a ndarray"),
        ("pixel_values", lambda x: x.tolist(), "not a list"),
        ("pixel_values", lambda x: x.long(), "floating-point"),
        ("image_grid_thw", lambda x: x.tolist(), "whole numbers"),
        ("image_grid_thw", lambda x: x.float(), "whole numbers"),
        ("image_grid_thw", lambda x: x[0], "whole numbers"),
        ("image_grid_thw", lambda x: x[:, :2], "whole numbers"),
        ("image_grid_thw", lambda x: -x, "above 0"),
        ("image_grid_thw", lambda x: x - torch.tensor([0, 1, 0]), "times 2"),
        ("image_grid_thw", lambda x: x > 0, "whole numbers"),
    ],
    ids=range(11),
)
def test_what_the_model_is_given(processor, name, change, says):
    from tests.small_models import image, make_inputs, small_model

    model = small_model()
    inputs = make_inputs(model.config, [[2, image(4, 6), 1]])
    inputs[name] = change(inputs[name])
    with pytest.raises(ValueError, match=says) as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)
