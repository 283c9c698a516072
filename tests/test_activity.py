import pytest
import torch
from helpers import WORDS, assert_near, randn, random_interactions, random_sae, refused, tiny_llama, tiny_tokenizer

import bilinear_circuits.interactions.active as active_module
import bilinear_circuits.interactions.activity as activity_module
from bilinear_circuits.data.samples import Rows
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.data.token_texts import TokenTexts
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.active import ActiveTokens, active_tokens, top_token_ids
from bilinear_circuits.interactions.activity import LayerActivity, collect_activity
from bilinear_circuits.interactions.completeness import circuit_completeness, group_edges
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.naming import NO_NAME, all_labels, feature_label
from bilinear_circuits.models.bilinear_mlp import BilinearMLP

LAYERS = (2, 0)
LENGTHS = (5, 1, 9, 3, 20, 2, 7, 5)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokens():
    stories = [" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(n)) for i, n in enumerate(LENGTHS)]
    return tokenize_stories(stories, tiny_tokenizer(), context=12)


@pytest.fixture(scope="module")
def interactions(model):
    return [
        FeatureInteractions(
            BilinearMLP.from_model(model, layer), random_sae("topk", 12, 30, seed=layer), random_sae("gated", 12, 25)
        )
        for layer in LAYERS
    ]


def story_by_story(model, tokens, layer):
    """MLP inputs and outputs of each story run alone and without padding, [BOS] dropped."""
    rows = []
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        seen = []
        handle = model.model.layers[layer].mlp.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))  # noqa: B023
        with torch.no_grad():
            model(ids[: int(mask.sum()) + 1].unsqueeze(0))
        handle.remove()
        rows.append((seen[0][0][0, 1:], seen[0][1][0, 1:]))
    return tuple(torch.cat(side) for side in zip(*rows, strict=True))


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_activity_equals_each_story_run_alone(model, tokens, interactions, batch, monkeypatch):
    monkeypatch.setattr(activity_module, "_STORIES_PER_BATCH", batch)
    found = collect_activity(model, interactions, tokens)
    assert [one.interactions.mlp.layer for one in found] == list(LAYERS)
    for one in found:
        x, y = story_by_story(model, tokens, one.interactions.mlp.layer)
        assert one.x.shape == x.shape
        assert_near(one.x, x)
        sae_in, sae_out = one.interactions.sae_in, one.interactions.sae_out
        assert_near(dense_of(one.inputs, len(x)), sae_in.encode(x), 1e-4)
        assert_near(dense_of(one.outputs, len(x)), sae_out.encode(y), 1e-4)


def test_flat_tokens_know_their_story_and_position(model, tokens, interactions):
    (one,) = collect_activity(model, interactions[:1], tokens)
    kept = [min(n, 11) for n in LENGTHS]
    assert one.story.tolist() == [i for i, n in enumerate(kept) for _ in range(n)]
    assert one.samples.position.tolist() == [p for n in kept for p in range(1, n + 1)]
    assert one.token_ids.tolist() == [tokens.ids[s, p] for s, p in zip(one.story, one.samples.position, strict=True)]


def test_progress_wraps_the_loops(model, tokens, interactions):
    seen = []

    def progress(items, description, /):
        seen.append((len(items), description))
        return items

    collect_activity(model, interactions, tokens, progress)
    assert seen == [(1, "run the model"), (2, "encode features")]


def dense_of(active, n_tokens):
    z = torch.zeros(n_tokens, len(active.counts), dtype=active.value.dtype)
    for feature in range(len(active.counts)):
        token, value = active[feature]
        z[token, feature] = value
    return z


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "jumprelu"])
def test_active_tokens_hold_what_encode_gives(chunk, architecture, monkeypatch):
    monkeypatch.setattr(active_module, "_TOKENS_PER_CHUNK", chunk)
    dictionary, x = Dictionary.from_sae(random_sae(architecture, dtype="float64")), randn(30, 5, seed=3)
    z, active = dictionary.encode(x), active_tokens(dictionary, x)
    assert_near(dense_of(active, 30), z)
    assert active.counts.tolist() == (z != 0).sum(0).tolist()
    assert len(active.value) == (z != 0).sum()
    assert active.feature.tolist() == [f for f in range(11) for _ in range(int((z[:, f] != 0).sum()))]
    assert all((active[f][0].diff() > 0).all() for f in range(11))
    weight = randn(30, seed=4)
    assert_near(active.sum_over_tokens(weight), weight @ z.abs())


@pytest.mark.parametrize("n_tokens", [28, 30, 100])
@pytest.mark.parametrize("chunk", [1, 7, 30, 4096])
@pytest.mark.parametrize("architecture", ["topk", "abstopk", "jumprelu"])
def test_second_moments_are_means_of_products(chunk, n_tokens, architecture, monkeypatch):
    """Over all tokens, those at which nothing is active too, and at the borders of chunks."""
    dictionary, x = Dictionary.from_sae(random_sae(architecture, dtype="float64")), randn(min(n_tokens, 30), 5, seed=3)
    active, z = active_tokens(dictionary, x), dictionary.encode(x)
    monkeypatch.setattr(active_module, "_TOKENS_PER_CHUNK", chunk)
    found = active.second_moments(n_tokens)
    expected = [[sum(p * q for p, q in zip(a, b, strict=True)) / n_tokens for b in z.T.tolist()] for a in z.T.tolist()]
    assert found.dtype == torch.float32
    assert_near(found, torch.tensor(expected), 1e-6)
    assert_near(found, found.T, 1e-6)


