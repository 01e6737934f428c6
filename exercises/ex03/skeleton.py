"""Exercises of notebook 03, the chat template. `python -m exercises check 3.1` says how you do."""

# %% imports
from qwen2vl_mini import Qwen2VLTokenizer, Special


# %% 3.1
def what_is_missing() -> list[str]:
    """What does each prompt lack, compared with `render_chat` of its messages before an answer?

    Write five of "system", "newline", "vision", "end", "generation", "nothing". A ↵ is a newline.
    1: "Hi" of a user      <|im_start|>user↵Hi<|im_end|>↵<|im_start|>assistant↵
    2 to 5 have a system message of their own: … is <|im_start|>system↵Be brief.<|im_end|>↵
    2: "Hi" of a user      …<|im_start|>user↵Hi<|im_end|>↵
    3: "Hi" of a user      …<|im_start|>user↵Hi<|im_end|>↵<|im_start|>assistant↵
    4: a picture, "Hi"     …<|im_start|>user↵<|image_pad|>Hi<|im_end|>↵<|im_start|>assistant↵
    5: "Hi" of a user      …<|im_start|>user↵Hi<|im_end|><|im_start|>assistant↵
    """
    raise NotImplementedError


# %% 3.2
def parse_chat(ids: list[int], tokenizer: Qwen2VLTokenizer) -> list[dict]:
    """The ids of a prompt → its messages: [{"role": "user", "content": [item, …]}, …].

    An item is {"type": "text", "text": "Hi"}, with the whole text between two control tokens, never
    empty; or {"type": "image"} or {"type": "video"}, one for all placeholders between two vision
    markers. An open turn at the end, which only announces an answer, is left out.
    The id of a control token is `tokenizer.special_ids["<|im_end|>"]`; `tokenizer.decode` helps.
    """
    raise NotImplementedError


# %% 3.3
def stealing_page() -> str:
    """A page that steals a picture: program 1 puts it *into* the page, words before and behind it.

    Program 1 writes a mark for the picture only where the page has none:
        mark = "" if "<|image_pad|>" in page else "<|vision_start|><|image_pad|><|vision_end|>"
        asked = page + mark + "What is in my picture?"
        text = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        processor(text=text, images=[picture])
    Program 2 gives page, picture and question, as three items of a message, to
    `apply_chat_template(…, tokenize=True)`. There the same page is harmless: the picture stands
    between the page and the question.
    """
    raise NotImplementedError


# %% 3.4
def labels_of(ids: list[int], tokenizer: Qwen2VLTokenizer) -> list[int]:
    """The `labels` of a conversation: at each place its own id if it is to be learned, else -100.

    Learned is what an assistant writes: its words, and the <|im_end|> with which it stops. What
    opens its turn, "assistant\n", is given, and the newline behind <|im_end|> is the template's.
    The model's forward pass does the shift by one.
    """
    raise NotImplementedError


# %% 3.5
def ids_and_pieces(pieces: list[str], tokenizer: Qwen2VLTokenizer) -> list[tuple[int, int]]:
    """Each id of a prompt, with the number of the piece (never empty) in which it begins.

    A fault: ["Descr", "ibe"] must give [(457, 0)]. `bpe.encode(text).offsets` holds the
    (start, end) of each id in `text`, in characters.
    """
    found = []
    for number, piece in enumerate(pieces):
        if isinstance(piece, Special):
            found.append((tokenizer.special_ids[piece], number))
        else:
            encoded = tokenizer.bpe.encode(piece, add_special_tokens=False)
            found += [(token_id, number) for token_id in encoded.ids]
    return found
