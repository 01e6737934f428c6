"""What works here, and how to repair what does not: `python -m tests.environment` (half a minute, no network).

One line an item. OK; FAIL, with the command that repairs it below; or note, for what is only optional. The exit code is
0 if the main command works and every extra of pyproject.toml that is installed is complete, else 1.

This has to run where nothing else does. So it needs Python's own library only (3.8 is enough to be told that it is too
old), and each package is imported in a process of its own: a broken one can end the process that imports it.
"""

from __future__ import annotations

import argparse
import filecmp
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100  # columns
PATIENCE = 300  # seconds for one import or one answer; the first one on a new machine is slow
QUESTION = ("--image", "assets/scene.png", "--prompt", "Describe this image.")
ANSWER = "A purple triangle, an orange heart and a green diamond."
SET_ASIDE = "git stash  # sets your changes aside, git stash pop brings them back; --debug shows whole errors"
USERS = {"test": "the tests", "notebooks": "the notebooks"}  # who needs an extra
IMPORT = """
import importlib, sys
try:
    importlib.import_module(sys.argv[1])
except BaseException as error:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sys.exit(type(error).__name__ + ": " + (lines[0] if lines else "no reason given"))
"""
FIND = "import importlib.util as u; found = u.find_spec('qwen2vl_mini'); print(found and found.origin or '')"


@dataclass
class Line:
    state: str  # "OK", "FAIL" or "note"
    item: str
    detail: str
    repair: str = ""  # a command

    def __str__(self) -> str:
        text = f"{self.state:<5} {self.item:<15} {self.detail}"
        rows = textwrap.wrap(text, WIDTH, subsequent_indent=" " * 22, break_long_words=False, break_on_hyphens=False)
        if self.repair:
            rows.append(f"{'':<5} {'  run:':<15} {self.repair}")  # in one piece, to be copied
        return "\n".join(rows)


def failures(lines: list[Line]) -> int:
    return sum(line.state == "FAIL" for line in lines)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def python() -> str:
    """How this Python is called from the same terminal."""
    name = Path(sys.executable).name
    if shutil.which(name) == sys.executable:
        return name[: -len(".exe")] if name.endswith(".exe") else name
    return f'"{sys.executable}"' if " " in sys.executable else sys.executable


@functools.lru_cache
def pip_install() -> str:
    """The beginning of a command that installs into this Python. Environments that uv makes have no pip."""
    by_uv = shutil.which("uv") and not importlib.util.find_spec("pip")
    return f"uv pip install --python {python()}" if by_uv else f"{python()} -m pip install"


def run_python(*arguments: str, folder: str | Path = ROOT) -> tuple[int, str, str]:
    """This Python with these arguments → exit code, stdout, stderr."""
    try:
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"it took more than {PATIENCE} seconds"
    return run.returncode, run.stdout.strip(), run.stderr.strip()


# ── Python and packages ─────────────────────────────────────────────────────────────────────────────────────────────


def python_line(pyproject: str, running: tuple[int, int, int]) -> Line:
    """Whether Python is as new as the text of pyproject.toml asks; older ones have no tomllib to read it with."""
    major, minor = re.search(r'requires-python\s*=\s*">=(\d+)\.(\d+)', pyproject).groups()
    detail = f"{'.'.join(map(str, running)):<15} {f'>={major}.{minor}':<15} {sys.executable}"
    if running >= (int(major), int(minor)):
        return Line("OK", "Python", detail)
    newer = f"python{major}.{minor} -m venv .venv && . .venv/bin/activate"
    if os.name == "nt":
        newer = f"py -{major}.{minor} -m venv .venv; .venv\\Scripts\\activate"
    return Line("FAIL", "Python", detail, f"{newer}  # after installing it from https://python.org")


def python_lines(pyproject: str) -> Iterator[Line]:
    yield python_line(pyproject, sys.version_info[:3])
    if pip_install().startswith(python()) and not importlib.util.find_spec("pip"):
        yield Line("note", "pip", "missing, and needed to install packages", f"{python()} -m ensurepip")


def read_requirement(text: str):
    """A requirement with name, specifier and marker, read by `packaging`, of which pip and setuptools have copies."""
    for library in ("packaging", "pip._vendor.packaging", "setuptools._vendor.packaging"):
        try:
            return importlib.import_module(f"{library}.requirements").Requirement(text)
        except Exception:  # missing or broken: try the next
            continue
    name = re.match(r"[\w.-]+", text).group()
    return SimpleNamespace(name=name, specifier=text[len(name) :], marker=None)


