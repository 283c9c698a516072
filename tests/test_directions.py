"""Directions that no SAE found: coordinates, principal components, tokens, logits and neurons as dictionaries."""

import numpy as np
import planted
import pytest
import torch
from helpers import D_IN, D_OUT, HOOK_IN, assert_near, randn, random_mlp, random_tensor, refused, tiny_llama
from verbs import asked, files_of, write_world

import bilinear_circuits as bc
from bilinear_circuits.cli import main
from bilinear_circuits.dictionaries.activation import Activation
from bilinear_circuits.interactions import active
from bilinear_circuits.models.running import capture_mlp


def weights(layer=1):
    """A model, one of its layers, and an MLP input."""
    model = tiny_llama().double()
    return model, model.model.layers[layer], randn(12, seed=4)


def test_the_rule_identity_lets_everything_pass():
    pre = randn(3, 4)
    assert Activation("identity")(pre) is pre
    with refused(ValueError, "k must be left out for the kind identity, got 2"):
        Activation("identity", k=2)


@pytest.mark.parametrize("n", [3, 5, 9])
@pytest.mark.parametrize("centred", [False, True])
def test_directions_are_encoded_by_least_squares_of_least_norm(n, centred):
    rows, x = randn(n, 5, seed=n), randn(4, 5, seed=1)
    centre = randn(5, seed=2) if centred else None
    dictionary = bc.Dictionary.from_directions(rows, centre)
    shifted = (x - centre if centred else x).numpy()
    expected = np.linalg.lstsq(rows.T.numpy(), shifted.T, rcond=None)[0].T
    assert_near(dictionary.encode(x), expected)
    projected = expected @ rows.numpy() + (centre.numpy() if centred else 0)
    assert_near(dictionary.decode(dictionary.encode(x)), projected)
    assert (n < 5) == (not np.allclose(projected, x.numpy()))


def test_readouts_read_as_they_are_and_decode_by_least_squares():
    rows, x = randn(7, 5), randn(4, 5, seed=1)
    dictionary = bc.Dictionary.from_readouts(rows, names=[f"r{i}" for i in range(7)], name="seven")
    assert_near(dictionary.pre_activations(x), x @ rows.T)
    assert_near(dictionary.decode(dictionary.encode(x)), x)
    assert (dictionary.name, dictionary.names[6]) == ("seven", "r6")


