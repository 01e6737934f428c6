"""What test_processing_qwen2_vl.py and test_processing_common.py check: chats, options, tokens, files.

vLLM's tests of its Qwen2-VL processor (limits at the start and in the call, counts of tokens) are here, too.
"""

import json

import numpy as np
import pytest
import torch
import transformers

from qwen2vl_mini import Qwen2VLProcessor
from tests.official_suite.pairs import TINY, ask, assert_same_inputs, clip, official_processor, our_processor, picture

CHAT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
PLACES = "<|vision_start|><|image_pad|><|vision_end|>"
CLIP_PLACES = "<|vision_start|><|video_pad|><|vision_end|>"


def both_processors() -> tuple[Qwen2VLProcessor, transformers.Qwen2VLProcessor]:
    return our_processor(), official_processor()


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", (1, 2, 3))
@pytest.mark.parametrize("batch", (False, True))
def test_texts_and_pictures_of_a_call(count, batch):
    texts = [f"{PLACES * count}Which?"] + (["Where?", f"{PLACES}So?"] if batch else [])
    pictures = [picture(60 + 10 * i, 90, i) for i in range(count + batch)]
    found, expected = (p(text=texts, images=pictures, padding=True, return_tensors="pt") for p in both_processors())
    assert_same_inputs(found, expected)


def test_the_keys_and_their_order():
    found, expected = (p(text=PLACES, images=picture(56, 56), return_tensors="pt") for p in both_processors())
    assert list(found) == [name for name in expected if name != "mm_token_type_ids"]


def test_the_call_is_the_image_processor_and_the_tokenizer():
    for processor in both_processors():
        inputs = processor(text=f"{PLACES}Hi", images=picture(56, 84), return_tensors="pt")
        alone = processor.image_processor(picture(56, 84), return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], alone["pixel_values"])
        assert torch.equal(inputs["image_grid_thw"], alone["image_grid_thw"])
    ours, official = both_processors()
    text = "A red circle.<|im_end|>\n"
    assert ours(text=text, return_tensors="pt").input_ids.tolist() == official(text=[text])["input_ids"]
    assert set(ours(text=text)) == {"input_ids", "attention_mask"}


def test_a_call_without_anything_or_without_text():
    """Nothing is an error; pictures alone are their pixels (an error in earlier versions of transformers)."""
    ours, official = both_processors()
    with pytest.raises((ValueError, TypeError)):
        official()
    with pytest.raises((ValueError, TypeError)) as caught:
        ours()
    assert "\n" not in str(caught.value)
    assert set(ours(images=picture(56, 56))) == {"pixel_values", "image_grid_thw"}


def test_the_order_of_arguments():
    """images first, then text; the same by name."""
    for processor in both_processors():
        named = processor(images=picture(56, 56), text=PLACES, return_tensors="pt")
        by_place = processor(picture(56, 56), PLACES, return_tensors="pt")
        assert_same_inputs(by_place, named)


@pytest.mark.parametrize("images", (0, 2))
def test_pictures_that_do_not_match_the_text(images):
    for processor in both_processors():
        with pytest.raises((ValueError, IndexError)):
            found = processor(text=PLACES, images=[picture(56, 56)] * images or None, return_tensors="pt")
            if processor is official_processor():  # which leaves what is too few or too many to the model
                raise ValueError(len(found))


def test_nested_pictures_one_list_a_prompt():
    texts, pictures = [f"{PLACES}{PLACES}Hi", f"{PLACES}So"], [picture(56, 56, i) for i in range(3)]
    for processor in both_processors():
        flat = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        nested = processor(text=texts, images=[pictures[:2], pictures[2:]], padding=True, return_tensors="pt")
        assert_same_inputs(nested, flat)


def test_a_prompt_given_as_a_tuple_or_list_of_one():
    for processor in both_processors():
        assert_same_inputs(processor(text="Hi", return_tensors="pt"), processor(text=["Hi"], return_tensors="pt"))


# --- options ----------------------------------------------------------------------------------------------------------


def limits(low: int, high: int) -> list[dict]:
    size = {"shortest_edge": low, "longest_edge": high}
    return [
        {"min_pixels": low, "max_pixels": high},
        {"size": size},
        {"images_kwargs": {"min_pixels": low, "max_pixels": high}},
        {"images_kwargs": {"size": size}},
    ]


