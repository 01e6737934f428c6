"""The keys of messages, of their items and of a batch's lines: what each means, and one sentence for any other.

A key that is overlooked is a picture, a question or a limit lost, and an answer invented. So each key has a meaning,
or is known to ask for nothing, or is refused by name. A key that is None is absent, as in rows of a table, which all
have the same keys.
"""

from __future__ import annotations

from difflib import get_close_matches

from qwen2vl_io.options import MEDIA_OPTIONS, SAME
from qwen2vl_io.sentences import shorten, shown
from qwen2vl_io.sources import SOURCE_KEYS

ABOUT = "id uuid name index timestamp created_at date metadata meta cache_control".split()  # ask nothing of a model
IMAGE_KEYS = ("image", "image_url")  # what names a picture
VIDEO_KEYS = ("video", "video_url")
TYPES = {  # of items: what each is
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys((*IMAGE_KEYS, "input_image"), "image"),
    **dict.fromkeys(VIDEO_KEYS, "video"),
}
OWN = ("source", "measured", "patches")  # what this package writes into items on their way
FILE_KEYS = "mime_type media_type filename file_name format".split()  # the content tells
OPTION_KEYS = (*MEDIA_OPTIONS, *SAME, "size")
ITEM_KEYS = {
    "text": ("type", "text", *ABOUT, "annotations", "logprobs"),
    "media": ("type", *SOURCE_KEYS, *OPTION_KEYS, *ABOUT, *OWN, *FILE_KEYS),
}
MESSAGE_KEYS = ("role", "content", *ABOUT, "weight", "turn", "tool_call_id", "annotations")
LINE_KEYS = ("messages", *OPTION_KEYS, *ABOUT)
LINE_KEYS += tuple("answer answers label labels reference target source dataset category split".split())

NO_PLACE = "Qwen2-VL's template has no place for it; write it into a text"
IN_CONTENT = (
    'a picture or clip stands in the content, as {"type": "image", "image": …} or {"type": "video", "video": …}'
)
MEDIA_WORDS = "image images image_url image_urls picture pictures video videos video_url video_urls media files".split()
REFUSED_IN_MESSAGES = {
    **dict.fromkeys(MEDIA_WORDS, IN_CONTENT),
    **dict.fromkeys("tool_calls function_call tools reasoning_content reasoning thinking documents".split(), NO_PLACE),
    **dict.fromkeys(("audio", "audios"), "Qwen2-VL does not hear"),
    **dict.fromkeys(("text", "value", "parts"), 'what is said stands under "content"'),
    "from": 'who speaks stands under "role"',
    **dict.fromkeys(OPTION_KEYS, "it belongs into the item of a picture or clip, or into the call"),
}
REFUSED_IN_ITEMS = {
    **dict.fromkeys(("width", "height"), "resized_height and resized_width set the sides"),
    **dict.fromkeys(("caption", "alt", "title", "label", "question", "prompt", "content"),
                    'words stand in an item of their own, {"type": "text", "text": …}'),
    **dict.fromkeys(("images", "pictures", "videos"), "each has an item of its own"),
    "detail": 'how sharp a picture is seen is said by max_pixels; "auto" and "high" change nothing',
    **dict.fromkeys(("sample_fps", "raw_fps"), "fps says how many frames of a second are taken"),
    **dict.fromkeys(("audio", "input_audio"), "Qwen2-VL does not hear"),
    "data": 'base64 holds a file\'s content, or image a data URI',
    "do_sample_frames": "nframes says how many frames of a clip are taken",
}  # fmt: skip
FOR_ALL_LINES = "it holds for all lines; give it as an option of the command"
SETTINGS = "max_new_tokens temperature top_p top_k repetition_penalty seed model add_vision_id do_sample".split()
REFUSED_IN_LINES = {
    **dict.fromkeys((*MEDIA_WORDS, "text", "prompt", "question", "system", "conversations"),
                    'all that is said and seen stands in "messages"'),
    **dict.fromkeys(SETTINGS, FOR_ALL_LINES),
    **dict.fromkeys(("tools", "documents"), NO_PLACE),
}  # fmt: skip
NEUTRAL = {"detail": ("auto", "high", "original")}  # values that ask for nothing


