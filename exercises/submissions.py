"""Where answers are: a module or a notebook, in the folder `work/` or anywhere else.

`python -m exercises start` copies notebooks and skeletons to `work/`, which git ignores: a newer version of the course
never touches an answer, and an answer never stands in the way of a newer version.
"""

from __future__ import annotations

import ast
import json
import linecache
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from exercises import book
from exercises.book import Exercise
from exercises.checker import definitions, is_skeleton, parse

REPOSITORY = book.FOLDER.parent
WORK = REPOSITORY / "work"
LARGEST = 20_000_000  # bytes of a file with answers


class NoAnswer(ValueError):
    """A file that cannot be read as answers; its text says why and what to do."""


@dataclass
class Source:
    """The Python code of a file with answers."""

    path: Path
    code: str
    problems: list[str] = field(default_factory=list)  # sentences about cells that were left out
    tree: ast.Module = field(init=False, repr=False)
    definitions: dict[str, str] = field(init=False, repr=False)  # the code of each function and class

    def __post_init__(self):
        self.tree = parse(self.code)  # SyntaxError if it is not Python
        self.definitions = definitions(self.code, self.tree)

    def defines(self, exercise: Exercise) -> str | None:
        """The code of the answer to an exercise, if there is one."""
        return self.definitions.get(exercise.function)

    def reads_the_checker(self) -> bool:
        """Whether the file imports more of this package than `check`, `hint` and what skeletons begin with."""
        names = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        allowed = r"exercises\.(checker\.(check|hint)|ex\d\d\.skeleton(\.\w+)?)"
        return any(name.split(".")[0] == "exercises" and not re.fullmatch(allowed, name) for name in names)


def read_source(path: Path) -> Source:
    """A module as it is; of a notebook what defines something, since its pictures need not be drawn again."""
    try:
        if path.stat().st_size > LARGEST:
            raise NoAnswer(f"{path} has more than {LARGEST:,} bytes; hand in the file without its outputs.")
        text = path.read_text(encoding="utf-8")
        return notebook_source(text, path) if path.suffix == ".ipynb" else Source(path, text)
    except UnicodeDecodeError as error:
        raise NoAnswer(f"{path} is not UTF-8 text; save it as such.") from error
    except SyntaxError as error:
        where = f" in line {error.lineno}" if error.lineno else ""
        raise NoAnswer(f"{path} cannot be read as Python{where}: {error.msg}.") from error
    except OSError as error:
        raise NoAnswer(f"{path} cannot be read: {error.strerror}.") from error


def notebook_source(text: str, path: Path) -> Source:
    """The imports, functions, classes and constants of a notebook's code cells, in order."""
    try:
        cells = json.loads(text)["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NoAnswer(f"{path} is not a notebook.") from error
    kept, problems = [], []
    for number, source in enumerate(sources, 1):
        lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        try:
            tree = parse("\n".join(lines))
        except SyntaxError as error:
            where = f"line {error.lineno} of " if error.lineno else ""
            problems.append(f"{path}: {where}code cell {number} is not Python: {error.msg}.")
            continue
        kept += [segment(lines, node) for node in tree.body if is_kept(node)]
    return Source(path, "\n\n".join(kept) + "\n", problems)


def segment(lines: list[str], node: ast.stmt) -> str:
    """A statement as it was written, its decorators too."""
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return "\n".join(lines[first - 1 : node.end_lineno])


def is_constant(node: ast.stmt) -> bool:
    """NAME = something written out."""
    if not isinstance(node, ast.Assign) or not all(isinstance(target, ast.Name) for target in node.targets):
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # all that it may raise
        return False
    return True


def is_kept(node: ast.stmt) -> bool:
    """What may be needed by an answer and runs nothing by itself."""
    definitions = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return isinstance(node, definitions) or is_constant(node)


def sources_in(place: Path) -> tuple[list[Source], list[str]]:
    """The readable files with answers in a folder (or the one file), and a sentence for each that is not."""
    if not place.exists():
        raise NoAnswer(f"{place} does not exist; give a folder, a notebook or a module with answers.")
    paths = [place] if place.is_file() else sorted(answer_files(place))
    if place.is_file() and place.suffix not in (".py", ".ipynb"):
        raise NoAnswer(f"{place} is neither a notebook (.ipynb) nor a module (.py).")
    sources, problems = [], []
    for path in paths:
        try:
            sources.append(read_source(path))
            problems += sources[-1].problems
        except NoAnswer as error:
            problems.append(str(error))
    return sources, problems


def answer_files(folder: Path) -> list[Path]:
    """The modules and notebooks of a folder and two folders below, hidden ones left out."""
    found = [path for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern)]
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return [path for path in visible if path.suffix in (".py", ".ipynb") and path.is_file()]


def find_answer(exercise: Exercise, sources: list[Source]) -> Source | None:
    """The first file in which the exercise is attempted, else the first that has its function at all."""
    having = [source for source in sources if source.defines(exercise)]
    tried = [source for source in having if not is_skeleton(source.defines(exercise), exercise)]
    return (tried or having or [None])[0]


def load(source: Source, exercise: Exercise) -> Callable:
    """Run a file with answers and return the function; whatever it raises is the student's."""
    name = f"answers:{source.path.name}"
    lines = source.code.splitlines(keepends=True)
    linecache.cache[name] = (len(source.code), None, lines, name)  # so that an exception can show its line
    module = ModuleType("answers")
    exec(compile(source.code, name, "exec"), module.__dict__)
    return getattr(module, exercise.function)


# ── The folder work/ ────────────────────────────────────────────────────────────────────────────────────────────────


def start(work: Path = WORK) -> list[str]:
    """Copy notebooks and skeletons to `work`; what is there stays. Returns a line for each file."""
    copies = []
    for path in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb")):
        copies.append((path, work / "notebooks" / path.name))
    for chapter in book.chapters():
        copies.append((book.FOLDER / f"ex{chapter}" / "skeleton.py", work / "exercises" / f"ex{chapter}.py"))

    lines = []
    for original, copy in copies:
        if copy.exists():
            lines.append(f"kept     {copy.relative_to(work.parent)}")
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
        lines.append(f"created  {copy.relative_to(work.parent)}")
    return lines
