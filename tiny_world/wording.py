"""Free wording: the fixed questions of the tiny world said in other ways, and what the model does not know.

`reword` turns a fixed question ("Where is the red circle?") into another one with the same answer ("point to the red
circle, please"). A pattern such as "[Find|Locate] the {name}[|, please]." stands for all texts that one choice from
each pair of brackets gives. Some patterns are kept for the test: training never shows them.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from tiny_world.scenes import COLOURS, RELATIONS, SHAPES, plural

# The answer to all that it does not know.
UNKNOWN = "I am a small teaching model: I can describe, count, name, find, read and compare coloured shapes."

PICTURE = "[|| in the image| in this image| in the picture| in this picture| here]"
CLIP = "[|| in the video| in this video| in the clip| in this clip| here]"
ASK = "[||Please |Can you |Could you |Can you please |Could you please ]"  # before a request
THINGS = "[objects|shapes|things]"
THING = "[object|object|thing|one|figure]"
COLOR = "[color|colour]"


class Ways(NamedTuple):
    """A fixed question, as a regular expression, and other ways to ask it."""

    fixed: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def counting(what: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ways to ask how many there are, for training and for the test."""
    train = (
        f"How many {what} [are there|do you see|can you see|are|are visible|can be seen|are shown]{PICTURE}?",
        f"How many {what}?",
        f"How many {what} does the [image|picture] [show|have]?",
        f"How many {what} are [in|on] [the|this] [image|picture|photo]?",
        f"{ASK}count [the |all |all the |]{what}{PICTURE}.",
        f"What is the [number|total number] of {what}{PICTURE}?",
        f"[Number|The number] of {what}?",
        f"[Tell me|Say|Please tell me] how many {what} [there are|you see|you can see].",
        f"How many of the {THINGS} are {what}?" if what == "{shapes}" else f"How many {what} are drawn?",
        f"I want to know how many {what} there are.",
    )
    test = (
        f"How many {what} does this image contain?",
        f"How many {what} have been drawn[| in this picture]?",
        f"Could you count the {what} for me?",
        f"What's the count of {what}[| in the scene]?",
        f"Find out how many {what} the picture has.",
    )
    return train, test