def check_keys(content: dict, known, reasons: dict[str, str], where: str) -> dict:
    """A message, item or line without the keys that are None. Raises ValueError for a key that means nothing here."""
    content = {key: value for key, value in content.items() if value is not None}
    for key, value in list(content.items()):
        if key in known:
            continue
        if isinstance(value, list | dict | tuple) and not value and key in reasons:
            del content[key]  # "images": [], "tool_calls": []
        elif key in NEUTRAL and key in reasons and isinstance(value, str) and value in NEUTRAL[key]:
            del content[key]
        elif key in reasons:
            raise ValueError(f"{where} cannot have {shown(key)}: {reasons[key]}.")
        else:
            close = get_close_matches(str(key)[:100], [name for name in known if name not in OWN], 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known[:9])} and others."
            raise ValueError(f"{where} has a key {shown(key)}, which means nothing here; {hint}")
    return content


def check_message_keys(message: dict) -> dict:
    """A message without the keys that are None."""
    return check_keys(message, MESSAGE_KEYS, REFUSED_IN_MESSAGES, "A message")


def check_line_keys(line: dict) -> dict:
    """A batch's line without the keys that are None."""
    return check_keys(line, LINE_KEYS, REFUSED_IN_LINES, "A line")


def kind_of(item: dict) -> str | None:
    """'image', 'video' or None for an item, by the official template's rule; None is everything else."""
    named = item.get("type")
    kind = TYPES.get(named) if isinstance(named, str) else None
    if kind == "image" or any(item.get(key) is not None for key in IMAGE_KEYS):
        return "image"
    return "video" if kind == "video" or any(item.get(key) is not None for key in VIDEO_KEYS) else None


def check_item_keys(item: dict) -> dict:
    """An item of a message without the keys that are None: a text, a picture or a clip, and only one of them."""
    item = {key: value for key, value in item.items() if value is not None}
    named = item.get("type")
    if named is not None and (not isinstance(named, str) or named not in TYPES):
        close = get_close_matches(str(named)[:100], TYPES, 1)
        hint = f"did you mean {close[0]}?" if close else "it is text, image or video."
        raise ValueError(f"An item of a message has the type {shown(named)}, which is unknown; {hint}")

    kind = kind_of(item)
    has_text = item.get("text") not in (None, "")
    if kind and has_text:
        raise ValueError(
            f"An item of a message has both a text and media ({kind}), of which one is lost; make two items of it, "
            "in the order in which they are to be read."
        )
    other = {"image": VIDEO_KEYS, "video": IMAGE_KEYS}.get(TYPES.get(named), ())
    wrong = [key for key in other if key in item]
    if wrong and len([key for key in SOURCE_KEYS if key in item]) == 1:
        raise ValueError(
            f"An item of a message has the type {shown(named)} but a {wrong[0]}; write the type {wrong[0]}."
        )
    if kind and "text" in item:
        del item["text"]
    if kind is None and "text" not in item:
        found = shorten(", ".join(sorted(map(str, item))) or "nothing")
        raise ValueError(f"An item of a message has a 'text', an 'image' or a 'video', but this one has {found}.")
    known = ITEM_KEYS["media" if kind else "text"]
    reasons = REFUSED_IN_ITEMS if kind else REFUSED_IN_MESSAGES | REFUSED_IN_ITEMS
    reasons = {key: reason for key, reason in reasons.items() if key not in known}
    return check_keys(item, known, reasons, f"An item with {'an' if kind == 'image' else 'a'} {kind or 'text'}")


def check_address(item: dict) -> None:
    """The keys of an address written as {"url": …}, which OpenAI's calls write."""
    for key in SOURCE_KEYS:
        address = item.get(key)
        if isinstance(address, dict) and "url" in address:
            known = ("url", *FILE_KEYS, *ABOUT)
            check_keys(address, known, REFUSED_IN_ITEMS, f"The {key} of an item")
