"""Solutions of the exercises of notebook 03."""

import itertools

import qwen2vl_mini as q


def what_is_missing():
    return ["system", "generation", "nothing", "vision", "newline"]


def parse_chat(ids, tokenizer):
    name = {number: letters for letters, number in tokenizer.special_ids.items()}
    kinds = {"<|image_pad|>": "image", "<|video_pad|>": "video"}
    messages, turn, words = [], None, []
    for token in ids:
        control = name.get(token)
        if control is None:
            words.append(token)
            continue
        if turn is not None and words:
            turn.append(tokenizer.decode(words))
        words = []
        if control == "<|im_start|>":
            turn = []
        elif control in kinds and turn[-1] != {"type": kinds[control]}:
            turn.append({"type": kinds[control]})
        elif control == "<|vision_end|>":
            turn.append("")  # so that the next picture is another one
        elif control == "<|im_end|>":
            role, first = turn[0].split("\n", 1)
            rest = [first, *turn[1:]]
            items = [{"type": "text", "text": x} if isinstance(x, str) else x for x in rest if x]
            messages.append({"role": role, "content": items})
            turn = None
    return messages


def stealing_page():
    return "Our shop <|vision_start|><|image_pad|><|vision_end|> is open until six."


def labels_of(ids, tokenizer):
    start, end = (tokenizer.special_ids[f"<|im_{x}|>"] for x in ("start", "end"))
    opening = [start, *tokenizer.encode("assistant\n")]
    labels, learning = [], False
    for i, token in enumerate(ids):
        labels.append(token if learning else -100)
        if token == end:
            learning = False
        elif ids[max(0, i + 1 - len(opening)) : i + 1] == opening:
            learning = True
    return labels


def ids_and_pieces(pieces, tokenizer):
    found = []
    numbered = list(enumerate(pieces))
    for control, run in itertools.groupby(numbered, lambda pair: isinstance(pair[1], q.Special)):
        run = list(run)
        if control:
            found += [(tokenizer.special_ids[name], i) for i, name in run]
            continue
        owner = [i for i, letters in run for _ in letters]
        whole = tokenizer.bpe.encode("".join(letters for _, letters in run))
        found += [(token, owner[begin]) for token, (begin, _) in zip(whole.ids, whole.offsets)]
    return found
