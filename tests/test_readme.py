"""What the README claims, as far as a test can tell."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source_lines import code_lines

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
    code, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() in README, run.stderr


@pytest.mark.skipif(not (ROOT / "checkpoints/tiny").exists(), reason="no bundled checkpoint")
def test_the_example_of_a_mixed_batch_runs():
    _, code = re.findall(r"```python\n(.*?)```", README, re.S)
    run = subprocess.run([sys.executable, "-c", code + "\nprint(answers)"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    description, _, who = eval(run.stdout)
    assert f"\n```\n{description}\n```" in README and who.startswith("I am a very small teaching model")
