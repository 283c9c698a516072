from dataclasses import replace

import dense as oracle
import pytest
import torch
from helpers import (
    D_IN,
    D_OUT,
    D_SAE_IN,
    D_SAE_OUT,
    HOOK_IN,
    HOOK_OUT,
    as_users_see_it,
    assert_near,
    check_matrix,
    check_spectrum,
    randn,
    random_interactions,
    random_mlp,
    random_sae,
    refused,
    weights_of,
)

from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.probe import RMSNorm

BIASES = ("b_gate", "b_in", "b_out")


def dense_form(interactions, sae_out, feature):
    tensor = oracle.interaction_tensor(*weights_of(interactions.mlp.tensor)[:3])
    return torch.einsum("o,oij->ij", sae_out.W_enc[:, feature].detach(), tensor)


@pytest.mark.parametrize("feature", [0, D_SAE_OUT - 1])
def test_matrix_is_the_form_between_decoder_rows(feature):
    interactions, sae_in, sae_out = random_interactions("topk")
    T = oracle.feature_matrix(dense_form(interactions, sae_out, feature), sae_in.W_dec)
    assert interactions.matrix(feature).shape == (D_SAE_IN, D_SAE_IN)
    check_matrix(interactions.matrix(feature), T)


def test_matrix_reads_the_folded_decoder_of_a_rescaled_sae():
    interactions, sae_in, sae_out = random_interactions("topk rescaled")
    rows = torch.nn.functional.normalize(sae_in.W_dec.detach(), dim=1)
    T = oracle.feature_matrix(dense_form(interactions, sae_out, 2), rows)
    assert_near(interactions.matrix(2).to_dense(), T)


@pytest.mark.parametrize("biases", [(), BIASES], ids=len)
def test_form_is_the_pre_activation_of_the_layer_output(biases):
    interactions, _, sae_out = random_interactions(biases=biases)
    x = randn(4, D_IN, seed=60)
    for feature in (0, 5):
        y = torch.stack([oracle.layer(row, *weights_of(interactions.mlp.tensor)) for row in x])
        expected = (y - sae_out.b_dec) @ sae_out.W_enc[:, feature] + sae_out.b_enc[feature]
        assert_near(interactions.form(feature)(x), expected.detach())
        assert_near(interactions.pre_activation_tensor(x)[:, feature], expected.detach())