@pytest.mark.parametrize("how", range(4), ids=("pixels", "size", "nested pixels", "nested size"))
@pytest.mark.parametrize("low, high", ((784, 3136), (40 * 784, 80 * 784), (64**2, 512**2)))
@pytest.mark.parametrize("count", (1, 2))
def test_limits_of_a_call(how, low, high, count):
    """vLLM's table: limits by either name, one or two pictures, change the counts and the pixels alike."""
    options = limits(low, high)[how]
    pictures = [picture(150, 200)] * count
    found, expected = (
        p(text=PLACES * count, images=pictures, return_tensors="pt", **options) for p in both_processors()
    )
    assert_same_inputs(found, expected)
    tokens = (found.input_ids == our_processor().tokenizer.special_ids["<|image_pad|>"]).sum()
    assert tokens * 4 == len(found.pixel_values) and low <= tokens / count * 784 <= high


@pytest.mark.parametrize("how", (0, 1), ids=("pixels", "size"))
@pytest.mark.parametrize("low, high", ((784, 3136), (40 * 784, 80 * 784)))
def test_limits_of_the_constructor_are_those_of_the_call(how, low, high):
    options = limits(low, high)[how]
    for kind, usual in zip((Qwen2VLProcessor, transformers.Qwen2VLProcessor), both_processors()):
        loaded = kind.from_pretrained(str(TINY), **options)
        if kind is not Qwen2VLProcessor:  # its constructor makes the torchvision one, whose bits differ
            loaded.image_processor = type(usual.image_processor).from_pretrained(str(TINY), **options)
        at_start = loaded(text=PLACES, images=picture(150, 200), return_tensors="pt")
        in_call = usual(text=PLACES, images=picture(150, 200), return_tensors="pt", **options)
        assert_same_inputs(at_start, in_call)


def test_a_call_beats_the_constructor_and_the_next_call_does_not_know():
    for kind in (Qwen2VLProcessor, transformers.Qwen2VLProcessor):
        processor = kind.from_pretrained(str(TINY), max_pixels=4 * 784)
        grids = [
            processor(text=PLACES, images=picture(150, 200), return_tensors="pt", **options)["image_grid_thw"].prod()
            for options in ({}, {"max_pixels": 20 * 784}, {})
        ]
        assert grids[0] == grids[2] < grids[1]


def test_an_option_given_twice_in_two_places():
    """Flat and nested with different values: officially an error. Here the one for pictures alone may win."""
    twice = {"max_pixels": 4 * 784, "images_kwargs": {"max_pixels": 20 * 784}}
    with pytest.raises(ValueError, match="max_pixels"):
        official_processor()(text=PLACES, images=picture(150, 200), return_tensors="pt", **twice)
    try:
        found = our_processor()(text=PLACES, images=picture(150, 200), **twice)
    except ValueError as error:
        assert "max_pixels" in str(error)
    else:
        nested = {"images_kwargs": twice["images_kwargs"]}
        assert_same_inputs(found, our_processor()(text=PLACES, images=picture(150, 200), **nested))


def test_nested_options_reach_their_own_kind_only():
    texts = f"{PLACES}{CLIP_PLACES}Hi"
    frames = torch.from_numpy(clip(2, 112, 112)).movedim(-1, 1)
    options = {"images_kwargs": {"max_pixels": 4 * 784}}
    for processor in both_processors():
        plain = processor(text=texts, images=picture(112, 112), videos=[frames], return_tensors="pt")
        found = processor(text=texts, images=picture(112, 112), videos=[frames], return_tensors="pt", **options)
        assert torch.equal(found["video_grid_thw"], plain["video_grid_thw"])
        assert found["image_grid_thw"].prod() < plain["image_grid_thw"].prod()


def test_normalisation_can_be_set_for_the_processor():
    """image_mean and image_std, at the start."""
    means = {"image_mean": (0.0, 0.1, 0.2), "image_std": (1.0, 0.5, 2.0)}
    found = Qwen2VLProcessor.from_pretrained(str(TINY), **means)(text=PLACES, images=picture(56, 56))
    kind = type(official_processor().image_processor)
    expected = kind.from_pretrained(str(TINY), **means)(picture(56, 56), return_tensors="pt")
    assert torch.equal(found.pixel_values, expected["pixel_values"])


@pytest.mark.parametrize("how", ({"truncation": True, "max_length": 3}, {"padding": "max_length", "max_length": 99}))
def test_pictures_are_never_cut_by_truncation(how):
    """Officially cutting into a picture is an error and padding to a length is done; here both are refused by name."""
    with pytest.raises(ValueError, match="not supported"):
        our_processor()(text=f"{PLACES}Hi", images=picture(112, 112), **how)
    if "truncation" in how:
        with pytest.raises(ValueError):
            official_processor()(text=f"{PLACES}Hi", images=picture(112, 112), return_tensors="pt", **how)


def test_rows_of_different_lengths_need_padding():
    for processor in both_processors():
        with pytest.raises(ValueError):
            processor(text=["Hi", "Hello there"], padding=False, return_tensors="pt")
        inputs = processor(text=["Hi", "Hello there"], padding=True, return_tensors="pt")
        assert inputs["attention_mask"][:, 0].tolist() == [0, 1]