def module_of(distribution: metadata.Distribution) -> str | None:
    """The module to import from a distribution; None for one that only brings others, as jupyter does."""
    files = [file.parts for file in distribution.files or [] if file.suffix == ".py"]
    names = {parts[0] for parts in files if parts[1:] == ("__init__.py",)}
    names |= {parts[0][: -len(".py")] for parts in files if len(parts) == 1}
    own = distribution.metadata["Name"].lower().replace("-", "_")
    return own if own in names else min((name for name in names if name[0] not in "_."), default=None)


@functools.lru_cache
def import_problem(module: str) -> str | None:
    """Why a module cannot be imported, in one line; None if it can."""
    code, _, errors = run_python("-c", IMPORT, module)
    if code == 0:
        return None
    return errors.splitlines()[-1] if code == 1 and errors else f"importing it ends Python with exit code {code}"


def package_line(text: str, otherwise: str = "FAIL") -> Line | None:
    """Whether a requirement such as "torch>=2.9" is met; None if it is not for this system.

    `otherwise`: the state of the line if it is not met; "note" has no command of its own, as its extra has one.
    """
    requirement = read_requirement(text)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None

    name = requirement.name
    wanted = f"{requirement.specifier}" or "any"
    repair, anew = (f'{pip_install()}{option} "{name}{requirement.specifier}"' for option in ("", " --force-reinstall"))
    if otherwise == "note":
        repair = anew = ""
    try:
        distribution = metadata.distribution(name)
        version = distribution.version
        is_text = isinstance(requirement.specifier, str)  # without `packaging`, versions are not compared
        new_enough = is_text or requirement.specifier.contains(version, prereleases=True)
        module = module_of(distribution)
    except metadata.PackageNotFoundError:
        return Line(otherwise, name, f"{'missing':<15} {wanted}", repair)
    except Exception as error:  # what a broken installation leaves behind
        return Line(otherwise, name, f"{'damaged':<15} {wanted:<15} {first_line(error)}", anew)

    found = f"{version:<15} {wanted:<15}"
    if not new_enough:
        return Line(otherwise, name, f"{found} too old", repair)
    problem = import_problem(module) if module else None
    return Line(otherwise, name, f"{found} {problem}", anew) if problem else Line("OK", name, found.strip())


def package_lines(requirements: list[str], otherwise: str = "FAIL") -> Iterator[Line]:
    lines = (package_line(text, otherwise) for text in requirements)
    return (line for line in lines if line)


def is_begun(requirements: list[str], others: list[str]) -> bool:
    """Whether an extra counts as installed, which pip does not write down: half of what only it names is there."""

    def names(texts: list[str]) -> set[str]:
        return {re.sub(r"[-_.]+", "-", read_requirement(text).name).lower() for text in texts}

    own = names(requirements) - names(others) or names(requirements)
    there = [name for name in own if any(metadata.distributions(name=name))]
    return 2 * len(there) >= len(own)


# ── Code and machine ────────────────────────────────────────────────────────────────────────────────────────────────


def installed_files(settings: dict, home: Path) -> Iterator[tuple[Path, Path]]:
    """The clone's files that an installation copies, each with its place under `home`; `settings`: setuptools'."""
    for module in settings["py-modules"]:
        yield ROOT / f"{module}.py", home / f"{module}.py"
    for package in settings["packages"]:
        place = package.replace(".", "/")
        source = ROOT / settings["package-dir"].get(package, place)
        for pattern in settings["package-data"].get(package, ["*.py"]):
            files = [file for file in sorted(source.glob(pattern)) if file.is_file() and file.name[0] != "."]
            yield from ((file, home / place / file.name) for file in files)


def copy_line(settings: dict) -> Line:
    """Which qwen2vl_mini scripts and notebooks in other folders import. In this folder it is always the clone's."""
    item = "qwen2vl_mini"
    again = f"{pip_install()} -e ."
    with tempfile.TemporaryDirectory() as elsewhere:
        _, printed, _ = run_python("-c", FIND, folder=elsewhere)
    if not printed:
        return Line("note", item, "not installed: scripts and notebooks in other folders do not find it", again)
    origin = Path(printed.splitlines()[-1])
    if origin.samefile(ROOT / "qwen2vl_mini.py"):
        return Line("OK", item, f"this clone's, in every folder: {origin}")

    for ours, theirs in installed_files(settings, origin.parent):
        if not (theirs.is_file() and filecmp.cmp(ours, theirs, shallow=False)):
            detail = f"other folders use a stale copy: {theirs} is not as in this clone"
            return Line("FAIL", item, detail, again)
    return Line("OK", item, f"other folders use a copy, equal to this clone: {origin}")


