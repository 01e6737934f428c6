"""What the tiny world's model is trained on: sheets, rounds, and what its training-only heads must know."""

import random
import re
from dataclasses import replace

import pytest
import torch

from qwen2vl_mini import Qwen2VLProcessor, Special
from tiny_world import batches, scenes, train
from tiny_world.batches import CHARACTERS, NAMES, SLOTS


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Qwen2VLProcessor:
    return train.start_folder(tmp_path_factory.mktemp("start"))


def scene_of(seed: int, things: int = 4, text: int = 0) -> scenes.Scene:
    rng = random.Random(seed)
    return scenes.make_scene(rng, rng.randint(100, 220), rng.randint(100, 220), things, text)


# --- cells -----------------------------------------------------------------------------------------------------------


def test_names_stand_in_the_cell_of_each_centre():
    for seed in range(40):
        scene = scene_of(seed)
        rows, cols = round(scene.height / 28), round(scene.width / 28)
        wanted = {
            (int(t.cy * rows / scene.height) * cols + int(t.cx * cols / scene.width), NAMES[name])
            for t in scene.things
            for name in (t.shape, t.colour)
        }
        found, edges = batches.name_targets(scene, (rows, cols))
        assert found.shape == (rows * cols, 18) and torch.equal(found.any(1), ~edges.isnan().any(1))
        assert {(int(cell), int(k)) for cell, k in found.nonzero()} == wanted


def test_characters_stand_in_their_order_and_know_how_many_come_before():
    for seed in range(40):
        scene = scene_of(seed, 0, 6)
        size = round(scene.height / 28), round(scene.width / 28)
        slots, first = batches.character_targets(scene, [scene.text], size)
        read = "".join(CHARACTERS[k - 1] for k in slots.flatten().tolist() if k)
        assert slots.shape == (size[0] * size[1], SLOTS) and read == scene.text.string  # one line: cells in order
        count = 0
        for cell, start in enumerate(first.tolist()):
            assert start == (count if slots[cell, 0] else -1)
            count += int((slots[cell] > 0).sum())


def test_a_cell_keeps_its_first_characters_only():
    scene = scene_of(3, 0, 8)
    slots, _ = batches.character_targets(scene, [scene.text], (1, 1))  # eight characters in one cell of five slots
    assert "".join(CHARACTERS[k - 1] for k in slots[0].tolist()) == scene.text.string[:SLOTS]


def test_near_cells_are_those_beyond_a_near_border():
    near = batches.NEAR
    assert batches.near_cells(2.5, 4) == [2]
    assert batches.near_cells(2 + near / 2, 4) == [2, 1] and batches.near_cells(3 - near / 2, 4) == [2, 3]
    assert batches.near_cells(2 + near * 1.1, 4) == [2] and batches.near_cells(3 - near * 1.1, 4) == [2]
    assert batches.near_cells(near / 2, 4) == [0] and batches.near_cells(4.0, 4) == [3]  # there is nothing beyond


def test_a_thing_near_a_border_belongs_to_the_cell_that_claims_it_most():
    def one(x: float, y: float) -> scenes.Scene:
        scene = scene_of(5, 1)
        return replace(scene, width=112, height=112, things=(scenes.thing_at(scene.things[0], x, y),))

    scene = one(56.8, 83.4)  # a little right of the border between columns 1 and 2, a little above that to row 3
    kinds = [NAMES[scene.things[0].shape], NAMES[scene.things[0].colour]]
    for cell in (9, 10, 13, 14):
        claims = torch.zeros(16, 18)
        claims[cell, kinds] = 2.0
        claims[5] = 9.0  # no neighbour across a near border
        names, edges = batches.name_targets(scene, (4, 4), claims)
        assert names.nonzero().tolist() == [[cell, k] for k in sorted(kinds)]
        row, col = divmod(cell, 4)
        assert ((edges[cell, :2] + edges[cell, 2:]) / 2).tolist() == pytest.approx(
            [56.8 / 28 - col, 83.4 / 28 - row], abs=0.1
        )
    assert batches.name_targets(scene, (4, 4), torch.zeros(16, 18))[0][10, kinds].all()  # its own, if none claims more
    claims = torch.full((16, 18), 5.0)
    claims[10] = 0.0
    assert batches.name_targets(one(70, 70), (4, 4), claims)[0][10, kinds].all()  # far from every border
    both = replace(scene, things=(*scene.things, *one(40, 84.6).things))  # another one is in cell 13
    claims = torch.zeros(16, 18)
    claims[13] = 2.0
    names, edges = batches.name_targets(both, (4, 4), claims)
    assert names.any(1).nonzero().flatten().tolist() == [10, 13] and edges[10, 0] + edges[10, 2] < 0.5


