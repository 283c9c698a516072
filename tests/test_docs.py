"""What the documents say runs: code of the README, query files, paths and commands that are named."""

import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bilinear_circuits.zoo.configs import config_file

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "configs/README.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "bilinear_circuits/zoo").rglob("README.md"))
SHELL = ["README.md", "configs/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def python_blocks():
    """Those that run in seconds; the search in one of them is that of docs/index.md, which runs with the documents."""
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (search,) = (block for block in found if "Workspace.open" in block)
    assert search in (ROOT / "docs/index.md").read_text()
    return [block for block in found if block != search]


def has_browser():
    from bilinear_circuits.report.images import check_images

    try:
        check_images()
    except (ValueError, FileNotFoundError):
        return False
    return True


def test_the_naive_einsum_of_the_readme_is_what_the_object_computes():
    from bilinear_circuits.algebra.tensor import InteractionTensor

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
    (completeness,) = re.findall(r"explain: (0\.\d+) at \"not\"", README)
    assert ledger.completeness[2].item() == pytest.approx(float(completeness), abs=0.006)
    assert ledger.active.tolist().count(False) > 0
    x = names["cache"][names["mlp"].hook_in][0, 1:]
    expected = names["interactions"].sae_out.pre_activations(names["mlp"](x))[:, 143]
    torch.testing.assert_close(ledger.total.float(), expected, atol=1e-5, rtol=1e-4)


def test_the_graph_of_the_readme_ends_where_its_feature_is_active_and_pairs_explain_it():
    import bilinear_circuits as bc
    from bilinear_circuits.prompts.accounts import prompt_tokens
    from bilinear_circuits.prompts.attribution import attribute_prompt

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
    from bilinear_circuits.circuits.query_file import read_query

    files = sorted((ROOT / "configs/circuits").glob("*.yaml"))
    assert files
    for file in files:
        asked = read_query(str(file))
        assert asked.query.triggers
        assert file.name in (ROOT / "configs/README.md").read_text()


def test_every_key_of_a_recipe_is_explained():
    from dataclasses import fields

    from bilinear_circuits.circuits import CircuitQuery
    from bilinear_circuits.command_line import recipes
    from bilinear_circuits.models.llama import ModelSettings
    from bilinear_circuits.training.language_model import OptimSettings
    from sae import settings

    query, model, dictionaries = (ROOT / "configs/README.md").read_text().split("\n## ")[1:]
    for text, *classes in (
        (query, CircuitQuery),
        (model, recipes.Recipe, ModelSettings, OptimSettings),
        (dictionaries, settings.Recipe),
    ):
        explained = set(re.findall(r"`(\w+)`", text))
        assert {field.name for one in classes for field in fields(one)} - explained == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{document} links to {target}"


def shell_lines(text):
    """Lines of code that a shell would run: those of indented and of fenced blocks, joined where they go on."""
    text = text.replace("\\\n", " ")
    return [
        line.strip()
        for line in re.findall(r"^(?:    )?((?:bilinear-circuits|torchrun|make|python|pip) .*)$", text, re.M)
    ]


def invocations():
    """Every call of a verb in the documents, on a line of its own or in the middle of a sentence."""
    for document in SHELL:
        text = (ROOT / document).read_text()
        inline = re.findall(r"`((?:[\w./]+ -v )?bilinear-circuits [^`]+)`", text)
        for line in dict.fromkeys([*shell_lines(text), *inline]):
            words = shlex.split(line, comments=True)
            start = [i for i, word in enumerate(words) if word in ("bilinear-circuits", "bilinear_circuits.cli")]
            if start and re.match("[a-z]", words[start[0] + 1]):
                yield pytest.param(words[start[0] + 1 :], id=f"{document}: {line:.70}")


@pytest.mark.parametrize("words", [*invocations()])
def test_every_command_in_the_documents_is_one_that_its_verb_takes(words):
    from bilinear_circuits import cli

    verb, *rest = words
    assert verb in cli.VERBS
    if not rest or rest == ["--help"]:
        return  # named, not called
    arguments = cli._parse(verb, importlib.import_module(cli.VERBS[verb]), rest)
    named = [one for name in ("query", "recipe") if (one := getattr(arguments, name, None))]
    for name in named:
        kind = {"circuits": "circuits", "train": "train", "convert": "train", "train-sae": "sae"}[verb]
        assert name.split(".")[0].isupper() or config_file(name, "query", kind)  # a reader's own


def test_an_option_that_no_verb_has_would_be_seen(capsys):
    from bilinear_circuits import cli

    with pytest.raises(SystemExit):
        cli._parse("lowrank", importlib.import_module(cli.VERBS["lowrank"]), ["--rank", "3"])
    assert "unrecognized arguments: --rank" in capsys.readouterr().err


def test_the_readme_names_every_verb():
    from bilinear_circuits.cli import VERBS

    assert set(re.findall(r"^    bilinear-circuits ([a-z]+(?:-[a-z]+)?)\b", README, re.M)) == set(VERBS)


@pytest.mark.parametrize("document", SHELL)
def test_targets_and_scripts_of_the_documents_exist(document):
    makefile = (ROOT / "Makefile").read_text()
    for line in shell_lines((ROOT / document).read_text()):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, line
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), line


@pytest.fixture(scope="module")
def names_of_the_documents():
    """What the code of the documents takes as given: the shipped model, one of its layers, a few of its stories."""
    import bilinear_circuits as bc

    model = bc.load_model()
    interactions = bc.FeatureInteractions(bc.BilinearMLP.from_model(model, 4), *bc.load_dictionaries(4))
    stories = bc.read_stories(bc.corpus_path("ts-17m"), 400)
    tokens = bc.tokenize_stories(stories[:80], model.tokenizer, 256)
    (activity,) = bc.collect_activity(model, [interactions], tokens)
    query = bc.CircuitQuery("q", ("not", "n't", "never", "cannot"), ("good", "happy", "nice"), ("bad", "sad", "hurt"))
    profile = bc.profile_feature(activity, 143, bc.unembedding(model), model.tokenizer)
    source = {"model": {"name": "ts-17m"}}
    given = {"bc": bc, "model": model, "interactions": interactions, "stories": stories, "activity": activity}
    return given | {
        "query": query,
        "profile": profile,
        "tokenizer": model.tokenizer,
        "provenance": source,
        "prompts": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in SHELL if name != "README.md"])
def test_the_code_of_the_documents_runs(document, names_of_the_documents, tmp_path, monkeypatch):
    import bilinear_circuits as bc
    from bilinear_circuits.discovery import DiscoverySettings

    few = {"ranking_stories": 80, "loss_stories": 4, "sites": 40, "shortlist": 6, "controls": 2, "baseline": 4}
    for name, settings in (
        ("find_circuits", bc.SearchSettings(**few)),
        ("discover", DiscoverySettings(("rotation",), replicates=1, fdr=0.5)),
    ):
        monkeypatch.setattr(bc, name, functools.partial(getattr(bc, name), settings=settings))
    monkeypatch.chdir(tmp_path)
    names = dict(names_of_the_documents)
    for block in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        if "write_images" in block and not has_browser():
            block = block[: block.index("write_images(")]
        exec(block, names)


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
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, env=outer)
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
