"""Free wording in the tiny world: other ways to ask, what is not there, and what the model does not know."""

import random
import re

import pytest
import torch

from qwen2vl_mini import Qwen2VLProcessor
from tiny_world import batches, evaluate, free, scenes, train, unknown, wording
from tiny_world.scenes import COLOURS, RELATIONS, SHAPES, TEXT_ONLY, plural

BOX = "<|box_start|>(12,34),(560,789)<|box_end|>"
FIXED = {  # a fixed question of each kind, and the words that every other way to ask it must keep
    "describe": ("Describe this image.", ()),
    "count a shape": ("How many crosses are there?", ("crosses",)),
    "count a colour": ("How many red objects are there?", ("red",)),
    "count all": ("How many objects are there?", ()),
    "colour": ("What color is the star?", ("star",)),
    "shape": ("What shape is the pink object?", ("pink",)),
    "where": ("Where is the orange heart?", ("orange heart",)),
    "what": (f"What is in the box {BOX}?", (re.escape(BOX),)),
    "relation": ("Is the red circle above the blue square?", ("red circle", "blue square")),
    "read": ("Read the text.", ()),
    "more": ("Which picture has more objects?", ("more|most|number|larger",)),
    "same": ("Are the pictures the same?", ()),
    "both": ("What is in both pictures?", ()),
    "way": ("Which way does the ring move?", ("ring",)),
    "happens": ("What happens?", ()),
    "who": ("Who are you?", ()),
    "can": ("What can you do?", ()),
}


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Qwen2VLProcessor:
    return train.start_folder(tmp_path_factory.mktemp("start"))


def plain(text: str) -> str:
    """Without what `blur` changes."""
    return text.lower().rstrip(".?! ")


def ways_seen(question: str, for_test: bool, draws: int = 3000) -> set[str]:
    rng = random.Random(1)
    return {plain(wording.reword(question, rng, for_test)) for _ in range(draws)}


@pytest.mark.parametrize("key", wording.WAYS)
def test_a_question_can_be_asked_in_ten_other_ways_which_keep_what_it_is_about(key):
    question, kept = FIXED[key]
    assert wording.kind_of_question(question)[0] == key
    assert len(wording.WAYS[key].train) >= 10 and len(wording.WAYS[key].test) >= 3

    for for_test in (False, True):
        ways = ways_seen(question, for_test, 400)
        assert not [way for way in ways if re.search(r"[\[\]{}]", way)]
        for words in kept:
            assert all(re.search(words, way) for way in ways)


@pytest.mark.parametrize("key", wording.WAYS)
def test_what_is_kept_for_the_test_is_never_trained_on(key):
    question, _ = FIXED[key]
    assert not ways_seen(question, for_test=True) & ways_seen(question, for_test=False)


def test_no_way_to_ask_means_something_else():
    """What one question may be called is what no other may be: else the same words had two answers."""
    seen: dict[str, str] = {}
    for key, (question, _) in FIXED.items():
        if key in ("count all", "happens", "describe"):
            continue  # a clip and a picture may be asked the same: "What do you see?"
        for way in ways_seen(question, False) | ways_seen(question, True):
            assert seen.setdefault(way, key) == key, way
    described = ways_seen(FIXED["describe"][0], False)
    assert not described & seen.keys()


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_stays_itself(relation):
    rng = random.Random(2)
    opposite = dict(zip(RELATIONS, ("right", "left", r"below|under|beneath|lower", r"above|over|higher")))[relation]
    for _ in range(300):
        way = wording.reword(f"Is the red circle {relation} the blue square?", rng)
        assert not re.search(opposite, way.replace("right?", "").replace(", right", "").replace("am i right", "")), way
        assert way.lower().index("red circle") < way.lower().index("blue square")


