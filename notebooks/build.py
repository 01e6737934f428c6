"""Notebooks from their sources: `python -m notebooks.build [--check] [01 02 …]`.

A source is `notebooks/src/NN_name.py` in the percent format, so that diffs and ruff work. A code cell that says
`# exercise 1.2` becomes three cells: the heading, the skeleton and the check; one that says `# exercises` imports what
the skeletons need. Each notebook runs from a clean kernel, and is written with what it printed and drew.

--check writes nothing. It builds anew and compares with what is there: the cells, and the texts that they print (those
of cells tagged "volatile" aside). It exits 1 if something differs.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from exercises import book

FOLDER = Path(__file__).parent
SECONDS = 300  # limit of a cell, on a slow and busy machine
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
QUIET |= {"PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
QUIET |= {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm misses ipywidgets, which nothing here needs
TEXTS = ("text/plain", "text/markdown")  # text/html is one of these in colour


class BuildError(Exception):
    """A notebook that cannot be built; the text says where."""


def sources(chosen: list[str]) -> list[Path]:
    """The sources of the notebooks with these numbers, or of all."""
    found = sorted((FOLDER / "src").glob("[0-9][0-9]_*.py"))
    unknown = set(chosen) - {path.name[:2] for path in found}
    if unknown:
        raise BuildError(f"There is no notebook {', '.join(sorted(unknown))}.")
    return [path for path in found if not chosen or path.name[:2] in chosen]


def from_source(path: Path) -> NotebookNode:
    """The notebook without outputs."""
    parsed = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    cells = [new for cell in parsed.cells for new in expanded(cell, path.name[:2])]
    for number, cell in enumerate(cells, 1):
        cell["id"] = f"cell-{path.name[:2]}-{number:02}"
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return notebook


def expanded(cell: NotebookNode, chapter: str) -> list[NotebookNode]:
    """A cell of the source → the cells of the notebook."""
    if cell.cell_type == "markdown":
        return [new_markdown_cell(cell.source)]
    if cell.source.strip() == "# exercises":
        code = "from exercises.checker import check, hint"
        imports = book.skeleton_cells(chapter).get("imports", "")
        return [new_code_cell(f"{imports}\n\n{code}".strip())]
    marker = re.fullmatch(r"# exercise (\d\.\d)", cell.source.strip())
    if marker:
        return exercise_cells(marker[1])
    metadata = {"tags": sorted(cell.metadata["tags"])} if cell.metadata.get("tags") else {}
    return [new_code_cell(cell.source, metadata=metadata)]


def exercise_cells(number: str) -> list[NotebookNode]:
    """The heading, the skeleton and the check of an exercise."""
    exercise = book.find(number)
    return [
        new_markdown_cell(f"### Exercise {exercise.heading()}"),
        new_code_cell(book.skeleton(exercise), metadata={"tags": [f"exercise-{number}"]}),
        new_code_cell(f'check({exercise.function})  # hint("{number}") helps'),
    ]


def executed(path: Path) -> NotebookNode:
    """The notebook with its outputs, run from a clean kernel."""
    notebook = from_source(path)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
        skip_cells_with_tag="skip-execution",
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        client.execute(env=os.environ | QUIET)
    except (CellControlSignal, DeadKernelError) as error:  # an exception, a cell without end, a crash
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without colours
        raise BuildError(f"{path.name}: {plain}") from error
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            cell.outputs = [clean(output, path, number) for output in joined(cell.outputs)]
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = NotebookNode(name="python")
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Pieces of one stream become one: where they are cut is chance."""
    kept = []
    for output in outputs:
        if kept and output.output_type == "stream" and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def clean(output: NotebookNode, path: Path, number: int) -> NotebookNode:
    """An output without what depends on the machine; warnings and errors do not belong in a notebook."""
    if output.output_type == "error" or output.get("name") == "stderr":
        text = output.get("text") or output.get("evalue")
        raise BuildError(f"{path.name}: cell {number} wrote to stderr: {text}")
    if "execution_count" in output:
        output.execution_count = None
    return output


def texts(cell: NotebookNode, outputs: bool) -> list[str]:
    """What a cell is and what it says: everything that must be the same when it is built anew."""
    tags = cell.metadata.get("tags", [])
    lines = [f"{cell.id} {cell.cell_type} {tags}", *cell.source.splitlines()]
    if "volatile" in tags or not outputs:
        return lines
    for output in cell.get("outputs", []):
        lines.append(f"output {output.output_type} {sorted(output.get('data', {}))}")
        lines += output.get("text", "").splitlines()
        for kind in TEXTS:
            lines += output.get("data", {}).get(kind, "").splitlines()
    return lines


def difference(path: Path, new: NotebookNode, outputs: bool) -> str:
    """How a notebook, or its cells alone, differs from the one that is there; an empty text if it does not."""
    target = FOLDER / f"{path.stem}.ipynb"
    if not target.exists():
        return f"{target.name} does not exist."
    old = nbformat.read(target, as_version=4)
    before = [line for cell in old.cells for line in texts(cell, outputs)]
    after = [line for cell in new.cells for line in texts(cell, outputs)]
    lines = difflib.unified_diff(before, after, f"{target.name}, as it is", "as it would be built", lineterm="", n=1)
    return "\n".join(lines)


def build(path: Path, check: bool) -> tuple[str, bool]:
    """Build or check one notebook: what to say, and whether all is well."""
    found = difference(path, from_source(path), outputs=False) if check else ""
    if found:
        return found, False  # no need to run it
    try:
        new = executed(path)
    except BuildError as error:
        return str(error), False
    if check:
        found = difference(path, new, outputs=True)
        return found or f"{path.stem}.ipynb is what its source gives.", not found
    target = FOLDER / f"{path.stem}.ipynb"
    nbformat.write(new, target)
    return f"Wrote {target.name}, {target.stat().st_size / 1000:.0f} KB.", True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="such as 01 04; all if left out")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if something differs")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default 1)")
    options = parser.parse_args(argv)
    try:
        paths = sources(options.numbers)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with ProcessPoolExecutor(max_workers=max(1, options.jobs)) as pool:
        results = list(pool.map(build, paths, [options.check] * len(paths)))
    for text, _ in results:
        print(text)
    return 0 if all(well for _, well in results) else 1


if __name__ == "__main__":
    sys.exit(main())