def test_a_text_near_a_border_belongs_to_the_row_that_claims_it_most():
    text = scene_of(3, 0, 3).text
    assert len(set(y for _, y in text.centres)) == 1
    scene = scene_of(3, 0)
    scene = replace(scene, width=112, height=112)
    xs = 14.0, 29.0, 70.0  # the second a little right of the border between columns 0 and 1
    for string, moved in (("ABC", True), ("AAC", False)):  # what A's cell says of an A is no claim of the next one
        shown = replace(text, string=string, centres=tuple((x, 55.0) for x in xs))
        for row in (1, 2):
            claims = torch.full((16, SLOTS, 37), -9.0)
            for place, character in ((0, string[0]), (0, string[1]), (2, "C")):
                claims[row * 4 + place, 1, CHARACTERS.index(character) + 1] = -1.0
            slots, first = batches.character_targets(scene, [shown], (4, 4), claims)
            found = {
                (cell, "".join(CHARACTERS[k - 1] for k in kinds if k)) for cell, kinds in enumerate(slots.tolist())
            }
            at = row * 4
            wanted = {(at, "AB"), (at + 2, "C")} if moved else {(at, "A"), (at + 1, "A"), (at + 2, "C")}
            assert {pair for pair in found if pair[1]} == wanted
            assert first[at] == 0 and first[at + 2] == 2 and (first >= 0).sum() == len(wanted)