def test_every_question_of_the_world_is_one_that_can_be_reworded():
    rng = random.Random(3)
    for task in scenes.TASKS:
        for seed in range(6):
            sample = scenes.make_sample(seed, task, 150, 120)
            for question, _ in sample.turns:
                assert wording.reword(question, rng)
    with pytest.raises(ValueError, match="Not a fixed question"):
        wording.reword("Where am I?", rng)


def test_questions_stay_natural_to_the_eye():
    """Capital at the start or all in small letters; at most two signs at the end; no two spaces, no space before them
    but where people type one."""
    rng = random.Random(4)
    for question, _ in FIXED.values():
        for _ in range(200):
            way = wording.reword(question, rng)
            assert "  " not in way and way == way.strip()
            assert way[0].isupper() or way == way.lower() or way[0] == "<"


# ── Marks of questions in other words ───────────────────────────────────────────────────────────────────────────────


def scene_of(seed: int, things: int = 4) -> scenes.Scene:
    rng = random.Random(seed)
    return scenes.make_scene(rng, 180, 150, things)


def test_marks_of_reworded_questions_point_to_what_is_named():
    checked = 0
    for seed in range(120):
        scene = scene_of(seed)
        rng = random.Random(seed)
        weights = dict.fromkeys(("colour", "shape", "where", "relation", "count"), 1.0)
        turn = batches.picture_turn(scene, rng, weights, free_share=1.0)
        for mark in turn.question_marks if turn else ():
            said = turn.question[: mark.place].lower()
            (thing,) = [t for t in scene.things if batches.share_box(t.box, scene) == mark.box]
            name = re.search(r"(\w+) (\w+)$", said)
            assert name[2] in (thing.shape, "object", "thing", "shape", "figure", "one")
            assert name[1] in (thing.colour, "the", "a", "an")
            checked += 1
    assert checked > 40


def test_the_course_is_asked_in_the_fixed_words_only():
    for seed in range(40):
        turn = batches.picture_turn(scene_of(seed), random.Random(seed), batches.COURSE.tasks)
        if turn:
            wording.kind_of_question(turn.question)  # raises for all others
    assert batches.COURSE.free_share == batches.COURSE.odd_share == 0


# ── What is not there, and what is not known ────────────────────────────────────────────────────────────────────────


def named(text: str) -> tuple[str | None, str]:
    """The colour (or none) and the shape ("object": any) that a text names last."""
    found = re.findall(rf"(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|object)\b", text)
    return found[-1][0] or None, found[-1][1]


def fitting(scene: scenes.Scene, text: str) -> list[scenes.Thing]:
    colour, shape = named(text)
    return [t for t in scene.things if colour in (None, t.colour) and shape in ("object", t.shape)]


def test_what_is_said_to_be_absent_is_and_is_no_held_out_pair():
    kinds = set()
    for seed in range(300):
        scene = scene_of(seed, seed % 5)
        asked = free.ask_absent(scene, random.Random(seed))
        assert asked.answer.startswith("There is no ") and not fitting(scene, asked.answer)
        assert named(asked.answer) not in scenes.HELD_OUT_PAIRS
        kinds.add(asked.question.split()[0].lower())
    assert {"where", "what", "is"} <= kinds


def test_whether_something_is_there_is_answered_rightly_in_even_shares():
    answers = []
    for seed in range(300):
        scene = scene_of(seed, 1 + seed % 5)
        asked = free.ask_there(scene, random.Random(seed))
        question = asked.question.lower()
        for shape in SHAPES:
            question = question.replace(plural(shape), shape)
        assert asked.answer == ("Yes." if fitting(scene, question) else "No."), asked
        answers.append(asked.answer)
    assert 90 < answers.count("Yes.") < 210


def test_a_thing_can_be_named_by_its_shape_or_colour_alone_where_that_is_enough():
    found = 0
    for seed in range(100):
        scene = scene_of(seed)
        asked = free.ask_where_loosely(scene, random.Random(seed))
        if asked is None:
            continue
        name = re.search(r"ref_start\|>(.*)<\|object_ref_end", asked.answer)[1]
        (thing,) = fitting(scene, name)
        assert scenes.answer_box(thing.box, scene.width, scene.height) in asked.answer
        found += 1
    assert found > 50


