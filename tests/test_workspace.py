"""From a model's name to a proved circuit, its edit and its page, in Python."""

import json

import pytest
import torch
from helpers import refused
from verbs import QUERY, asked, write_world

import bilinear_circuits as bc
from bilinear_circuits.circuits.search import SearchSettings
from bilinear_circuits.cli import main
from bilinear_circuits.discovery import DiscoverySettings

NAMES = ("name", "triggers", "positive", "negative")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    return root, write_world(root)


@pytest.fixture(scope="module")
def workspace(world):
    _, places = world
    return bc.Workspace.open(places["MODEL"], places["SAES"], places["CORPUS"], n_stories=2000)


@pytest.fixture(scope="module")
def search(workspace):
    query = bc.CircuitQuery(**{name: QUERY[name] for name in NAMES})
    return workspace.find_circuits(query, SearchSettings(**QUERY["settings"]))


def test_a_search_is_that_of_the_command(world, workspace, search):
    root, places = world
    assert main(asked("circuits", places, root / "found")) == 0
    document = json.loads((root / "found/circuit.json").read_text())
    assert [one.name for one in search.circuits] == [one["name"] for one in document["circuits"]]
    for mine, theirs in zip(search.circuits, document["circuits"], strict=True):
        assert mine.proof.removal.mean == pytest.approx(theirs["proof"]["removal"]["mean"], rel=1e-5)
    for name in ("model", "dictionaries", "corpus", "versions", "commit"):
        assert workspace.provenance[name] == document["provenance"][name]


def test_a_search_is_proved_and_some_of_it_too(workspace, search):
    few = bc.ProofSettings(n_edges=4, n_exact=2, n_draws=1, n_controls=1, n_nonsense=3)
    name = search.circuits[-1].name
    proofs = workspace.prove(search.only([name]), few)
    assert [one.name for one in proofs.proofs] == [name]
    part = search.only([search.circuits[1].name, search.circuits[0].name])
    torch.testing.assert_close(part.decoder_cosine[0, 1], search.decoder_cosine[0, 1])
    assert [one.name for one in part.targets] == [search.circuits[1].name, search.circuits[0].name]
    with refused(ValueError, r"features must be circuits of the search \(.*\), got 9/9"):
        search.only(["9/9"])


def test_an_edit_is_the_model_without_the_forms(workspace, search):
    one = search.only([search.circuits[0].name])
    (target,) = one.targets
    edited = workspace.edit(one, rank=workspace.layer(target.layer).mlp.tensor.d_in)
    after = bc.BilinearMLP.from_model(edited, target.layer).tensor
    form, row = workspace.layer(target.layer).form(target.feature), workspace.layer(target.layer).sae_out.W_dec
    x = torch.randn(5, after.d_in, generator=torch.Generator().manual_seed(0))
    expected = workspace.layer(target.layer).mlp(x) - form.matrix(x).unsqueeze(1) * row[target.feature]
    torch.testing.assert_close(after(x), expected, rtol=1e-4, atol=1e-4)


def test_layers_features_and_prompts_are_asked_of_what_was_opened(workspace):
    profile = workspace.profile(1, 3)
    assert (profile.layer, profile.feature) == (1, 3)
    account = workspace.explain("the cat was not good", [(2, 4)])
    assert len(account.features) == 1
    assert workspace.activity is workspace.activity
    with refused(ValueError, "layer must be one that was opened, 1, 2, got 0"):
        workspace.layer(0)


def test_a_page_is_written(workspace, search, tmp_path):
    page = workspace.write_page(search, tmp_path / "circuits.html")
    assert search.circuits[0].name in page.read_text()


def test_motifs_are_those_of_the_function(workspace):
    settings = DiscoverySettings(replicates=1, min_active=5)
    found = workspace.discover(settings)
    activity = [bc.FeatureActivity(one.x, one.inputs, one.outputs) for one in workspace.activity]
    assert found.cutoffs == bc.discover(workspace.interactions, activity, settings).cutoffs


def test_what_cannot_be_opened_is_refused(world, tmp_path):
    _, places = world
    with refused(ValueError, "layers must have dictionaries in .* \\(1, 2\\), got 0"):
        bc.Workspace.open(places["MODEL"], places["SAES"], places["CORPUS"], layers=[0, 1])
    with refused(FileNotFoundError, "saes|dictionar"):
        bc.Workspace.open(places["MODEL"], corpus=places["CORPUS"])