def test_a_feature_that_is_never_active_has_no_second_moments():
    active = ActiveTokens(torch.tensor([4, 1, 4]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1, 3]))
    assert active.second_moments(5).tolist() == torch.tensor([[1.0, 0, 3], [0, 0, 0], [3, 0, 13]]).div(5).tolist()
    assert active.second_moments(0).tolist() == torch.zeros(3, 3).tolist()


def test_second_moments_of_a_layer_are_those_of_its_inputs(model, tokens, interactions):
    (one,) = collect_activity(model, interactions[:1], tokens)
    z = dense_of(one.inputs, len(one.x)).double()
    assert_near(one.second_moments, z.T @ z / len(one.x))
    assert one.second_moments.abs().max() > 0


def test_active_tokens_go_through_a_map_first():
    dictionary, x = Dictionary.from_sae(random_sae("topk", dtype="float64")), randn(30, 5, seed=3)
    through = active_tokens(dictionary, x, lambda chunk: 2 * chunk - 1)
    assert_near(dense_of(through, 30), dictionary.encode(2 * x - 1))


def test_a_feature_that_is_never_active_owns_nothing():
    active = ActiveTokens(torch.tensor([4, 1]), torch.tensor([1.0, 2.0]), torch.tensor([0, 1, 1, 2]))
    assert [len(active[f][0]) for f in range(3)] == [1, 0, 1]
    assert active.counts.tolist() == [1, 0, 1]
    assert active.feature.tolist() == [0, 2]


def test_a_feature_is_named_by_the_tokens_that_hold_its_activation():
    active = ActiveTokens(torch.arange(5), torch.tensor([1.0, 5.0, 2.0, 2.5, 2.0]), torch.tensor([0, 5]))
    token_ids = torch.tensor([7, 8, 9, 7, 9])
    assert top_token_ids(active, token_ids, 0) == [8, 9, 7]
    assert top_token_ids(active, token_ids, 0, n=1) == [8]


def test_columns_are_dense_where_one_of_their_features_is_active():
    z = torch.tensor([[0.0, 2, 0, 0], [0, 0, 0, 0], [1, 3, 0, 0], [0, 0, 5, 0], [0, 4, 0, 0]])
    dictionary = Dictionary.from_readouts(torch.eye(4))
    active = active_tokens(dictionary, z)
    tokens, dense = active.columns_where_active(torch.tensor([1, 0]))
    assert tokens.tolist() == [0, 2, 4]
    assert dense.tolist() == [[2, 0], [3, 1], [4, 0]]
    tokens, dense = active.columns_where_active(torch.tensor([3]))
    assert (len(tokens), dense.shape) == (0, (0, 1))


@pytest.mark.parametrize("given", [False, True])
def test_a_layer_is_measured_on_inputs_that_are_no_tokens(interactions, given):
    """Images, or inputs of a task: everything but tokens' texts works, each row standing for itself."""
    one, x = interactions[0], randn(40, 12, seed=3).float()
    y = one.mlp.tensor(x)
    activity = LayerActivity.of(one, x.double(), 2 * y if given else None)
    assert_near(dense_of(activity.inputs, 40), one.sae_in.encode(x), 1e-5)
    assert_near(dense_of(activity.outputs, 40), one.sae_out.encode(2 * y if given else y), 1e-5)
    assert activity.story.tolist() == list(range(40))
    feature = int(activity.outputs.counts.argmax())
    shares = circuit_completeness(activity, feature, group_edges(range(30)))
    assert shares.pairs_total == pytest.approx(shares.circuit_total)
    assert feature_label(activity, feature, None, "out") == NO_NAME
    assert set(all_labels(activity, TokenTexts(None), "in")) == {NO_NAME}
    with refused(ValueError, r"^activity must be of tokens of stories to have token ids, got Rows\(n=40\)\.$"):
        _ = activity.token_ids


def test_inputs_outputs_and_samples_must_be_of_one_length(interactions):
    x = randn(4, 12)
    expected = r"^x, y and samples must have one row for each input, got 4 of x, 3 of y, 4 samples\.$"
    with refused(ValueError, expected):
        LayerActivity.of(interactions[0], x, x[:3])
    with refused(ValueError, "got 4 of x, none of y, 5 samples"):
        LayerActivity.of(interactions[0], x, samples=Rows(5))


def test_inputs_that_are_no_rows_of_numbers_are_refused():
    interactions = random_interactions()[0]
    d_in = interactions.mlp.tensor.d_in
    rows = randn(4, d_in)
    of = LayerActivity.of
    for x, said in (
        (rows[:, 1:], rf"x must be rows of {d_in} entries, one or more, got shape \(4, {d_in - 1}\)"),
        (rows[0], rf"x must be rows of {d_in} entries, one or more, got shape \({d_in},\)"),
        (rows[:0], rf"x must be rows of {d_in} entries, one or more, got shape \(0, {d_in}\)"),
        (rows * torch.tensor([[1], [torch.nan], [1], [torch.inf]]), "x must be finite, got 2 of 4 rows that are not"),
    ):
        with refused(ValueError, said):
            of(interactions, x)
    with refused(ValueError, "y must be finite, got 4 of 4 rows"):
        of(interactions, rows, torch.full((4, interactions.mlp.tensor.d_out), torch.nan))
    with refused(TypeError, "x must be a Tensor, got a ndarray. torch.as_tensor makes one"):
        of(interactions, rows.numpy())
    with refused(TypeError, "interactions must be a FeatureInteractions, got a BilinearMLP"):
        of(interactions.mlp, rows)