def test_what_is_unknown_is_answered_in_one_sentence_and_its_test_is_not_trained_on():
    rng = random.Random(5)
    trained = {plain(unknown.ask_unknown(rng)) for _ in range(20000)}
    kept = {plain(unknown.ask_unknown(rng, for_test=True)) for _ in range(2000)}
    assert len(trained) > 5000 and len(kept) > 50 and not trained & kept
    known = {plain(question) for question in TEXT_ONLY}
    for question, _ in FIXED.values():
        known |= ways_seen(question, False, 500) | ways_seen(question, True, 200)
    assert not (trained | kept) & known
    assert wording.UNKNOWN.startswith("I am a small teaching model: ")


# ── Rounds without targets for the heads ────────────────────────────────────────────────────────────────────────────


def test_a_picture_beside_a_clip_is_learned_from(processor):
    batch = batches.make_mixed_round(3, processor)
    ids = batch["inputs"]["input_ids"]
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        pad = processor.tokenizer.special_ids[f"<|{kind}_pad|>"]
        grids = batch["inputs"][f"{kind}_grid_thw"]
        assert len(grids) == len(ids) and (ids == pad).sum() * 4 == len(batch["inputs"][pixels])
    pads = [processor.tokenizer.special_ids[f"<|{kind}_pad|>"] for kind in ("image", "video")]
    first = [row.index(pads[0]) < row.index(pads[1]) for row in ids.tolist()]
    assert len(ids) == 1 or 0 < sum(first) < len(first)  # both orders
    assert set(sum(batch["tasks"], [])) <= {"motion", "describe"}


def test_talk_has_no_pictures_and_learns_answers_only(processor):
    batch = batches.make_talk_round(4, processor)
    assert batch["inputs"].keys() == {"input_ids"}
    tasks = sum(batch["tasks"], [])
    assert {"text", "unknown"} == set(tasks)
    learned = batch["answers"] >= 0
    texts = processor.batch_decode([row[where] for row, where in zip(batch["inputs"]["input_ids"], learned)])
    for text in texts:
        said = set(text.removesuffix("<|im_end|>").split("<|im_end|>"))
        assert said <= {wording.UNKNOWN, *TEXT_ONLY.values()}


@pytest.mark.parametrize("make", [batches.make_mixed_round, batches.make_talk_round])
def test_such_a_round_has_a_loss_and_a_gradient(processor, make):
    torch.manual_seed(0)
    trainer = train.Trainer(train.new_model(processor, None), processor.tokenizer)
    recipe = batches.Recipe(tokens=400, max_side=84)
    loss = trainer.round_loss(make(1, processor, recipe))
    loss.backward()
    assert loss > 0 and trainer.model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


# ── Evaluation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_ask_in_words_that_training_does_not_use():
    rows = evaluate.rows_of([*evaluate.TASKS, *evaluate.ODD_TASKS])
    task, world = rows["where, free wording"]
    fixed = evaluate.World().samples("where", 8)
    asked = world.samples(task, 8)
    assert [sample.answer for sample in asked] == [sample.answer for sample in fixed]
    assert not {sample.question for sample in asked} & {sample.question for sample in fixed}
    assert all(sample.turns[-1] == (sample.question, sample.answer) for sample in asked)

    beside = rows["motion, beside a picture"][1].samples("motion", 1)[0]
    kinds = [item["type"] for item in scenes.messages(beside, with_answer=False)[0]["content"]]
    assert kinds == ["image", "video", "text"]

    unknowns = evaluate.World().samples("unknown", 30)
    assert {sample.answer for sample in unknowns} == {wording.UNKNOWN}
    assert 0 < sum(bool(sample.images) for sample in unknowns) < 30
    absent = evaluate.World().samples("absent", 10)
    assert all(not fitting(sample.scenes[0], sample.answer) for sample in absent)
