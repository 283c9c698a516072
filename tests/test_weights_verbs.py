"""Weights and dictionaries through real verbs: no result is of others than those that were named."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer
from safetensors.torch import load_file, save_file
from test_cli import mistake
from test_corpus_verbs import LAYER, QUERY, STARTS, TRAIN_SAE, killed

from bilinear_circuits.cli import main

HOOKS = tuple(f"blocks.{LAYER}.mlp.hook_{side}" for side in ("in", "out"))


def save_model(model, folder, **options):
    model.save_pretrained(folder, **options)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model in shards, its dictionaries, stories, and what `circuits` found."""
    root = tmp_path_factory.mktemp("weights")
    save_model(tiny_llama(n_layers=2), root / "tiny", max_shard_size="2KB")
    for hook, d_sae in zip(HOOKS, (20, 40), strict=True):
        random_dictionary(12, d_sae, hook, seed=d_sae).save(root / "saes" / hook)
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(120)))
    (root / "query.yaml").write_text(yaml.safe_dump(QUERY))
    assert main(command(root, "circuits", root / "found")) == 0
    return root


def command(world, verb, out, model=None, saes=None, circuit=None):
    """A small command of a verb."""
    model, saes = world / "tiny" if model is None else model, world / "saes" if saes is None else saes
    source = ["--model", model, "--saes", saes, "--corpus", world / "stories.txt"]
    layer = ["--layer", LAYER]
    circuit = world / "found/circuit.json" if circuit is None else circuit
    own = {
        "circuits": ["circuits", world / "query.yaml", *source],
        "inspect": ["inspect", *layer, "--feature", 3, *source],
        "features": ["features", *layer, "--side", "out", "--feature", 3, "--n-stories", 60, *source],
        "interactions": ["interactions", *layer, "--k", 5, "--coactive", "--n-stories", 60, *source],
        "train-sae": ["train-sae", world / "sae.yaml", "--model", model, "--corpus", world / "stories.txt"],
        "evaluate-sae": ["evaluate-sae", *source],
        **{verb: [verb, circuit, *source] for verb in ("explore", "edit", "prove")},
    }[verb]
    if verb == "train-sae":
        (world / "sae.yaml").write_text(
            yaml.safe_dump(TRAIN_SAE | {"model": "tiny", "corpus": str(world / "stories.txt")})
        )
    return [str(one) for one in (*own, "--out", out)]


def without_source(file):
    content = json.loads(file.read_text())
    return {key: value for key, value in content.items() if key != "provenance"}


def swapped(world, folder):
    """The model with one shard of another training."""
    shutil.copytree(world / "tiny", folder)
    shard = max(folder.glob("*.safetensors"), key=lambda one: one.stat().st_size)
    save_file({k: -v for k, v in load_file(shard).items()}, shard, metadata={"format": "pt"})
    return folder


def rescaled(world, folder):
    """The dictionaries with one number of a cfg.json changed, and the same weights."""
    shutil.copytree(world / "saes", folder)
    file = folder / HOOKS[0] / "cfg.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"k": content["k"] + 1}))
    return folder


CHANGES = [(verb, changed) for verb in ("interactions", "features") for changed in ("shard", "cfg.json")]


@pytest.mark.parametrize(("verb", "changed"), [*CHANGES, ("train-sae", "shard")])
def test_a_run_on_other_weights_is_not_gone_on_with(verb, changed, world, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(STARTS[verb], killed)
        with pytest.raises(SystemExit, match="130"):
            sys.exit(main(command(world, verb, tmp_path / "out")))
    other, key = {
        "shard": ({"model": swapped(world, tmp_path / "tiny")}, "model_sha256"),
        "cfg.json": ({"saes": rescaled(world, tmp_path / "saes")}, "dictionaries_sha256"),
    }[changed]
    capsys.readouterr()
    assert f"where {key} differ. Remove it" in mistake(capsys, *command(world, verb, tmp_path / "out", **other))
    assert main(command(world, verb, tmp_path / "out")) == 0


@pytest.mark.parametrize("verb", ["explore", "edit", "prove"])
def test_circuits_of_one_model_are_not_used_on_another(verb, world, tmp_path, capsys):
    said = mistake(capsys, *command(world, verb, tmp_path / "out", model=swapped(world, tmp_path / "tiny")))
    assert "model must be the one the circuits were found in, tiny, got" in said
    assert ".safetensors differ. Pass --model and --saes as for circuits." in said
    said = mistake(capsys, *command(world, verb, tmp_path / "out", saes=rescaled(world, tmp_path / "saes")))
    assert f"got saes, in whose {HOOKS[0]} cfg.json differ" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["circuits", "inspect", "features", "interactions", "evaluate-sae"])
