"""Directions through heads in front of a bilinear MLP: kinds of pairs against loops over heads and tokens."""

import pytest
import torch
from helpers import assert_near, randn, refused
from llamas import random_llama
from planted import tiny_llama

import bilinear_circuits as bc
from bilinear_circuits.paths.kinds import PathKinds
from bilinear_circuits.paths.weights import read_weights

LAYER, N_TOKENS = 1, 5


@pytest.fixture(scope="module")
def model():
    model = tiny_llama(n_layers=2).double()
    for block in model.model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data = torch.rand(12, dtype=torch.double, generator=torch.Generator().manual_seed(1)) + 0.5
    return model


@pytest.fixture(scope="module")
def outputs():
    return bc.Dictionary.from_readouts(randn(7, 12), names=[f"out {i}" for i in range(7)])


@pytest.fixture(scope="module")
def kinds(model, outputs):
    return PathKinds.of(model, LAYER, read_weights(model).W_E[:N_TOKENS], outputs)


def forms_by_hand(model, outputs):
    """T[f, a, b] for directions E_i, then E_i OV_h of each head, from the parameters themselves, by loops."""
    block = model.model.layers[LAYER]
    E = model.model.embed_tokens.weight[:N_TOKENS].detach()
    d_head = 6
    rows = [*E]
    for head in range(2):
        own = slice(head * d_head, (head + 1) * d_head)
        for token in E:
            norm = block.input_layernorm
            normed = norm.weight * token / (token.square().mean() + norm.variance_epsilon).sqrt()
            value = block.self_attn.v_proj.weight[own] @ normed
            rows.append(block.self_attn.o_proj.weight[:, own] @ value)
    rows = [block.post_attention_layernorm.weight * row for row in rows]
    gate, up, down = (getattr(block.mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    T = torch.zeros(7, len(rows), len(rows), dtype=torch.double)
    for a, first in enumerate(rows):
        for b, second in enumerate(rows):
            written = down @ ((gate @ first) * (up @ second) + (gate @ second) * (up @ first)) / 2
            T[:, a, b] = outputs.W_enc.T @ written
    return T.detach()


def test_the_largest_paths_are_those_of_the_loops(kinds, model, outputs):
    T = forms_by_hand(model, outputs)
    i, j = torch.triu_indices(15, 15)
    coefficients = torch.where(i == j, 1, 2) * T[:, i, j]
    best = coefficients.abs().flatten().argsort(descending=True)[:20]
    table = kinds.top(20).table()
    names = [f"{kind} {token}" for kind in ("direct", "1.0", "1.1") for token in range(N_TOKENS)]
    expected = [(f"out {n // len(i)}", names[i[n % len(i)]], names[j[n % len(i)]]) for n in best.tolist()]
    ends = (
        [f"{kind} {name}" for kind, name in zip(table[f"{end} kind"], table[end], strict=True)]
        for end in ("first", "second")
    )
    assert list(zip(table["output"], *ends, strict=True)) == expected
    assert_near(torch.tensor(table["weight"]).double(), coefficients.flatten()[best], 1e-5)
    assert set(table["first kind"]) > {"direct"}


def test_mass_by_kind_is_that_of_the_loops(kinds, model, outputs):
    T = forms_by_hand(model, outputs)
    expected = T.square().sum(0).view(3, N_TOKENS, 3, N_TOKENS).sum((1, 3))
    assert_near(kinds.mass(), expected, 1e-9)


def test_sources_may_be_features_and_heads_some(model, outputs):
    features = bc.Dictionary.from_directions(randn(4, 12), names=["a", "b", "c", "d"])
    some = PathKinds.of(model, LAYER, features, outputs, heads=[1])
    assert some.kinds == ("direct", "1.1")
    assert some.sources == ("a", "b", "c", "d")
    assert set(some.top(30, features=[3]).table()["output"]) == {"out 3"}
    assert some.interactions.sae_in.names[5] == "1.1 b"


def test_a_head_that_does_not_exist_is_refused(model, outputs):
    with refused(ValueError, "head must be between 0 and 1, got 5"):
        PathKinds.of(model, LAYER, randn(3, 12), outputs, heads=[5])


def test_norms_of_gemma_multiply_with_one_plus_their_weight():
    gemma = random_llama("gemma", hidden_act="linear", hidden_activation="linear").double()
    weights, mlp = read_weights(gemma), bc.BilinearMLP.from_model(gemma, 1)
    assert mlp.norm.weight.equal(1 + gemma.model.layers[1].post_attention_layernorm.weight)
    assert_near(mlp.norm.weight.unsqueeze(1) * mlp.tensor.W_gate, weights.layers[1].W_gate, 1e-12)
    assert PathKinds.of(gemma, 1, weights.W_E[:3], heads=[0]).kinds == ("direct", "1.0")
