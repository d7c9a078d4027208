"""The architecture, kept by a test: tiers, no cycles, one importer of the engine, short functions, a pure stdout."""

from __future__ import annotations

import ast
import graphlib
import os
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "whisperd"

# From the bottom: a module may import from its own tier and those below it. A package stands for what it holds.
TIERS: list[set[str]] = [
    {"errors", "messages", "jobs", "config", "models.embedded"},
    {
        "framing", "checks", "protocol", "admission", "cost", "fairness", "batching", "outlook", "lanes",
        "assemble", "work", "render", "metrics", "histogram", "tails", "tuning",
        "poison", "media.windows", "media.containers",
        "inference.timestamps", "inference.sentences", "inference.repeats", "inference.attempts", "inference.prompts",
    },
    {
        "transport", "inbox", "offload", "listeners", "session", "gate", "dispatch", "channel", "child", "worker",
        "intake", "media", "inference",
        "models", "store", "records", "log", "paths", "process_stats", "sandbox", "testing", "simulator",
    },
    {"service", "pipeline", "fleet", "control", "daemon", "start", "client", "cli", "__main__"},
]  # fmt: skip
IMPURE = {"asyncio", "os", "time", "socket", "subprocess", "threading", "random", "pathlib", "numpy", "sqlite3", "sys"}
ENGINE_LIBRARIES = {"faster_whisper", "ctranslate2"}
MEDIA_LIBRARIES = {"av", "soundfile", "onnxruntime", "numpy"}
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 400


def _modules() -> dict[str, ast.Module]:
    modules = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = ast.parse(file.read_text(encoding="utf-8"))
    return modules


MODULES = _modules()


def _imports(tree: ast.Module) -> set[str]:
    """Every module imported anywhere in the tree, functions included; types-only imports do not count."""
    found: set[str] = set()
    skipped = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    ignored = {id(inner) for node in skipped for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _own_imports(name: str) -> set[str]:
    names = {imported.removeprefix("whisperd.") for imported in _imports(MODULES[name]) if "whisperd" in imported}
    return {imported for imported in names if imported in MODULES and imported != name and imported}


def _tier(name: str) -> int:
    for candidate in (name, name.split(".")[0]):
        for level, tier in enumerate(TIERS):
            if candidate in tier:
                return level
    raise AssertionError(f"{name} has no tier: put it into TIERS and docs/ARCHITECTURE.md")


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_imports_point_down(name: str) -> None:
    """No module knows one of a higher tier."""
    above = {imported for imported in _own_imports(name) if _tier(imported) > _tier(name)}
    assert not above


def test_there_are_no_import_cycles() -> None:
    """Not within a tier either."""
    packages = {name for name in MODULES if any(other.startswith(f"{name}.") for other in MODULES)}
    graph = {name: _own_imports(name) - packages for name in MODULES if name not in packages | {"__init__"}}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", sorted(TIERS[0] | TIERS[1]))
def test_pure_modules_touch_nothing(name: str) -> None:
    """Nouns and pure logic read no clock, no file and no chance. Two read data that is shipped, or close what they own:
    `protocol` the schemas, `jobs` descriptors, `config` its file."""
    allowed = {"protocol": {"pathlib"}, "jobs": {"os"}, "config": {"pathlib"}}.get(name, set())
    assert not {imported.split(".")[0] for imported in _imports(MODULES[name])} & (IMPURE - allowed)


def test_one_module_imports_the_engine() -> None:
    """Whoever changes the engine has one file to read."""
    users = {name for name, tree in MODULES.items() if {i.split(".")[0] for i in _imports(tree)} & ENGINE_LIBRARIES}
    assert users == {"inference.engine"}


def test_media_libraries_stay_in_the_workers() -> None:
    """The supervisor and the clients load none of them."""
    users = {name for name, tree in MODULES.items() if {i.split(".")[0] for i in _imports(tree)} & MEDIA_LIBRARIES}
    assert {name.split(".")[0] for name in users} <= {"media", "inference"}
    assert not users & {"media.pool", "inference.process"}


@pytest.mark.parametrize("name", list(MODULES))
def test_functions_fit_one_screen(name: str) -> None:
    """And a module is one noun, not several."""
    nodes = [n for n in ast.walk(MODULES[name]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in nodes}
    assert not {function: size for function, size in sizes.items() if size > FUNCTION_LINES_MAX}
    lines = max((getattr(node, "end_lineno", 0) or 0 for node in ast.walk(MODULES[name])), default=0)
    assert lines <= MODULE_LINES_MAX


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("cli")])
def test_nothing_but_the_protocol_writes_to_stdout(name: str) -> None:
    """`print` and sys.stdout are for the command line; the engine's download command is one, and `sandbox` points
    stdout elsewhere."""
    if name in ("inference.engine", "sandbox"):
        return
    source = ast.unparse(MODULES[name])
    assert not re.search(r"\bprint\(|\bsys\.stdout\b", source)


def test_every_wide_except_says_why() -> None:
    """Catching everything is allowed where a request must be answered whatever happens; the line or its body tells."""
    for file in PACKAGE.rglob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\s*except (Base)?Exception", line):
                context = os.linesep.join(lines[number : number + 4])
                assert "#" in context or "log." in context or "raise" in context, f"{file.name}:{number + 1}"


def test_no_unfinished_business() -> None:
    """What is not done is in an issue, not in a comment."""
    words = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error"))
    for file in PACKAGE.rglob("*.py"):
        assert not re.search(rf"\b({words})\b", file.read_text(encoding="utf-8")), file
