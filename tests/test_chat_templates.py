"""A checkpoint's own chat template: one that says the same as Qwen2-VL's is silent, others get a line of the log."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import qwen2vl_mini
from qwen2vl_io import chat_templates
from qwen2vl_io.chat_templates import difference
from qwen2vl_mini import Qwen2VLProcessor, render_chat
from tiny_world.chat_template import CHAT_TEMPLATE

TINY = Path(qwen2vl_mini.__file__).parent / "checkpoints" / "tiny"
HELLO = [{"role": "user", "content": "Hello"}]

# the same written anew: other names, other order of the conditions, white space control, a variable in between
REWRITTEN = """
{%- set pictures = namespace(n=0) %}{%- set clips = namespace(n=0) %}
{%- for turn in messages %}
    {%- if loop.first and turn.role != "system" %}
        {{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
    {%- endif %}
    {{- "<|im_start|>" + turn.role + "\\n" }}
    {%- if turn.content is not string %}
        {%- for part in turn.content %}
            {%- if part.type == "video" or "video" in part %}
                {%- set clips.n = clips.n + 1 %}
                {{- ("Video " ~ clips.n ~ ": ") if add_vision_id else "" }}
                {{- "<|vision_start|><|video_pad|><|vision_end|>" }}
            {%- elif part.type == "image" or "image" in part or "image_url" in part %}
                {%- set pictures.n = pictures.n + 1 %}
                {{- ("Picture " ~ pictures.n ~ ": ") if add_vision_id else "" }}
                {{- "<|vision_start|><|image_pad|><|vision_end|>" }}
            {%- else %}{{- part.text }}{%- endif %}
        {%- endfor %}
    {%- else %}{{- turn.content }}{%- endif %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}
"""
SAME = {
    "the bundled one": CHAT_TEMPLATE,
    "rewritten": REWRITTEN,
    "with a branch for tools": "{% if tools %}{{ tools }}{% endif %}" + CHAT_TEMPLATE,
    "with a comment": "{# mine #}" + CHAT_TEMPLATE,
}


def changed(old: str, new: str) -> str:
    assert old in CHAT_TEMPLATE
    return CHAT_TEMPLATE.replace(old, new)


OTHER = {  # name: the template, what the log says
    "another system message": (changed("You are a helpful assistant.", "You are Bob."), "for a text .*You are Bob"),
    "no system message": (changed("loop.first and", "false and"), "for a text"),
    "text that is trimmed": (changed("{{ content['text'] }}", "{{ content['text'] | trim }}"), "for a picture .*Hi!"),
    "clips like pictures": (changed("<|video_pad|>", "<|image_pad|>"), "for a clip"),
    "other numbers of pictures": (changed("Picture {{", "Image {{"), "for several turns"),
    "no room for the answer": (changed("<|im_start|>assistant", "<|im_start|>bot"), "for a picture .*bot"),
    "an error of its own": ("<|im_start|>{{ messages.nothing.at.all }}", r"nothing \(UndefinedError\)"),
}
NOT_RUN = {  # name: the template, the reason that the log gives
    "a call": ("{{ messages[0].content.upper() }}", "calls functions"),
    "a range": ("{% for i in range(9) %}x{% endfor %}", "loops"),
    "a loop over letters of its own": ('{% for a in "abc" %}{% for m in messages %}x{% endfor %}{% endfor %}', "loops"),
    "three loops": (
        "{% for a in messages %}{% for b in a %}{% for c in b %}x{% endfor %}{% endfor %}{% endfor %}",
        "lo",
    ),
    "a power": ("{{ 9**9**9 }}", "Pow"),
    "a long repetition": ("{{ 'x' * 999999999 }}", "Mul"),
    "a text that doubles": (
        "{% set n = namespace(a='aa') %}{% for m in messages %}{% set n.a = n.a ~ n.a %}{% endfor %}",
        "builds values",
    ),
    "a number that doubles": ("{% set n = namespace(a=9) %}{% set n.a = n.a + n.a %}", "builds values"),
    "a long text kept": ("{% set a = '" + "x" * 999 + "' %}", "builds values"),
    "inner names": ("{{ ''.__class__.__mro__ }}", "inner names"),
    "an inner name by index": ("{{ ''['__class__'] }}", "inner names|another one"),
    "a macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Macro|calls"),
    "an include": ("{% include '/etc/passwd' %}", "Include"),
    "an import": ("{% import 'os' as o %}", "Import"),
    "a filter that fills": ("{{ 'x' | center(999999999) }}", "center"),
    "no Jinja": ("{% for %}", "TemplateSyntaxError"),
    "a tag of others": ("{% generation %}x{% endgeneration %}", "TemplateSyntaxError"),
    "a very long one": ("x" * 30_000, "more than 20000 characters"),
    "a deep one": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "Error"),
}


@pytest.mark.parametrize("name", SAME)
def test_templates_that_say_the_same_are_silent(name):
    assert difference(SAME[name], render_chat) is None


@pytest.mark.parametrize("name", OTHER)
def test_another_template_is_told_by_what_it_writes(name):
    template, words = OTHER[name]
    sentence = difference(template, render_chat)
    assert sentence and re.search(words, sentence), sentence
    assert "processor(text=…)" in sentence and "\n" not in sentence


@pytest.mark.parametrize("name", NOT_RUN)
def test_a_template_that_might_do_harm_is_not_run(name, monkeypatch):
    template, words = NOT_RUN[name]
    sentence = difference("<|im_start|>" + template, render_chat)
    assert sentence and re.search(words, sentence), sentence


@pytest.fixture
def with_template(tmp_path):
    """A function: a processor whose checkpoint has that template."""

    def make(template: str) -> Qwen2VLProcessor:
        for name in ("preprocessor_config.json", "tokenizer.json"):
            shutil.copy(TINY / name, tmp_path)
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        chat_templates.warn_once.cache_clear()
        return Qwen2VLProcessor.from_pretrained(tmp_path)

    return make


def test_another_template_is_said_once_and_the_prompt_is_qwen2_vls(with_template, caplog):
    processor = with_template(OTHER["another system message"][0])
    for _ in range(3):
        text = processor.apply_chat_template(HELLO)
    assert text == "".join(render_chat(HELLO)) and "helpful" in text
    [record] = caplog.records
    assert "The chat template of this checkpoint is another one" in record.message


def test_nothing_is_said_of_the_same_template(with_template, caplog):
    with_template(REWRITTEN).apply_chat_template(HELLO)
    assert not caplog.records


def test_without_jinja_it_is_said_that_nothing_was_compared(with_template, caplog, monkeypatch):
    processor = with_template(CHAT_TEMPLATE + "{# so that it is not remembered #}")
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    processor.apply_chat_template(HELLO)
    [record] = caplog.records
    assert "cannot be compared with Qwen2-VL's (Jinja2 is not installed)" in record.message


def test_the_bundled_template_needs_no_jinja(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    difference.cache_clear()
    Qwen2VLProcessor.from_pretrained("tiny").apply_chat_template(HELLO)
    assert not caplog.records


def test_a_base_model_without_a_template_is_refused(with_template):
    with pytest.raises(ValueError, match="No chat template in this checkpoint"):
        with_template("{{ messages }}").apply_chat_template(HELLO)