def test_principal_components_are_those_of_a_singular_value_decomposition():
    x = randn(30, 6) * torch.arange(1.0, 7).double() + 3
    dictionary = bc.Dictionary.pca(x, 4, hook_name=HOOK_IN)
    centred = (x - x.mean(0)).numpy()
    _, sigma, rows = np.linalg.svd(centred, full_matrices=False)
    cosines = (dictionary.W_dec.numpy() * rows[:4]).sum(1)
    assert_near(torch.from_numpy(np.abs(cosines)), np.ones(4))
    largest = dictionary.W_dec.gather(1, dictionary.W_dec.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    assert_near(dictionary.encode(x), (x - x.mean(0)) @ dictionary.W_dec.T)
    share = sigma[0] ** 2 / (sigma**2).sum()
    assert dictionary.names[0] == f"component 0 ({share:.2g} of the variance)"
    assert dictionary.hook_name == HOOK_IN
    assert bc.Dictionary.pca(x[:3]).d_sae == 2  # three points lie in a plane
    with refused(ValueError, "k must be between 1 and 2, since x has 3 rows of 6 columns, got 3"):
        bc.Dictionary.pca(x[:3], 3)
    with refused(TypeError, "directions must be a Tensor, got a ndarray"):
        bc.Dictionary.from_directions(x.numpy())
    with refused(ValueError, "k must be between 1 and 6, since x has 30 rows of 6 columns, got 7"):
        bc.Dictionary.pca(x, 7)
    with refused(ValueError, "x must have two rows or more, got 1"):
        bc.Dictionary.pca(x[:1])


def test_stacked_directions_are_encoded_together():
    first, second = (bc.Dictionary.from_directions(randn(2, 5, seed=i), name=f"d{i}") for i in (1, 2))
    both = bc.Dictionary.stack(first, second)
    assert_near(both.W_dec, torch.cat([first.W_dec, second.W_dec]))
    x = randn(3, 5, seed=5)
    assert_near(both.decode(both.encode(x)), bc.Dictionary.from_directions(both.W_dec).decode(both.encode(x)))
    assert both.names == {0: "d1 0", 1: "d1 1", 2: "d2 0", 3: "d2 1"}
    topk = planted.random_dictionary(5, 4, None)
    for others, message in (
        ((first, topk), "of the rule identity to be stacked, got identity, topk"),
        ((), "of the rule identity to be stacked, got none"),
        ((first, bc.Dictionary.coordinates(5, HOOK_IN)), "must be of one place, got d1 of width 5 at None and coord"),
        ((first, bc.Dictionary.from_directions(randn(2, 5), randn(5))), "must have one decoder bias"),
    ):
        with refused(ValueError, message):
            bc.Dictionary.stack(*others)


@pytest.mark.parametrize("make", [bc.Dictionary.from_directions, bc.Dictionary.from_readouts])
def test_a_direction_of_zeros_is_never_active_and_changes_no_other(make):
    rows, x = randn(3, 5), randn(4, 5, seed=2)
    padded = make(torch.cat([rows[:1], torch.zeros(1, 5), rows[1:]]))
    assert_near(padded.encode(x)[:, 1], torch.zeros(4))
    assert_near(padded.encode(x)[:, [0, 2, 3]], make(rows).encode(x))
    assert_near(padded.decode(padded.encode(x)), make(rows).decode(make(rows).encode(x)))


def test_the_tokens_of_the_shipped_model_are_directions_also_the_one_that_was_never_trained():
    model = bc.load_model()
    tokens = bc.token_directions(model)
    assert tokens.d_sae == model.cfg.d_vocab
    assert int((tokens.W_dec.norm(dim=1) == 0).sum()) == 1


@pytest.mark.parametrize("make", [bc.Dictionary.from_directions, bc.Dictionary.from_readouts])
def test_what_is_no_direction_is_refused(make):
    rows = randn(3, 5)
    with refused(ValueError, "names must be one for each of the 3 directions, got 2"):
        make(rows, names=["a", "b"])
    rows[1, 2] = torch.nan
    with refused(ValueError, "directions must be finite, got 1 of 3"):
        make(rows)
    with refused(ValueError, r"directions must be rows of a matrix, one or more, got shape \(5,\)"):
        make(randn(5))


def test_what_no_directions_can_be_made_of_is_refused():
    with refused(ValueError, r"centre must be of the width of the directions, 5, got \(4,\)"):
        bc.Dictionary.from_directions(randn(3, 5), randn(4))
    with refused(ValueError, "d_in must be at least 1, got -1"):
        bc.Dictionary.coordinates(-1)
    with refused(ValueError, "x must be finite, got 1 of 2 rows that are not"):
        bc.Dictionary.pca(torch.tensor([[1.0, 2.0], [torch.inf, 1.0]]))
    assert bc.Dictionary.pca(torch.ones(4, 3)).names[0] == "component 0 (0 of the variance)"


def test_names_of_other_weights_go_when_a_dictionary_is_saved(tmp_path):
    bc.Dictionary.from_directions(randn(3, 5), names=["a", "b", "c"]).save(tmp_path)
    other = bc.Dictionary.from_directions(randn(3, 5, seed=1))
    other.save(tmp_path)
    assert bc.Dictionary.load(tmp_path).names == {}
    (tmp_path / "names.json").write_text("notes of mine")
    other.save(tmp_path)
    assert (tmp_path / "names.json").read_text() == "notes of mine"


def test_without_dictionaries_a_layer_is_read_in_its_coordinates():
    mlp = random_mlp(("b_gate", "b_out"))
    interactions = bc.FeatureInteractions(mlp, None, None)
    assert (interactions.sae_in.d_sae, interactions.sae_out.d_sae) == (D_IN, D_OUT)
    for output, direction in enumerate(torch.eye(D_OUT, dtype=torch.double)):
        assert_near(interactions.matrix(output).to_dense(), mlp.tensor.matrix(direction).to_dense())
    x = randn(4, D_IN)
    ledger = interactions.ledger(x, 2)
    assert_near(ledger.total, random_tensor(0, ("b_gate", "b_out"))(x)[:, 2])
    assert_near(ledger.feature_error + ledger.error_error + ledger.bias_bias, torch.zeros(4))


def test_tokens_against_logits_are_what_the_layer_makes_of_two_embeddings():
    model, block, _ = weights()
    interactions = bc.FeatureInteractions(
        bc.BilinearMLP.from_model(model, 1), bc.token_directions(model, 1), bc.logit_directions(model)
    )
    embedded = model.model.embed_tokens.weight * block.post_attention_layernorm.weight
    readout = model.lm_head.weight * model.model.norm.weight

    def logits(x):
        return block.mlp(x) @ readout.T

    a, b = 7, 31
    with torch.no_grad():
        mixed = logits(embedded[a] + embedded[b]) - logits(embedded[a]) - logits(embedded[b])
    for token in (0, 12, 49):
        # The weight of the final norm is read off what it does, its epsilon of 0.1 included.
        assert_near(interactions.matrix(token)[a, b], mixed[token] / 2, 1e-6)
    strongest = interactions.top(1, [12])
    dense = interactions.matrix(12).to_dense()
    pairs = torch.where(torch.eye(50, dtype=torch.bool), dense, 2 * dense)
    assert_near(strongest.weights.abs().squeeze(), pairs.abs().max())


def test_directions_of_a_model_carry_its_texts():
    from helpers import tiny_tokenizer

    model = tiny_llama()
    tokens, logits = bc.token_directions(model, tokenizer=tiny_tokenizer()), bc.logit_directions(model)
    assert (tokens.names[4], tokens.hook_name, logits.names) == ("the", "blocks.0.mlp.hook_in", {})
    assert bc.logit_directions(model, tiny_tokenizer()).names[1] == "[BOS]"


def test_neurons_are_read_where_they_write_or_further_up():
    model, block, _ = weights(0)
    own = bc.neuron_directions(model, 0)
    assert_near(own.W_dec, block.mlp.down_proj.weight.T)
    assert (own.hook_name, own.names[19]) == ("blocks.0.mlp.hook_out", "neuron 0/19")
    later = bc.neuron_directions(model, 0, read_by=2)
    norm = model.model.layers[2].post_attention_layernorm.weight
    assert_near(later.W_dec, block.mlp.down_proj.weight.T * norm)
    assert later.hook_name == "blocks.2.mlp.hook_in"
    bc.FeatureInteractions(bc.BilinearMLP.from_model(model, 2), later, bc.logit_directions(model))
    with refused(ValueError, "read_by must be a layer above 1, that of the neurons, got 1"):
        bc.neuron_directions(model, 1, read_by=1)


def test_directions_are_saved_with_their_names(tmp_path):
    saved = bc.Dictionary.pca(randn(9, 5, dtype=torch.float32), 3, hook_name=HOOK_IN)
    saved.save(tmp_path / "pca")
    loaded = bc.Dictionary.load(tmp_path / "pca")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name))
    assert (loaded.names, loaded.hook_name, loaded.activation.kind) == (saved.names, HOOK_IN, "identity")


