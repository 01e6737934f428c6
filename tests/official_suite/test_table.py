"""The table in README.md names tests that exist, and all of this folder; its quotes are the project's README."""

import ast
import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:\.\./)?test_\w+\.py)::(\w+)`", TABLE)


@cache
def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_tests_of_the_table_exist():
    missing = [f"{file}::{name}" for file, name in NAMED if name not in names_in(FOLDER / file)]
    assert not missing and len(NAMED) > 100


def test_no_test_of_this_folder_is_left_out():
    named = set(NAMED)
    files = [file for file in FOLDER.glob("test_*.py") if file != Path(__file__)]
    assert len(files) == 6
    assert not {(file.name, name) for file in files for name in names_in(file)} - named


def test_each_row_has_its_verdict():
    """Passes, differs or cannot apply; what differs points to a test, a quote or an error."""
    rows = [line.split(" | ") for line in TABLE.splitlines() if line.startswith("| ") and "official case" not in line]
    for case, verdict in rows:
        assert re.search(r"\b(passes|differs|cannot apply|skipped|or refused)\b", verdict), case
        if "differs" in verdict:
            assert "::" in verdict or "“" in verdict, case


def test_quotes_are_the_projects_readme():
    readme = " ".join((FOLDER.parent.parent / "README.md").read_text(encoding="utf-8").split())
    quotes = set(re.findall(r"“(.+?)”", TABLE)) - {"quotes"}
    assert len(quotes) >= 7 and not [quote for quote in quotes if quote not in readme]
