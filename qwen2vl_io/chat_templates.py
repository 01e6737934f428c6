"""A checkpoint's own chat template against the one written out in `render_chat`: do both say the same?

A template is a program that somebody else wrote. Only one whose every step is harmless (loops over the conversation,
conditions, counting, output) is run, in Jinja's sandbox, on a few conversations of our own; any other is not run.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable

from qwen2vl_io.sentences import shorten

logger = logging.getLogger(__name__)

PICTURE = {"type": "image", "image": "a.png"}
CLIP = {"type": "video", "video": "a.mp4"}
TEXT = {"type": "text", "text": " Hi!\n"}
PROBES = (  # what it is about, messages, further variables of the template
    ("a text", [{"role": "user", "content": "Hello "}], {}),
    ("a system message", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], {}),
    ("a picture", [{"role": "user", "content": [PICTURE, TEXT]}], {"add_generation_prompt": True}),
    ("a clip", [{"role": "user", "content": [TEXT, CLIP]}], {"add_generation_prompt": True}),
    (
        "several turns",
        [
            {"role": "user", "content": [PICTURE, TEXT, PICTURE, CLIP]},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": [TEXT]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ],
        {"add_vision_id": True},
    ),
)
WAY_OUT = (
    "prompts are written as Qwen2-VL's own has it; to use the checkpoint's, render it with transformers' "
    "tokenizer and pass the text to processor(text=…)"
)
RELEASED = "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb"  # SHA-256 of Qwen2-VL's own
MAX_CHARACTERS = 20_000  # the released one has 1,017
MAX_CONSTANT = 64  # characters of a text that a template keeps: it could loop over them
HARMLESS = (
    "Template Output TemplateData For If Assign NSRef Name Const Compare Operand And Or Not Test Getattr Getitem Call "
    "Keyword CondExpr Concat Add Filter List Tuple Sub Slice Neg"
).split()
TESTS = ("string", "defined", "none", "mapping", "iterable", "sequence", "undefined", "true", "false", "boolean")
FILTERS = ("trim", "length", "count", "string")


def check_template(chat_template: str | None, render: Callable) -> None:
    """A checkpoint without a chat template cannot take messages; one with another gets a line of the log, once."""
    if "<|im_start|>" not in (chat_template or ""):
        raise ValueError("No chat template in this checkpoint (a base model?): write a prompt for processor(text=…).")
    problem = difference(chat_template, render)
    if problem:
        warn_once(problem)


@functools.cache
def warn_once(problem: str) -> None:
    logger.warning(problem)


@functools.lru_cache(maxsize=64)
def difference(chat_template: str, render: Callable) -> str | None:
    """How a template differs from what `render` writes: a sentence; None if it does not."""
    if hashlib.sha256(chat_template.encode(errors="replace")).hexdigest() == RELEASED:
        return None
    program = compiled(chat_template)
    if isinstance(program, str):
        return f"The chat template of this checkpoint cannot be compared with Qwen2-VL's ({program}): {WAY_OUT}."

    for about, messages, variables in PROBES:
        ours = "".join(render(messages, **variables))
        try:
            theirs = program.render(messages=messages, tools=None, **variables)
        except Exception as error:  # Jinja's, and whatever a template stumbles over
            theirs = f"nothing ({type(error).__name__})"
        if theirs != ours:
            at = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), min(len(theirs), len(ours)))
            at = max(0, at - 12)
            parts = [repr(shorten(text[at : at + 40].replace("\n", "\\n"), 60)) for text in (theirs, ours)]
            what = f"for {about} it writes …{parts[0]}…, and Qwen2-VL's …{parts[1]}…"
            return f"The chat template of this checkpoint is another one ({what}): {WAY_OUT}."
    return None


def compiled(chat_template: str):
    """The template, ready to run in the sandbox; or the reason (a str) why it is not run."""
    if len(chat_template) > MAX_CHARACTERS:
        return f"it has more than {MAX_CHARACTERS} characters"
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # comes with PyTorch; not needed otherwise
    except ImportError:
        return "Jinja2 is not installed"

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals.clear()
    environment.globals["namespace"] = namespace()
    try:
        tree = environment.parse(chat_template)
        problem = harm(tree)
        return problem or environment.from_string(chat_template)
    except Exception as error:  # a template that is no Jinja, or nested too deeply
        return f"it is no readable Jinja, {type(error).__name__}"


def namespace() -> type:
    from jinja2.utils import Namespace

    return Namespace


def harm(tree) -> str | None:
    """What in a template might run for long, grow without limit, or reach outside; None if nothing does."""
    from jinja2 import nodes

    for node in tree.find_all(nodes.Node):
        kind = type(node).__name__
        if kind not in HARMLESS:
            return f"it uses {kind}"
        if kind == "Test" and node.name not in TESTS or kind == "Filter" and node.name not in FILTERS:
            return f"it uses {node.name}"
        if kind == "Call" and (not isinstance(node.node, nodes.Name) or node.node.name != "namespace" or node.args):
            return "it calls functions"
        if kind == "Assign" and not is_small(node.node, nodes):
            return "it builds values of its own"
        if kind in ("Getattr", "NSRef") and node.attr.startswith("_"):
            return "it reaches for inner names"
        if kind == "For" and (node.recursive or depth(node, nodes) > 2 or not is_lookup(node.iter, nodes)):
            return "its loops are more than two deep, or not over the conversation"
    return None


def is_plain(node, nodes) -> bool:
    """Whether an expression only looks something up."""
    inner = [node, *node.find_all(nodes.Node)]
    if any(isinstance(one, nodes.Const) and len(str(one.value)) > MAX_CONSTANT for one in inner):
        return False
    return {type(one).__name__ for one in inner} <= {"Name", "Getattr", "Getitem", "Const", "Slice"}


def is_lookup(node, nodes) -> bool:
    return is_plain(node, nodes) and not isinstance(node, nodes.Const)


def is_small(value, nodes) -> bool:
    """Whether an assignment cannot make anything grow: a look-up, a namespace of constants, a count by a constant."""
    if isinstance(value, nodes.Call):
        return all(isinstance(one.value, nodes.Const) and is_plain(one.value, nodes) for one in value.kwargs)
    if isinstance(value, nodes.Add):
        return (
            is_plain(value.left, nodes) and isinstance(value.right, nodes.Const) and isinstance(value.right.value, int)
        )
    return is_plain(value, nodes)


def depth(loop, nodes) -> int:
    """How many loops there are in each other, at this one."""
    return 1 + max((depth(inner, nodes) for inner in loop.find_all(nodes.For)), default=0)
