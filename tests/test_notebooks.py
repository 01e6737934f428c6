"""The nine notebooks: they are what their sources give, they run, they can fail, and they are fit to be read."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from exercises import book
from notebooks import build

REPOSITORY = Path(__file__).parent.parent
SOURCES = build.sources([])
NUMBERS = [path.name[:2] for path in SOURCES]

# One change of our code for each notebook, which its check against the official classes must notice.
BREAKS = {
    "01": "qwen2vl_mini.smart_resize = lambda height, width, *more, ours=qwen2vl_mini.smart_resize, **limits: "
    "ours(height + (height % 28 == 14), width + (width % 28 == 14), *more, **limits)",  # halves are rounded up
    "02": "qwen2vl_mini.expand_placeholders = lambda prompts, placeholder, counts, "
    "ours=qwen2vl_mini.expand_placeholders: ours(prompts, placeholder, [count - 1 for count in counts])",
    "03": "qwen2vl_mini.media_kind = lambda item, ours=qwen2vl_mini.media_kind: ours(item) and 'image'",
    "04": "qwen2vl_mini.VisionMLP.forward = lambda self, x: self.fc2(qwen2vl_mini.F.gelu(self.fc1(x)))",
    "05": "qwen2vl_mini.product = lambda t, h, w: [(i, k, j) for i in t for j in h for k in w]",
    "06": "qwen2vl_mini.MLP.forward = lambda self, x: self.down_proj("
    "qwen2vl_mini.F.silu(self.up_proj(x)) * self.gate_proj(x))",
    "07": "qwen2vl_mini.MLP.forward = lambda self, x: self.down_proj("
    "qwen2vl_mini.F.silu(self.up_proj(x)) * self.gate_proj(x))",
    "08": "qwen2vl_mini.Qwen2VLImageProcessor.pixels_of = lambda self, frame, size, resample=None, "
    "ours=qwen2vl_mini.Qwen2VLImageProcessor.pixels_of: "
    "ours(self, qwen2vl_mini.Image.fromarray(frame), size, 'pillow')",
    "09": "qwen2vl_mini.MLP.forward = lambda self, x: self.down_proj("
    "qwen2vl_mini.F.gelu(self.gate_proj(x)) * self.up_proj(x))",
}


def notebook(number: str):
    path = next(path for path in SOURCES if path.name.startswith(number))
    return nbformat.read(build.FOLDER / f"{path.stem}.ipynb", as_version=4)


def code_cells(number: str) -> list:
    return [cell for cell in notebook(number).cells if cell.cell_type == "code"]


def run(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    environment = os.environ | build.QUIET
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_all_are_there():
    assert NUMBERS == [f"{number:02}" for number in range(1, 10)]
    assert sorted(BREAKS) == NUMBERS
    assert sorted(path.stem for path in build.FOLDER.glob("*.ipynb")) == [path.stem for path in SOURCES]


@pytest.mark.parametrize("number", NUMBERS)
def test_building_anew_gives_the_same(number):
    done = run("-m", "notebooks.build", "--check", number)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_fault_of_ours_fails_the_official_check(number):
    path = next(path for path in SOURCES if path.name.startswith(number))
    cells = [cell.source for cell in build.from_source(path).cells if cell.cell_type == "code"]
    whole = "\n".join(cells)
    assert re.search(r"^(import|from) transformers\b", whole, re.M) and re.search(r"^ *assert ", whole, re.M)
    first = [f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})", "import qwen2vl_mini", BREAKS[number]]
    quiet = ["from notebooks import play", "play.show = lambda thing: None"]  # a stand-in has no source to show
    begins = [f"{cell}\nprint('cell', {i}, file=sys.stderr)" for i, cell in enumerate(cells)]
    done = run("-c", "\n".join([*first, *quiet, *begins]), cwd=build.FOLDER)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr.splitlines()[-1], done.stderr[-3000:]
    ended = int(re.findall(r"^cell (\d+)$", done.stderr, re.M)[-1])  # the last cell before the one that failed
    official = min(
        i for i, cell in enumerate(cells) if re.search(r"^(import|from) (transformers|tests\.official)", cell, re.M)
    )
    assert ended >= official - 1, "it failed before the official classes had a say"


def test_check_notices_another_line_of_our_file(tmp_path):
    copy = copy_of_the_course(tmp_path)
    file = copy / "qwen2vl_mini.py"
    text = file.read_text(encoding="utf-8")
    assert "new_height = round(height / factor) * factor" in text
    file.write_text(
        text.replace("round(height / factor) * factor", "factor * round(height / factor)"), encoding="utf-8"
    )
    done = run("-m", "notebooks.build", "--check", "01", cwd=copy)
    assert done.returncode == 1 and "factor * round(height / factor)" in done.stdout


def test_check_notices_another_line_of_a_skeleton(tmp_path):
    copy = copy_of_the_course(tmp_path)
    file = copy / "exercises" / "ex01" / "skeleton.py"
    text = file.read_text(encoding="utf-8")
    assert "A square root helps" in text
    file.write_text(text.replace("A square root helps", "A root helps"), encoding="utf-8")
    done = run("-m", "notebooks.build", "--check", "01", cwd=copy)
    assert done.returncode == 1 and "A root helps" in done.stdout


def copy_of_the_course(folder: Path) -> Path:
    copy = folder / "copy"
    copy.mkdir()
    for name in ("qwen2vl_io", "checkpoints", "assets", "tiny_world", "notebooks", "exercises", "tests"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("qwen2vl_mini.py", "weights_loader.py"):
        shutil.copyfile(REPOSITORY / name, copy / name)
    return copy


def test_an_unknown_number_is_one_sentence():
    done = run("-m", "notebooks.build", "77")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: There is no notebook 77.\n"


# ── Fit to be read ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_cells_are_short():
    lengths = [len(cell.source.splitlines()) for number in NUMBERS for cell in code_cells(number)]
    assert max(lengths) <= 20
    assert sum(length <= 12 for length in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("number", NUMBERS)
def test_outputs(number):
    content = notebook(number)
    assert "widgets" not in content.metadata
    outputs = [output for cell in code_cells(number) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert figures
    for figure in figures:
        assert len(figure.metadata["image/png"]["alt"]) > 20  # what is seen, for those who cannot see it
    text = nbformat.writes(content)
    assert str(REPOSITORY) not in text and "/tmp/" not in text
    for cell in content.cells:
        if cell.cell_type == "markdown":
            assert "![" not in cell.source and "<img" not in cell.source


@pytest.mark.parametrize("number", NUMBERS)
def test_sections(number):
    text = "\n".join(cell.source for cell in notebook(number).cells if cell.cell_type == "markdown")
    assert "**Afterwards you can**" in text and "**What to see:**" in text and "## To recall" in text
    five = text.split("## Five sentences to remember")[1].split("\n\n")[1]
    assert [line[:2] for line in five.strip().splitlines() if line[:1].isdigit()] == ["1.", "2.", "3.", "4.", "5."]
    asked = [exercise.number for exercise in book.exercises(number)]
    assert [f"### Exercise {each}" in text for each in asked] == [True] * len(asked)
    minutes = sum(exercise.minutes for exercise in book.exercises(number))
    assert f"and {minutes} to practise" in " ".join(text.split())


@pytest.mark.parametrize("number", NUMBERS)
def test_links_lead_somewhere(number):
    for cell in notebook(number).cells:
        for link in re.findall(r"\]\(([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert link.startswith("https://") or (build.FOLDER / link).exists(), link


def test_sizes():
    sizes = [path.stat().st_size for path in build.FOLDER.glob("*.ipynb")]
    assert max(sizes) <= 600_000
    assert sum(sizes) <= 5_000_000
