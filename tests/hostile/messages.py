"""Messages that are none, that contradict themselves, or that are only unusual."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from tests.hostile.cases import Case
from tests.hostile.material import photo
from tests.hostile.ways_in import ask, check_inputs, given, processor


def user(content) -> list[dict]:
    """A conversation of one message."""
    return [{"role": "user", "content": content}]


def user_image(image) -> list[dict]:
    return user([{"type": "image", "image": image}])


def user_video(video) -> list[dict]:
    return user([{"type": "video", "video": video}])


def nested_lists(depth: int):
    inner = "x"
    for _ in range(depth):
        inner = [inner]
    return inner


def nested_messages(depth: int):
    inner = "x"
    for _ in range(depth):
        inner = {"content": inner, "role": "user", "image": inner}
    return inner


def own_content() -> list[dict]:
    content = [{"type": "text", "text": "x"}]
    content.append(content)
    return user(content)


def own_message() -> list[dict]:
    message = {"role": "user"}
    message["content"] = message
    return [message]


class Strange:
    """An object that cannot even be printed."""

    def __repr__(self):
        raise RuntimeError("no")

    __str__ = __repr__


SOME_MESSAGES = "message|conversation"

WRONG_CONVERSATIONS = {  # name: conversation, what the refusal says
    "None": (None, SOME_MESSAGES),
    "a number": (7, SOME_MESSAGES),
    "a text": ("Hello", "list of messages"),
    "bytes": (b"Hello", SOME_MESSAGES),
    "one message": ({"role": "user", "content": "Hello"}, "list of messages"),
    "a list of None": ([None], SOME_MESSAGES),
    "a list of texts": (["a", "b"], SOME_MESSAGES),
    "lists 10,000 deep": (nested_lists(10_000), SOME_MESSAGES),
    "messages 10,000 deep": ([nested_messages(10_000)], "address|cannot have"),
    "messages and conversations mixed": ([{"role": "user", "content": "x"}, [{"role": "user"}]], SOME_MESSAGES),
    "a content in itself": (own_content(), "item"),
    "a message in itself": (own_message(), "item"),
    "no role": ([{"content": "x"}], "role"),
    "no content": ([{"role": "user"}], "content"),
    "a role that is a number": ([{"role": 3, "content": "x"}], "role"),
    "a role that is a list": ([{"role": ["user"], "content": "x"}], "role"),
    "a role that is None": ([{"role": None, "content": "x"}], "role"),
    "keys that are no texts": ([{1: 2, None: 3, (4,): 5}], "role"),
    "10,000 keys": ([{f"key{i}": i for i in range(10_000)}], "role"),
    "a key with a line break": ([{"a\nb": 1}], "role"),
    "content of a number": (user(5), "content"),
    "content of bytes": (user(b"x"), "content"),
    "content of a set": (user({"x"}), "content"),
    "an item of None": (user([None]), "item"),
    "an item of a number": (user([4]), "item"),
    "an item that is a list": (user([["x"]]), "item"),
    "an item of a strange object": (user([Strange()]), "item"),
    "an empty item": (user([{}]), "item"),
    "an item of an unknown type": (user([{"type": "audio", "audio": "a.mp3"}]), "item"),
    "an item with 10,000 keys": (user([{f"k{i}": 1 for i in range(10_000)}]), "item"),
    "a text that is None": (user([{"type": "text", "text": None}]), "item|text"),
    "a text that is a list": (user([{"type": "text", "text": ["a"]}]), "item|text"),
    "a text that is a number": (user([{"type": "text", "text": 3}]), "item|text"),
    "an image without one": (user([{"type": "image"}]), "names no picture"),
    "an image of None": (user_image(None), "names no picture"),
    "an image of a number": (user_image(5), "int is no picture"),
    "an image of a list": (user_image(["a.png"]), "list is no picture"),
    "an image of a dict": (user_image({"href": "x"}), "no address"),
    "an image of a dict of a dict": (user_image({"url": {"url": "x"}}), "no picture"),
    "an image of a strange object": (user_image(Strange()), "no picture"),
    "an image and a video": (user([{"type": "image", "image": "a", "video": "b"}]), "2 times"),
    "three sources": (user([{"type": "image", "url": "a", "path": "b", "image": "c"}]), "3 times"),
    "a video without one": (user([{"type": "video"}]), "names no picture or video"),
    "a video of no frames": (user_video([]), "empty"),
    "a video of a number": (user_video(2.5), "no video"),
    "a video of numbers": (user_video([1, 2]), "no picture"),
    "a video of lists": (user_video([[photo()]]), "no picture"),
    "a video of two sizes": (user_video([photo(), photo().rotate(90, expand=True)]), "same size"),
    "a video of 1,000 pictures": (user_video([photo()] * 1000), "nframes"),
    "a picture and its options wrong": (user([{"image": "/no/a.png", "max_pixels": "x"}]), "max_pixels"),
    "half a character": (user("\ud83d"), "text|character|UTF"),
    "half a character in a role": ([{"role": "\udc00", "content": "x"}], "role|text|character|UTF"),
}

ODD_CONVERSATIONS = {  # unusual, but sound; only the one without messages may be refused
    "no messages": [],
    "no content": user(""),
    "an empty list as content": user([]),
    "tuples for lists": ({"role": "user", "content": ("a", "b")},),
    "content of one item": user({"type": "text", "text": "x"}),
    "two system messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}],
    "an unknown role": [{"role": "potato", "content": "x"}],
    "an empty role": [{"role": "", "content": "x"}],
    "a role of 10,000 letters": [{"role": "r" * 10_000, "content": "x"}],
    "a role with line breaks": [{"role": "user\nx\n", "content": "x"}],
    "the last word is the assistant's": [{"role": "assistant", "content": "x"}],
    "5,000 messages": [{"role": "user", "content": "x"}] * 5000,
    "20,000 items": user([{"type": "text", "text": "x"}] * 20_000),
    "a million letters": user("word " * 200_000),
    "a million letters without a space": user("x" * 1_000_000),
    "all of Unicode": user("".join(map(chr, [*range(0x3000), *range(0x1F000, 0x1FAFF)]))),
    "10,000 accents on one letter": user("a" + "\u0301" * 10_000),
    "null characters": user("\0" * 1000),
    "300 conversations": [user(f"x{i}") for i in range(300)],
    "more keys than needed": [{"role": "user", "content": "x", "name": "y", "weight": math.nan}],
    "100 pictures": user([{"type": "image", "image": photo()}] * 100),
}

WRONG_PROMPTS = {  # name: prompt, number of pictures, what the refusal says
    "more placeholders than pictures": ("<|image_pad|>" * 3, 1, "3 .*1 pictures"),
    "fewer placeholders than pictures": ("x", 2, "0 .*2 pictures"),
    "a million placeholders": ("<|image_pad|>" * 1_000_000, 1, "1000000"),
    "a prompt of bytes": (b"<|image_pad|>", 1, "text|prompt|str"),
    "a prompt of numbers": ([1, 2], 0, "text|prompt|str"),
    "no prompt": ([], 1, "0 .*1 pictures"),
}


def messages() -> Iterator[Case]:
    kind = "messages"
    for name, (conversation, says) in WRONG_CONVERSATIONS.items():
        yield Case(kind, name, given(conversation), ask, says)
    for name, conversation in ODD_CONVERSATIONS.items():
        expect = "answered" if conversation else "either"
        yield Case(kind, f"odd: {name}", given(conversation), ask, SOME_MESSAGES, expect)
    for name, (text, pictures, says) in WRONG_PROMPTS.items():
        yield Case(kind, name, given(text), partial(process, pictures), says)


def process(pictures: int, text) -> str:
    """A prompt and this number of pictures, without a conversation."""
    return check_inputs(processor()([photo()] * pictures, text))