def question_line() -> Line:
    """Whether the README's main command answers as it should."""
    code, answer, errors = run_python("qwen2vl_mini.py", *QUESTION)
    if code == 0 and answer == ANSWER:
        return Line("OK", "main command", f"answers: {answer}")
    said = f"answers {answer!r}, not {ANSWER!r}" if code == 0 else (errors.splitlines() or [f"exit code {code}"])[-1]
    return Line("FAIL", "main command", said, SET_ASIDE)


def code_lines(settings: dict, ready: bool) -> Iterator[Line]:
    """`ready`: whether all packages of the install are there."""
    yield copy_line(settings)
    yield question_line() if ready else Line("note", "main command", "not tried before all packages above are OK")


def machine_lines() -> Iterator[Line]:
    """What the model runs on. A check that breaks is a FAIL, and the others go on."""
    import weights_loader
    from tests import machine

    device, dtype = weights_loader.placement()
    for check in machine.CHECKS:
        try:
            for found in check(device, dtype):
                yield Line(*found)
        except Exception as error:
            yield Line("FAIL", check.__name__[len("check_") :], first_line(error), f"{pip_install()} -U torch")
    yield Line("OK", "network", "not used here, nor by the tests; only checkpoints of the Hub are downloaded")


# ── All of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def show(heading: str, lines: Iterable[Line]) -> list[Line]:
    """Print lines as they come; returns them. An error that no check foresaw is a line, too."""
    print(f"\n{heading}", flush=True)
    shown = []
    try:
        for line in lines:
            shown.append(line)
            print(line, flush=True)
    except Exception as error:
        shown.append(Line("FAIL", "a check", first_line(error), f"{pip_install()} --force-reinstall ."))
        print(shown[-1], flush=True)
    return shown


def show_extras(project: dict) -> dict[str, list[Line]]:
    """The lines of each extra; those of one that is not installed are notes at most."""
    extras = project["optional-dependencies"]
    shown = {}
    for name, requirements in extras.items():
        others = sum((texts for other, texts in extras.items() if other != name), project["dependencies"])
        begun = is_begun(requirements, others)
        heading = f'Packages of {USERS.get(name, name)}: {pip_install()} ".[{name}]"'
        lines = package_lines(requirements, "FAIL" if begun else "note")
        shown[name] = show(heading + ("" if begun else "  (optional, not installed)"), lines)
    return shown


def more(missing: list[Line]) -> str:
    return f"{len(missing)} package{'s' * (len(missing) > 1)} more or newer"


def summary(packages: list[Line], code: list[Line], extras: dict[str, list[Line]]) -> str:
    """What works, in one sentence, and the shortest way on."""
    missing = [line for line in packages if line.state == "FAIL"]
    if missing and not any("--force-reinstall" in line.repair for line in missing):
        return f"The main command does not work yet: {more(missing)}: {pip_install()} ."
    if missing or code[-1].state != "OK":
        return "The main command does not work yet: repair what FAILs above, from the top"

    stale = " in this folder, but others use a stale copy" if failures(code) else ""
    parts = [f"The main command works{stale}"]
    complete = [USERS.get(name, name) for name, lines in extras.items() if all(line.state == "OK" for line in lines)]
    if complete:
        parts.append(f"all packages of {' and '.join(complete)} are there")
    for name, lines in extras.items():
        missing = [line for line in lines if line.state != "OK"]
        if missing:
            parts.append(f'{USERS.get(name, name)} need {more(missing)}: {pip_install()} ".[{name}]"')
    return "; ".join(parts)


def report(pyproject: Path) -> int:
    """Print all; returns the exit code."""
    text = pyproject.read_text(encoding="utf-8")
    if failures(show("Python", python_lines(text))):
        print("\nNothing works with this Python: run this again with a newer one")
        return 1

    import tomllib  # new in Python 3.11

    content = tomllib.loads(text)
    packages = show(f"Packages of the install: {pip_install()} .", package_lines(content["project"]["dependencies"]))
    ready = not failures(packages)
    code = show("Code", code_lines(content["tool"]["setuptools"], ready))
    machine = show("Machine", machine_lines()) if ready else []
    extras = show_extras(content["project"])
    print("\n" + summary(packages, code, extras))
    return 1 if failures(sum(extras.values(), packages + code + machine)) else 0


def main(pyproject: Path = ROOT / "pyproject.toml") -> int:
    """As `report`; what breaks outside of the checks is the file that they are read from."""
    try:
        return report(pyproject)
    except BrokenPipeError:  # whoever read this has gone, as `| head` does
        os._exit(141)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(Line("FAIL", pyproject.name, first_line(error), SET_ASIDE))
        return 1


if __name__ == "__main__":
    about = " ".join(__doc__.split("\n\n")[:2])
    argparse.ArgumentParser(prog="python -m tests.environment", description=about).parse_args()
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter shows "?"
    sys.exit(main())
