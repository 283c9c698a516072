"""What the documents say runs: code of the README, query files, paths and commands that are named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "configs/README.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "bilinear_circuits/zoo").rglob("README.md"))
README = (ROOT / "README.md").read_text()


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_naive_einsum_of_the_readme_is_what_the_object_computes():
    from bilinear_circuits.tensor import InteractionTensor

    generator = torch.Generator().manual_seed(0)
    shapes = {"W_gate": (5, 7), "W_in": (5, 7), "W_out": (7, 5), "W_enc": (5, 9), "W_dec": (11, 5)}
    names = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    exec(python_blocks()[0], names)
    tensor = InteractionTensor(names["W_gate"], names["W_in"], names["W_out"])
    torch.testing.assert_close(tensor.to_dense(), names["B"])
    features = tensor.write_to(names["W_enc"]).read_from(names["W_dec"])
    torch.testing.assert_close(features.to_dense(), names["T"], atol=1e-5, rtol=1e-4)


def test_the_code_of_the_readme_runs_and_its_numbers_are_right():
    names = {}
    for block in python_blocks()[1:]:
        exec(block, names)
    claimed = [float(number) for number in re.findall(r"[+-]0\.0\d{3}", python_blocks()[1])]
    assert len(claimed) == 3
    assert names["spectrum"].eigenvalues[:3].tolist() == pytest.approx(claimed, abs=6e-5)
    assert names["T"].shape == (3072, 3072)
    ledger = names["ledger"]
    assert set(ledger.terms) >= {"feature_feature", "feature_bias", "feature_error", "constant"}
    x = names["cache"][names["mlp"].hook_in][0, 1:]
    expected = names["interactions"].sae_out.pre_activations(names["mlp"](x))[:, 143]
    torch.testing.assert_close(ledger.total.float(), expected, atol=1e-5, rtol=1e-4)


def test_the_graph_of_the_readme_ends_where_its_feature_is_active_and_pairs_explain_it():
    import bilinear_circuits as bc
    from bilinear_circuits.attribution import attribute_prompt
    from bilinear_circuits.prompts import prompt_tokens

    (asked,) = re.findall(r'graph --prompt "(.+)" --layer (\d+) --feature (\d+)', README)
    layer, feature = map(int, asked[1:])
    model = bc.load_model()
    mlp = bc.BilinearMLP.from_model(model, layer)
    interactions = bc.FeatureInteractions(mlp, *bc.load_dictionaries(layer))
    ids = prompt_tokens(asked[0], model.tokenizer, 256)
    (one,) = attribute_prompt(model, [interactions], [(layer, feature)], ids).attributions
    assert one.position == len(ids) - 1
    assert one.direct is not None
    assert one.ledger.completeness.item() > 0.9


def test_every_query_in_configs_is_a_valid_query():
    from bilinear_circuits.commands.circuits import read_query

    files = sorted((ROOT / "configs/circuits").glob("*.yaml"))
    assert files
    for file in files:
        asked = read_query(str(file))
        assert asked.query.triggers
        assert file.name in (ROOT / "configs/README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{document} links to {target}"


def test_the_commands_named_are_verbs_with_the_options_named():
    from bilinear_circuits.cli import VERBS

    commands = re.findall(r"bilinear-circuits ([a-z]+(?:-[a-z]+)?)\b", README)
    assert set(commands) == set(VERBS)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (demo|test)\b", README):
        assert f"\n{target}:" in makefile


def test_all_public_names_exist_and_are_documented():
    import bilinear_circuits as bc

    for name in bc.__all__:
        assert getattr(bc, name).__doc__, name
    assert set(bc.__all__) <= set(dir(bc))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bc.nonsense  # noqa: B018


def test_an_old_python_is_told_what_is_needed(tmp_path):
    old = tmp_path / "python3.9"
    pretend = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[2])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{pretend}' \"$@\"\n")
    old.chmod(0o755)
    environment = tmp_path / "environment"
    asked = ["make", "--silent", "demo", f"PYTHON={old}", f"VENV={environment}"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    first, *makes_own = done.stderr.splitlines()
    assert first.startswith(f"bilinear-circuits needs Python 3.11 or later, got 3.9 as {old}.")
    assert len(makes_own) == 1
    assert not environment.exists()


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path, capsys):
    from bilinear_circuits.cli import main

    (shown,) = re.findall(r"```text\n(layer/feature.*?)```", README, re.DOTALL)
    assert main(["circuits", "sentiment_negation", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    head = shown.splitlines()[0]
    printed = printed[printed.index(head) :][: len(shown)]
    number = re.compile(r"[+\-−]?\d+\.\d+")
    assert number.sub("N", printed) == number.sub("N", shown)
    for got, expected in zip(number.findall(printed), number.findall(shown), strict=True):
        assert float(got.replace("−", "-")) == pytest.approx(float(expected.replace("−", "-")), abs=0.011)
