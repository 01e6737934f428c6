"""What an instructor gives to students: the project without solutions and without the code of the mistakes.

The mistakes are recognised all the same: by their answers on the chosen probes, which are stored beside.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from exercises import book
from exercises.checker import stored_mistakes
from exercises.submissions import REPOSITORY

FILES = ("qwen2vl_mini.py", "weights_loader.py", "pyproject.toml", "README.md", "README.ko.md", "LICENSE", ".gitignore")
FOLDERS = ("qwen2vl_io", "qwen2vl_cli", "tiny_world", "checkpoints", "assets", "notebooks", "tests")
LEFT_OUT = ("__pycache__", ".ipynb_checkpoints", "*.pyc", "solutions", "mistakes.py", "src", "build.py")
OF_INSTRUCTORS = ("README.md", "gradescope")
FOR_STUDENTS = (
    *("__init__.py", "environment.py", "machine.py"),
    *("layer_debugger.py", "official.py", "small_models.py"),
)  # of tests/: what notebooks import


def handout(place: Path, chosen: tuple[str, ...]) -> int:
    """Write the handout with the `chosen` chapters to a new folder; returns the number of files."""
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file; give a new folder.")
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise ValueError(f"{place} is not empty; give a new folder, so that nothing of an older handout stays.")
    for name in FILES:
        if (REPOSITORY / name).exists():
            shutil.copyfile(REPOSITORY / name, place / name)
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns(*LEFT_OUT, *unwanted(name)))
    for notebook in (place / "notebooks").glob("[0-9]*.ipynb"):
        if notebook.name[:2] not in chosen:
            notebook.unlink()
    copy_exercises(place / "exercises", chosen)
    return sum(path.is_file() for path in place.rglob("*"))


def unwanted(folder: str) -> list[str]:
    """Of the tests only what notebooks import; of the other folders all."""
    if folder != "tests":
        return []
    return [path.name for path in (REPOSITORY / "tests").iterdir() if path.name not in FOR_STUDENTS]


def copy_exercises(place: Path, chosen: tuple[str, ...]) -> None:
    """The checker, and of each chosen chapter its skeleton, its probes and the answers of its mistakes."""
    others = [f"ex{chapter}" for chapter in book.chapters() if chapter not in chosen]
    ignore = shutil.ignore_patterns(*LEFT_OUT, *OF_INSTRUCTORS, *others)
    shutil.copytree(book.FOLDER, place, ignore=ignore)
    for chapter in chosen:
        (place / f"ex{chapter}" / "mistakes.json").write_text(stored_mistakes(chapter), encoding="utf-8")
