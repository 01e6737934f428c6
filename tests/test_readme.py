"""What the README claims, as far as a test can tell."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from exercises import book
from tests.source_lines import code_lines

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line]


def test_the_file_has_the_numbers_of_lines_that_it_says():
    source = (ROOT / "qwen2vl_mini.py").read_text(encoding="utf-8")
    lines, code, columns = re.search(
        r"^([\d,]+) lines from pixels to text, (\d+) of them code,.* no line over (\d+) columns", README, re.M
    ).groups()
    assert int(lines.replace(",", "")) == len(source.splitlines())
    assert int(code) == len(code_lines(source))
    assert int(columns) == max(map(len, source.splitlines()))


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_ci_runs_the_test_command_word_for_word():
    (command,) = [line for line in SHELL if "pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_no_placeholder_was_forgotten():
    assert not re.search(r"@[A-Z_]+@", README)


def test_every_command_of_ours_has_the_options_it_uses():
    for line in SHELL:
        for command in line.split(" && "):
            if command.startswith("python "):
                words = command.split()[1:]
                script = words[:2] if words[0] == "-m" else words[:1]
                if script[-1] == "pytest":
                    continue
                known = subprocess.run([sys.executable, *script, "--help"], cwd=ROOT, capture_output=True, text=True)
                assert known.returncode == 0, known.stderr
                for option in re.findall(r"--[a-z-]+", command):
                    assert option in known.stdout, f"{option} of {command}"


@pytest.mark.skipif(not (ROOT / "checkpoints/tiny").exists(), reason="no bundled checkpoint")
def test_the_first_command_prints_what_is_printed_here():
    (command,) = [line for line in SHELL if line.startswith("pip install . && ")]
    options = re.findall(r'"[^"]*"|\S+', command.split(" && ")[1])[1:]
    words = [sys.executable, *(word.strip('"') for word in options)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"\n```\n{run.stdout.strip()}\n```" in README
    assert "teaching model" in run.stderr and len(run.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not (ROOT / "checkpoints/tiny").exists(), reason="no bundled checkpoint")
def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    run = subprocess.run([sys.executable, "-c", code + "\nprint(answers)"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    description, _, who = eval(run.stdout)
    assert f"\n```\n{description}\n```" in README and who.startswith("I am a very small teaching model")


def test_it_can_be_read_at_one_sitting():
    assert len(README.splitlines()) < 200


def test_the_notebooks_and_their_minutes_are_those_of_the_course():
    rows = re.findall(r"^\| !\[.+\]\((.+)\) \| \[(\d\d · .+)\]\((.+)\) .*\| (\d+) \+ (\d+) minutes \|$", README, re.M)
    assert [row[1][:2] for row in rows] == list(book.chapters())
    for thumbnail, title, link, reading, practice in rows:
        assert (ROOT / thumbnail).exists()
        first = json.loads((ROOT / link).read_text(encoding="utf-8"))["cells"][0]["source"]
        text = " ".join("".join(first).split())
        assert text.startswith(f"# {title} ")
        assert f"**It takes** about {reading} minutes to read and {practice} to practise" in text


def test_the_hours_of_the_course():
    rows = re.findall(r"^\| !\[.*\[(\d\d) ·.*\| (\d+) \+ (\d+) minutes \|$", README, re.M)
    everything = sum(int(reading) + int(practice) for _, reading, practice in rows)
    core = sum(int(reading) for number, reading, _ in rows if number <= "07")
    core += sum(exercise.minutes for exercise in book.exercises() if exercise.core and exercise.chapter <= "07")
    hours = re.search(r"All of it\s+takes about (\d+) hours, the core \(●\) of 01 to 07 about (\d+)\.", README).groups()
    assert hours == (str(round(everything / 60)), str(round(core / 60)))


def test_the_number_of_exercises():
    assert int(re.search(r"Nine notebooks and (\d+) exercises", README)[1]) == len(book.exercises())


# ── Korean ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def shape_of(text: str) -> dict[str, list[str]]:
    """What must be the same in both languages: commands, code, links, pictures, names, numbers, headings."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    return {
        "blocks": re.findall(r"```.*?```", text, re.S),
        "headings": re.findall(r"^#+ ", prose, re.M),
        "names": sorted(re.findall(r"`[^`]+`", prose)),
        "links": sorted(link.replace("README.ko.md", "README.md") for link in re.findall(r"\]\(([^)]+)\)", prose)),
        "numbers": sorted(re.findall(r"\d[\d,.]*\d|\d", re.sub(r"`[^`]+`", "", prose))),
        "tables": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
    }


@pytest.mark.parametrize("what", ["blocks", "headings", "names", "links", "tables"])
def test_the_korean_readme_says_the_same(what):
    assert shape_of(KOREAN)[what] == shape_of(README)[what]


def test_the_korean_readme_has_the_same_numbers():
    korean, english = (Counter(shape_of(text)["numbers"]) for text in (KOREAN, README))
    assert not english - korean
    # Korean has digits where English has "two" or "ten", and 460 times ten thousand for 4.6 million
    assert set(korean - english) <= {"1", "2", "3", "5", "9", "10", "460"}