def test_mm_token_type_ids_on_request():
    found, expected = (
        p(text=f"{PLACES}Hi", images=picture(56, 84), return_mm_token_type_ids=True, return_tensors="pt")
        for p in both_processors()
    )
    assert_same_inputs(found, expected)
    assert "mm_token_type_ids" in found


@pytest.mark.parametrize("target", (torch.float16, torch.bfloat16, "cpu"))
def test_inputs_move_together_and_ids_stay_whole_numbers(target):
    for processor in both_processors():
        inputs = processor(text=PLACES, images=picture(56, 56), return_tensors="pt").to(target)
        assert inputs["pixel_values"].dtype == (torch.float32 if target == "cpu" else target)
        assert inputs["input_ids"].dtype == inputs["image_grid_thw"].dtype == torch.long


# --- chats ------------------------------------------------------------------------------------------------------------

PICTURE, CLIP = {"type": "image", "image": picture(56, 84)}, {"type": "video"}


@pytest.mark.parametrize("batch", (1, 2))
@pytest.mark.parametrize("kind", ("words", "a picture"))
def test_a_template_is_its_text_tokenized(batch, kind):
    """Text of the template, ids of the template, and the call on that text agree; and with the official ones."""
    chats = [ask("Describe this.", *([PICTURE] if kind == "a picture" else []))] * batch
    texts, ids = [], []
    for processor in both_processors():
        texts.append(processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False))
        assert len(texts[-1]) == batch
        made = processor.apply_chat_template(chats, **CHAT)
        pictures = [PICTURE["image"]] * batch if kind == "a picture" else None
        assert_same_inputs(made, processor(text=texts[-1], images=pictures, return_tensors="pt"))
        ids.append(made)
    assert texts[0] == texts[1]
    assert_same_inputs(*ids)


def test_one_conversation_is_not_a_batch():
    for processor in both_processors():
        one = processor.apply_chat_template(ask("Hi"), tokenize=False)
        assert isinstance(one, str) and processor.apply_chat_template([ask("Hi")], tokenize=False) == [one]


@pytest.mark.parametrize("kind", ("PIL", "array", "path", "url key", "file address"))
def test_pictures_of_a_message_by_any_name(kind, tmp_path):
    drawn = picture(56, 84)
    drawn.save(tmp_path / "a.png")
    item = {
        "PIL": {"type": "image", "image": drawn},
        "array": {"type": "image", "image": np.asarray(drawn)},
        "path": {"type": "image", "path": str(tmp_path / "a.png")},
        "url key": {"type": "image", "url": str(tmp_path / "a.png")},
        "file address": {"type": "image", "image": f"file://{tmp_path / 'a.png'}"},
    }[kind]
    expected = official_processor().apply_chat_template([ask(PICTURE, "Hi")], **CHAT)
    assert_same_inputs(our_processor().apply_chat_template([ask(item, "Hi")], **CHAT), expected)


def test_options_of_a_call_reach_the_pictures_of_a_chat():
    found, expected = (
        p.apply_chat_template([ask({"type": "image", "image": picture(150, 200)}, "Hi")], max_pixels=4 * 784, **CHAT)
        for p in both_processors()
    )
    assert_same_inputs(found, expected)
    assert found.image_grid_thw.prod() <= 16


def test_processor_kwargs_reach_the_pictures_of_a_chat():
    chat = [ask({"type": "image", "image": picture(150, 200)}, "Hi")]
    found, expected = (
        p.apply_chat_template(chat, processor_kwargs={"max_pixels": 4 * 784}, **CHAT) for p in both_processors()
    )
    assert_same_inputs(found, expected)


def test_add_vision_id_numbers_the_pictures():
    """The template's own variable, passed through the call."""
    chat = [ask(PICTURE, PICTURE, "Compare.")]
    found, expected = (p.apply_chat_template(chat, tokenize=False, add_vision_id=True) for p in both_processors())
    assert found == expected and "Picture 2: " in found[0]


@pytest.mark.parametrize(
    "options",
    ({"return_assistant_tokens_mask": True}, {"continue_final_message": True}, {"chat_template": "{{ messages }}"}),
    ids=str,
)
def test_what_the_template_cannot_do_is_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        our_processor().apply_chat_template([ask("Hi")], **CHAT | {"add_generation_prompt": False} | options)


# --- names, counts, files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("image_token", "video_token", "image_token_id", "video_token_id", "chat_template"))
def test_names_of_the_processor(name):
    ours, official = both_processors()
    assert getattr(ours, name) == getattr(official, name)