def test_dictionaries_of_another_width_are_one_line(verb, world, tmp_path, capsys):
    for hook in HOOKS:
        random_dictionary(10, 20, hook).save(tmp_path / "saes" / hook)
    said = mistake(capsys, *command(world, verb, tmp_path / "out", saes=tmp_path / "saes"))
    assert "12" in said.splitlines()[-1]
    assert "10" in said.splitlines()[-1]
    assert "blocks.1.mlp.hook_in" in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("aliases", [("blocks.1.ln2.hook_out", None), (None, "blocks.1.hook_mlp_out")])
def test_dictionaries_are_evaluated_at_the_hooks_that_others_take(aliases, world, tmp_path):
    shutil.copytree(world / "saes", tmp_path / "saes")
    for hook, alias in zip(HOOKS, aliases, strict=True):
        if alias is not None:
            file = tmp_path / "saes" / hook / "cfg.json"
            content = json.loads(file.read_text())
            content["metadata"]["hook_name"] = alias
            file.write_text(json.dumps(content))
    assert main(command(world, "evaluate-sae", tmp_path / "alias", saes=tmp_path / "saes")) == 0
    assert main(command(world, "evaluate-sae", tmp_path / "own")) == 0
    first, second = (without_source(tmp_path / one / "evaluation.json")["dictionaries"] for one in ("alias", "own"))
    assert [one.pop("hook_name") for one in first] == [a or h for a, h in zip(aliases, HOOKS, strict=True)]
    assert first == [{key: value for key, value in one.items() if key != "hook_name"} for one in second]


def test_a_model_of_the_hub_is_the_same_as_its_folder(hub, world, tmp_path, capsys):
    hub("a/b", world / "tiny")
    assert main(command(world, "circuits", tmp_path / "out", model="a/b")) == 0
    assert without_source(tmp_path / "out/circuit.json") == without_source(world / "found/circuit.json")
    files = (tmp_path / "out/circuit.json", world / "found/circuit.json")
    named, local = (json.loads(file.read_text())["provenance"]["model"] for file in files)
    assert named == local | {"name": "a/b"}
    assert str(tmp_path) not in (tmp_path / "out/circuit.json").read_text()
    circuit = tmp_path / "out/circuit.json"
    assert main(command(world, "edit", tmp_path / "edit", model="a/b", circuit=circuit)) == 0
    assert (tmp_path / "edit/tokenizer.json").read_bytes() == (world / "tiny/tokenizer.json").read_bytes()
    capsys.readouterr()
    said = mistake(capsys, *command(world, "circuits", tmp_path / "none", model="a/none"))
    assert "model must be a folder, or a Hub id that can be fetched, got a/none: " in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_computed_in_float32(dtype, world, tmp_path):
    import bilinear_circuits as bc
    from bilinear_circuits.models.running import unembedding

    half = tiny_llama(n_layers=2).to(dtype)
    save_model(half, tmp_path / "half")
    save_model(tiny_llama(n_layers=2).to(dtype).float(), tmp_path / "whole")
    for name in ("half", "whole"):
        assert main(command(world, "circuits", tmp_path / f"found-{name}", model=tmp_path / name)) == 0
    first, second = (without_source(tmp_path / f"found-{name}/circuit.json") for name in ("half", "whole"))
    assert first == second
    assert unembedding(half).isfinite().all()
    assert bc.BilinearMLP.from_model(half, LAYER).tensor.W_gate.dtype == torch.float32


BROKEN = {
    "kind": ("config.json", {"model_type": "nonsense"}, "model must be one that transformers and Transf"),
    "size": ("config.json", {"hidden_size": "x"}, "model must be one that transformers and TransformerLens can load"),
    "heads": ("config.json", {"num_attention_heads": 0}, "model must be one that transformers and TransformerLens"),
    "tokenizer": ("tokenizer.json", {"model": {"type": "nonsense"}}, "can load"),
    "quantized": ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "weights that are not quantized"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_libraries_say_of_a_folder_is_one_line_that_names_it(case, world, tmp_path, capsys):
    name, values, message = BROKEN[case]
    model = shutil.copytree(world / "tiny", tmp_path / "tiny")
    (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | values))
    for asked in (
        command(world, "inspect", tmp_path / "out", model=model),
        ["sample", "--model", str(model), "--n", "2", "--out", str(tmp_path / "out/a.txt")],
    ):
        said = mistake(capsys, *asked).splitlines()[-1]
        assert message in said
        assert str(model) in said
        assert not (tmp_path / "out").exists()
