"""The house: which room may import which, what an installation brings, and the promises about the file to read."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source_lines import code_lines, function_lengths

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "qwen2vl_mini.py"
INSTALLED = ("qwen2vl_io", "weights_loader", "qwen2vl_mini", "qwen2vl_cli")
FLOORS = {"qwen2vl_io": 0, "weights_loader": 1, "qwen2vl_mini": 2, "qwen2vl_cli": 3, "tiny_world": 3}
FLOORS |= {"exercises": 4, "notebooks": 5}
EXCEPTIONS = {  # (importer, imported): why a line may lead upwards
    ("qwen2vl_mini", "qwen2vl_cli.__main__"),  # the door: `python qwen2vl_mini.py`
    ("weights_loader", "qwen2vl_mini"),  # the classes that `load` defaults to, looked up late
}


def modules() -> dict[str, ast.Module]:
    """Our modules by their dotted names."""
    files = [ROOT / f"{name}.py" for name in FLOORS if (ROOT / f"{name}.py").exists()]
    for name in FLOORS:
        files += sorted((ROOT / name).glob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in zip(names, files)}


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it; of `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a line leads"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_between_ours() -> set[tuple[str, str]]:
    """(importer, imported) of our modules; a package stands for its __init__."""
    ours = modules()
    found = set()
    for name, tree in ours.items():
        for other in imported(tree):
            other = f"{other}.__init__" if f"{other}.__init__" in ours else other
            if other in ours and other != name:
                found.add((name, other))
    return found


def room(name: str) -> str:
    return name.partition(".")[0]


def test_imports_run_one_way():
    upwards = {(a, b) for a, b in imports_between_ours() if FLOORS[room(a)] < FLOORS[room(b)]}
    assert upwards == EXCEPTIONS
    across = {(a, b) for a, b in imports_between_ours() if FLOORS[room(a)] == FLOORS[room(b)] and room(a) != room(b)}
    assert not across


def test_there_is_no_circle_of_imports():
    left = imports_between_ours() - EXCEPTIONS
    while True:  # take away what imports nothing that is left, until nothing is
        importers = {a for a, _ in left}
        kept = {(a, b) for a, b in left if b in importers}
        if kept == left:
            break
        left = kept
    assert not left


def test_the_product_never_imports_the_official_implementation():
    course = ("exercises", "notebooks")  # which compare ours with it
    for name, tree in modules().items():
        wanted = {room(other) for other in imported(tree)}
        assert room(name) in course or not wanted & {"transformers", "torchvision", "tests"}, name


# ── What an installation brings ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the clone, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    keep = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "*_training", ".*cache"
    )
    shutil.copytree(ROOT, folder / "clone", ignore=keep)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    build = [sys.executable, "-m", "pip", "wheel", *offline, "-w", "out", "./clone"]
    run = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (file,) = (folder / "out").glob("*.whl")
    return file


def test_only_our_names_land_in_site_packages(wheel):
    names = {Path(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    own = {name for name in names if not name.endswith(".dist-info")}
    assert own == {"qwen2vl_mini.py", "weights_loader.py", "qwen2vl_io", "qwen2vl_cli"}


def test_an_installation_finds_its_own_checkpoint(wheel, tmp_path):
    """As with `pip install --target`: no clone is near, and no prefix of a virtual environment helps."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import weights_loader; print(weights_loader.find_checkpoint('tiny', weights=True))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    folder = Path(run.stdout.strip())
    assert folder.is_relative_to(tmp_path / "site")
    assert {file.name for file in folder.iterdir()} >= {
        file.name for file in (ROOT / "checkpoints/tiny").glob("*.json")
    }
    ask = [sys.executable, "-m", "qwen2vl_cli", "--image", str(ROOT / "assets/scene.png")]
    run = subprocess.run(ask, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "A purple triangle, an orange heart and a green diamond.\n", run.stderr


# ── The file ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_is_within_its_promise():
    source = FILE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 1200
    assert len(code_lines(source)) <= 750
    assert max(map(len, source.splitlines())) <= 110


def test_no_function_of_the_product_is_longer_than_a_screen():
    files = [file for name in INSTALLED for file in (*ROOT.glob(f"{name}.py"), *(ROOT / name).glob("*.py"))]
    assert len(files) > 10
    for file in files:
        for function, lines in function_lengths(file.read_text(encoding="utf-8")):
            assert lines <= 40, f"{function} in {file.name} has {lines} lines"


def test_nothing_is_packed_in_the_file():
    """One statement a line, no walrus, no `*rest`; a tuple is assigned only to names that belong together."""
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    assert len(lines) == len(set(lines)), "two statements on one line"

    for node in ast.walk(tree):
        assert not isinstance(node, ast.NamedExpr), f"a walrus in line {node.lineno}"
        if isinstance(node, ast.FunctionDef) and node.args.vararg:
            assert node.args.vararg.arg == "args", f"*{node.args.vararg.arg} in line {node.lineno}"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            names = {name.id for target in node.targets if isinstance(target, ast.Tuple) for name in target.elts}
            are_dimensions = all(len(name) == 1 for name in names)  # the letters of the legend
            assert are_dimensions or names == {"cos", "sin"}, f"packed names in line {node.lineno}"


def test_the_lines_of_code_are_counted_rightly():
    head = '"""Doc.\n\nMore."""\n\nimport re  # why\n# only a comment\n\n\n'
    source = head + 'def f(\n    x,\n):\n    """Doc."""\n    return x\n'
    assert code_lines(source) == {5, 9, 10, 11, 13}
    assert dict(function_lengths(source)) == {"f": 4}