def test_places_are_those_of_the_object_in_cells():
    scene = scene_of(8, 3)
    targets = batches.cell_targets(scene, (5, 6))
    places, has_thing = targets["places"], ~targets["places"][:, 5].isnan()
    assert torch.equal(places[:, 0] * 8, torch.arange(6).repeat(5).float())
    names, edges = batches.name_targets(scene, (5, 6))
    assert torch.equal(has_thing, names.any(1)) and targets["moves"].isnan().all()
    for cell in has_thing.nonzero().flatten().tolist():
        x1, y1, x2, y2 = (places[cell, 2:] * 8 / torch.tensor([6, 5, 6, 5])).tolist()
        box = (x1 * scene.width, y1 * scene.height, x2 * scene.width, y2 * scene.height)
        assert any(thing.box == pytest.approx(box) for thing in scene.things)
        corner = torch.tensor([cell % 6, cell // 6]).repeat(2)
        assert torch.allclose(edges[cell] + corner, 8 * places[cell, 2:], atol=1e-5)


def clips(count: int, things: int = 3):
    for seed in range(count):
        rng = random.Random(seed)
        clip = scenes.make_clip(rng, 160, 120, 6, things, "train")
        if clip:
            yield clip


def test_moves_are_in_the_direction_that_the_clip_shows():
    seen = set()
    for frames, _, _ in clips(60):
        event, thing = batches.what_changed(frames)
        targets = batches.cell_targets(frames[4], (4, 6), frames[5], frames[3])
        moved = targets["moves"].nan_to_num()
        if event not in scenes.DIRECTIONS or [t.name for t in frames[0].things].count(thing.name) > 1:
            continue
        cell = batches.cell_of(thing.cx, thing.cy, frames[0], (4, 6))
        dx, dy = scenes.DIRECTIONS[event]
        x, y = moved[cell].tolist()
        assert x * dx + y * dy > 0.02 and abs(x * dy) + abs(y * dx) < 1e-4
        others = moved.clone()
        others[cell] = 0
        assert others.abs().max() < 1e-6
        seen.add(event)
    assert seen == set(scenes.DIRECTIONS)


def test_what_happens_is_marked_where_and_when_it_does():
    seen = set()
    for frames, _, _ in clips(60):
        event, thing = batches.what_changed(frames)
        happened = []
        for i in (0, 2, 4):
            earlier = frames[i - 1] if i else None
            changes = batches.cell_targets(frames[i], (4, 6), frames[i + 1], earlier)["changes"]
            assert changes.shape == (24,) and (changes > 0).sum() <= 1
            if changes.any():
                happened.append((changes.argmax().item(), batches.EVENTS[changes.max() - 1]))
                assert (earlier or frames[i]).things != frames[i + 1].things
        if event in scenes.DIRECTIONS:
            assert [found for _, found in happened] == [event] * 3  # it goes on moving
        else:
            assert happened == [(batches.cell_of(thing.cx, thing.cy, frames[0], (4, 6)), event)]  # once
        seen.add(event)
    assert seen == set(batches.EVENTS)
    assert (batches.cell_targets(frames[0], (4, 6))["changes"] == -1).all()  # a picture has no changes


def test_what_changed_is_what_the_answer_says():
    seen = set()
    for frames, _, answer in clips(60):
        event, thing = batches.what_changed(frames)
        assert event in answer.lower()
        if answer.count(" "):
            assert thing.name in answer
        seen.add(event)
    assert seen == set(batches.EVENTS)


# --- conversations ---------------------------------------------------------------------------------------------------


def encoded(processor, turns, media=("image",), cells=(4,)):
    found = batches.encode_turns(processor, turns, list(media), list(cells))
    ids, owner = found.ids, found.answers
    assert [owner[i + 1] for i in found.begins] == list(range(len(turns)))
    assert {owner[i] for i in found.begins} == {-1}
    return ids, owner, found.marks, found.ends, [processor.tokenizer.decode([i]) for i in ids]


def test_only_the_answers_are_learned(processor):
    tokenizer = processor.tokenizer
    turns = [
        batches.Turn("describe", "Describe this image.", "A red circle."),
        batches.Turn("where", "Where is the red circle?", "<|box_start|>(1,2),(3,4)<|box_end|>"),
    ]
    ids, owner, _, ends, _ = encoded(processor, turns, cells=(6,))
    assert ids.count(tokenizer.special_ids["<|image_pad|>"]) == 6 and len(owner) == len(ids)
    assert [ids[end] for end in ends] == [tokenizer.special_ids["<|vision_end|>"]]
    said = [tokenizer.decode([i for i, o in zip(ids, owner) if o == k]) for k in (0, 1)]
    assert said == ["A red circle.<|im_end|>", "<|box_start|>(1,2),(3,4)<|box_end|><|im_end|>"]
    # the same ids as the prompt that the model will be asked with
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe this image."}]}]
    pieces = batches.render_chat(messages, add_generation_prompt=True)
    prompt = tokenizer.encode([p for piece in pieces for p in [piece] * (6 if piece == "<|image_pad|>" else 1)])
    assert ids[: len(prompt)] == prompt and set(owner[: len(prompt)]) == {-1}
    assert ids[len(prompt)] == tokenizer.encode("A red circle.")[0] and Special("<|im_end|>") in tokenizer.special_ids


def test_a_box_in_a_question_is_text_unless_trusted(processor):
    turn = batches.Turn("what", "What is in the box <|box_start|>(1,2),(3,4)<|box_end|>?", "A red circle.")
    box_start = processor.tokenizer.special_ids["<|box_start|>"]
    for trusted in (False, True):
        found = batches.encode_turns(processor, [turn], ["image"], [4], trusted)
        assert (box_start in found.ids) == trusted


@pytest.mark.parametrize("task", ["describe", "where", "colour", "shape", "what", "relation", "read"])
def test_marks_point_to_the_thing_that_is_spoken_of(processor, task):
    """Each mark's box belongs to the thing named by, or right after, the token that it stands at."""
    checked = 0
    for seed in range(30):
        rng = random.Random(seed)
        scene = scene_of(seed, 3, 4 if task in ("read", "describe") else 0)
        turn = batches.picture_turn(scene, rng, {task: 1.0})
        if turn is None or turn.task != task:
            continue
        ids, owner, known, _, words = encoded(processor, [turn])
        for place, mark in known:
            before, after = "".join(words[: place + 1]), "".join(words[place + 1 :])
            if isinstance(mark, batches.Digit):
                number = re.search(r"\d*$", before).group() + re.match(r"\d+", after).group()
                hidden = int(number) < 100 or number == "1000"  # they do not begin with their hundreds
                assert hidden or int(round(mark.rest * 10, 6)) == int(after[0])
                continue
            box = mark.box
            things = [t for t in scene.things if batches.share_box(t.box, scene) == pytest.approx(box, abs=1.1e-3)]
            if box[0] == box[2]:  # a character: the next one to be written
                i = [x / scene.width for x, _ in scene.text.centres].index(box[0])
                assert mark.coming and after.startswith(scene.text.string[i:])
            elif owner[place] < 0 and not before.endswith("assistant\n"):
                assert re.search(r"\w+$", before).group() in (things[0].shape, "object") and not mark.coming
            elif before.endswith("<|box_start|>"):
                assert scenes.answer_box(things[0].box, scene.width, scene.height) in turn.answer
            elif task == "colour":
                assert after.lower().startswith(things[0].colour) and not mark.coming
            elif task == "shape":
                assert things[0].shape in after and mark.coming
            elif mark.coming:
                rest = (before.split("assistant\n")[-1] + after).lower()
                assert any(t.name in rest for t in things)
                word = re.match(r"(?:,| and)?(?: ?an?\b)?(?: ?(\w+))?(?: (\w+))?", after.lower().removeprefix("\n"))
                assert things[0].shape in (word.group(1), word.group(2)), (before, after)
            else:  # it has just been named, and so many are to come
                assert before.lower().endswith(things[0].name)
                rest = after.split("<|im_end|>")[0]
                assert mark.left == len(re.findall(r"\ban? \w+ \w+", rest)) + ("text" in rest)
            checked += 1
    assert checked > 10


def test_relations_know_which_side_is_and_which_is_asked():
    checked = 0
    for seed in range(60):
        turn = batches.picture_turn(scene_of(seed, 3), random.Random(seed), {"relation": 1.0})
        if turn and turn.task == "relation":
            word = re.search(r"(left of|right of|above|below)", turn.question).group()
            right, down, relation = turn.beside  # of the second thing, seen from the first
            assert batches.RELATIONS[relation] == word
            first_is = {"left of": right, "right of": not right, "above": down, "below": not down}[word]
            assert turn.answer == ("Yes." if first_is else "No.")
            checked += 1
    assert checked > 30


def test_pair_turns_ask_about_both_pictures(processor):
    rng, made_for = random.Random(1), "What is in both pictures?"
    pair = scenes.make_pair(rng, 120, 120, made_for, 4, "train")
    drawn = [batches.pair_turns(*pair, made_for, rng) for _ in range(60)]
    assert all(made_for in [turn.question for turn in turns] for turns in drawn)
    assert 60 < sum(len(turns) for turns in drawn) < 150  # the other questions are rare
    turns = next(turns for turns in drawn if len(turns) == 3)
    assert {turn.question for turn in turns} == set(scenes.COMPARE_QUESTIONS)
    (both,) = [turn for turn in turns if turn.question.startswith("What")]
    matched = scenes.matched_things(*pair)
    assert [pair[0].things[i].name for i in matched] == [pair[1].things[k].name for k in matched.values()]
    wanted = {batches.share_box(pair[1].things[k].box, pair[1]) for k in matched.values()}  # seen in the second one
    assert {mark.box for mark in both.answer_marks} == wanted
    ids, _, _, ends, words = encoded(processor, turns, ("image", "image"), (4, 6))
    assert [words[end] for end in ends] == ["<|vision_end|>"] * 2 and ends[1] - ends[0] == 6 + 2


def test_a_second_picture_knows_what_it_shares_with_the_first():
    for seed in range(40):
        rng = random.Random(seed)
        question = scenes.COMPARE_QUESTIONS[seed % 3]
        pair = scenes.make_pair(rng, 160, 120, question, 5, "train")
        if not pair:
            continue
        more, same = batches.pair_targets(*pair)
        answers = {q: (scenes.ask_compare(*pair, q) or ("", ""))[1] for q in scenes.COMPARE_QUESTIONS}
        assert answers[scenes.COMPARE_QUESTIONS[0]] == ("Picture 1.", "Neither.", "Picture 2.")[more]
        assert answers[scenes.COMPARE_QUESTIONS[1]] == ("No.", "Yes.")[same]
        targets = batches.cell_targets(pair[1], (4, 6), before=pair[0])
        matches, partners = targets["matches"], targets["partners"]
        assert torch.equal(matches >= 0, batches.name_targets(pair[1], (4, 6))[0].any(1))
        assert torch.equal(matches == 1, ~partners[:, 0].isnan())
        for thing in pair[1].things:
            cell = batches.cell_of(thing.cx, thing.cy, pair[1], (4, 6))
            if matches[cell]:
                x, y = (partners[cell] * 8 * torch.tensor([160 / 6, 120 / 4])).tolist()
                assert (thing.name, pytest.approx(x), pytest.approx(y)) in [
                    (t.name, t.cx, t.cy) for t in pair[0].things
                ]
            else:
                taken = [t.name for t in scenes.common_things(*pair)]
                assert [t.name for t in pair[1].things].count(thing.name) > taken.count(thing.name)
    assert (batches.cell_targets(pair[0], (4, 6))["matches"] == -1).all()


# --- rounds and sheets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["picture", "read", "pair", "clip"])
def test_a_round_has_one_target_for_each_visual_token(processor, kind):
    batch = batches.make_round(kind, 3, processor)
    ids, marks = batch["inputs"]["input_ids"], processor.tokenizer.special_ids
    pad = marks["<|video_pad|>" if kind == "clip" else "<|image_pad|>"]
    pixels = batch["inputs"]["pixel_values_videos" if kind == "clip" else "pixel_values"]
    assert (ids == pad).sum() == len(pixels) // 4
    for key, width in (("places", 6), ("moves", 2), ("partners", 2)):
        assert batch[key].shape == ((ids == pad).sum(), width)
    assert len(batch["matches"]) == len(batch["changes"]) == len(batch["first"]) == len(batch["places"])
    assert (batch["changes"] >= 0).all() == (kind == "clip")
    for key in ("counts", "events", "pairs", "ends"):
        rows, ends = batch[key][:, :2].T
        assert (ids[rows, ends] == marks["<|vision_end|>"]).all()
    media = len(ids) * (2 if kind == "pair" else 1)
    assert (len(batch["counts"]), len(batch["events"])) == ((0, media) if kind == "clip" else (media, 0))
    assert len(batch["ends"]) == media and len(batch["pairs"]) == (len(ids) if kind == "pair" else 0)
    assert (batch["matches"] >= 0).any() == (kind == "pair")
    assert batch["size"][0] * batch["size"][1] * len(ids) <= len(batch["places"])
    assert (batch["answers"].max(1).values + 1).tolist() == [len(tasks) for tasks in batch["tasks"]]
    boxes, left = batch["known"][:, 2:6], batch["known"][:, 7]
    assert (boxes >= 0).all() and (boxes <= 1).all() and set(batch["known"][:, 6].tolist()) <= {0.0, 1.0}
    assert -1 <= left.min() and left.max() <= scenes.MAX_THINGS
    assert (kind == "picture") == (len(batch["digits"]) > 0)
    again = batches.make_round(kind, 3, processor)
    assert torch.equal(pixels, again["inputs"][next(k for k in again["inputs"] if k.startswith("pixel"))])


def test_a_pair_that_leaves_nothing_to_ask_is_drawn_again(processor, monkeypatch):
    real, calls = batches.pair_turns, []

    def nothing_at_first(*pair):
        calls.append(pair)
        return real(*pair) if len(calls) > 1 else []

    monkeypatch.setattr(batches, "pair_turns", nothing_at_first)
    batch = batches.make_round("pair", 3, processor)
    assert all(batch["tasks"]) and len(calls) == len(batch["tasks"]) + 1


def test_rows_are_filled_to_nearly_the_same_length(processor):
    shares = []
    for seed in range(6):
        ids = batches.make_round("picture", seed, processor)["inputs"]["input_ids"]
        shares.append((ids != processor.tokenizer.pad_token_id).float().mean().item())
    assert sum(shares) / len(shares) > 0.8


def test_the_counts_are_those_of_the_scene():
    scene = scene_of(12, 5)
    counts = batches.count_targets(scene)
    assert counts[-1] == len(scene.things) == sum(counts[:8]) == sum(counts[8:18])
    assert all(counts[NAMES[name]] == sum(name in t.name.split() for t in scene.things) for name in NAMES)


def test_what_is_held_out_is_not_trained_on():
    for seed in range(300):
        rng = random.Random(seed)
        width, height = batches.pick_size(rng, 448, evenly=seed % 2 == 0)
        assert max(width, height) <= 4 * min(width, height)
        scene = batches.draw_scene(rng, width, height, 8)
        assert not {(t.colour, t.shape) for t in scene.things} & scenes.HELD_OUT_PAIRS
        assert scene.text is None or (
            max(width, height) < batches.READ_BELOW and scene.text.font.split("/")[0] not in scenes.TEST_FAMILIES
        )


def targets_of(batch: dict) -> tuple[torch.Tensor, ...]:
    """For a tower that claims nothing yet."""
    cells = len(batch["pixel_values"]) // 4
    return batches.sheet_targets(batch["sheets"], batch["size"], torch.zeros(cells, 18), torch.zeros(cells, SLOTS, 37))


def test_sheets_are_full(processor):
    share = 0.0
    for seed in range(6):
        names, edges, slots = targets_of(batches.make_sheets(seed, processor.image_processor))
        share += float((slots[:, 0] > 0).float().mean() + names.any(1).float().mean()) / 6
        assert torch.equal(names.any(1), ~edges.isnan().any(1))
    assert share > 0.25
    names, _, slots = targets_of(batches.make_sheets(5, processor.image_processor, batches.COURSE))
    assert not slots.any() and names.any()


def test_the_claims_of_each_sheet_are_its_own(processor):
    batch = batches.make_sheets(7, processor.image_processor)
    cells = batch["size"][0] * batch["size"][1]
    names, characters = (
        torch.randn(len(batch["sheets"]) * cells, 18),
        torch.randn(len(batch["sheets"]) * cells, SLOTS, 37),
    )
    together = batches.sheet_targets(batch["sheets"], batch["size"], names, characters)
    assert len(batch["sheets"]) > 1
    for i, (scene, texts) in enumerate(batch["sheets"]):
        part = slice(i * cells, (i + 1) * cells)
        own = batches.name_targets(scene, batch["size"], names[part])
        assert torch.equal(together[0][part], own[0])
        assert torch.equal(
            together[2][part], batches.character_targets(scene, texts, batch["size"], characters[part])[0]
        )


def test_the_course_recipe_is_small(processor):
    for seed in range(4):
        batch = batches.make_round("picture", seed, processor, recipe=batches.COURSE)
        assert {task for row in batch["tasks"] for task in row} <= {*batches.COURSE.tasks, "text"}
        assert (batch["first"] == -1).all()  # no text
        assert batch["inputs"]["image_grid_thw"].max() <= 8  # 112 pixels in patches of 14
