"""Imports run inwards only, and importing the package loads nothing heavy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bilinear_circuits"
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
# The rooms, from the street to the cellar: imports run down this list, or stay in their room.
ORDER = (
    "cli",
    "commands",
    "command_line",
    "workspace",
    "report",
    "prompts",
    "paths",
    "comparison",
    "surgery",
    "discovery",
    "interventions",
    "circuits",
    "interactions",
    "training",
    "zoo",
    "sweep",
    "runs",
    "models",
    "dictionaries",
    "data",
    "statistics",
    "algebra",
    "utilities",
)
OUTER = ORDER[: ORDER.index("report") + 1]
ANALYSES = [name for name in MODULES if name.split("/")[0] not in (*OUTER, "__init__")]
HEAVY = ("torch", "transformer_lens", "sae_lens", "transformers", "datasets", "plotly")


def imported(source):
    """Every module a source file imports, at any depth, as dotted names; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inner_parts(names):
    """First part of the names inside the package: "algebra" for bilinear_circuits.algebra.spectra.Spectrum."""
    return {name.split(".")[1] for name in names if name.startswith("bilinear_circuits.")}


def inner_modules(names):
    """Modules inside the package that the names are or lie in, as keys of `MODULES`."""
    keys = {key.removesuffix("/__init__"): key for key in MODULES}
    paths = {name.removeprefix("bilinear_circuits.").replace(".", "/") for name in names if "bilinear_circuits" in name}
    return {
        keys[found]
        for path in paths
        for found in (path, path.rpartition("/")[0])
        if found in keys and (found == path or path not in keys)
    }


def circle(graph):
    """A circle of a graph {node: successors}, or an empty list."""
    state: dict[str, bool] = {}  # True while a node is on the path

    def walk(node, path):
        if state.get(node):
            return path[path.index(node) :]
        if node not in state:
            state[node] = True
            for successor in sorted(graph[node]):
                if found := walk(successor, [*path, successor]):
                    return found
            state[node] = False
        return []

    return next((found for node in graph if (found := walk(node, [node]))), [])


def test_every_room_has_its_place():
    assert {name.split("/")[0] for name in MODULES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_imports_run_down_the_order_of_the_rooms(module):
    room = ORDER.index(module.split("/")[0])
    parts = inner_parts(imported(MODULES[module].read_text())) - {"__version__"}
    assert [part for part in parts if ORDER.index(part) < room] == []


def test_no_module_imports_itself_by_a_circle():
    graph = {name: inner_modules(imported(path.read_text())) - {name} for name, path in MODULES.items()}
    assert graph["algebra/tensor"] >= {"algebra/matrix", "utilities/display"}
    assert circle(graph) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("algebra/")])
def test_the_algebra_needs_torch_and_scipy_alone(module):
    names = imported(MODULES[module].read_text())
    third_party = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"bilinear_circuits"}
    assert third_party <= {"torch", "einops", "jaxtyping", "scipy"}


@pytest.mark.parametrize("module", ANALYSES)
def test_no_analysis_names_a_report_but_the_one_that_notebooks_ask(module):
    """`display` looks the notebook's tables and figures up by name, once a notebook asks for them."""
    code = ast.parse(MODULES[module].read_text())
    texts = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = {text for text in texts if re.match(r"bilinear_circuits\.(report|commands|cli)\b", text)}
    assert named == ({"bilinear_circuits.report.notebook"} if module == "utilities/display" else set())


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_imports_the_other_package(module):
    roots = {name.split(".")[0] for name in imported(MODULES[module].read_text())}
    assert "sae" not in roots or module == "cli"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from bilinear_circuits.report import html", {"report"}),
        ("import bilinear_circuits.cli", {"cli"}),
        ("from bilinear_circuits import commands", {"commands"}),
        ("def late():\n    from bilinear_circuits.report.html import page", {"report"}),
        ("import torch", set()),
    ],
)
def test_the_layer_check_sees_every_way_of_importing(source, expected):
    assert inner_parts(imported(source)) == expected


def loaded_by(code):
    """Which of the heavy modules a fresh interpreter has after running the code."""
    report = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import bilinear_circuits; dir(bilinear_circuits)") == set()


def test_importing_the_algebra_loads_torch_alone():
    assert loaded_by("import bilinear_circuits; bilinear_circuits.InteractionTensor") == {"torch"}


def test_the_check_of_light_imports_can_fail():
    assert loaded_by("import torch") == {"torch"}


def test_every_public_name_is_found():
    import bilinear_circuits

    for name in bilinear_circuits.__all__:
        assert getattr(bilinear_circuits, name).__name__ == name
    assert set(bilinear_circuits.__all__) <= set(dir(bilinear_circuits))
    assert set(bilinear_circuits.__all__) == set(bilinear_circuits._HOME)


def test_a_name_the_package_lacks_is_refused():
    import bilinear_circuits

    with pytest.raises(AttributeError, match="module 'bilinear_circuits' has no attribute 'Nothing'"):
        bilinear_circuits.Nothing  # noqa: B018