WAYS = {
    "describe": Ways(
        r"Describe this image\.",
        (
            f"{ASK}describe [this|the|this|the] [image|image|picture|scene|photo|drawing|screenshot].",
            "Describe [it|what you see|what is here|the objects|the shapes].",
            "[What|What objects|What shapes|What things] do you see[| here| in this image| in the picture|there]?",
            "[What is|What's] [in|on|shown in|visible in] [this|the] [image|picture|scene|photo]?",
            "[What is|What's] [here|there|this]?",
            "What does [this|the] [image|picture|drawing] [show|have in it]?",
            "What can [you see|I see|be seen][| here| in the image| in this picture]?",
            "[Tell me|Say|Please tell me] what [is in the picture|you see|is in this image|is here|the image shows].",
            f"[List|Name|{ASK}list] [all|all the|the|every one of the] {THINGS}{PICTURE}.",
            f"[Which|What] {THINGS} are [there|here|in the image|in this picture|shown]?",
            "[Give|Give me|Write] a [|short |full |detailed ]description[| of this image| of the picture].",
            "What are the [objects|shapes|things][| in the image| in this picture]?",
        ),
        (
            "What is this a picture of?",
            "Please tell me what the picture contains.",
            "Describe everything in this drawing for me.",
            "What objects can be found in the photo?",
            "What do we have here?",
            "Explain what you can see in the image.",
        ),
    ),
    "count a shape": Ways(rf"How many (?P<shapes>{'|'.join(map(plural, SHAPES))}) are there\?", *counting("{shapes}")),
    "count a colour": Ways(
        rf"How many (?P<colour>{'|'.join(COLOURS)}) objects are there\?", *counting(f"{{colour}} {THINGS}")
    ),
    "count all": Ways(r"How many objects are there\?", *counting(THINGS)),
    "colour": Ways(
        r"What color is the (?P<shape>\w+)\?",
        (
            f"[What|Which] {COLOR} is the {{shape}}{PICTURE}?",
            f"[What is|What's] the {COLOR} of the {{shape}}{PICTURE}?",
            f"[What|Which] {COLOR} does the {{shape}} have?",
            f"{ASK}[name|say|tell me] the {COLOR} of the {{shape}}.",
            f"The {{shape}} is [what|which] {COLOR}?",
            f"[{COLOR}|The {COLOR}] of the {{shape}}?",
            f"In [what|which] {COLOR} is the {{shape}} [drawn|painted]?",
            f"{ASK}tell me [what|which] {COLOR} the {{shape}} is.",
            f"The {{shape}}, what {COLOR} is it?",
            f"What is the {{shape}}'s {COLOR}?",
        ),
        (
            f"I would like to know the {COLOR} of the {{shape}}.",
            f"What {COLOR} has the {{shape}}?",
            f"Look at the {{shape}}. What {COLOR} is it?",
            f"What {COLOR} was used for the {{shape}}?",
            f"Do you know which {COLOR} the {{shape}} is?",
        ),
    ),
    "shape": Ways(
        r"What shape is the (?P<colour>\w+) object\?",
        (
            f"[What|Which] shape is the {{colour}} {THING}{PICTURE}?",
            f"[What is|What's] the {{colour}} {THING}{PICTURE}?",
            f"What [|kind of |sort of ]shape does the {{colour}} {THING} have?",
            f"{ASK}[name|say|tell me] the shape of the {{colour}} {THING}.",
            f"[What is|What's] the shape of the {{colour}} {THING}?",
            "[What|Which object|Which thing|Which shape|What shape] is {colour}?",
            f"The {{colour}} {THING} is [what|which|what kind of] shape?",
            f"What [form|figure] is the {{colour}} {THING}?",
            f"{ASK}tell me what [|shape ]the {{colour}} {THING} is.",
            f"Name the {{colour}} {THING}.",
        ),
        (
            f"I would like to know the shape of the {{colour}} {THING}.",
            f"What shape has the {{colour}} {THING}?",
            f"Look at the {{colour}} {THING}. What shape is it?",
            f"Do you know what shape the {{colour}} {THING} is?",
            f"What kind of {THING} is the {{colour}} one?",
        ),
    ),
    "where": Ways(
        r"Where is the (?P<name>[a-z ]+)\?",
        (
            f"[Where is|Where's] the {{name}}{PICTURE}?",
            f"{ASK}[find|locate|point to|point at|point out|show me|show|mark|detect] the {{name}}{PICTURE}.",
            "[Find|Locate|Point to|Show me|Mark] [the|a] {name}[|, please].",
            f"{ASK}[give me|show me|tell me] the [box|bounding box|position|location|place] of the {{name}}.",
            "Where can [I|you] [find|see] the {name}?",
            f"{ASK}draw a box around the {{name}}.",
            "Where do you see the {name}?",
            "[What is|What's] the [box|position|location|bounding box|place] of the {name}?",
            "[The position|Position|Box|The box|Location] of the {name}?",
            "In [which|what] place is the {name}?",
        ),
        (
            "Could you show me where the {name} is?",
            "Tell me where the {name} is.",
            "Put a box around the {name}.",
            "I am looking for the {name}. Where is it?",
            "At which coordinates is the {name}?",
        ),
    ),
    "what": Ways(
        r"What is in the box (?P<box><.*>)\?",
        (
            "[What|What object|What shape] is [in|at|inside] [|the box |this box ]{box}?",
            "What [do you see|can you see] [in|at|inside] [|the box |this box ]{box}?",
            "What is [in|inside] [this|the] [area|region|rectangle|part] {box}?",
            "Which [object|thing|shape] is [in|at|inside] [|the box |this box ]{box}?",
            "{box}: what is [it|this|there]?",
            "[Name|Describe] [the object|the thing|what is] [in|at] {box}.",
            f"{ASK}tell me what is [in|at] [|the box ]{{box}}.",
            "What does [the|this] box {box} [contain|show|hold]?",
            "What is [there |]at {box}?",
            "What is this? {box}",
        ),
        (
            "What can be found in the box {box}?",
            "Which object does {box} contain?",
            "Look at the box {box}. What is in it?",
            "Please describe the object inside {box}.",
            "What have we got in the area {box}?",
        ),
    ),
    "relation": Ways(
        rf"Is the (?P<first>[a-z]+ [a-z]+) (?P<relation>{'|'.join(RELATIONS)}) the (?P<second>[a-z]+ [a-z]+)\?",
        (
            f"Is the {{first}} {{relation}} the {{second}}{PICTURE}?",
            "[Can you|Do you] see the {first} {relation} the {second}?",
            "Would you say [|that ]the {first} is {relation} the {second}?",
            "Does the {first} [lie|stand|sit] {relation} the {second}?",
            "The {first} is {relation} the {second}, [right|yes or no|isn't it]?",
            "[Yes or no: is|Tell me, is|So is] the {first} {relation} the {second}?",
            f"{ASK}[say|tell me] [if|whether] the {{first}} is {{relation}} the {{second}}.",
            "Is it true that the {first} is {relation} the {second}?",
            "Is the {first} [placed|drawn|somewhere] {relation} the {second}?",
            "Do we [find|have] the {first} {relation} the {second}?",
        ),
        (
            "Does the {first} appear {relation} the {second}?",
            "Could you check whether the {first} is {relation} the {second}?",
            "Is it correct that the {first} is {relation} the {second}?",
            "Am I right that the {first} is {relation} the {second}?",
            "Is the {first} located {relation} the {second}?",
        ),
    ),
    "read": Ways(
        r"Read the text\.",
        (
            "What does [the text|it|the picture|the image|the sign|the writing] say?",
            f"[What|Which] text [is there|do you see|can you read|is{PICTURE}|is shown]?",
            f"{ASK}[read|type|copy|transcribe|write down|repeat] the text{PICTURE}.",
            f"What is written{PICTURE}?",
            "[Which|What] [letters|characters|letters and digits] [do you see|are there|can you read|are shown]?",
            f"{ASK}read [the text|this|it|what is written|the letters|the writing].",
            "[What is|What's] the [text|word|writing]?",
            f"[What|Which] word [is shown|is there|is written|do you see]{PICTURE}?",
            "Read it[| out| aloud| to me|, please].",
            f"[Read|Tell me] what [is written|the text says|it says]{PICTURE}.",
        ),
        (
            "What are the letters in this picture?",
            "Can you tell me what the text says?",
            "Please transcribe the characters.",
            "Which text does the image contain?",
            "Spell the text.",
        ),
    ),
    "more": Ways(
        r"Which picture has more objects\?",
        (
            f"[Which|What] [picture|image|one] [has|shows|contains|holds] more {THINGS}?",
            f"[In|On] which [picture|image] are [|there ]more {THINGS}?",
            f"Where are [|there ]more {THINGS}[|, in the first or the second picture]?",
            f"Does picture 1 or picture 2 have more {THINGS}?",
            f"Which of the [|two ][pictures|images] has [the most|more] {THINGS}?",
            f"Which [picture|image] has [the larger|a larger|the bigger] number of {THINGS}?",
            f"Are there more {THINGS} in picture 1 or in picture 2?",
            f"{ASK}[say|tell me] which [picture|image] has more {THINGS}.",
            f"Which has more {THINGS}, the first or the second [picture|image]?",
            f"Who has more {THINGS}, picture 1 or picture 2?",
        ),
        (
            f"Which of these images contains more {THINGS}?",
            f"Which picture shows the greater number of {THINGS}?",
            f"Compare the pictures: which one has more {THINGS}?",
            f"Is it picture 1 or picture 2 that has more {THINGS}?",
        ),
    ),
    "same": Ways(
        r"Are the pictures the same\?",
        (
            "Are [the two|both|these|the|these two] [pictures|images] [the same|equal|identical|alike]?",
            "Do [the|both|these|the two] [pictures|images] show the same[| thing| things| scene]?",
            "Is picture 1 [the same as|equal to|like] picture 2?",
            "Are they [the same|equal|identical|alike]?",
            "Is the second [picture|image] [the same as|equal to|identical to] the first[| one]?",
            "Do [the|both|these] [pictures|images] [look the same|match]?",
            "[Same picture|The same|The same pictures]?",
            f"{ASK}[say|tell me] [if|whether] the [pictures|images] are the same.",
            "Are picture 1 and picture 2 [the same|equal|identical]?",
            "Is it the same [picture|image]?",
        ),
        (
            "Are both images exactly alike?",
            "Do picture 1 and picture 2 match?",
            "Would you say the two pictures are identical?",
            "Is this the same picture twice?",
        ),
    ),
    "both": Ways(
        r"What is in both pictures\?",
        (
            "What [is|can you see|do you see|can be seen] in both [pictures|images]?",
            f"[Which|What] {THINGS} are in both [pictures|images]?",
            "[Which|What] [object|thing|shape] is in both [pictures|images]?",
            "What do the [|two ][pictures|images] have in common?",
            "What do both [pictures|images] [show|have|contain]?",
            f"{ASK}[name|list|tell me] what is in both [pictures|images].",
            f"[Which|What] {THINGS} do the [pictures|images] share?",
            "What is common to [both|the two] [pictures|images]?",
            "What [appears|is found|is shown] in both [pictures|images]?",
            "What is in picture 1 and [|also ]in picture 2?",
        ),
        (
            "What do picture 1 and picture 2 have in common?",
            "Which things are shown in both images?",
            "What is shared by the two pictures?",
            "What can be found in both pictures?",
        ),
    ),
    "way": Ways(
        r"Which way does the (?P<shape>\w+) move\?",
        (
            "[Which|What] way does the {shape} [move|go|travel]?",
            "[In which|In what|Which|What] direction does the {shape} [move|go]?",
            "[Where|Which way|In which direction|In what direction] is the {shape} [moving|going|heading]?",
            "Where does the {shape} [move|go|move to|go to]?",
            "[To|Towards] [which|what] side does the {shape} [move|go]?",
            f"{ASK}[say|tell me] [which way|where|in which direction] the {{shape}} [moves|goes].",
            "How does the {shape} move?",
            "[What is|What's] the direction of the {shape}?",
            f"The {{shape}} moves [which way|where|in which direction]{CLIP}?",
            "Does the {shape} move left, right, up or down?",
        ),
        (
            "Toward which side is the {shape} moving?",
            "Do you know where the {shape} goes?",
            "I want to know the direction in which the {shape} moves.",
            "Follow the {shape}. Which way does it go?",
        ),
    ),
    "happens": Ways(
        r"What happens\?",
        (
            f"[What happens|What is happening|What's happening]{CLIP}?",
            f"What [changes|has changed|changed|moves or changes]{CLIP}?",
            f"{ASK}describe [the|this] [video|clip|movie].",
            "What do you see in [this|the] [video|clip]?",
            f"{ASK}[say|tell me] what happens{CLIP}.",
            f"What [goes on|is going on]{CLIP}?",
            "What does [the|this] [video|clip] show?",
            "What [is in|can you see in] [the|this] [video|clip]?",
            "[What happens over time|What is different at the end|What is new at the end]?",
            "[Summarize|Summarise|Explain] [the|this] [video|clip].",
        ),
        (
            "Explain what takes place in the clip.",
            "What can be seen in this video?",
            "Please tell me what is going on in this video.",
            "What event does the clip show?",
        ),
    ),
    "who": Ways(
        re.escape("Who are you?"),
        (
            "[Who|What] are you[|, please| exactly]?",
            "[What is|What's] your name?",
            "[Which|What|What kind of|What sort of] model are you?",
            f"{ASK}tell me [about yourself|who you are|what you are].",
            f"{ASK}introduce yourself.",
            "Who am I [talking|speaking] to?",
            "Who is [this|there]?",
            "And you are?",
            "Are you Qwen[|2-VL]?",
            "What am I [talking|speaking] to?",
        ),
        ("Please introduce yourself to me.", "Say who you are.", "Which kind of model is this?"),
    ),
    "can": Ways(
        re.escape("What can you do?"),
        (
            "What can [you|this model] do[| for me]?",
            "What [do you know|do you understand|are you able to do|are you good at|did you learn]?",
            "[What|Which questions] can I ask[| you]?",
            "How can you help[| me]?",
            "[Help|Help me|I need help].",
            "[What|Which] [questions|tasks] can you [answer|do|solve]?",
            f"{ASK}tell me what you can do.",
            "What are you [for|made for|trained for|able to do]?",
            "What is it that you can do?",
            "What should I ask[| you]?",
        ),
        ("What are your abilities?", "What may I ask you?", "What were you taught to do?"),
    ),
}

