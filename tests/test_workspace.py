"""From a model's name to a proved circuit, its edit and its page, in Python."""

import json

import pytest
import torch
from helpers import refused
from verbs import QUERY, asked, write_world

import bilinear_circuits as bc
from bilinear_circuits.circuits.search import SearchSettings
from bilinear_circuits.cli import main
from bilinear_circuits.commands.prove_tables import tables
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
    loaded = bc.load_result(bc.CircuitSearch, root / "found")
    assert [one.proof.removal.mean for one in loaded.circuits] == [one.proof.removal.mean for one in search.circuits]
    assert loaded.targets == search.targets


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


def test_a_page_is_written_where_there_was_no_folder(workspace, search, tmp_path):
    page = workspace.write_page(search, tmp_path / "pages/circuits.html")
    assert search.circuits[0].name in page.read_text()


def test_proofs_and_motifs_have_pages_tables_figures_and_files_too(workspace, search, tmp_path):
    few = bc.ProofSettings(n_edges=4, n_exact=2, n_draws=1, n_controls=1, n_nonsense=3)
    proofs = workspace.prove(search.only([search.circuits[-1].name]), few)
    motifs = workspace.discover(DiscoverySettings(replicates=1, min_active=5))
    for result in (proofs, motifs, search):
        page = workspace.write_page(result, tmp_path / "page.html").read_text()
        assert "tokens" in page
        result.save(tmp_path, workspace.provenance)
        again = type(result).load(tmp_path)
        assert repr(again) == repr(result)
        assert again.to_pandas().equals(result.to_pandas())
        assert len(result.to_pandas()) > 0 or result is motifs
        assert result._repr_html_() == again._repr_html_()
    (proof,) = proofs.proofs
    frame = proofs.to_pandas()
    assert list(frame["weight"]) == proof.effects.weight.tolist()
    assert list(frame["measured"]) == pytest.approx(proof.effects.measured.mean(1).tolist())
    assert set(frame["circuit"]) == {proof.name}
    assert list(proofs.plot().data[0].x) == pytest.approx(proof.effects.predicted.mean(1).tolist(), rel=1e-3, abs=1e-6)
    assert f"{proof.n_active} of {proof.n_sites}" in proofs._repr_html_()
    with refused(ValueError, "folder must hold a CircuitProofs of format 1, got .* with a CircuitSearch of 1"):
        bc.CircuitProofs.load(tmp_path)


def test_a_query_is_asked_by_its_file(world, workspace, search):
    root, _ = world
    file = root / "asked.yaml"
    file.write_text(json.dumps(QUERY))
    found = workspace.find_circuits(str(file))
    assert (found.query, found.settings) == (search.query, search.settings)
    assert [one.proof.removal for one in found.circuits] == [one.proof.removal for one in search.circuits]
    with refused(FileNotFoundError, "query must be .*, got sentiment_negatio: no such file. Did you mean sentiment_ne"):
        workspace.find_circuits("sentiment_negatio")


def test_results_of_another_kind_are_refused_by_name(workspace, search):
    circuit = search.circuits[0]
    for ask, of_what in ((workspace.prove, circuit), (workspace.edit, search.targets), (workspace.edit, circuit)):
        with refused(TypeError, f"search must be a CircuitSearch, got a {type(of_what).__name__}. find_circuits"):
            ask(of_what)
    with refused(
        TypeError, "result must be a CircuitSearch or CircuitProofs or DiscoverySearch, got a int. find_circuits"
    ):
        workspace.write_page(3, "page.html")
    with refused(TypeError, "query must be a CircuitQuery, got a list"):
        workspace.find_circuits(["not"])
    with refused(TypeError, "search must be a Searched, got a Circuit"):
        bc.prove_circuits(workspace.model, workspace.interactions, circuit, workspace.stories)


def test_one_layer_is_opened_and_the_text_of_all_is_short(world, search):
    _, places = world
    one = bc.Workspace.open(places["MODEL"], places["SAES"], places["CORPUS"], layers=2, n_stories=3)
    assert repr(one).endswith("layers [2], 3 stories, seed=0)")
    assert len(repr(one)) < 200
    name = search.circuits[0].name
    assert repr(search.circuits[0]).startswith(f"Circuit({name}, ")
    assert f"circuits=tuple[{len(search.circuits)}: {name}, " in repr(search)
    assert search.only(name).targets == search.only([name]).targets


def test_motifs_are_those_of_the_function(workspace):
    settings = DiscoverySettings(replicates=1, min_active=5)
    found = workspace.discover(settings)
    activity = [bc.FeatureActivity(one.x, one.inputs, one.outputs) for one in workspace.activity]
    assert found.cutoffs == bc.discover(workspace.interactions, activity, settings).cutoffs


