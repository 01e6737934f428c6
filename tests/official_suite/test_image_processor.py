"""What test_image_processing_qwen2_vl.py and test_image_processing_common.py check, on both kinds of resampling."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as OfficialTorchvision
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as official_smart_resize

from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLImageProcessorFast, smart_resize
from tests.official_suite.pairs import assert_same_inputs, picture, pixels

KINDS = {"pillow": (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)}
KINDS["torch"] = (Qwen2VLImageProcessorFast, OfficialTorchvision)
SETTINGS = {"min_pixels": 56 * 56, "max_pixels": 40 * 784}


def both(kind: str, **settings):
    """(ours, official), with the same settings."""
    settings = settings or SETTINGS
    return [each(**settings) for each in KINDS[kind]]


# --- what a picture may be --------------------------------------------------------------------------------------------

FORMS = {
    "PIL": lambda height, width, seed: picture(height, width, seed),
    "array": lambda height, width, seed: pixels(height, width, seed),
    "tensor": lambda height, width, seed: torch.from_numpy(pixels(height, width, seed)).movedim(-1, 0),
    "grey PIL": lambda height, width, seed: picture(height, width, seed).convert("L"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", (1, 3))
def test_pictures_in_every_form(kind, form, count):
    """One, or several of different sizes; the official call sees PIL pictures of the same bytes."""
    sizes = [(70, 100), (100, 70), (56, 180)][:count]
    images = [FORMS[form](height, width, seed) for seed, (height, width) in enumerate(sizes)]
    plain = [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    plain = [one.convert("L") for one in plain] if form == "grey PIL" else plain
    ours, official = both(kind)
    expected = official(plain, return_tensors="pt")
    assert_same_inputs(ours(images[0] if count == 1 else images, return_tensors="pt"), expected)
    assert_same_inputs(official(images, return_tensors="pt"), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", (True, False))
def test_a_list_of_pictures_and_a_list_of_lists(kind, nested):
    """Grouped by prompt or not, the pictures come in their order."""
    images = [picture(56, 84, seed) for seed in range(5)]
    grouped = [images[:2], images[2:]] if nested else [[one] for one in images]
    for processor in both(kind):
        flat = processor(images, return_tensors="pt")
        assert_same_inputs(processor(grouped, return_tensors="pt"), flat)
        assert len(flat["image_grid_thw"]) == 5


STACKED = np.stack([pixels(56, 84, seed) for seed in range(3)])
UNUSUAL = {
    "an array, colours first": (STACKED[0].transpose(2, 0, 1), STACKED[:1]),
    "an array of pictures": (STACKED, STACKED),
    "a tensor of pictures": (torch.from_numpy(STACKED).movedim(-1, 1), STACKED),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", UNUSUAL)
def test_forms_that_only_the_official_class_guesses(kind, form):
    """Read as officially, or refused with the shape that was found; never taken for something else."""
    given, meant = UNUSUAL[form]
    ours, official = both(kind)
    expected = official(list(meant), return_tensors="pt")
    assert_same_inputs(official(given, return_tensors="pt"), expected)
    try:
        found = ours(given)
    except ValueError as error:
        assert str(tuple(given.shape)) in str(error)
    else:
        assert_same_inputs(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_four_colours_are_a_transparency(kind):
    """The official mixin allows any number of channels and skips Qwen2-VL; here the fourth is put on white."""
    four = np.concatenate([pixels(56, 84), np.full((56, 84, 1), 255, np.uint8)], axis=2)
    ours, _ = both(kind)
    assert_same_inputs(ours(four), ours(pixels(56, 84)))


BAD = {"None": None, "no picture": [], "no file": "no file.png", "three numbers": np.zeros(3), "an object": object()}
BAD["None in a list"] = [picture(56, 56), None]


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_is_no_picture(bad):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Qwen2VLImageProcessor()(bad)
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_twice_gives_the_same(kind):
    for processor in both(kind):
        assert_same_inputs(*(processor(picture(90, 70), return_tensors="pt") for _ in range(2)))


# --- sizes and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ((561, 278), (28, 28), (5, 113), (13, 700), (1000, 30), (9, 9), (1, 150), (113, 5)))
@pytest.mark.parametrize("limits", ((56 * 56, 1280 * 784), (784, 784), (20 * 784, 40 * 784)))
def test_sizes_are_the_official_ones(size, limits):
    expected = official_smart_resize(*size, factor=28, min_pixels=limits[0], max_pixels=limits[1])
    assert smart_resize(*size, 28, *limits) == expected


@pytest.mark.parametrize("size", ((1, 201), (5600, 20)))
def test_sides_beyond_200_to_1_are_refused(size):
    for function in (smart_resize, official_smart_resize):
        with pytest.raises(ValueError):
            function(*size)


NAMES = (
    *("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "image_mean", "image_std", "rescale_factor"),
    *("patch_size", "temporal_patch_size", "merge_size", "size", "model_input_names"),
)


@pytest.mark.parametrize("name", NAMES)
def test_official_names_of_the_settings(name):
    ours, official = both("pillow")
    found, expected = getattr(ours, name), getattr(official, name)
    if name == "model_input_names":  # one processor makes the inputs of pictures and of clips
        assert set(expected) <= set(found)
    elif name == "size":
        assert {edge: found[edge] for edge in ("shortest_edge", "longest_edge")} == dict(expected)
    else:
        assert found == expected or list(found) == list(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_settings_are_needed(kind):
    for each in KINDS[kind]:
        assert each()(picture(56, 56), return_tensors="pt")["pixel_values"].shape == (16, 1176)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ("pixels", "size"))
def test_limits_of_the_call_beat_those_of_the_constructor(kind, how):
    call = {"min_pixels": 784, "max_pixels": 6 * 784}
    call = call if how == "pixels" else {"size": {"shortest_edge": 784, "longest_edge": 6 * 784}}
    found, expected = (p(picture(150, 200), return_tensors="pt", **call) for p in both(kind))
    assert_same_inputs(found, expected)
    assert found.image_grid_thw.prod() <= 24


@pytest.mark.parametrize("kind", KINDS)
def test_limits_by_their_newer_name(kind):
    size = {"shortest_edge": 784, "longest_edge": 6 * 784}
    ours, official = both(kind, size=size)
    assert_same_inputs(ours(picture(150, 200)), official(picture(150, 200), return_tensors="pt"))


@pytest.mark.parametrize("kind", KINDS)
def test_limits_from_a_dict_with_changes(kind):
    """from_dict(settings, **changes): the changes win."""
    for each in KINDS[kind]:
        plain = each.from_dict(dict(SETTINGS))
        changed = each.from_dict(dict(SETTINGS), min_pixels=784, max_pixels=6 * 784)
        grids = [p(picture(150, 200), return_tensors="pt")["image_grid_thw"].prod() for p in (plain, changed)]
        assert grids[1] <= 24 < grids[0]


def test_half_a_size_is_refused():
    for processor in both("pillow"):
        with pytest.raises((ValueError, TypeError)):
            processor(picture(56, 56), size={"shortest_edge": 784, "height": 3}, return_tensors="pt")


@pytest.mark.parametrize("name", ("do_resize", "do_normalize", "do_rescale"))
def test_steps_that_cannot_be_left_out_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        Qwen2VLImageProcessor()(picture(56, 56), **{name: False})


@pytest.mark.parametrize("typo", ({"max_pixel": 5}, {"colour": "red"}))
def test_unknown_options_are_refused(typo):
    with pytest.raises(ValueError, match=next(iter(typo))):
        Qwen2VLImageProcessor()(picture(56, 56), **typo)
    with pytest.raises((ValueError, TypeError), match=next(iter(typo))):
        Qwen2VLImageProcessor(**typo)


def test_changed_settings_stay_with_their_processor():
    """Another processor, made before or after, does not know of them."""
    for each in KINDS["pillow"]:
        before = each(**SETTINGS)
        changed = each(**SETTINGS)
        changed.image_mean = [0.0, 0.0, 0.0]
        after = each(**SETTINGS)
        expected = before(picture(56, 56), return_tensors="pt")
        assert_same_inputs(after(picture(56, 56), return_tensors="pt"), expected)
        assert not torch.equal(changed(picture(56, 56), return_tensors="pt")["pixel_values"], expected["pixel_values"])


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_two_resamplings_are_close():
    """Of a smooth picture: two grey levels of 255 at most, a tenth of one on average."""
    rows = np.linspace(0, 255, 120)[:, None, None] * np.linspace(0.3, 1, 160)[None, :, None]
    smooth = np.repeat(rows, 3, axis=2).astype(np.uint8)
    level = 1 / (255 * 0.26130258)  # of the colour with the smallest deviation
    for side in (0, 1):
        one, other = (both(kind)[side](smooth, return_tensors="pt")["pixel_values"] for kind in KINDS)
        assert (one - other).abs().max() < 2.5 * level and (one - other).abs().mean() < 0.1 * level


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", (torch.float16, torch.bfloat16))
def test_pixels_are_cast_and_grids_are_not(kind, target):
    for processor in both(kind):
        inputs = processor(picture(56, 56), return_tensors="pt")
        assert inputs["pixel_values"].dtype == torch.float32
        cast = inputs.to(target)
        assert cast["pixel_values"].dtype == target and cast["image_grid_thw"].dtype == torch.long


@pytest.mark.parametrize("size", ((100, 140), (560, 30), (28, 28)))
def test_patches_are_counted_without_the_picture(size):
    ours, official = both("pillow")
    expected = official.get_number_of_image_patches(*size, {})
    assert ours.num_image_tokens(*size) * 4 == expected == len(ours(picture(*size)).pixel_values)


# --- files ------------------------------------------------------------------------------------------------------------


def test_settings_as_json():
    ours, _ = both("pillow")
    content = json.loads(ours.to_json_string())
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        assert content[name] == getattr(ours, name)
    assert content["image_mean"] == list(ours.image_mean)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_through_a_json_file(kind, tmp_path):
    for each in KINDS[kind]:
        first = each(**SETTINGS)
        first.to_json_file(tmp_path / "settings.json")
        again = each.from_json_file(tmp_path / "settings.json")
        assert json.dumps(again.to_dict(), sort_keys=True) == json.dumps(first.to_dict(), sort_keys=True)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_through_a_folder(kind, tmp_path):
    """save_pretrained → from_pretrained of our classes and of the official ones."""
    ours, official = both(kind)
    expected = ours(picture(150, 200))
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(str(tmp_path))
    assert json.dumps(again.to_dict(), sort_keys=True) == json.dumps(ours.to_dict(), sort_keys=True)
    assert_same_inputs(again(picture(150, 200)), expected)
    assert_same_inputs(type(official).from_pretrained(tmp_path)(picture(150, 200), return_tensors="pt"), expected)
    backend = {"pillow": "pil", "torch": "torchvision"}[kind]
    automatic = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert_same_inputs(automatic(picture(150, 200), return_tensors="pt"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_saved_by_the_official_class(kind, tmp_path):
    ours, official = both(kind)
    official.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(str(tmp_path))
    assert_same_inputs(again(picture(150, 200)), official(picture(150, 200), return_tensors="pt"))


def test_the_fast_class_reads_what_the_other_saved(tmp_path):
    """Its name decides, as officially. The plain class follows the file, whichever class wrote it."""
    for saved in KINDS:
        both(saved)[0].save_pretrained(tmp_path / saved)
        fast = Qwen2VLImageProcessorFast.from_pretrained(str(tmp_path / saved))
        expected = both("torch")[1](picture(150, 200), return_tensors="pt")
        assert_same_inputs(fast(picture(150, 200)), expected)
        plain = Qwen2VLImageProcessor.from_pretrained(str(tmp_path / saved))
        assert plain.resample == saved
