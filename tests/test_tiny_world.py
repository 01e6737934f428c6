"""The tiny world keeps its rules: what is drawn is what is said, and the tokenizer is Qwen2's in small."""

import json
import random
import re
import unicodedata

import numpy as np
import pytest

from tiny_world import scenes as world
from tiny_world import tokenizer as tok

SIZES = ((56, 56), (112, 112), (140, 84), (90, 224), (224, 224), (448, 112), (301, 177))


def random_scenes(count: int, **options):
    for i in range(count):
        rng = random.Random(i)
        width, height = SIZES[i % len(SIZES)]
        yield world.make_scene(rng, width, height, rng.randint(1, 6), text_length=rng.choice((0, 0, 3, 8)), **options)


@pytest.fixture(scope="module")
def tokenizer():
    return tok.build_tokenizer()


# --- the rules of a scene --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_sample():
    for task in world.TASKS:
        a, b = (world.make_sample(7, task, 112, 140) for _ in range(2))
        assert a.turns == b.turns and a.scenes == b.scenes
        assert [i.tobytes() for i in a.images] == [i.tobytes() for i in b.images]
    different = {world.make_sample(seed, "describe", 112, 112).images[0].tobytes() for seed in range(20)}
    assert len(different) == 20


def test_objects_and_text_keep_inside_apart_and_within_their_limits():
    for scene in random_scenes(200):
        boxes = [t.box for t in scene.things] + ([scene.text.box] if scene.text else [])
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                assert a[2] + 2 <= b[0] or b[2] + 2 <= a[0] or a[3] + 2 <= b[1] or b[3] + 2 <= a[1]
        for thing in scene.things:
            assert 9 <= thing.radius <= 60 and thing.radius >= min(scene.width, scene.height) / 16
            assert abs(thing.rotation) <= 20
            x1, y1, x2, y2 = thing.box
            assert thing.radius == pytest.approx(max(x2 - x1, y2 - y1) / 2)
            assert (thing.cx, thing.cy) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2))
            assert all(abs(c - d) <= 20 for c, d in zip(thing.rgb, world.COLOURS[thing.colour], strict=True))
        if scene.text:
            assert 12 <= scene.text.height <= 64 and re.fullmatch("[A-Z0-9]{1,8}", scene.text.string)
        xs = [t.cx for t in scene.things]
        assert all(b - a >= 2 for a, b in zip(xs, xs[1:], strict=False))


def test_no_colour_of_the_background_comes_near_an_object_or_the_text():
    kinds = set()
    for scene in random_scenes(150):
        kinds.add(scene.background.kind)
        pixels = np.asarray(world.render_background(scene.background, scene.width, scene.height), float).reshape(-1, 3)
        for part in [*scene.things, *([scene.text] if scene.text else [])]:
            assert np.linalg.norm(pixels - np.array(part.rgb), axis=1).min() >= 60
    assert kinds == {"plain", "gradient", "noise", "stripes"}


def test_held_out_pairs_are_seen_only_where_asked_for():
    assert len(world.HELD_OUT_PAIRS) == 8 and set(world.HELD_OUT_PAIRS) <= set(world.ALL_PAIRS)
    assert len({s for _, s in world.HELD_OUT_PAIRS}) == 8 and len({c for c, _ in world.HELD_OUT_PAIRS}) == 8
    seen = {(t.colour, t.shape) for scene in random_scenes(600) for t in scene.things}
    assert seen == set(world.ALL_PAIRS) - world.HELD_OUT_PAIRS
    held = {(t.colour, t.shape) for scene in random_scenes(60, pairs="held_out") for t in scene.things}
    assert held == world.HELD_OUT_PAIRS
    for seed in range(60):  # changes of colour and second pictures keep to it as well
        for task in ("compare", "motion"):
            sample = world.make_sample(seed, task, 112, 112)
            assert not world.HELD_OUT_PAIRS & {(t.colour, t.shape) for s in sample.scenes for t in s.things}


def test_fonts_of_the_test_are_not_trained_on():
    train, test = world.font_families("train"), world.font_families("test")
    if any(key.split("/")[0] in world.TEST_FAMILIES for key in world.font_files()):  # with matplotlib at hand
        assert not {key for family in train for key in family} & {key for family in test for key in family}
    assert train and test
    with pytest.raises(ValueError, match="fonts must be"):
        world.font_families("all")