def test_what_cannot_be_opened_is_refused(world, tmp_path):
    _, places = world
    for layers, said in (([0, 1], r"\[0, 1\]"), ("1", "'1'"), ([], r"\[\]"), (True, "True")):
        with refused(ValueError, f"layers must be layers that have dictionaries in .*, 1, 2, got {said}"):
            bc.Workspace.open(places["MODEL"], places["SAES"], places["CORPUS"], layers=layers)
    with refused(FileNotFoundError, "model must be a shipped one .*, got ts-17. Did you mean ts-17m"):
        bc.Workspace.open("ts-17")
    with refused(FileNotFoundError, "saes must be the name of a shipped model .* no such folder"):
        bc.Workspace.open(places["MODEL"], "nowhere", corpus=places["CORPUS"])
    with refused(ValueError, "saes must be given for .*: dictionaries are shipped for ts-17m"):
        bc.Workspace.open(places["MODEL"], corpus=places["CORPUS"])
    with refused(ValueError, "saes and corpus must be given for .*: dictionaries and stories are shipped for ts-17m"):
        bc.Workspace.open(places["MODEL"])


def test_settings_and_features_of_another_kind_are_refused_by_name(workspace, search):
    query = bc.CircuitQuery(**{name: QUERY[name] for name in NAMES})
    for call in (
        lambda: workspace.find_circuits(query, 3),
        lambda: workspace.prove(search, 3),
        lambda: workspace.discover(3),
    ):
        with refused(TypeError, r"settings must be a \w+Settings, got a int. Leave it out for the defaults"):
            call()
    with refused(ValueError, r"features must be written as layer/feature, such as 4/143, got '2-4'"):
        workspace.explain("the cat", ["2-4"])
    with refused(ValueError, r"features must be pairs of layer and feature, such as \(4, 143\), got 4"):
        workspace.explain("the cat", (4, 143))


def test_a_feature_is_named_by_its_text_or_its_pair(workspace, search):
    first = search.targets[0]
    for names in (first.name, [first.name], [(first.layer, first.feature)]):
        assert [target.name for target in search.only(names).targets] == [first.name]
    for features in ("1/4", ["1/4"], [(1, 4)]):
        account = workspace.explain("the cat sat", features)
        assert [feature.key for feature in account.features] == [(1, 4)]


def test_edits_that_do_nothing_or_cannot_be_are_refused(workspace, search):
    with refused(ValueError, "rank must be at least 1 for an edit to change something, got 0"):
        workspace.edit(search, rank=0)
    for rank in (2.5, True, 999, -1):
        with refused(ValueError, f"rank must be a whole number between 0 and 12, got {rank}"):
            workspace.edit(search, rank=rank)
    for factor in ("x", float("nan"), None):
        with refused(ValueError, "factor must be a finite number, got"):
            workspace.edit(search, factor=factor)


def test_a_page_never_replaces_a_folder_nor_leaves_a_part_of_itself(workspace, search, tmp_path):
    (tmp_path / "page").mkdir()
    with refused(ValueError, "path must be a file, such as report.html, got .*page, which is a folder"):
        workspace.write_page(search, tmp_path / "page")
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_machine_and_a_number_that_cannot_be_are_refused_first(world):
    _, places = world
    with refused(ValueError, "device must be one that torch can use, got gpu: no such device; name cpu, cuda"):
        bc.Workspace.open(places["MODEL"], places["SAES"], places["CORPUS"], device="gpu")
    for n in (0, 1.5, True):
        with refused(ValueError, f"n_stories must be a whole number, at least 1, got {n}"):
            bc.Workspace.open(places["MODEL"], places["SAES"], places["CORPUS"], n_stories=n)


def test_a_circuit_that_is_active_too_seldom_costs_no_other_its_proof(workspace, search, monkeypatch):
    from bilinear_circuits.interventions import study

    few = bc.ProofSettings(n_edges=4, n_exact=2, n_draws=1, n_controls=1, n_nonsense=3)
    tested, other = search.circuits[-1].name, search.circuits[-2].name
    whole = study.prove_interventions

    def prove(place, target, settings, seed):
        if target.name == other:
            raise study.UntestableError("features must be active at two trigger sites or more. Use more stories.")
        return whole(place, target, settings, seed)

    monkeypatch.setattr(study, "prove_interventions", prove)
    proofs = workspace.prove(search.only([other, tested]), few)
    assert [one.name for one in proofs.proofs] == [tested]
    assert proofs.untested == {other: "features must be active at two trigger sites or more. Use more stories."}
    assert f"== layer/feature {other}: not tested\nfeatures must be active" in tables(proofs, workspace.model.tokenizer)
    with refused(ValueError, f"{other}: features must be active at two trigger sites"):
        workspace.prove(search.only([other]), few)
