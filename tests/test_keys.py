"""No key of a message, an item or a batch line is overlooked: it counts, asks for nothing, or is refused by name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from qwen2vl_cli import batch
from qwen2vl_io import keys
from qwen2vl_io.messages import as_conversations, media_kind
from qwen2vl_mini import Qwen2VLImageProcessor, Qwen2VLProcessor, process_vision_info

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
FRAMES = [PICTURE, PICTURE.rotate(180), PICTURE, PICTURE.rotate(180)]
IMAGE = {"type": "image", "image": PICTURE}
VIDEO = {"type": "video", "video": FRAMES}
TEXT = {"type": "text", "text": "What is it?"}
TEMPLATE = {"tokenize": True, "return_dict": True}


@pytest.fixture(scope="module")
def processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor.from_pretrained("tiny")


def user(*content, **more) -> list[dict]:
    return [{"role": "user", "content": list(content), **more}]


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


WRONG = {  # name: conversation, what the refusal says
    "images of a message": ([{"role": "user", "content": "What is it?", "images": [PICTURE]}], "'images': a picture"),
    "image of a message": (user(TEXT, image=PICTURE), "'image': a picture"),
    "videos of a message": (user(TEXT, videos=["a.mp4"]), "'videos': a picture or clip"),
    "files of a message": (user(TEXT, files=["a.png"]), "'files': a picture"),
    "a limit of a message": (user(IMAGE, TEXT, max_pixels=3136), "'max_pixels': it belongs into the item"),
    "a misspelt message key": (user(TEXT, rolle="user"), "did you mean role"),
    "tool calls": (user(TEXT, tool_calls=[{"id": "1"}]), "'tool_calls': Qwen2-VL's template has no place"),
    "reasoning": (user(TEXT, reasoning_content="Hm."), "has no place"),
    "a picture and a text": (user({"type": "image", "image": PICTURE, "text": "What is it?"}), "make two items"),
    "a text and a picture": (user({"type": "text", "image": PICTURE, "text": "What is it?"}), "make two items"),
    "a clip and a text": (user({"video": FRAMES, "text": "What is it?"}), "make two items"),
    "max_pixel": (user(IMAGE | {"max_pixel": 3136}), "did you mean max_pixels"),
    "max_frame": (user(VIDEO | {"max_frame": 4}), "did you mean max_frames"),
    "min_pixel in a clip": (user(VIDEO | {"min_pixel": 4}), "did you mean min_pixels"),
    "image_urls": (user({"type": "image", "image_urls": "a.png"}), "did you mean image_url"),
    "width and height": (user(IMAGE | {"width": 56, "height": 56}), "resized_height and resized_width"),
    "a caption": (user(IMAGE | {"caption": "A cat"}), "words stand in an item of their own"),
    "a question": (user(IMAGE | {"question": "A cat?"}), "words stand in an item of their own"),
    "a low detail": (user({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}), "max_pixels"),
    "a low detail beside": (user({"type": "image_url", "image_url": "a.png", "detail": "low"}), "max_pixels"),
    "a limit in an address": (user({"type": "image_url", "image_url": {"url": "a", "max_pixels": 9}}), "max_pixels"),
    "a source in a text": (user(TEXT | {"url": "a.png"}), "'url', which means nothing"),
    "a limit in a text": (user(TEXT | {"max_pixels": 3136}), "max_pixels"),
    "an unknown type": (user({"type": "imag", "image": PICTURE}), "did you mean image"),
    "audio": (user({"type": "audio", "audio": "a.mp3"}), "type 'audio', which is unknown"),
    "a sound in a clip": (user(VIDEO | {"audio": "a.mp3"}), "does not hear"),
    "the type of the other": (user({"type": "image", "video": FRAMES}), "write the type video"),
    "the other type": (user({"type": "video", "image": PICTURE}), "write the type"),
    "a type of a number": (user({"type": 3, "text": "x"}), "type 3, which is unknown"),
    "a key of a number": (user(IMAGE | {3: 4}), "key 3, which means nothing"),
    "two rates": (user(VIDEO | {"fps": 1, "video_fps": 2}), "say the same differently"),
    "images in a call": (user(TEXT), "no option of this call"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_key_that_would_be_lost_is_refused_by_name(processor, name):
    conversation, says = WRONG[name]
    more = {"images": [PICTURE]} if name == "images in a call" else {}
    for tokenize in (True, False):
        with pytest.raises(ValueError, match=says) as caught:
            processor.apply_chat_template(conversation, tokenize=tokenize, **more)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    if not more:
        with pytest.raises(ValueError, match=says):
            process_vision_info(conversation)


@pytest.mark.parametrize(
    "more",
    [
        *({"text": None}, {"video": None, "video_url": None}, {"max_pixels": None, "fps": None}, {"text": ""}),
        *({"id": 3}, {"cache_control": {"type": "ephemeral"}}, {"mime_type": "image/png"}, {"image_url": None}),
        *({"detail": "auto"}, {"detail": "high"}, {"detail": None}, {"caption": None}, {None: None}, {"what": None}),
    ],
    ids=str,
)
def test_keys_that_ask_for_nothing(processor, more):
    expected = processor.apply_chat_template(user(IMAGE, TEXT), **TEMPLATE)
    assert_same(processor.apply_chat_template(user(IMAGE | more, TEXT), **TEMPLATE), expected)
    assert_same(processor(text="<|image_pad|>", images=[IMAGE | more]), processor(text="<|image_pad|>", images=PICTURE))


def test_rows_of_a_table(processor):
    """Datasets of Hugging Face give every item all columns, None where there is nothing."""
    empty = dict.fromkeys(("type", "text", "image", "video", "image_url", "fps", "max_pixels", "resized_height"))
    rows = [empty | IMAGE, empty | VIDEO, empty | TEXT, empty | {"text": "Well?"}]
    expected = processor.apply_chat_template(user(IMAGE, VIDEO, TEXT, "Well?"), **TEMPLATE)
    message = {"role": "user", "content": rows, "name": None, "images": None, "tool_calls": None}
    assert_same(processor.apply_chat_template([message], **TEMPLATE), expected)
    assert_same(processor.apply_chat_template([message | {"images": [], "tool_calls": []}], **TEMPLATE), expected)


@pytest.mark.parametrize("more", [{"name": "Ann"}, {"id": 4, "timestamp": 1.5}, {"weight": 0}, {"metadata": {"a": 1}}])
def test_notes_about_a_message(processor, more):
    chat = user(IMAGE, TEXT) + [{"role": "tool", "content": "3", "tool_call_id": "x"}]
    expected = processor.apply_chat_template(user(IMAGE, TEXT) + [{"role": "tool", "content": "3"}])
    assert processor.apply_chat_template([message | more for message in chat]) == expected


def test_what_is_given_stays_as_it_was(processor):
    item = IMAGE | {"text": None, "max_pixels": None}
    chat = user(item, TEXT | {"image": None}, name=None)
    before = json.dumps(chat, default=str)
    processor.apply_chat_template(chat, **TEMPLATE)
    assert json.dumps(chat, default=str) == before


@pytest.mark.parametrize("key", ("video_url", "image_url"))
@pytest.mark.parametrize("form", ("path", "dict", "no type", "type"))
def test_video_url_works_like_image_url(processor, tmp_path, key, form):
    kind = key.removesuffix("_url")
    path = str(tmp_path / "animation.gif")
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], duration=500)
    address = {"url": path} if form == "dict" else path
    item = {key: address} if form == "no type" else {"type": key if form != "type" else kind, key: address}
    expected = processor.apply_chat_template(user({"type": kind, kind: path}, TEXT), **TEMPLATE)
    assert media_kind(item) == kind
    assert_same(processor.apply_chat_template(user(item, TEXT), **TEMPLATE), expected)


@pytest.mark.parametrize("kind", ("input_text", "output_text"))
def test_texts_and_pictures_of_other_calls(processor, tmp_path, kind):
    PICTURE.save(tmp_path / "a.png")
    expected = processor.apply_chat_template(user(IMAGE, TEXT), **TEMPLATE)
    other = {"type": "input_image", "image_url": str(tmp_path / "a.png"), "detail": "auto"}
    assert_same(processor.apply_chat_template(user(other, TEXT | {"type": kind}), **TEMPLATE), expected)


def test_every_known_key_is_known_once():
    """What one table knows another does not refuse, and the sentences name what there is."""
    assert not set(keys.MESSAGE_KEYS) & set(keys.REFUSED_IN_MESSAGES)
    assert not set(keys.LINE_KEYS) & set(keys.REFUSED_IN_LINES)
    assert not set(keys.ITEM_KEYS["media"]) & set(keys.REFUSED_IN_ITEMS)
    checked, single = as_conversations([{"role": "user", "content": "x"}])
    assert single and checked == [[{"role": "user", "content": "x"}]]


def test_items_beside_a_text_are_checked_too(processor):
    with pytest.raises(ValueError, match="did you mean max_pixels"):
        processor(text="<|image_pad|>", images=[IMAGE | {"max_pixel": 3136}])
    with pytest.raises(ValueError, match="did you mean max_pixels"):
        Qwen2VLImageProcessor().preprocess([IMAGE | {"max_pixel": 3136}])
    with pytest.raises(ValueError, match="did you mean max_pixels"):
        processor.media_patches(IMAGE | {"max_pixel": 3136})
    with pytest.raises(ValueError, match="Among the pictures is an item that is none"):
        processor(text="<|image_pad|>", images=[VIDEO])
    with pytest.raises(ValueError, match="Among the clips is an item that is none"):
        Qwen2VLImageProcessor().preprocess(videos=[IMAGE])


# --- lines of --batch -------------------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"images": ["a.png"]}, "'images': all that is said and seen stands in \"messages\""),
        ({"image": "a.png"}, 'stands in "messages"'),
        ({"videos": ["a.mp4"]}, 'stands in "messages"'),
        ({"max_pixel": 3136}, "did you mean max_pixels"),
        ({"max_pixels": "x"}, "max_pixels='x' should be"),
        ({"max_new_tokens": 5}, "it holds for all lines"),
        ({"temperature": 0.5}, "it holds for all lines"),
        ({"system": "Be kind."}, 'stands in "messages"'),
        ({"message": HELLO}, "did you mean messages"),
        ({"messages": [HELLO[0] | {"images": ["a.png"]}]}, "'images': a picture or clip stands in the content"),
        ({"messages": None}, 'no "messages"'),
    ],
    ids=str,
)
def test_a_line_loses_no_key(tmp_path, more, says):
    line = batch.Line(1, json.dumps({"messages": HELLO} | more).encode())
    with pytest.raises(ValueError, match=says):
        batch.parse(line, tmp_path, None)


@pytest.mark.parametrize("more", [{"id": 3}, {"images": None}, {"images": []}, {"answer": "x", "category": "y"}, {}])
def test_a_line_may_have_notes(tmp_path, more):
    line = batch.Line(1, json.dumps({"messages": HELLO} | more).encode())
    batch.parse(line, tmp_path, None)
    assert line.messages == HELLO and line.options == {}


def test_the_options_of_a_line_hold_for_its_media(tmp_path, capsys):
    from qwen2vl_cli.__main__ import main

    PICTURE.resize((280, 280)).save(tmp_path / "a.png")
    content = [{"type": "image", "image": "a.png"}, TEXT]
    lines = [{"messages": [{"role": "user", "content": content}]} for _ in range(4)]
    lines[1] |= {"max_pixels": 4 * 784}
    lines[2] |= {"size": {"longest_edge": 4 * 784}}
    lines[3] |= {
        "max_pixels": 784,
        "messages": [{"role": "user", "content": [content[0] | {"max_pixels": 3136}, TEXT]}],
    }
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))

    assert main(["--batch", str(tmp_path / "lines.jsonl"), "--max-new-tokens", "1"]) == 0

    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    spent = {record["line"]: record["tokens"]["prompt"] for record in records}
    assert spent[1] - spent[2] == 100 - 4 and spent[2] == spent[3] == spent[4]
