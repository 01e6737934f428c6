"""What kind each line of a Python file is: code, docstring, comment or air. For the promises about the file to read."""

import ast
import io
import tokenize
from collections.abc import Iterator

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
SILENT = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
)


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines, from 1, that docstrings take."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            found |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that are code: neither blank nor only a comment nor part of a docstring."""
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            found |= set(range(token.start[0], token.end[0] + 1))
    return found - docstring_lines(ast.parse(source))


def function_lengths(source: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of each function, its docstring aside."""
    tree = ast.parse(source)
    docstrings = docstring_lines(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = set(range(node.lineno, node.end_lineno + 1))
            yield node.name, len(lines - docstrings)