def test_model_input_names_are_what_calls_give():
    ours, official = both_processors()
    assert set(ours.model_input_names) == set(official.model_input_names)
    given = set(ours(text=f"{PLACES}{CLIP_PLACES}", images=picture(56, 56), videos=[clip(2, 56, 56)]))
    assert given <= set(ours.model_input_names)


@pytest.mark.parametrize("name", ("eos_token", "eos_token_id", "pad_token", "pad_token_id", "vocab_size"))
def test_names_of_the_tokenizer(name):
    ours, official = (p.tokenizer for p in both_processors())
    assert getattr(ours, name) == getattr(official, name)


def test_the_tokenizer_by_itself():
    ours, official = (p.tokenizer for p in both_processors())
    text = "Two red circles, 3 blue squares.<|im_end|>"
    assert len(ours) == len(official) and ours.get_vocab() == official.get_vocab()
    assert ours(text)["input_ids"] == official(text)["input_ids"]
    assert ours.convert_tokens_to_ids("<|image_pad|>") == official.convert_tokens_to_ids("<|image_pad|>")
    assert ours.convert_tokens_to_ids(["<|im_end|>"]) == official.convert_tokens_to_ids(["<|im_end|>"])


@pytest.mark.parametrize("skip", (True, False))
def test_decoding(skip):
    ours, official = both_processors()
    ids = official.tokenizer("One heart.<|im_end|>\nSo?")["input_ids"]
    for batch in ([ids], torch.tensor([ids, ids])):
        found = ours.batch_decode(batch, skip_special_tokens=skip)
        assert found == official.batch_decode(batch, skip_special_tokens=skip)
        sentences = ours.post_process_image_text_to_text(batch, skip_special_tokens=skip)
        assert sentences == official.post_process_image_text_to_text(batch, skip_special_tokens=skip)
    assert ours.decode(ids, skip_special_tokens=skip) == official.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("options", ({}, {"max_pixels": 4 * 784}), ids=str)
def test_tokens_are_counted_before_a_picture_is_read(options):
    """transformers' and vLLM's private helper; ours is public."""
    ours, official = both_processors()
    sizes = [(100, 100), (300, 100), (500, 30)]
    expected = official._get_num_multimodal_tokens(image_sizes=sizes, **options)
    found = [ours.image_processor.num_image_tokens(*size, **options) for size in sizes]
    assert found == list(expected["num_image_tokens"])
    for size, tokens in zip(sizes, found):
        inputs = ours(text=PLACES, images=picture(*size), **options)
        assert tokens * 4 == len(inputs.pixel_values)


def test_a_processor_through_a_folder_and_back(tmp_path):
    """save_pretrained → from_pretrained of both classes: the same inputs, limits of the constructor included."""
    ours = Qwen2VLProcessor.from_pretrained(str(TINY), min_pixels=8 * 784, max_pixels=12 * 784)
    ours.save_pretrained(tmp_path)
    expected = ours.apply_chat_template([ask(PICTURE, "Hi")], **CHAT)
    again = Qwen2VLProcessor.from_pretrained(str(tmp_path))
    assert_same_inputs(again.apply_chat_template([ask(PICTURE, "Hi")], **CHAT), expected)
    assert again.chat_template == ours.chat_template
    assert again.image_processor.to_dict() == ours.image_processor.to_dict()
    official = transformers.AutoProcessor.from_pretrained(tmp_path)
    official.image_processor = type(official_processor().image_processor).from_pretrained(tmp_path)
    assert_same_inputs(official.apply_chat_template([ask(PICTURE, "Hi")], **CHAT), expected)


def test_what_the_official_processor_saves_is_read(tmp_path):
    """transformers 5 writes one processor_config.json."""
    official = transformers.Qwen2VLProcessor.from_pretrained(TINY, max_pixels=12 * 784)
    official.save_pretrained(tmp_path)
    again = Qwen2VLProcessor.from_pretrained(str(tmp_path))
    assert again.image_processor.max_pixels == 12 * 784
    expected = our_processor().apply_chat_template([ask(PICTURE, "Hi")], max_pixels=12 * 784, **CHAT)
    assert_same_inputs(again.apply_chat_template([ask(PICTURE, "Hi")], **CHAT), expected)
    assert again.chat_template == official.chat_template


def test_a_processor_as_json():
    content = json.loads(our_processor().to_json_string())
    assert isinstance(content, dict) and content


def test_the_parts_are_the_constructors_arguments():
    usual = our_processor()
    again = Qwen2VLProcessor(
        image_processor=usual.image_processor, tokenizer=usual.tokenizer, chat_template=usual.chat_template
    )
    assert_same_inputs(
        again.apply_chat_template([ask(PICTURE)], **CHAT), usual.apply_chat_template([ask(PICTURE)], **CHAT)
    )