@pytest.mark.parametrize("k", [None, 2])
def test_spectrum_is_that_of_the_form_on_the_mlp_input(k):
    interactions, _, sae_out = random_interactions()
    check_spectrum(interactions.spectrum(3, k), dense_form(interactions, sae_out, 3), D_IN if k is None else k)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("k", [1, 7, D_SAE_IN * (D_SAE_IN + 1) // 2, 1000])
def test_top_equals_brute_force(k, precision):
    interactions, sae_in, sae_out = random_interactions("topk")
    for feature in (0, 6):
        T = oracle.feature_matrix(dense_form(interactions, sae_out, feature), sae_in.W_dec)
        expected = oracle.top_pairs(T, k)
        top = interactions.top(k, feature, precision=precision)
        assert len(top) == len(expected)
        assert top.output.unique().tolist() == [feature]
        assert list(zip(top.first.tolist(), top.second.tolist(), strict=True)) == [(a, b) for a, b, _ in expected]
        assert_near(top.weights, torch.tensor([weight for _, _, weight in expected], dtype=torch.float64))


def test_top_counts_a_pair_in_both_orders_and_a_self_interaction_once():
    interactions, _, _ = random_interactions("topk")
    T, top = interactions.matrix(1).to_dense(), interactions.top(1000, 1)
    for a, b, weight in zip(top.first, top.second, top.weights, strict=True):
        assert_near(weight, T[a, b] + T[b, a] if a != b else T[a, a])
    assert {a == b for a, b in zip(top.first.tolist(), top.second.tolist(), strict=True)} == {True, False}


def test_saes_and_dictionaries_give_the_same():
    interactions, sae_in, sae_out = random_interactions("gated")
    folded = FeatureInteractions(interactions.mlp, Dictionary.from_sae(sae_in), Dictionary.from_sae(sae_out))
    assert_near(folded.matrix(1).to_dense(), interactions.matrix(1).to_dense())


def test_all_parts_are_brought_to_the_widest_dtype():
    sae_in, sae_out = random_sae("topk", D_IN, D_SAE_IN), random_sae("topk", D_OUT, D_SAE_OUT, dtype="float64")
    interactions = FeatureInteractions(random_mlp(dtype=torch.bfloat16), sae_in, sae_out)
    parts = (interactions.mlp.tensor.W_gate, interactions.sae_in.W_dec, interactions.matrix(0).left)
    assert {part.dtype for part in parts} == {torch.float64}
    assert interactions.ledger(randn(D_IN, dtype=torch.bfloat16), 0).total.dtype == torch.float64


@pytest.mark.parametrize(("argument", "d_in", "d_out"), [("sae_in", 6, D_OUT), ("sae_out", D_IN, 4)])
def test_a_dictionary_of_the_wrong_width_is_refused(argument, d_in, d_out):
    sae_in = random_sae("topk", d_in, D_SAE_IN, hook_name=HOOK_IN)
    sae_out = random_sae("topk", d_out, D_SAE_OUT, hook_name=HOOK_OUT)
    hook, width, shape, got = {
        "sae_in": (HOOK_IN, D_IN, r"\(6, 11\)", 6),
        "sae_out": (HOOK_OUT, D_OUT, r"\(4, 9\)", 4),
    }[argument]
    message = rf"{argument} must fit layer 0, whose {hook} has width {width}, got .* W_enc {shape}, of width {got}"
    with refused(ValueError, message):
        FeatureInteractions(random_mlp(), sae_in, sae_out)


@pytest.mark.parametrize(
    ("argument", "hook_in", "hook_out", "shape"),
    [
        ("sae_in", "blocks.1.mlp.hook_in", HOOK_OUT, r"\(5, 11\)"),
        ("sae_out", HOOK_IN, "blocks.0.hook_resid_post", r"\(3, 9\)"),
    ],
)
def test_a_dictionary_of_another_hook_is_refused(argument, hook_in, hook_out, shape):
    sae_in = random_sae("topk", D_IN, D_SAE_IN, hook_name=hook_in)
    sae_out = random_sae("topk", D_OUT, D_SAE_OUT, hook_name=hook_out)
    wrong, right, width = (hook_in, HOOK_IN, D_IN) if argument == "sae_in" else (hook_out, HOOK_OUT, D_OUT)
    message = rf"{argument} must be trained on {right} of width {width}, got .* trained on {wrong} with W_enc {shape}"
    with refused(ValueError, message):
        FeatureInteractions(random_mlp(), sae_in, sae_out)


@pytest.mark.parametrize("hook_in", [HOOK_IN, "blocks.0.ln2.hook_out", None])
@pytest.mark.parametrize("hook_out", [HOOK_OUT, "blocks.0.hook_mlp_out", None])
def test_other_names_of_the_same_hooks_are_accepted(hook_in, hook_out):
    sae_in = random_sae("topk", D_IN, D_SAE_IN, hook_name=hook_in)
    sae_out = random_sae("topk", D_OUT, D_SAE_OUT, hook_name=hook_out)
    assert FeatureInteractions(random_mlp(), sae_in, sae_out).sae_in.hook_name == hook_in


def test_a_dictionary_before_the_norm_weight_needs_the_mlp_read_there():
    sae_in = random_sae("topk", D_IN, D_SAE_IN, hook_name="blocks.0.ln2.hook_normalized", dtype="float64")
    sae_out = random_sae("topk", D_OUT, D_SAE_OUT, hook_name=HOOK_OUT, dtype="float64")
    mlp = replace(random_mlp(), norm=RMSNorm(randn(D_IN, seed=8), 1e-6))
    with refused(ValueError, r"trained on blocks.0.ln2.hook_normalized.*mlp\.before_norm_weight\(\)"):
        FeatureInteractions(mlp, sae_in, sae_out)
    read_there = FeatureInteractions(mlp.before_norm_weight(), sae_in, sae_out)
    scaled_rows = sae_in.W_dec.detach() * mlp.norm.weight
    expected = oracle.feature_matrix(mlp.tensor.matrix(sae_out.W_enc[:, 1].detach()).to_dense(), scaled_rows)
    assert_near(read_there.matrix(1).to_dense(), expected)


@pytest.mark.parametrize("feature", [-1, D_SAE_OUT])
@pytest.mark.parametrize("method", ["matrix", "form", "spectrum", "products"])
def test_features_out_of_range_are_refused(method, feature):
    with refused(ValueError, rf"feature must be between 0 and 8, one of the output dictionary .*, got {feature}"):
        getattr(random_interactions()[0], method)(feature)


def test_at_least_one_interaction_must_be_asked_for():
    with refused(ValueError, "k must be at least 1, got 0"):
        random_interactions()[0].top(0, 0)


def test_searches_that_cannot_be_are_refused():
    interactions, _, _ = random_interactions()
    moments = torch.eye(D_SAE_IN, dtype=torch.float64)
    with refused(ValueError, "features must name at least one output feature, got none"):
        interactions.top(3, [])
    with refused(ValueError, "moments must go with products in float32, got bfloat16"):
        interactions.top(3, moments=moments, precision="bfloat16")
    weights = interactions.mlp.tensor.W_gate
    weights[0, 0] = torch.nan
    with refused(
        ValueError, "tensor must have finite weights and interactions below about 1e19, got others at output 0"
    ):
        interactions.top(3)


def test_the_largest_interactions_can_be_iterated():
    top = random_interactions()[0].top(4, 3)
    assert list(top) == [
        (3, *one) for one in zip(top.first.tolist(), top.second.tolist(), top.weights.tolist(), strict=True)
    ]
    assert len(list(top)) == len(top) == 4


@pytest.mark.parametrize("feature", ["a", 1.5, True, None, -1, D_SAE_OUT])
def test_what_is_no_feature_is_refused(feature):
    interactions, _, _ = random_interactions()
    with as_users_see_it(), refused(ValueError, f"feature must be between 0 and {D_SAE_OUT - 1}, one of the output"):
        interactions.check_feature(feature)
