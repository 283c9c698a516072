import pytest
import torch
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.data.samples import Rows
from bilinear_circuits.dictionaries.activation import Activation
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.shape import and_shape, factor_pair
from bilinear_circuits.models.bilinear_mlp import BilinearMLP


def test_an_indefinite_form_of_rank_two_is_the_product_of_its_factors():
    a, b = torch.randn(2, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    product = (a.outer(b) + b.outer(a)) / 2
    first, second = factor_pair(Spectrum.of_dense(product))
    torch.testing.assert_close((first.outer(second) + second.outer(first)) / 2, product)


def test_a_definite_form_has_the_square_of_its_leading_eigenvector_as_factors():
    v = torch.tensor([3.0, 4.0])
    first, second = factor_pair(Spectrum.of_dense(v.outer(v)))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first.outer(second), v.outer(v))


def layer_of(gate, linear, z, scale=None):
    """One neuron gate(x) * linear(x), read by one output feature; identity dictionaries; activations z."""
    d, n = z.shape[1], len(z)
    scale = torch.ones(d) if scale is None else scale
    tensor = InteractionTensor(gate.unsqueeze(1), linear.unsqueeze(1), torch.ones(1, 1))
    mlp = BilinearMLP(tensor, 0, "in", "out", None, 0.0)
    relu = Activation("relu")
    sae_in = Dictionary(torch.eye(d) / scale, torch.zeros(d), torch.eye(d) * scale.unsqueeze(1), torch.zeros(d), relu)
    sae_out = Dictionary(torch.eye(1), torch.zeros(1), torch.eye(1), torch.zeros(1), relu)
    interactions = FeatureInteractions(mlp, sae_in, sae_out)
    inputs, outputs = (
        ActiveTokens(rows, values, torch.tensor([0, *counts]).cumsum(0))
        for rows, values, counts in (sparse(sae_in.encode(z)), sparse(sae_out.encode(mlp(z))))
    )
    return LayerActivity(z, inputs, outputs, interactions, Rows(n))


def sparse(z):
    columns, rows = z.T.nonzero(as_tuple=True)
    return rows, z[rows, columns], (z > 0).sum(0).tolist()


# Features 0, 1 and 2, 3 meet on two tokens; feature 4 is on everywhere and belongs to neither.
MEETING = torch.tensor([[1.0, 0.5, 1.0, 0.5, 0.1], [0, 0, 0, 0, 0.1], [0.5, 1.0, 0.5, 1.0, 0.1]])


def test_a_product_of_two_groups_is_a_pure_and():
    gate, linear = torch.tensor([1.0, 1, 0, 0, 0]), torch.tensor([0, 0, 1.0, 1, 0])
    activity = layer_of(gate, linear, MEETING)
    shape = and_shape(activity, 0, activity.interactions.spectrum(0))
    assert shape.score == pytest.approx(1)
    assert {frozenset(shape.first.tolist()), frozenset(shape.second.tolist())} == {frozenset({0, 1}), frozenset({2, 3})}
    torch.testing.assert_close(shape.usage, torch.full((4,), 0.75))


def test_a_square_of_one_group_is_no_and():
    gate = torch.tensor([1.0, 1, 1, 1, 0])
    activity = layer_of(gate, gate, MEETING)
    shape = and_shape(activity, 0, activity.interactions.spectrum(0))
    assert shape.score == pytest.approx(0)


def test_the_score_does_not_depend_on_the_units_of_features():
    gate, linear = torch.tensor([1.0, 0.7, 0.2, 0, 0]), torch.tensor([0.1, 0, 1.0, 0.6, 0])
    scores = []
    for scale in (None, torch.tensor([3.0, 0.2, 5.0, 1.0, 0.7])):
        activity = layer_of(gate, linear, MEETING, scale)
        scores.append(and_shape(activity, 0, activity.interactions.spectrum(0)).score)
    assert 0.5 < scores[0] < 1
    assert scores[0] == pytest.approx(scores[1])


def test_the_block_is_the_interaction_matrix_of_the_members():
    from bilinear_circuits.data.stories import tokenize_stories
    from bilinear_circuits.interactions.activity import collect_activity

    model = tiny_llama()
    tokens = tokenize_stories(random_stories(12), word_tokenizer(), 32)
    (activity,) = collect_activity(model, [interactions_of(model, 1)], tokens)
    feature = int(activity.outputs.counts.argmax())
    shape = and_shape(activity, feature, activity.interactions.spectrum(feature), size=3)
    members = torch.cat([shape.first, shape.second])
    dense = activity.interactions.matrix(feature).to_dense()
    torch.testing.assert_close(shape.block, dense[members][:, members])
    assert len(set(members.tolist())) == len(members)
