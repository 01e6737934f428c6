"""`python -m tests.environment`: what it says of a sound installation, and of each way in which one can be broken."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from qwen2vl_mini import eager_attention
from tests import environment, machine
from tests.environment import Line, copy_line, package_line, python_line, summary

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
SETTINGS = tomllib.loads(PYPROJECT)["tool"]["setuptools"]
CPU = torch.device("cpu")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder from which this process and its children import first."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def put_package(site: Path, name: str, version: str, source: str) -> None:
    """An installed distribution of one module."""
    (site / f"{name}.py").write_text(source, encoding="utf-8")
    about = site / f"{name}-{version}.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    about.joinpath("RECORD").write_text(f"{name}.py,,\n{about.name}/METADATA,,\n")


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", **options)


def fake_pyproject(folder: Path, old: str, new: str) -> Path:
    """A copy of pyproject.toml with one thing changed."""
    assert old in PYPROJECT
    (folder / "pyproject.toml").write_text(PYPROJECT.replace(old, new), encoding="utf-8")
    return folder / "pyproject.toml"


# ── All of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_the_tests_run_all_that_they_need_is_ok():
    done = run("-m", "tests.environment")
    blocks = [block.splitlines() for block in done.stdout.strip().split("\n\n")]
    last = blocks.pop()
    by_heading = {re.split(r"[:(]", heading)[0].strip(): rows for heading, *rows in blocks}

    assert done.stderr == ""
    assert done.returncode == ("\nFAIL " in done.stdout)
    assert last[0].startswith("The main command works") and "all packages of the tests" in last[0]
    for heading, texts in (
        ("Packages of the install", PROJECT["dependencies"]),
        ("Packages of the tests", PROJECT["optional-dependencies"]["test"]),
    ):
        rows = [row.split() for row in by_heading[heading]]
        assert [row[0] for row in rows] == ["OK"] * len(texts)
        assert [row[1] for row in rows] == [re.match(r"[\w.-]+", text).group() for text in texts]
    assert f"OK    main command    answers: {environment.ANSWER}" in by_heading["Code"]

    items = {row[6:22].strip() for row in by_heading["Machine"]}
    assert items >= {"device", "dtype", "attention", "2B in memory", "7B in memory", "2B on disk", "network"}
    assert not any(row.startswith("FAIL") for row in by_heading["Machine"])
    wide = [row for row in done.stdout.splitlines()[:-1] if len(row) > environment.WIDTH and "pip install" not in row]
    assert all(len(row.split()) <= 5 for row in wide), "only a row with a long path may be wider"


def test_without_any_package_it_fails_for_each_and_has_no_traceback():
    done = run("-S", "-m", "tests.environment")  # without site-packages: neither torch nor packaging nor pip

    assert done.returncode == 1 and done.stderr == ""
    for text in PROJECT["dependencies"]:
        name, version = re.match(r"([\w.-]+)(.*)", text).groups()
        assert re.search(rf"^FAIL  {name} +missing +{version or 'any'}\n.*pip install \"{text}\"$", done.stdout, re.M)
    for text in sum(PROJECT["optional-dependencies"].values(), []):
        name = re.match(r"[\w.-]+", text).group()
        assert re.search(rf"^note  {name} +missing", done.stdout, re.M)
    assert "main command    not tried" in done.stdout
    count = len(PROJECT["dependencies"])
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"The main command does not work yet: {count} packages more") and last.endswith("install .")


def test_an_older_python_understands_enough_to_be_refused():
    source = Path(environment.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    at_the_top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    at_the_top |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in at_the_top} <= sys.stdlib_module_names - {"tomllib"}  # new in 3.11


@pytest.mark.parametrize("wanted", [">=3.99", ">=4.0"])
def test_too_old_a_python_ends_it(tmp_path, capsys, wanted):
    pyproject = fake_pyproject(tmp_path, 'requires-python = ">=3.11"', f'requires-python = "{wanted}"')
    assert environment.main(pyproject) == 1
    out = capsys.readouterr().out
    assert "FAIL  Python" in out and f"{wanted[2:]} -m venv .venv" in out and "torch" not in out


@pytest.mark.parametrize("content", [None, "[project", "[project]\nrequires-python = '>=3.11'\n", b"\xff"])
def test_a_broken_pyproject_is_one_line(tmp_path, capsys, content):
    file = tmp_path / "pyproject.toml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert environment.main(file) == 1
    assert len(re.findall(r"^FAIL ", capsys.readouterr().out, re.M)) == 1


def test_a_requirement_too_new_leaves_the_main_command_untried(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(environment, "import_problem", lambda module: None)  # seconds for each, and tested above
    pyproject = fake_pyproject(tmp_path, '"numpy>=2.0"', '"numpy>=99"')
    assert environment.main(pyproject) == 1
    out = capsys.readouterr().out
    assert re.search(r"^FAIL  numpy .*too old\n +run: .*-m pip install \"numpy>=99\"$", out, re.M)
    assert "not tried before all packages above are OK" in out and "Machine" not in out
    assert out.splitlines()[-1].startswith("The main command does not work yet: 1 package more or newer: ")


# ── Packages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("running", "state"), [((3, 10, 13), "FAIL"), ((3, 11, 0), "OK"), ((3, 14, 1), "OK")])
def test_python(running, state):
    line = python_line('requires-python = ">=3.11"', running)
    assert line.state == state and ">=3.11" in line.detail and ".".join(map(str, running)) in line.detail
    assert bool(line.repair) == (state == "FAIL")


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("environment_sample", "OK"),
        ("environment-sample>=1.9", "OK"),  # as in names of packages, "-" and "_" are the same
        ("environment_sample>=1.10,<2", "OK"),
        ("environment_sample>=1.10.1", "FAIL"),
        ("environment_sample<1.10", "FAIL"),
        ("environment_sample>=99; python_version < '3'", None),
        ("environment_sample>=99; python_version > '3'", "FAIL"),
    ],
)
def test_versions_are_compared_as_pip_does(site, text, state):
    put_package(site, "environment_sample", "1.10", "")
    line = package_line(text)
    assert (line and line.state) == state


def test_a_missing_package():
    line = package_line("no-such-package-of-qwen2vl-mini>=1.5")
    assert line.state == "FAIL" and line.detail.split() == ["missing", ">=1.5"]
    assert line.repair.endswith('"no-such-package-of-qwen2vl-mini>=1.5"')
    optional = package_line("no-such-package-of-qwen2vl-mini>=1.5", "note")
    assert optional.state == "note" and not optional.repair


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("raises_lines", 'raise ImportError("\\n\\nno such symbol: x\\nread this\\nand this")', "no such symbol: x"),
        ("raises_nothing", "raise RuntimeError", "RuntimeError: no reason given"),
        ("prints_first", 'print("hello")\nimport no_such_module_here', "No module named 'no_such_module_here'"),
        ("ends_python", "import os\nos.write(2, b'noise')\nos._exit(7)", "importing it ends Python with exit code 7"),
        ("leaves_politely", "import sys\nsys.exit()", "SystemExit: no reason given"),
    ],
)
def test_a_package_that_cannot_be_imported(site, name, source, said):
    put_package(site, name, "3.0", source)
    line = package_line(f"{name}>=2")
    assert line.state == "FAIL" and line.detail.endswith(said)
    assert line.repair.endswith(f'--force-reinstall "{name}>=2"')
    assert "\n" not in line.detail and "Traceback" not in line.detail
    assert str(line).splitlines()[-1].endswith(line.repair)  # a command is never wrapped


def test_an_import_without_end(site, monkeypatch):
    monkeypatch.setattr(environment, "PATIENCE", 1)
    put_package(site, "never_ready", "1", "import time\ntime.sleep(60)")
    assert "more than 1 seconds" in package_line("never_ready").detail


def test_what_a_broken_installation_leaves_behind(site):
    put_package(site, "half_gone", "1", "")
    (site / "half_gone-1.dist-info" / "METADATA").unlink()
    line = package_line("half_gone>=1")
    assert line.state == "FAIL" and line.detail.startswith("damaged") and "--force-reinstall" in line.repair


def test_the_modules_of_packages():
    found = {name: environment.module_of(environment.metadata.distribution(name)) for name in ("pillow", "pytest")}
    found["scikit-learn"] = environment.module_of(environment.metadata.distribution("scikit-learn"))
    assert found == {"pillow": "PIL", "pytest": "pytest", "scikit-learn": "sklearn"}


def test_an_extra_counts_as_installed_if_half_of_its_own_is_there():
    missing = [f"no-such-package-{i}" for i in range(3)]
    assert environment.is_begun(["pytest", "ruff", *missing[:2]], [])
    assert not environment.is_begun(["pytest", "ruff", *missing], [])
    assert not environment.is_begun(["pytest", "ruff", *missing[:2]], ["PyTest>=3"])  # that is another's
    assert environment.is_begun(["pytest"], ["pytest"])  # there is nothing else to go by


def test_extras_of_which_nothing_is_there_are_notes(capsys):
    project = {"dependencies": ["numpy"], "optional-dependencies": {"other": ["no-such-package-1>=2", "numpy"]}}
    shown = environment.show_extras(project)
    assert [line.state for line in shown["other"]] == ["note", "OK"]
    assert 'pip install ".[other]"  (optional, not installed)' in capsys.readouterr().out


# ── Code ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_clone_in_use_everywhere(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = copy_line(SETTINGS)
    assert line.state == "OK" and "this clone's, in every folder" in line.detail


@pytest.mark.parametrize(
    "stale", [None, "qwen2vl_mini.py", "qwen2vl_io/urls.py", "qwen2vl_io/checkpoints/tiny/config.json"]
)
def test_a_copy_and_a_stale_one(site, stale):
    for ours, theirs in environment.installed_files(SETTINGS, site):
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.write_bytes(ours.read_bytes())
    assert (site / "qwen2vl_io/checkpoints/tiny/model.safetensors").is_file() and (
        site / "qwen2vl_cli/ask.py"
    ).is_file()
    if stale:
        content = (site / stale).read_bytes()
        (site / stale).write_bytes(content[:-1] + b" ")
        (twin,) = [ours for ours, theirs in environment.installed_files(SETTINGS, site) if theirs == site / stale]
        os.utime(site / stale, (twin.stat().st_atime, twin.stat().st_mtime))  # neither size nor time give it away

    line = copy_line(SETTINGS)

    assert line.state == ("FAIL" if stale else "OK")
    if stale:
        assert str(site / stale) in line.detail and line.repair.endswith("pip install -e .")
    else:
        assert str(site) in line.detail


def test_a_file_that_a_copy_lacks_makes_it_stale(site):
    (site / "qwen2vl_mini.py").write_bytes((ROOT / "qwen2vl_mini.py").read_bytes())
    line = copy_line(SETTINGS)
    assert line.state == "FAIL" and "weights_loader.py" in line.detail


def test_not_installed(monkeypatch):
    monkeypatch.setattr(environment, "run_python", lambda *arguments, folder: (0, "", ""))
    line = copy_line(SETTINGS)
    assert line.state == "note" and line.repair.endswith("pip install -e .")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ((0, "A red circle.", "the model"), "answers 'A red circle.', not 'A purple"),
        ((2, "", "the model\nerror: config.json is missing."), "error: config.json is missing."),
        ((-9, "", ""), "exit code -9"),
    ],
)
def test_a_main_command_that_fails(monkeypatch, result, said):
    monkeypatch.setattr(environment, "run_python", lambda *arguments: result)
    line = environment.question_line()
    assert line.state == "FAIL" and line.detail.startswith(said)


def test_the_last_line_says_what_works():
    ok = Line("OK", "x", "")
    gone = Line("FAIL", "y", "missing", 'pip install "y"')
    broken = Line("FAIL", "z", "ImportError", 'pip install --force-reinstall "z"')
    pip = environment.pip_install()

    assert summary([ok], [ok, ok], {"test": [ok], "notebooks": [ok]}) == (
        "The main command works; all packages of the tests and the notebooks are there"
    )
    assert summary([ok], [ok, ok], {"test": [gone, gone], "other": [ok, gone]}) == (
        f'The main command works; the tests need 2 packages more or newer: {pip} ".[test]"; '
        f'other need 1 package more or newer: {pip} ".[other]"'
    )
    assert summary([gone], [ok, ok], {}) == f"The main command does not work yet: 1 package more or newer: {pip} ."
    assert summary([gone, broken], [ok, ok], {}).endswith("repair what FAILs above, from the top")
    assert summary([ok], [ok, gone], {}).endswith("repair what FAILs above, from the top")
    assert summary([ok], [gone, ok], {}) == "The main command works in this folder, but others use a stale copy"


# ── Machine ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dtype", "size", "fits"),
    [  # bfloat16: 2 · 2,208,985,600 + 2e9 = 6,417,971,200 and 2 · 8,291,375,616 + 2e9 = 18,582,751,232
        (torch.bfloat16, 6_417_971_199, ()),
        (torch.bfloat16, 6_417_971_200, ("2B",)),
        (torch.bfloat16, 18_582_751_231, ("2B",)),
        (torch.bfloat16, 18_582_751_232, ("2B", "7B")),
        (torch.float32, 10_835_942_399, ()),  # float32: 4 · 2,208,985,600 + 2e9 = 10,835,942,400
        (torch.float32, 10_835_942_400, ("2B",)),
    ],
)
def test_which_models_fit_in_memory(monkeypatch, dtype, size, fits):
    monkeypatch.setattr(machine, "memory_size", lambda device: (size, "free"))
    found = list(machine.check_memory(CPU, dtype))
    assert [item for _, item, _ in found] == ["2B in memory", "7B in memory"]
    assert tuple(item[:2] for state, item, detail in found if state == "OK" and detail.startswith("fits")) == fits
    assert all(detail.startswith("too large") for state, _, detail in found if state == "note")
    assert all(f"of weights in {machine.name_of(dtype)} + 2.0 GB of room" in detail for _, _, detail in found)


def test_memory_that_python_cannot_tell(monkeypatch):
    monkeypatch.setattr(machine, "memory_size", lambda device: (None, "in all"))
    for state, _, detail in machine.check_memory(CPU, torch.bfloat16):
        assert state == "note" and "cannot tell" in detail and "of weights in bfloat16" in detail


def test_the_size_of_this_memory_is_plausible(monkeypatch):
    size, word = machine.memory_size(CPU)
    if not hasattr(os, "sysconf"):
        assert size is None
        return
    assert 10**8 < size <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert word == ("free" if Path("/proc/meminfo").exists() else "in all")

    monkeypatch.setattr(machine, "container_limits", lambda: [12345])
    assert machine.memory_size(CPU)[0] == 12345
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert machine.memory_size(CPU)[0] is None


def test_the_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5_000, 8_000))
    assert machine.memory_size(torch.device("cuda")) == (5_000, "free")


def test_limits_of_containers(tmp_path):
    assert machine.container_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.container_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("2000000000\n")
    assert machine.container_limits(tmp_path) == [2_000_000_000]


def test_which_downloads_fit_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    asked = []

    class Usage:
        free = 4_417_971_200  # 2 · 2,208,985,600

    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: asked.append(folder) or Usage)
    found = list(machine.check_disk(CPU, torch.float32))
    assert asked == [tmp_path] and [state for state, _, _ in found] == ["OK", "note"]
    assert "4.4 GB" in found[0][2] and "16.6 GB" in found[1][2]


def test_attention_kernels_are_seen_and_not_guessed(monkeypatch):
    by_flash = machine.attention_kernels(CPU, torch.float32)
    monkeypatch.setattr(machine, "sdpa_attention", eager_attention)
    by_hand = machine.attention_kernels(CPU, torch.float32)

    assert list(by_flash) == list(by_hand) == ["vision tower", "prompt", "next token"]
    assert set(by_flash.values()) == {"flash_attention_for_cpu"} and set(by_hand.values()) == {"math"}
    ((state, _, detail),) = machine.check_attention(CPU, torch.float32)
    assert state == "note" and "math for prompt" in detail


@pytest.mark.parametrize(("version", "said"), [(None, "without CUDA"), ("12.8", "for CUDA 12.8")])
def test_no_gpu_is_a_note(monkeypatch, version, said):
    monkeypatch.setattr(torch.version, "cuda", version)
    device, gpu = machine.check_device(CPU, torch.float32)
    assert device[0] == "OK" and gpu[0] == "note" and said in gpu[2]


def test_a_check_that_breaks_is_a_line_and_the_others_go_on(monkeypatch):
    def check_broken(device, dtype):
        yield "OK", "first", ""
        raise RuntimeError("driver\nof another age")

    monkeypatch.setattr(machine, "CHECKS", (check_broken, machine.check_dtype))
    lines = list(environment.machine_lines())
    assert [(line.state, line.item) for line in lines] == [
        *(("OK", "first"), ("FAIL", "broken")),
        *(("OK", "dtype"), ("OK", "network")),
    ]
    assert lines[1].detail == "RuntimeError: driver"


def test_what_no_check_foresaw_is_a_line_too(capsys):
    def lines():
        yield Line("OK", "first", "")
        raise ValueError("surprise")

    shown = environment.show("Things", lines())
    assert [line.state for line in shown] == ["OK", "FAIL"] and "surprise" in capsys.readouterr().out
