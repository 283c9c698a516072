"""Ordinary models read through fitted layers: losses, removals, a stock Llama of them, and the verbs."""

import json
import re
from typing import get_args

import pytest
import torch
from helpers import assert_near, randn, refused
from llamas import random_llama
from planted import interactions_of, random_dictionary, random_stories, tiny_llama, word_tokenizer
from transformers import AutoModelForCausalLM

import bilinear_circuits as bc
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.cubic_interactions import CubicInteractions
from bilinear_circuits.interventions.agreement import mixed_difference, removal_agreement
from bilinear_circuits.models.bilinear_mlp import NotBilinearError
from bilinear_circuits.models.gated_mlp import GatedMLP
from bilinear_circuits.runs.replacement import measure_replacements, mlp_inputs, read_layers
from bilinear_circuits.surgery.bilinear_llama import bilinear_llama


@pytest.fixture(scope="module")
def model():
    return tiny_llama(act="silu")


@pytest.fixture(scope="module")
def tokens():
    return tokenize_stories(random_stories(40), word_tokenizer(), 16)


@pytest.fixture(scope="module")
def inputs(model, tokens):
    return mlp_inputs(model, tokens, range(3))


def replaced(model, layers):
    """A copy of the model whose MLPs are other functions, put there by hand."""
    import copy

    class Other(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    other = copy.deepcopy(model)
    for layer, function in layers.items():
        other.model.layers[layer].mlp = Other(function)
    return other


def loss_of(model, tokens):
    """Mean cross-entropy over every token that another follows."""
    total, n = 0.0, 0
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        ids = ids[: int(mask.sum()) + 1].unsqueeze(0)
        logits = model(ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        n += len(logits)
    return total / n


def test_inputs_are_those_of_every_token_in_order(model, tokens, inputs):
    rows = []
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        seen = []
        hook = model.model.layers[1].mlp.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        model(ids[: int(mask.sum()) + 1].unsqueeze(0))
        hook.remove()
        rows.append(seen[0][0])
    assert_near(inputs[1], torch.cat(rows).detach(), 1e-5)
    without = mlp_inputs(model, tokens, [1], bos=False)[1]
    assert_near(without, torch.cat([row[1:] for row in rows]).detach(), 1e-5)
    with refused(ValueError, "layers must be between 0 and 2, got 7"):
        mlp_inputs(model, tokens, [7])
    with refused(ValueError, "tokens must hold a story or more"):
        mlp_inputs(model, tokens[:0], [1])


def test_losses_are_those_of_a_model_changed_by_hand(model, tokens, inputs):
    fits = [GatedMLP.from_model(model, layer).bilinear(inputs[layer]) for layer in (0, 2)]
    found = measure_replacements(model, tokens, fits)
    assert found.base == pytest.approx(loss_of(model, tokens), rel=1e-5)
    functions = {
        "replaced": [fit.tensor for fit in fits],
        "linear": [fit.approximation.linear for fit in fits],
        "without": [torch.zeros_like, torch.zeros_like],
    }
    for name, (first, last) in functions.items():
        cases = ({0: first}, {2: last}, {0: first, 2: last})
        expected = [loss_of(replaced(model, case), tokens) for case in cases]
        assert getattr(found, name).tolist() == pytest.approx(expected, rel=1e-5)
    table = found.table()
    assert table["layer"] == ["0", "2", "all"]
    assert table["recovered"][2] == pytest.approx(
        ((found.without[2] - found.replaced[2]) / (found.without[2] - found.base)).item()
    )
    with refused(ValueError, r"layers must be of one block or more, each once, got layers \[0, 0\]"):
        measure_replacements(model, tokens, [fits[0], fits[0]])
    bilinear = bc.BilinearMLP.from_model(tiny_llama(), 0)
    with refused(ValueError, "layers must be fits to MLPs, such as GatedMLP.bilinear makes, got layer 0"):
        measure_replacements(model, tokens, [bilinear])


def test_layers_are_read_exactly_where_they_are_bilinear_and_by_fits_elsewhere(tokens):
    mixed = tiny_llama(act="silu")
    mixed.model.layers[1].mlp.act_fn = torch.nn.Identity()
    asked = []

    def stories():
        asked.append(True)
        return tokens

    exact = read_layers(mixed, [1], None, stories)
    assert exact[1].approximation is None
    assert asked == []
    with refused(NotBilinearError, "SiLU gate.*--approximate gates.*bilinear-circuits approximate"):
        read_layers(mixed, [0, 1], None, stories)
    fvu = []
    for fit in ("gates", "output"):
        found = read_layers(mixed, [2, 1, 0], fit, stories)
        assert [*found] == [2, 1, 0]
        assert found[1].approximation is None
        fvu.append(found[0].approximation.fvu)
    assert fvu[1] < fvu[0]
    with refused(ValueError, "approximate must be one of gates, output, transcoder, got 'all'"):
        read_layers(mixed, [0], "all", stories)


def test_profiles_account_for_the_activation_of_the_model(model, tokens, inputs):
    bilinear = interactions_of(tiny_llama(), 1)
    mlp = GatedMLP.from_model(model, 1).bilinear(inputs[1])
    fitted = bc.FeatureInteractions(mlp, bilinear.sae_in, bilinear.sae_out, least_recovered=0.0)
    (activity,) = bc.collect_activity(model, [fitted], tokens)
    feature = max(range(19), key=lambda one: 0 < len(activity.outputs[one][0]) <= 400 and len(activity.outputs[one][0]))
    profile = bc.profile_feature(activity, feature, bc.unembedding(model), word_tokenizer())
    _, value = activity.outputs[feature]
    assert profile.terms["gate_remainder"] != 0
    assert sum(profile.terms.values()) == pytest.approx(value.mean().item(), rel=1e-4)


def test_mixed_differences_are_the_terms_of_a_polynomial():
    x, parts = randn(5, 4), [randn(5, 4, seed=seed) for seed in (1, 2, 3)]
    G, U = randn(4, 6, seed=4), randn(4, 6, seed=5)
    cubic = mixed_difference(lambda rows: ((rows @ G).square() * (rows @ U)).sum(1), x, parts)
    a, b, c = (part @ G for part in parts)
    d, e, f = (part @ U for part in parts)
    assert_near(cubic, 2 * (a * b * f + a * e * c + d * b * c).sum(1), 1e-9)
    assert_near(mixed_difference(lambda rows: (rows @ G).sum(1), x, parts[:2]), torch.zeros(5).double(), 1e-9)


def test_removals_agree_exactly_for_bilinear_layers_and_nearly_for_cubic_ones(model, inputs):
    bilinear = interactions_of(tiny_llama(), 1)
    x = randn(300, 12, dtype=torch.float32)
    found = removal_agreement(LayerActivity.of(bilinear, x), range(6), rank=2, n_tokens=9, n_largest=5)
    for one in (found.forms, found.pairs):
        assert one.correlation == pytest.approx(1, abs=1e-9)
        assert one.slope == pytest.approx(1, abs=1e-5)
    assert len(found.forms.predicted) <= 9 * found.n_features
    assert len(found.triples.predicted) == 0

    gated = GatedMLP.from_model(model, 1)
    sides = (bilinear.sae_in, bilinear.sae_out)
    fitted = bc.FeatureInteractions(gated.bilinear(inputs[1]), *sides, least_recovered=0.0)
    cubic = CubicInteractions(gated.cubic(inputs[1]), *sides, least_recovered=0.0)
    near = removal_agreement(LayerActivity.of(fitted, inputs[1]), range(19), cubic)
    table = near.table()
    assert table["removed"] == ["rank 2", "pairs", "triples"]
    assert table["n"][2] > 20
    assert 0.5 < table["correlation"][0] < 0.9999
    assert table["correlation"][2] > 0.8
    with refused(ValueError, "features must be active at two tokens or more, got 1 that are not"):
        removal_agreement(LayerActivity.of(bilinear, x[:1]), [0])
    with refused(ValueError, "cubic must be of layer 2, got layer 1"):
        removal_agreement(LayerActivity.of(interactions_of(tiny_llama(), 2), x), [0], cubic)
    with refused(TypeError, "rank must be an int"):
        removal_agreement(LayerActivity.of(bilinear, x), [0], rank="2")


@pytest.mark.parametrize(
    ("kind", "settings"), [("silu", {}), ("tied", {}), ("mistral", {"sliding_window": None}), ("qwen2", {})]
)
def test_a_stock_llama_of_fitted_layers_is_the_model_with_them_in_place(kind, settings, tmp_path):
    model = random_llama(kind, **settings)
    x = randn(500, 12, dtype=torch.float32)
    layers = {layer: GatedMLP.from_model(model, layer).bilinear(x) for layer in range(2)}
    bilinear_llama(model, layers).save_pretrained(tmp_path)
    written = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (written.config.model_type, written.config.hidden_act) == ("llama", "linear")
    ids = torch.arange(9).unsqueeze(0) + 3
    expected = replaced(model, {layer: one.tensor for layer, one in layers.items()})(ids).logits
    assert_near(written(ids).logits.detach(), expected.detach(), 1e-4)
    for layer, one in layers.items():
        read = bc.BilinearMLP.from_model(written, layer)
        assert_near(read.tensor.W_gate, one.tensor.W_gate, 1e-6)
        assert_near(read.tensor.b_gate, one.tensor.b_gate, 1e-6)


def test_models_that_no_llama_is_equal_to_are_refused():
    x = randn(50, 12, dtype=torch.float32)
    for kind, message in (
        ("mistral", "model must attend to its whole context .*, got a window of 3 of 32 tokens"),
        ("gemma", "model must be a llama, mistral, qwen2 to be written as a stock Llama, got 'gemma'"),
    ):
        model = random_llama(kind)
        layers = {layer: GatedMLP.from_model(model, layer).bilinear(x) for layer in range(2)}
        with refused(ValueError, message):
            bilinear_llama(model, layers)
    model = random_llama("silu")
    with refused(ValueError, r"layers must hold one for every block, 0 to 1, got \[1\]"):
        bilinear_llama(model, {1: GatedMLP.from_model(model, 1).bilinear(x)})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model with SiLU gates, dictionaries and stories, as folders."""
    root = tmp_path_factory.mktemp("gated")
    model = tiny_llama(act="silu")
    model.save_pretrained(root / "model")
    word_tokenizer().save_pretrained(root / "model")
    for layer in (1, 2):
        for width, side, seed in ((17, "hook_in", 0), (19, "hook_out", 100)):
            hook = f"blocks.{layer}.mlp.{side}"
            random_dictionary(12, width, hook, seed=seed + layer).save(root / "saes" / hook)
    lines = [f"{story} the cat sat at home ." for story in random_stories(120)]
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(lines))
    return root


@pytest.fixture
def verb(world):
    from bilinear_circuits.cli import main

    def run(name, *arguments):
        place = ["--model", world / "model", "--corpus", world / "stories.txt"]
        saes = [] if name == "approximate" else ["--saes", world / "saes"]
        return main([str(one) for one in (name, *place, *saes, *arguments)])

    return run


@pytest.mark.parametrize("fit", ["gates", "transcoder"])
def test_approximate_writes_a_model_that_all_verbs_read(fit, verb, tmp_path, capsys):
    out = tmp_path / "near"
    assert verb("approximate", "--held-out", 20, "--fit", fit, "--steps", 20, "--out", out) == 0
    said = capsys.readouterr().out
    assert "in place of SiLU gates, fitted on" in said
    assert "\n  all  " in said
    record = json.loads((out / "approximate.json").read_text())
    assert record["layer"] == ["0", "1", "2", "all"]
    assert {file.name for file in (out / "fits").iterdir()} == {f"layer-{layer}.safetensors" for layer in range(3)}
    assert not (out / "run.json").exists()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.mlp_bias
    assert bc.BilinearMLP.from_model(model, 1).probe_error < 1e-4
    assert verb("lowrank", "--model", out, "--ranks", 1, "--min-active", 3) == 0
    assert "in place of" not in capsys.readouterr().out  # its layers are bilinear
    assert verb("approximate", "--held-out", 20, "--fit", fit, "--steps", 20, "--out", out) == 2
    assert "a finished one" in capsys.readouterr().err


def test_order_two_and_single_layers_write_no_model(verb, tmp_path, capsys):
    from safetensors.torch import load_file

    assert verb("approximate", "--order", 2, "--held-out", 20, "--layers", 1, "--out", tmp_path / "two") == 0
    assert "quadratic functions in place of SiLU gates" in capsys.readouterr().out
    assert load_file(tmp_path / "two/fits/layer-1.safetensors")["coefficients"].shape == (14, 3)
    assert not (tmp_path / "two/config.json").exists()


def test_a_fit_that_was_killed_goes_on(verb, tmp_path, monkeypatch, capsys):
    from bilinear_circuits.commands.approximate_models import Work

    asked = ("--held-out", 20, "--fit", "transcoder", "--steps", 10, "--out", tmp_path / "out")
    assert verb("approximate", *asked[:-1], tmp_path / "whole") == 0
    fit, calls = Work._new_fit, []

    def fit_until_killed(self, gated, *inputs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(gated.layer)
        return fit(self, gated, *inputs)

    monkeypatch.setattr(Work, "_new_fit", fit_until_killed)
    assert verb("approximate", *asked) == 130
    monkeypatch.setattr(Work, "_new_fit", fit)
    assert verb("approximate", *asked) == 0
    whole, resumed = (json.loads((tmp_path / name / "approximate.json").read_text()) for name in ("whole", "out"))
    assert whole["change"] == pytest.approx(resumed["change"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "7"], "layers must be between 0 and 2"),
        (["--held-out", "500"], "corpus must hold two stories more than the 500 held out"),
        (["--n-stories", "1"], "n_stories must be at least 2, to fit on and to measure on, got 1"),
        (["--order", "2", "--fit", "gates"], "fit must be left out with order 2"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(arguments, message, verb, tmp_path, capsys):
    assert verb("approximate", *arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_verbs_read_other_gates_if_asked_to_and_say_what_is_recovered(verb, tmp_path, capsys):
    out = tmp_path / "low"
    few = ("--ranks", 1, "--min-active", 3, "--n-stories", 60)
    assert verb("lowrank", *few, "--out", out) == 2
    assert "It applies a SiLU gate" in capsys.readouterr().err.splitlines()[-1]
    assert verb("lowrank", *few, "--approximate", "output", "--least-recovered", 0, "--out", out) == 0
    assert "layer 1: affine functions, W_out solved again, in place of SiLU gates," in capsys.readouterr().out
    provenance = json.loads((out / "lowrank.json").read_text())["provenance"]
    assert set(provenance["approximations"]) == {"1", "2"}
    assert "of the MLP output's variance recovered" in provenance["approximations"]["2"]
    assert verb("lowrank", *few, "--approximate", "gates", "--least-recovered", 0.9999) == 2
    assert "mlp must recover 1.00 of the variance" in capsys.readouterr().err.splitlines()[-1]
    assert verb("lowrank", *few, "--approximate", "gates", "--least-recovered", 1.5) == 2
    assert "least_recovered must be a share between 0 and 1, got 1.5" in capsys.readouterr().err.splitlines()[-1]


def test_pages_and_graphs_of_fits_say_so(verb, world, tmp_path, capsys):
    fit = ("--approximate", "output", "--least-recovered", 0, "--n-stories", 60)
    assert verb("features", *fit, "--layer", 1, "--side", "out", "--feature", 0, 1, "--out", tmp_path / "pages") == 0
    for page in ("index.html", "features/0.html"):
        assert "Not a bilinear MLP:" in (tmp_path / "pages/layer-1-out" / page).read_text()
    prompt = ("--prompt", "the cat was not good and the zebra sat")
    assert verb("graph", *fit, "--layer", 1, "--feature", *range(19), *prompt, "--out", tmp_path / "graphs") == 0
    assert " + gates " in capsys.readouterr().out
    (file,) = [one for one in (tmp_path / "graphs").glob("*.json") if one.name != "graph-metadata.json"]
    graph = json.loads(file.read_text())
    assert "Layer 1 is no bilinear MLP" in graph["metadata"]["info"]["description"]
    flows = {}
    for link in graph["links"]:
        flows[link["target"]] = flows.get(link["target"], 0) + link["weight"]
    for target in graph["bilinear_circuits"]["targets"]:
        assert flows[target["node_id"]] == pytest.approx(target["pre_activation"], rel=1e-6)
        assert sum(target["terms"].values()) == pytest.approx(target["pre_activation"], rel=1e-6)
    remainders = [node for node in graph["nodes"] if node["clerp"].startswith("what the gates of the model do more")]
    assert len(remainders) == len({node["ctx_idx"] for node in remainders}) > 0


def test_proofs_of_fitted_layers_say_what_the_model_does(verb, world, tmp_path, capsys):
    import yaml
    from verbs import QUERY, QUICK_PROOF

    (tmp_path / "query.yaml").write_text(yaml.safe_dump(QUERY))
    fit = ("--approximate", "output", "--least-recovered", 0)
    assert verb("circuits", tmp_path / "query.yaml", *fit, "--n-stories", 120, "--out", tmp_path / "found") == 0
    assert "is no bilinear MLP" in (tmp_path / "found/report.html").read_text()
    assert "is taken out of the MLP output. controls" in capsys.readouterr().out
    circuit = tmp_path / "found/circuit.json"
    for name, more, message in (
        (
            "prove",
            ["--approximate", "gates"],
            "approximate must be as for circuits, .* --approximate output, got gates",
        ),
        ("prove", [], "approximate must be as for circuits, which were found with --approximate output, got left out"),
        (
            "edit",
            [],
            "circuit must be of a bilinear model, got one .* Write a bilinear model with bilinear-circuits appr",
        ),
    ):
        assert verb(name, circuit, *more, "--out", tmp_path / "refused") == 2
        assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert verb("prove", circuit, *fit, "--out", tmp_path / "proved", *QUICK_PROOF) == 0
    said = capsys.readouterr().out
    assert "is read through a fit: removals that it predicts, in the model's own MLP" in said
    assert "  rank 2 " in said
    assert "  triples " in said
    page = (tmp_path / "proved/report.html").read_text()
    assert "Fitted layers and the model&#39;s own MLPs" in page
    assert "up to rounding" not in page
    proofs = bc.CircuitProofs.load(tmp_path / "proved")
    agreement = next(iter(proofs.agreements.values()))
    assert agreement.table()["removed"][1] == "pairs"


def test_a_model_read_block_by_block_gives_the_same(verb, world, tmp_path, capsys):
    asked = ("--held-out", 20, "--fit", "output")
    assert verb("approximate", *asked, "--out", tmp_path / "loaded") == 0
    assert verb("approximate", *asked, "--stream", "--out", tmp_path / "streamed") == 0
    assert "layer 2: affine functions, W_out solved again" in capsys.readouterr().err
    records = [json.loads((tmp_path / name / "approximate.json").read_text()) for name in ("loaded", "streamed")]
    for name in ("change", "recovered", "linear change"):
        whole, streamed = (record[name] for record in records)
        assert streamed[:-1] == [None] * 3
        assert streamed[-1] == pytest.approx(whole[-1], rel=1e-4)
    assert records[1]["fvu"][:3] == pytest.approx(records[0]["fvu"][:3], rel=1e-4)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("loaded", "streamed")]
    ids = torch.arange(9).unsqueeze(0)
    assert_near(models[1](ids).logits.detach(), models[0](ids).logits.detach(), 1e-4)
    assert verb("approximate", *asked, "--stream", "--layers", 1, "--out", tmp_path / "out") == 2
    assert "layers must be left out with stream" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "is_llama"), [("qwen2", True), ("qwen3", False), ("tied", True), ("mistral", False)])
def test_other_models_are_read_block_by_block_in_parts_of_files(kind, is_llama, world, tmp_path, capsys):
    from bilinear_circuits.cli import main

    model = random_llama(kind, vocab_size=50)
    model.save_pretrained(tmp_path / "model", max_shard_size="8kB")
    word_tokenizer().save_pretrained(tmp_path / "model")
    asked = ["--model", str(tmp_path / "model"), "--corpus", str(world / "stories.txt"), "--held-out", "20"]
    assert main(["approximate", *asked, "--out", str(tmp_path / "whole")]) == 0
    assert main(["approximate", *asked, "--stream", "--out", str(tmp_path / "parts")]) == 0
    assert ("fits alone are written" in capsys.readouterr().err) == (not is_llama)
    whole, parts = (json.loads((tmp_path / name / "approximate.json").read_text()) for name in ("whole", "parts"))
    assert parts["change"][-1] == pytest.approx(whole["change"][-1], rel=1e-3, abs=1e-6)
    assert parts["base"] == pytest.approx(whole["base"], rel=1e-5)
    assert (tmp_path / "parts/config.json").exists() == is_llama
    if is_llama:
        ids = torch.arange(9).unsqueeze(0)
        logits = [AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids).logits for name in ("whole", "parts")]
        assert_near(logits[1].detach(), logits[0].detach(), 1e-4)


def test_damaged_models_are_refused_before_they_are_streamed(world, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    from bilinear_circuits.cli import main

    random_llama("silu", vocab_size=50).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    whole = load_file(file)
    asked = ["approximate", "--model", str(tmp_path / "model"), "--corpus", str(world / "stories.txt"), "--stream"]
    poisoned = whole | {"model.layers.1.self_attn.q_proj.weight": torch.full((24, 12), torch.nan)}
    for state, message in (
        ({name: one for name, one in whole.items() if name != "lm_head.weight"}, "lacks 1: lm_head.weight"),
        (whole | {"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}, "must have the shape (20, 12)"),
        (poisoned, "model must give finite activations, got others in front of the MLP of layer 1"),
    ):
        save_file(state, file, {"format": "pt"})
        assert main([*asked, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_model_of_another_kind_is_not_streamed(world, tmp_path, capsys):
    from bilinear_circuits.cli import main

    random_llama("gemma", vocab_size=50).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    asked = ["--model", str(tmp_path / "model"), "--corpus", str(world / "stories.txt"), "--stream"]
    assert main(["approximate", *asked, "--out", str(tmp_path / "out")]) == 2
    assert "model must be a llama, mistral, qwen2, qwen3 to be streamed, got 'gemma'" in capsys.readouterr().err


def test_the_server_reads_fits_too(world):
    from starlette.testclient import TestClient

    from bilinear_circuits.commands import serve

    place = {"model": str(world / "model"), "saes": str(world / "saes"), "corpus": str(world / "stories.txt")}
    asked = serve.Arguments(**place, features=["1/3"], n_stories=60, approximate="output", least_recovered=0.0)
    page = TestClient(serve.explorer_app(asked), base_url="http://127.0.0.1").get("/").text
    assert "is no bilinear MLP" in page


def test_options_of_verbs_are_those_of_the_library():
    from bilinear_circuits.command_line import arguments
    from bilinear_circuits.interactions.fit import LEAST_RECOVERED
    from bilinear_circuits.models.fitting import METHODS
    from bilinear_circuits.runs.replacement import Fit

    assert get_args(arguments.Fit) == get_args(Fit) == tuple(METHODS)
    assert arguments.GateArguments.least_recovered == LEAST_RECOVERED