def test_impossible_requests_are_refused_in_words():
    with pytest.raises(ValueError, match="sides must be"):
        world.make_scene(random.Random(0), 40, 112, 1)
    with pytest.raises(ValueError, match="Unknown task"):
        world.make_sample(0, "guess", 112, 112)
    with pytest.raises(ValueError, match="pairs must be"):
        world.make_sample(0, "describe", 112, 112, pairs="test")


# --- the pixels ------------------------------------------------------------------------------------------------------


def drawn_box(scene) -> tuple[float, float, float, float]:
    """Box of the pixels that differ from a plain background, borders weighed by how much of them is covered."""
    colour = np.array(scene.background.colours[0], float)
    pixels = np.asarray(world.render(scene), float)
    assert pixels.shape == (scene.height, scene.width, 3)
    covered = np.linalg.norm(pixels - colour, axis=2) > 8
    ys, xs = np.nonzero(covered)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


@pytest.mark.parametrize("shape", world.SHAPES)
def test_boxes_agree_with_the_pixels(shape):
    for seed in range(12):
        rng = random.Random(seed)
        colour = rng.choice(sorted(world.COLOURS))
        scene = world.make_scene(rng, 150, 130, 1, kinds=[(colour, shape)])
        grey = world.Background("plain", ((100, 100, 110),) if colour != "black" else ((200, 200, 190),))
        thing = scene.things[0]
        scene = world.Scene(scene.width, scene.height, grey, scene.things)
        assert drawn_box(scene) == pytest.approx(thing.box, abs=1.5), (shape, thing)


@pytest.mark.parametrize("fonts", ["train", "test"])
def test_text_boxes_agree_with_the_pixels(fonts):
    for seed in range(25):
        scene = world.make_scene(random.Random(seed), 200, 100, 0, text_length=5, fonts=fonts)
        scene = world.Scene(200, 100, world.Background("plain", ((128, 128, 128),)), (), scene.text)
        if world.colour_distance(scene.background, scene.text.rgb) < 60:
            continue
        assert drawn_box(scene) == pytest.approx(scene.text.box, abs=1.5)
        xs = [x for x, _ in scene.text.centres]
        assert xs == sorted(xs) and scene.text.box[0] <= xs[0] and xs[-1] <= scene.text.box[2]


def test_the_middle_of_each_object_has_its_colour():
    for scene in random_scenes(80):
        pixels = np.asarray(world.render(scene), int)
        for thing in scene.things:
            if thing.shape != "ring":
                assert tuple(pixels[int(thing.cy), int(thing.cx)]) == thing.rgb


# --- the words: an independent reading of each question --------------------------------------------------------------

BOX = r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>"


def box_in_pixels(match, scene, first=1):
    x1, y1, x2, y2 = (int(match[first + i]) / 1000 for i in range(4))
    return x1 * scene.width, y1 * scene.height, x2 * scene.width, y2 * scene.height


def article(noun: str) -> str:
    return ("An " if noun.startswith("orange") else "A ") + noun


def listed(things, text=None) -> str:
    words = [article(f"{t.colour} {t.shape}").replace("A", "a", 1) for t in things]
    words += [f'the text "{text.string}"'] if text else []
    sentence = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return sentence[0].upper() + sentence[1:] + "."


