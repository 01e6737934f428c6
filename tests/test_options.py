"""The checks around `generate`, and media items on their way to the model's inputs, without a model."""

import pytest
import torch

from qwen2vl_io import messages, options

RELEASED = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.05}


def test_a_call_of_generate_is_split_into_settings_and_inputs():
    mask = torch.ones(1, 3)
    asked = {"temperature": 0.5, "top_p": None, "attention_mask": mask}

    settings, inputs = options.generation_settings(RELEASED, asked)

    assert settings == options.sampling_settings(RELEASED, temperature=0.5)
    assert settings["do_sample"] and settings["top_k"] == 0  # the checkpoint's top_k 1 does not undo the temperature
    assert list(inputs) == ["attention_mask"] and inputs["attention_mask"] is mask
    assert list(asked) == ["temperature", "top_p", "attention_mask"]  # unchanged


def test_nothing_asked_means_the_checkpoints_settings():
    settings, inputs = options.generation_settings(RELEASED, {})
    assert settings["repetition_penalty"] == 1.05 and settings["top_k"] == 1
    assert inputs == {}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [({"beam": 4}, r"generate\('beam'=…\) is unknown; it takes"), ({"top_p": 2.0}, "Sampling needs")],
)
def test_what_generate_cannot_do_is_refused(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        options.generation_settings({}, asked)


def test_a_prompt_must_leave_room_for_its_answer():
    options.check_prompt_fits(90, 10, 100)

    with pytest.raises(ValueError) as caught:
        options.check_prompt_fits(91, 10, 100)

    assert str(caught.value) == (
        "91 tokens and 10 new ones do not fit the model's context of 100; "
        "lower max_pixels or max_new_tokens, or start anew."
    )


def test_prompts_are_padded_on_their_left():
    options.check_padded_left(None)
    options.check_padded_left(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    options.check_padded_left(torch.tensor([[0, 0, 0], [1, 1, 1]]))  # an empty row ends nowhere

    with pytest.raises(ValueError) as caught:
        options.check_padded_left(torch.tensor([[1, 1, 0], [1, 1, 1]]))

    expected = "To generate, pad the prompts on the left: the new tokens follow the last place."
    assert str(caught.value) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_must_be_finite(value):
    logits = torch.zeros(2, 5)
    options.check_finite(logits, torch.float16)
    logits[1, 3] = value

    with pytest.raises(ValueError) as caught:
        options.check_finite(logits, torch.float16)

    expected = "The logits are not finite in torch.float16; load the model in bfloat16 or float32."
    assert str(caught.value) == expected


def test_media_items_are_found_in_order():
    first = {"type": "image", "image": "a.png"}
    clip = {"type": "video", "video": "b.mp4"}
    last = {"image_url": {"url": "c.png"}}
    conversations, _ = messages.as_conversations(
        [
            [{"role": "system", "content": "Hello"}, {"role": "user", "content": [first, "words", clip]}],
            [{"role": "user", "content": last}],
        ]
    )
    assert messages.media_items(conversations) == [first, clip, last]
    assert messages.media_items([]) == []


def test_patches_of_pictures_and_clips_are_collected_apart():
    def make_patches(item):
        number = item["number"]
        return torch.full((number, 1176), float(number)), (1, 1, number)

    ready = torch.full((4, 1176), 9.0), (1, 2, 2)
    items = [
        {"type": "image", "number": 2},
        {"type": "video", "number": 3},
        {"type": "image", "patches": ready},
    ]

    inputs = messages.collect_patches(items, make_patches)

    assert list(inputs) == ["pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"]
    assert inputs.pixel_values[:, 0].tolist() == [2, 2, 9, 9, 9, 9]
    assert inputs.image_grid_thw.tolist() == [[1, 1, 2], [1, 2, 2]]
    assert inputs.pixel_values_videos[:, 0].tolist() == [3, 3, 3]
    assert inputs.video_grid_thw.tolist() == [[1, 1, 3]]
    assert messages.collect_patches([], make_patches) == {}
