"""The tutorial notebook: its code runs, and its sentences and stored outputs stay true."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.ipynb"
# What the sentences of the notebook say, computed by its own names in its own kernel.
CLAIMS = """
import json

print("CLAIMS", json.dumps({
    "parameters": sum(p.numel() for p in model.original_model.parameters()),
    "d_in": mlp.tensor.d_in,
    "side": interactions.matrix(FEATURE).dim,
    "pairs": interactions.top(1, FEATURE).certificate.interactions,
    "exact": abs((mlp(x) @ u - Q(x)).item()),
    "outliers": int(spectrum.outliers()),
    "leading": spectrum.eigenvalues[:3].tolist(),
    "rank 2": profile.rank2_correlation,
    "ledger": (ledger.total - computed).abs().max().item(),
    "full": result.mean(384),
    "circuits": {one.evidence.name: one.proof.removal.mean for one in search.circuits},
    "controls": max(abs(one.proof.control.mean) for one in search.circuits),
    "changes": {
        model.tokenizer.decode([token]): (after - before).item()
        for token, before, after in zip(changes.changed_ids[-1], changes.changed_before[-1], changes.changed_after[-1])
    },
    "neurons": edited.config.intermediate_size - 1536,
    "predicted": (after[changes.changed_ids[-1]] - changes.changed_after[-1]).abs().max().item(),
}))
"""


@pytest.fixture(scope="module")
def notebook():
    import nbformat

    found = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(found)
    return found


def code_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_its_code_parses_and_imports_what_there_is(notebook):
    for source in code_of(notebook):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bc":
                package = importlib.import_module("bilinear_circuits")
                assert node.attr in package.__all__, node.attr


def test_its_outputs_are_small_whole_and_of_no_machine(notebook):
    text = TUTORIAL.read_text()
    assert len(text) < 500_000
    for hidden in ("/tmp/", "/home/", "/root/", "/work/", "site-packages", "stderr", "Traceback"):
        assert hidden not in text, hidden
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert (
        sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())) == 4
    )


def test_its_sentences_agree_with_its_stored_outputs(notebook):
    said = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    stored = "\n".join(
        json.dumps(output, ensure_ascii=False)
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" not in output.get("data", {})
    )
    for sentence, output in (
        ("Removing 4/1846 lowers the positive words", "4/1846"),
        ("removing 4/143 raises them", "4/143"),
        ("one neuron more in each layer", "d_mlp=1537"),
        ("It would have $384^3$ entries", "[384, 1536]"),
    ):
        assert sentence.split() == re.findall(r"\s+".join(map(re.escape, sentence.split())), said)[0].split()
        assert output in stored


def test_its_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (TUTORIAL.parent / target).exists(), target


@pytest.mark.slow
def test_it_runs_and_says_the_truth(notebook, monkeypatch):
    import copy

    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell

    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    fresh = copy.deepcopy(notebook)
    fresh.cells.append(new_code_cell(CLAIMS))
    NotebookClient(fresh, timeout=300, kernel_name="python3").execute()
    printed = "".join(output.text for output in fresh.cells[-1].outputs if output.output_type == "stream")
    found = json.loads(printed.split("CLAIMS", 1)[1])
    assert round(found["parameters"] / 1e6) == 17
    assert (found["d_in"], found["side"], found["neurons"]) == (384, 3072, 1)
    assert round(found["pairs"] / 1e6, 1) == 4.7
    assert found["outliers"] == 17
    assert found["leading"][0] > 0 > found["leading"][1]
    assert abs(found["leading"][2]) < 0.7 * abs(found["leading"][1])
    assert max(found["exact"], found["ledger"], found["predicted"]) < 1e-5
    assert found["full"] == pytest.approx(1, abs=1e-4)
    assert found["rank 2"] > 0.7
    assert found["circuits"]["4/1846"] < -0.2
    assert found["circuits"]["4/143"] > 0.2
    assert found["controls"] < 0.1
    assert found["changes"]["happy"] > 0.01 > 0 > found["changes"]["mean"]