def expected_answer(question: str, scene) -> str:  # noqa: C901 (one branch a wording is the clearest)
    """The answer, found by reading the question's words and looking the scene over again."""
    things = sorted(scene.things, key=lambda t: t.box[0] + t.box[2])
    if question == "Describe this image.":
        return listed(things, scene.text)
    if question == "Read the text.":
        return scene.text.string
    if question == "How many objects are there?":
        return str(len(things))
    if m := re.fullmatch(r"How many (\w+) objects are there\?", question):
        return str(sum(t.colour == m[1] for t in things))
    if m := re.fullmatch(r"How many (\w+) are there\?", question):
        shape = {"crosses": "cross"}.get(m[1], m[1][:-1])
        assert shape in world.SHAPES
        return str(sum(t.shape == shape for t in things))
    if m := re.fullmatch(r"What color is the (\w+)\?", question):
        (thing,) = [t for t in things if t.shape == m[1]]
        return thing.colour.capitalize() + "."
    if m := re.fullmatch(r"What shape is the (\w+) object\?", question):
        (thing,) = [t for t in things if t.colour == m[1]]
        return f"A {thing.shape}."
    if m := re.fullmatch(rf"What is in the box {BOX}\?", question):
        near = [t for t in things if np.allclose(t.box, box_in_pixels(m, scene), atol=0.5)]
        assert len(near) == 1
        return listed(near)
    if m := re.fullmatch(r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", question):
        (a,) = [t for t in things if (t.colour, t.shape) == (m[1], m[2])]
        (b,) = [t for t in things if (t.colour, t.shape) == (m[4], m[5])]
        holds = {"left of": a.cx < b.cx, "right of": a.cx > b.cx, "above": a.cy < b.cy, "below": a.cy > b.cy}
        return "Yes." if holds[m[3]] else "No."
    raise AssertionError(f"not in the fixed wording: {question}")


def check_turn(question: str, answer: str, scene) -> None:
    if m := re.fullmatch(r"Where is the (\w+) (\w+)\?", question):
        (thing,) = [t for t in scene.things if (t.colour, t.shape) == (m[1], m[2])]
        start = rf"<\|object_ref_start\|>{m[1]} {m[2]}<\|object_ref_end\|>"
        found = re.fullmatch(start + BOX, answer)
        assert found and all(0 <= int(g) <= 1000 for g in found.groups())
        assert box_in_pixels(found, scene) == pytest.approx(thing.box, abs=0.5)
    else:
        assert answer == expected_answer(question, scene), (question, answer)


@pytest.mark.parametrize("task", [*world.PICTURE_TASKS, "dialogue"])
def test_answers_about_one_picture(task):
    for seed in range(80):
        width, height = SIZES[seed % len(SIZES)]
        sample = world.make_sample(seed, task, width, height, max_things=1 + seed % 6, max_chars=8, text_share=0.3)
        assert len(sample.images) == len(sample.scenes) == 1 and sample.images[0].size == (width, height)
        assert sample.turns[-1] == (sample.question, sample.answer)
        assert len(sample.turns) in ((2, 3) if task == "dialogue" else (1,))
        assert len({q for q, _ in sample.turns}) == len(sample.turns)
        for question, answer in sample.turns:
            check_turn(question, answer, sample.scenes[0])


def test_answers_about_two_pictures():
    seen = set()
    for seed in range(200):
        sample = world.make_sample(seed, "compare", 112, 112)
        first, second = sample.scenes
        seen.add((sample.question, sample.answer if len(sample.answer) < 11 else ""))
        if sample.question == "Which picture has more objects?":
            sign = int(np.sign(len(first.things) - len(second.things)))
            assert sample.answer == {1: "Picture 1.", -1: "Picture 2.", 0: "Neither."}[sign]
        elif sample.question == "Are the pictures the same?":
            same = sample.images[0].tobytes() == sample.images[1].tobytes()
            assert sample.answer == ("Yes." if same else "No.")
        else:
            assert sample.question == "What is in both pictures?"
            left = [(t.colour, t.shape) for t in second.things]
            both = [t for t in first.things if (t.colour, t.shape) in left and not left.remove((t.colour, t.shape))]
            assert sample.answer == listed(both)
    assert len(seen) == 6


def test_answers_about_clips():
    events = set()
    for seed in range(150):
        sample = world.make_sample(seed, "motion", 112, 112)
        assert 4 <= len(sample.images) == len(sample.scenes) <= 8
        first, last = (set(sample.scenes[i].things) for i in (0, -1))
        gone, come = first - last, last - first
        a, b = next(iter(gone), None), next(iter(come), None)
        if a and b and a.colour == b.colour:
            steps = [next(iter(set(s.things) - (first & last))) for s in sample.scenes]
            dx, dy = np.diff([t.cx for t in steps]), np.diff([t.cy for t in steps])
            assert np.ptp(dx) < 1e-6 and np.ptp(dy) < 1e-6  # steadily
            way = ("right" if dx[0] > 0 else "left") if abs(dx[0]) > 1e-9 else "down" if dy[0] > 0 else "up"
            if sample.question.startswith("Which way"):
                assert sample.question == f"Which way does the {a.shape} move?"
                assert sum(t.shape == a.shape for t in first) == 1
                expected = way.capitalize() + "."
            else:
                expected = f"{article(f'{a.colour} {a.shape}')} moves {way}."
            events.add(way)
        elif a and b:
            expected = f"{article(f'{a.colour} {a.shape}')} turns {b.colour}."
            assert a.shape == b.shape and events.add("turns") is None
        else:
            verb, thing = ("appears", b) if b else ("disappears", a)
            expected = f"{article(f'{thing.colour} {thing.shape}')} {verb}."
            events.add(verb)
        assert sample.answer == expected
        for scene in sample.scenes:
            for i, t in enumerate(scene.things):
                assert min(t.box) >= 0 and t.box[2] <= 112 and t.box[3] <= 112
                for u in scene.things[i + 1 :]:
                    assert (
                        max(t.box[0] - u.box[2], u.box[0] - t.box[2], t.box[1] - u.box[3], u.box[1] - t.box[3]) > 1.99
                    )
    assert events == {"left", "right", "up", "down", "turns", "appears", "disappears"}


def test_wordings_and_answers_are_balanced():
    counts = [world.make_sample(seed, "count", 112, 112) for seed in range(400)]
    absent = sum(s.answer == "0" for s in counts) / 400
    assert 0.05 < absent < 0.16
    total = sum(s.question == "How many objects are there?" for s in counts)
    colours = sum(bool(re.fullmatch(r"How many \w+ objects are there\?", s.question)) for s in counts)
    assert 90 < total < 180 and 90 < colours < 180
    yes = sum(world.make_sample(seed, "relation", 112, 112).answer == "Yes." for seed in range(200))
    assert 70 < yes < 130


def test_messages_have_the_official_form():
    sample = world.make_sample(3, "dialogue", 112, 112)
    chat = world.messages(sample)
    assert [m["role"] for m in chat] == ["user", "assistant"] * len(sample.turns)
    assert [c["type"] for c in chat[0]["content"]] == ["image", "text"]
    assert [c["type"] for c in chat[2]["content"]] == ["text"]
    assert world.messages(sample, with_answer=False) == chat[:-1]
    types = {
        t: [c["type"] for c in world.messages(world.make_sample(3, t, 112, 112))[0]["content"]] for t in world.TASKS
    }
    assert types["compare"] == ["image", "image", "text"]
    assert types["motion"] == ["video", "text"] and types["text"] == ["text"]


# --- the tokenizer ---------------------------------------------------------------------------------------------------

STRINGS = (
    "",
    "  ",
    "Describe this image.",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What color is the star?<|im_end|>\n",
    "naïve café, Ünïcode",
    "e\u0301 is one letter after NFC",
    "日本語と中文 한국어",
    "🙂 👩‍👩‍👧 🇨🇭",
    "مرحبا, שלום, Привет",
    "tabs\tand\r\nlines \n\n  ends  ",
    "I'll don't WE'VE 12345 3.14",
)


def test_the_tokenizer_is_built_the_same_each_time(tokenizer):
    assert tokenizer.to_str() == tok.build_tokenizer().to_str()
    assert tokenizer.get_vocab_size() <= 512


def test_text_comes_back_from_its_ids(tokenizer):
    for text in STRINGS:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_special_tokens_are_single_ids_at_the_end_in_order(tokenizer):
    ids = [tokenizer.encode(token).ids for token in tok.SPECIAL_TOKENS]
    size = tokenizer.get_vocab_size()
    assert ids == [[i] for i in range(size - 14, size)]
    assert tokenizer.decode([i[0] for i in ids], skip_special_tokens=True) == ""


def test_words_of_the_world_are_single_tokens(tokenizer):
    words = [f" {w}" for w in (*world.SHAPES, *world.COLOURS)] + list(world.COLOURS)
    words += [f" {world.plural(s)}" for s in world.SHAPES]
    assert [w for w in words if len(tokenizer.encode(w).ids) != 1] == []
    assert tokenizer.encode(world.CHARACTERS).tokens == list(world.CHARACTERS)


def test_the_structure_is_that_of_qwen2(tokenizer):
    data = json.loads(tokenizer.to_str())
    assert data["normalizer"] == {"type": "NFC"}
    split, byte_level = data["pre_tokenizer"]["pretokenizers"]
    assert split["behavior"] == "Isolated" and split["pattern"] == {"Regex": tok.PATTERN} and not split["invert"]
    assert byte_level["type"] == "ByteLevel" and not byte_level["add_prefix_space"] and not byte_level["use_regex"]
    assert data["decoder"]["type"] == "ByteLevel" and data["model"]["type"] == "BPE"
    assert data["model"]["unk_token"] is None and not data["model"]["byte_fallback"]
    assert all(t["special"] for t in data["added_tokens"]) and len(data["added_tokens"]) == 14


def test_transformers_loads_the_same_tokenizer(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tok.save_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    samples = [world.make_sample(i, world.TASKS[i % len(world.TASKS)], 112, 112, max_chars=8) for i in range(100)]
    for text in [*STRINGS, *(s for x in samples for s in (x.question, x.answer))]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert (theirs.pad_token, theirs.eos_token) == ("<|endoftext|>", "<|im_end|>")