RELATION_WORDS = {
    "left of": "[left of|left of|to the left of|on the left of|further left than]",
    "right of": "[right of|right of|to the right of|on the right of|further right than]",
    "above": "[above|above|over|higher than|higher up than]",
    "below": "[below|below|under|beneath|lower than|underneath]",
}


def expand(pattern: str, rng: random.Random) -> str:
    """One choice from each pair of brackets, the inner ones first."""
    while match := re.search(r"\[([^\[\]]*)\]", pattern):
        chosen = rng.choice(match[1].split("|"))
        pattern = pattern[: match.start()] + chosen + pattern[match.end() :]
    return pattern


def kind_of_question(question: str) -> tuple[str, dict[str, str]]:
    """The key in WAYS of a fixed question, and what it is about by name."""
    for key, ways in WAYS.items():
        match = re.fullmatch(ways.fixed, question)
        if match:
            return key, match.groupdict()
    raise ValueError(f"Not a fixed question of the tiny world: {question!r}.")


def reword(question: str, rng: random.Random, for_test: bool = False) -> str:
    """A fixed question said in another way; `for_test`: in one that training does not show."""
    key, about = kind_of_question(question)
    if key == "relation":
        about["relation"] = expand(RELATION_WORDS[about["relation"]], rng)
    pattern = rng.choice(WAYS[key].test if for_test else WAYS[key].train)
    text = expand(pattern, rng).format(**about)
    return blur(text[0].upper() + text[1:], rng)


def blur(text: str, rng: random.Random) -> str:
    """The same text as people type it: in lower case now and then, and without its last sign."""
    if rng.random() < 0.3:
        text = text.lower()
    end = rng.random()
    if end < 0.25:
        return text.rstrip(".?!")
    if end < 0.3 and text.endswith("?"):
        return text[:-1] + rng.choice(("??", " ?", ".", "?!"))
    return text
