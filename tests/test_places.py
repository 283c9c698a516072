"""Dictionaries under any names: folders, repositories of the Hub, releases of SAELens; an output dictionary alone."""

import json
import shutil

import pytest
import torch
from helpers import refused
from planted import random_dictionary, random_stories, save_between_dictionaries

from bilinear_circuits import zoo
from bilinear_circuits.cli import main
from bilinear_circuits.dictionaries.places import folders_in


def saved(folder, layer, side, seed=0, hook=None):
    """A dictionary in a folder of any name."""
    hook = hook or f"blocks.{layer}.mlp.{side}"
    random_dictionary(12, 15, hook, seed=seed).save(folder)
    return folder


def test_folders_of_any_names_are_found_by_their_hooks(tmp_path):
    paths = {
        (1, "hook_in"): saved(tmp_path / "layer one/read", 1, "hook_in"),
        (1, "hook_out"): saved(tmp_path / "layer one/written/k3", 1, None, hook="blocks.1.hook_mlp_out"),
        (0, "hook_out"): saved(tmp_path / "other", 0, "hook_out"),
    }
    saved(tmp_path / "residual", 1, None, hook="blocks.1.hook_resid_post")
    found = folders_in(tmp_path)
    assert {(layer, side): path for layer, sides in found.items() for side, path in sides.items()} == paths
    assert [*found] == [0, 1]
    assert zoo.dictionary_layers(tmp_path) == [0, 1]
    sae_in, sae_out = zoo.load_dictionaries(1, tmp_path)
    assert (sae_in.name, sae_out.name) == ("layer one/read", "layer one/written/k3")
    assert zoo.dictionary_folder(tmp_path, sae_out.name) == paths[1, "hook_out"]
    saved(tmp_path / "twice", 0, "hook_out")
    with refused(ValueError, r"saes must hold one dictionary for each place, got .*other and .*twice for blocks.0.mlp"):
        folders_in(tmp_path)


def test_one_folder_is_a_place_of_its_own(tmp_path):
    folder = saved(tmp_path / "mine", 2, "hook_out")
    assert zoo.dictionary_layers(folder) == [2]
    sae_in, sae_out = zoo.load_dictionaries(2, folder)
    assert (sae_in.name, sae_out.name) == ("coordinates", "mine")
    assert sae_in.hook_name == "blocks.2.mlp.hook_in"
    assert zoo.dictionary_folder(folder, "mine") == folder
    assert zoo.dictionary_folder(folder, "coordinates") is None
    x = torch.randn(4, 12)
    assert sae_in.decode(sae_in.encode(x)).equal(x)


def test_folders_without_a_dictionary_of_an_mlp_are_refused(tmp_path):
    saved(tmp_path / "residual", 1, None, hook="blocks.1.hook_resid_post")
    with refused(FileNotFoundError, "of other names with a hook_name of an MLP in cfg.json, got .* without one"):
        zoo.dictionary_layers(tmp_path)
    (tmp_path / "residual/cfg.json").write_text("{")
    with refused(ValueError, "cfg.json"):
        zoo.dictionary_layers(tmp_path)


def test_a_repository_of_the_hub_is_a_folder(tmp_path, hub):
    saved(tmp_path / "repository/some/out", 1, "hook_out")
    hub("owner/dictionaries", tmp_path / "repository")
    assert zoo.dictionary_layers("owner/dictionaries") == [1]
    assert zoo.load_dictionaries(1, "owner/dictionaries")[1].name == "some/out"
    with refused(OSError, "saes must be a folder, or a Hub id that can be fetched, got owner/nothing"):
        zoo.dictionary_layers("owner/nothing")


def test_a_release_of_saelens_is_fetched_once_and_kept(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("BILINEAR_CIRCUITS_CACHE", str(tmp_path / "cache"))
    release = "gpt2-small-mlp-out-v5-32k"
    saved(tmp_path / "repository/v5_32k_layer_1", 1, "hook_out", seed=3)
    hub("jbloom/GPT2-Small-OAI-v5-32k-mlp-out-SAEs", tmp_path / "repository")
    name = f"{release}/blocks.1.hook_mlp_out"
    assert zoo.dictionary_layers(name) == [1]
    sae_in, sae_out = zoo.load_dictionaries(1, name)
    assert sae_in.name == "coordinates"
    assert sae_out.W_dec.allclose(random_dictionary(12, 15, None, seed=3).W_dec, atol=1e-6)
    shutil.rmtree(tmp_path / "hub")
    assert zoo.load_dictionaries(1, name)[1].W_enc.equal(sae_out.W_enc)
    for wrong in (release, f"{release}/blocks.99.hook_mlp_out"):
        with refused(ValueError, rf"saes must name ids of the SAELens release {release}, as {release}/ID, got .* more"):
            zoo.dictionary_layers(wrong)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, stories, and dictionaries of MLP outputs alone, under names of their own."""
    root = tmp_path_factory.mktemp("places")
    save_between_dictionaries(root, (1,), "model")
    shutil.copytree(root / "saes/blocks.1.mlp.hook_out", root / "mine/written by mlp 1")
    lines = [f"{story} the cat sat at home ." for story in random_stories(120)]
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(lines))
    return root


@pytest.mark.parametrize(
    ("verb", "record"),
    [
        (["inspect", "--layer", 1, "--feature", 3, "--n-stories", 60], "feature.json"),
        (["lowrank", "--ranks", 1, "--min-active", 3, "--n-stories", 60], "lowrank.json"),
        (["interactions", "--layer", 1, "--k", 5], "interactions.json"),
        (["features", "--layer", 1, "--side", "out", "--feature", 0, 1, "--n-stories", 60], "layer-1-out/index.html"),
        (["evaluate-sae", "--n-stories", 40], "evaluation.json"),
        (["discover", "--n-stories", 60, "--replicates", 2], "result.json"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_an_output_dictionary_alone_is_enough(verb, record, world, tmp_path, capsys):
    place = ["--model", world / "model", "--saes", world / "mine", "--corpus", world / "stories.txt"]
    assert main([str(one) for one in (*verb, *place, "--out", tmp_path / "out")]) == 0
    assert (tmp_path / "out" / record).is_file(), [*(tmp_path / "out").rglob("*")]
    if record == "lowrank.json":
        dictionaries = json.loads((tmp_path / "out" / record).read_text())["provenance"]["dictionaries"]
        assert [one["name"] for one in dictionaries] == ["coordinates", "written by mlp 1"]
        assert dictionaries[0]["sha256"] is None
        assert len(dictionaries[1]["sha256"]) == 64


@pytest.mark.slow
def test_circuits_of_an_output_dictionary_are_found_and_proved(world, tmp_path, capsys):
    import yaml
    from verbs import QUERY, QUICK_PROOF

    (tmp_path / "query.yaml").write_text(yaml.safe_dump(QUERY))
    place = [
        str(one) for one in ("--model", world / "model", "--saes", world / "mine", "--corpus", world / "stories.txt")
    ]
    asked = ["circuits", str(tmp_path / "query.yaml"), *place, "--n-stories", "120", "--out", str(tmp_path / "found")]
    assert main(asked) == 0
    assert main(["names", *place, "--n-stories", "40"]) == 0
    proved = ["prove", str(tmp_path / "found/circuit.json"), *place, "--out", str(tmp_path / "proved"), *QUICK_PROOF]
    assert main(proved) == 0
    assert "coordinate" in (tmp_path / "found/report.html").read_text()
