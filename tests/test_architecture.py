"""The rules of the code: layers, errors, quick imports, and what tests may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.program import ROOT

SOURCES = sorted((ROOT / "src" / "demo_t2v").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = {"numpy", "av", "torch", "diffusers", "transformers", "tensorboard", "accelerate", "fsspec"}
OPTIONAL = {
    *("av", "bitsandbytes", "datasets", "deepspeed", "gradio", "matplotlib", "onnx", "pandas"),
    *("pyarrow", "ray", "scipy", "sklearn", "tensorboard", "torchvision", "wandb"),
    "torch._inductor.compile_fx",
}
"""Packages that no video needs, and the compiler's back end."""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def nodes(file: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import, lazy ones too; the name is empty for a module."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_every_import_goes_down():
    """Imports inside functions count like those at the top of a file.

    A lazy import of a higher layer breaks the contract of layers. A lazy import that closes a
    circle, of files or of packages, breaks the contract without circles.
    """
    lint_imports = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = run(sys.executable, "-c", lint_imports)
    assert done.returncode == 0, done.stdout + done.stderr


def test_errors_for_bad_input_share_one_base():
    """The command line ends with exit code 2 for UserError, with 1 for any other error."""
    derived = [
        node.name
        for file in SOURCES
        for node in nodes(file)
        if isinstance(node, ast.ClassDef) and "ValueError" in map(ast.unparse, node.bases)
    ]
    assert derived == ["UserError"]


def test_every_class_name_is_defined_once():
    """The network files of the built-in models are copies of one file, and do not count."""
    places: dict[str, list[str]] = {}
    for file in SOURCES:
        if "assets" not in file.parts:
            for node in nodes(file):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(file.relative_to(ROOT).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def modules_after(code: str) -> set[str]:
    """The modules that a new process has imported when `code` has run."""
    done = run(sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_the_command_line_is_imported_without_the_heavy_packages():
    """Bad input is found, and help is shown, without loading torch."""
    found = modules_after("import demo_t2v.cli")
    assert "demo_t2v.cli" in found
    assert not HEAVY & found


def test_help_and_usage_errors_load_no_heavy_package():
    program = """
from demo_t2v.cli import app
for words in ("--help", "generate --help", "train --help", "data --help", "generate --nonsense"):
    try:
        app(words.split())
    except SystemExit:
        pass
"""
    found = modules_after(program)
    assert "typer" in found
    assert not HEAVY & found


def test_generating_imports_no_optional_package():
    found = modules_after("import demo_t2v.inference.runner, demo_t2v.pipeline")
    assert "diffusers" in found
    assert not OPTIONAL & found


def test_tests_and_helpers_import_no_test_module():
    modules = {file.stem for file in TESTS if file.parent.name == "tests"}
    found = [
        f"{file.name} imports {module}"
        for file in TESTS
        for module, _ in imported(file)
        if module.partition(".")[0] in modules
    ]
    assert not found


def test_tests_import_no_private_name():
    found = [
        f"{file.name} imports {module}.{name}"
        for file in TESTS
        for module, name in imported(file)
        if module.startswith("demo_t2v") and any(p[:1] == "_" for p in [*module.split("."), name])
    ]
    assert not found