def test_other_tensors_in_a_folder_of_directions_are_refused(tmp_path):
    from safetensors.torch import save_file

    bc.Dictionary.coordinates(4).save(tmp_path)
    save_file({"W_enc": torch.eye(4)}, tmp_path / "sae_weights.safetensors")
    with refused(ValueError, r"must hold the matrices W_enc and W_dec and their biases, got W_enc \(4, 4\) in "):
        bc.Dictionary.load(tmp_path)


def test_more_activations_than_memory_are_refused(monkeypatch):
    monkeypatch.setattr(active, "_MOST_ACTIVATIONS", 19)
    with refused(ValueError, "activations of coordinates must be at most 19, got more in the first 4 of 4 tokens"):
        active.active_tokens(bc.Dictionary.coordinates(5), randn(4, 5, dtype=torch.float32))


@pytest.fixture(scope="module", params=["components", "tokens and logits"])
def world(request, tmp_path_factory):
    """A tiny model between named directions, and what verbs read."""
    root = tmp_path_factory.mktemp("directions")
    made = write_world(root)
    model = bc.load_model(made["MODEL"])
    tokens = bc.tokenize_stories(bc.read_stories(made["CORPUS"]), model.tokenizer, bc.context_length(model))
    captured = capture_mlp(model, tokens.ids, [1, 2])
    for layer in (1, 2):
        seen = captured[layer]
        if request.param == "components":
            sides = (bc.Dictionary.pca(seen.x[tokens.mask], 6), bc.Dictionary.pca(seen.y[tokens.mask]))
        else:
            sides = (bc.token_directions(model, layer), bc.logit_directions(model))
        for dictionary, side in zip(sides, ("hook_in", "hook_out"), strict=True):
            dictionary.save(root / f"saes/blocks.{layer}.mlp.{side}")
    assert main(asked("circuits", made, root / "found")) == 0
    return made


@pytest.mark.parametrize(
    "verb",
    [
        "inspect",
        *(
            pytest.param(verb, marks=pytest.mark.slow)
            for verb in (
                "explore",
                "prove",
                "edit",
                "compare",
                "discover",
                "features",
                "graph",
                "interactions",
                "lowrank",
            )
        ),
    ],
)
def test_verbs_run_on_named_directions(verb, world, tmp_path):
    assert main(asked(verb, world, tmp_path / "out")) == 0
    assert files_of(tmp_path / "out")
