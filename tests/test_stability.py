"""Circuits matched between dictionaries and models: measures against loops, planted matches found, strangers not."""

import copy
from dataclasses import replace

import dense as oracle
import pytest
import torch
from helpers import assert_near, refused
from planted import interactions_of, random_dictionary, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.comparison.likeness import (
    ANY_MODEL,
    SAME_MLP,
    CircuitSet,
    Side,
    compare_features,
    pair_likeness,
    same_mlp,
)
from bilinear_circuits.comparison.stability import Stability, StabilityTable, compare_circuits
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.activity import collect_activity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.running import unembedding
from bilinear_circuits.utilities.saving import load_result, save_result

LAYERS = (1, 2)
ORDER = torch.randperm(19, generator=torch.Generator().manual_seed(3))
CIRCUITS = ((1, 4), (2, 7), (1, 11))
RETURNED = tuple((layer, ORDER.tolist().index(feature)) for layer, feature in CIRCUITS)


def shuffled(dictionary, noise=0.0):
    """The same features in another order, each turned a little."""
    generator = torch.Generator().manual_seed(5)
    turned = [W + noise * W.norm() / W.numel() ** 0.5 * torch.randn(W.shape, generator=generator)
              for W in (dictionary.W_enc, dictionary.W_dec)]  # fmt: skip
    return Dictionary(
        turned[0][:, ORDER], dictionary.b_enc[ORDER], turned[1][ORDER], dictionary.b_dec, dictionary.activation,
        dictionary.hook_name,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stories():
    return tokenize_stories(random_stories(120), word_tokenizer(), 32)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def original(model, stories):
    interactions = [interactions_of(model, layer) for layer in LAYERS]
    return CircuitSet("a", collect_activity(model, interactions, stories), unembedding(model), CIRCUITS)


def with_outputs(model, original, stories, change, circuits=RETURNED, name="b"):
    """The same model with other output dictionaries."""
    interactions = [
        FeatureInteractions(one.interactions.mlp, one.interactions.sae_in, change(one.interactions.sae_out))
        for one in original.activity
    ]
    return CircuitSet(name, collect_activity(model, interactions, stories), original.unembedding, circuits)


@pytest.fixture(scope="module")
def reordered(model, original, stories):
    return with_outputs(model, original, stories, lambda sae: shuffled(sae, noise=0.05))


@pytest.fixture(scope="module")
def stranger(stories):
    """Another model of the same vocabulary, with its own dictionaries."""
    model = tiny_llama(seed=1, d_model=16, d_mlp=10)
    interactions = [interactions_of(model, layer, d_sae_out=23) for layer in (0, 2)]
    return CircuitSet("c", collect_activity(model, interactions, stories), unembedding(model), ((0, 3), (2, 5)))


def dense(activity):
    return activity.interactions.sae_out.encode(activity.interactions.mlp(activity.x)).double()


def test_activation_and_jaccard_equal_loops_over_tokens(original, reordered, stranger):
    for second in (reordered, stranger):
        one, other = original.side(1, [4, 0, 11]), second.side(2)
        z, other_z = dense(one.activity)[:, one.features], dense(other.activity)
        correlation, jaccard = (compare_features(name, one, other) for name in ("activation", "jaccard"))
        for i in range(3):
            for j in range(0, other_z.shape[1], 5):
                a, b = z[:, i].tolist(), other_z[:, j].tolist()
                active = {t for t, value in enumerate(a) if value}, {t for t, value in enumerate(b) if value}
                assert jaccard[i, j].item() == pytest.approx(len(active[0] & active[1]) / len(active[0] | active[1]))
                assert correlation[i, j].item() == pytest.approx(oracle.pearson(a, b), abs=1e-5)


def test_promoted_tokens_are_compared_over_the_vocabulary(original, stranger):
    got = compare_features("promoted", original.side(1, [4, 2]), stranger.side(2))
    assert got.shape == (2, 23)
    for i, feature in enumerate((4, 2)):
        for j in (0, 22):
            rows = [
                (side.activity[1 - index].interactions.sae_out.W_dec[f] @ side.unembedding).tolist()
                for side, f, index in ((original, feature, 1), (stranger, j, 0))
            ]
            assert got[i, j].item() == pytest.approx(oracle.pearson(*rows), abs=1e-5)


def test_weights_are_compared_as_cosines_and_forms_as_functions(original, reordered):
    one, other = original.side(1, [4, 0]), reordered.side(1)
    outs = [side.activity.interactions.sae_out for side in (one, other)]
    decoder, encoder, form = (compare_features(name, one, other) for name in SAME_MLP)
    x = one.activity.x.double()
    sigma, mean = ((x - x.mean(0)).T @ (x - x.mean(0))) / (len(x) - 1), x.mean(0)
    for i, feature in enumerate((4, 0)):
        for j in (0, 9, 18):
            pairs = ((outs[0].W_dec[feature], outs[1].W_dec[j]), (outs[0].W_enc[:, feature], outs[1].W_enc[:, j]))
            for got, rows in zip((decoder, encoder), pairs, strict=True):
                assert got[i, j].item() == pytest.approx(torch.cosine_similarity(*rows, dim=0).item(), abs=1e-5)
            forms = [side.activity.interactions.form(f) for side, f in ((one, feature), (other, j))]
            Q, R = (f.matrix.to_dense().double() for f in forms)
            linear, other_linear = (2 * q @ mean for q in (Q, R))

            def product(A, B, a, b):
                return 2 * torch.trace(A @ sigma @ B @ sigma) + a @ sigma @ b

            own = product(Q, Q, linear, linear) * product(R, R, other_linear, other_linear)
            expected = product(Q, R, linear, other_linear) / own.sqrt()
            assert form[i, j].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_spans_of_two_leading_eigenvectors_are_compared(original):
    same = pair_likeness(original.one((1, 4)), original.one((1, 4)))
    assert (same.inputs, same.form, same.decoder, same.activation, same.jaccard) == pytest.approx((1,) * 5, abs=1e-5)
    other = pair_likeness(original.one((1, 4)), original.one((1, 5)))
    interactions = original.activity[0].interactions
    spans = [interactions.spectrum(f, 2).eigenvectors for f in (4, 5)]
    angles = torch.linalg.svdvals(spans[0].T @ spans[1])
    assert other.inputs == pytest.approx(angles.square().mean().item(), abs=1e-5)


def test_the_same_mlp_is_told_by_its_weights(original, reordered, stranger):
    assert same_mlp(original.activity[0], reordered.activity[0])
    assert not same_mlp(original.activity[0], reordered.activity[1])
    assert not same_mlp(original.activity[1], stranger.activity[1])
    elsewhere = copy.copy(original.activity[0].interactions)
    elsewhere.mlp = replace(elsewhere.mlp, layer=0)  # equal weights at another place of the model
    assert not same_mlp(original.activity[0], replace(original.activity[0], interactions=elsewhere))


def test_a_match_that_is_not_mutual_does_not_return(original, stranger):
    counts = original.activity[0].outputs.counts.tolist()
    everything = replace(original, circuits=tuple((1, f) for f in range(19) if counts[f]))
    matches = compare_circuits(everything, stranger, threshold=-1.0, n_null=1, n_shifts=19).matches
    one_sided = [match for match in matches if not match.mutual and match.p_value <= 0.05]
    assert one_sided
    assert not any(match.returns for match in one_sided)
    assert any(match.returns for match in matches)


@pytest.mark.parametrize("by", [*ANY_MODEL, *SAME_MLP])
def test_planted_circuits_return_whatever_they_are_matched_by(original, reordered, by):
    result = compare_circuits(original, reordered, by=by, n_null=5, n_shifts=39)
    names = [f"{layer}/{feature}" for layer, feature in RETURNED]
    assert [match.match for match in result.matches] == names
    assert all(match.returns and match.mutual and match.is_circuit for match in result.matches)
    assert result.n_returned == 3
    assert [(pair.first, pair.second) for pair in result.assignment] == [
        (match.circuit, match.match) for match in result.matches
    ]
    for match in result.matches:
        assert match.p_value == pytest.approx(1 / 40)
        assert match.likeness.activation > 0.9 > 0.6 > match.chance > 0


def test_a_match_outside_the_other_circuits_is_said_to_be(original, reordered):
    result = compare_circuits(original, replace(reordered, circuits=RETURNED[1:]), n_null=5, n_shifts=39)
    assert [match.is_circuit for match in result.matches] == [False, True, True]
    assert result.n_returned == 3
    assert len(result.assignment) == 2


def test_strangers_do_not_return(model, original, stories):
    other = with_outputs(
        model, original, stories, lambda sae: random_dictionary(12, 29, sae.hook_name, seed=77), ((1, 0), (2, 0))
    )
    result = compare_circuits(original, other, threshold=0.9, n_null=5, n_shifts=39)
    assert result.n_returned == 0
    assert all(match.likeness.activation < 0.9 for match in result.matches)


def test_the_threshold_is_the_least_correlation_that_returns(original, reordered):
    least = min(m.likeness.activation for m in compare_circuits(original, reordered, n_null=3).matches)
    assert compare_circuits(original, reordered, threshold=least, n_null=3).n_returned == 3
    assert compare_circuits(original, reordered, threshold=least + 1e-9, n_null=3).n_returned == 2


def test_other_models_are_matched_over_all_their_layers_by_what_they_do(original, stranger):
    result = compare_circuits(original, stranger, n_null=6, n_shifts=39)
    z = torch.cat([dense(one) for one in stranger.activity], 1)
    names = [f"{layer}/{feature}" for layer in (0, 2) for feature in range(23)]
    for (layer, feature), match in zip(CIRCUITS, result.matches, strict=True):
        own = dense(original.activity[LAYERS.index(layer)])[:, feature]
        correlations = torch.corrcoef(torch.cat([own.unsqueeze(1), z], 1).T)[0, 1:].nan_to_num(-1)
        assert match.match == names[int(correlations.argmax())]
        assert match.likeness.activation == pytest.approx(correlations.max().item(), abs=1e-5)
        assert (match.likeness.decoder, match.likeness.encoder, match.likeness.form, match.likeness.inputs) == (
            None,
        ) * 4


def test_a_percentile_counts_random_features_with_worse_matches(original, reordered):
    """All 19 features of a layer but its circuits are the null here."""
    result = compare_circuits(original, reordered, by="decoder", n_null=100)
    for (layer, feature), match in zip(CIRCUITS, result.matches, strict=True):
        index = LAYERS.index(layer)
        rows = [
            torch.nn.functional.normalize(side.activity[index].interactions.sae_out.W_dec.double(), dim=1)
            for side in (original, reordered)
        ]
        best = (rows[0] @ rows[1].T).amax(1)
        counts = original.activity[index].outputs.counts
        null = [f for f in range(19) if (layer, f) not in CIRCUITS and counts[f] > 10]
        assert len(null) > 9
        assert match.percentile == pytest.approx((best[null] < best[feature]).double().mean().item())


def test_features_that_all_return_whole_are_tied(original):
    """Against itself every feature has a best match of 1, up to rounding."""
    for match in compare_circuits(original, replace(original, name="same"), n_null=100).matches:
        assert (match.match, match.percentile) == (match.circuit, 0.5)


def test_p_values_of_a_circuit_unrelated_to_all_tokens_are_spread(original, reordered):
    """A feature that is active on random tokens returns nowhere: its p-value is that of chance."""
    p_values = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        one = original.activity[0]
        counts = one.outputs.counts
        token = torch.cat([torch.randperm(len(one.x), generator=generator)[:n].sort().values for n in counts.tolist()])
        noise = replace(one, outputs=ActiveTokens(token, one.outputs.value, one.outputs.offsets))
        result = compare_circuits(
            CircuitSet("noise", (noise,), original.unembedding, ((1, 4),)), reordered, n_null=1, n_shifts=19, seed=seed
        )
        p_values.append(result.matches[0].p_value)
    # Uniform on 1/20, ..., 1: the mean of 40 has standard error 0.046.
    assert abs(sum(p_values) / 40 - 0.525) < 4 * 0.046
    assert sum(p <= 0.05 for p in p_values) <= 7  # 2 are expected; P(more than 7) < 0.001


def test_the_assignment_is_the_best_of_all(original, reordered):
    """Against every permutation."""
    from itertools import permutations

    second = replace(reordered, circuits=((1, 0), (1, 2), (1, 5)))
    first = replace(original, circuits=((1, 4), (1, 9), (1, 11)))
    z, other = dense(first.activity[0])[:, [4, 9, 11]], dense(second.activity[0])[:, [0, 2, 5]]
    table = torch.corrcoef(torch.cat([z, other], 1).T)[:3, 3:]
    best = max(permutations(range(3)), key=lambda order: sum(table[i, j].item() for i, j in enumerate(order)))
    result = compare_circuits(first, second, n_null=3)
    assert [pair.second for pair in result.assignment] == [f"1/{(0, 2, 5)[j]}" for j in best]


def test_the_same_seed_repeats_a_result_and_it_survives_the_disk(original, stranger, tmp_path):
    one, same, other = (compare_circuits(original, stranger, n_null=4, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert [m.chance for m in one.matches] != [m.chance for m in other.matches]
    save_result(one, tmp_path / "result")
    assert load_result(Stability, tmp_path / "result") == one


def test_a_table_of_comparisons_is_a_frame_a_figure_and_files(original, stranger, reordered, tmp_path):
    table = StabilityTable(tuple(compare_circuits(original, other, n_null=4) for other in (stranger, reordered)))
    matches = [(one.second, match) for one in table.comparisons for match in one.matches]
    frame = table.to_pandas()
    assert list(zip(frame["second"], frame["circuit"], strict=True)) == [
        (second, one.circuit) for second, one in matches
    ]
    assert list(frame["activation"]) == [one.likeness.activation for _, one in matches]
    assert frame["form"].isna().tolist() == [one.likeness.form is None for _, one in matches]
    chance, correlation = table.plot().data
    assert list(correlation.x) == pytest.approx([one.likeness.activation for _, one in matches], rel=1e-6)
    assert list(chance.x) == pytest.approx([one.chance for _, one in matches], rel=1e-6)
    assert [symbol == "circle" for symbol in correlation.marker.symbol] == [one.returns for _, one in matches]
    assert f"{table.comparisons[1].n_returned} of {len(RETURNED)} return in" in table._repr_html_()
    table.save(tmp_path)
    assert StabilityTable.load(tmp_path) == table


def test_the_scale_of_a_dictionary_changes_nothing(model, original, stories):
    plain = with_outputs(model, original, stories, shuffled)
    larger = with_outputs(
        model, original, stories,
        lambda sae: replace(shuffled(sae), W_enc=3 * shuffled(sae).W_enc, b_enc=3 * shuffled(sae).b_enc,
                            W_dec=shuffled(sae).W_dec / 3),
    )  # fmt: skip
    for one, other in zip(
        compare_circuits(original, plain, n_null=4).matches,
        compare_circuits(original, larger, n_null=4).matches,
        strict=True,
    ):
        assert_near(torch.tensor(list(vars(one.likeness).values())), list(vars(other.likeness).values()), 1e-5)
        assert (one.match, one.p_value, one.percentile) == (other.match, other.p_value, other.percentile)


def test_a_feature_that_is_never_active_has_no_activation_match(original, reordered):
    one = original.activity[0]
    kept = one.outputs.feature != 4
    counts = one.outputs.counts.clone()
    counts[4] = 0
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    silent = replace(one, outputs=ActiveTokens(one.outputs.token[kept], one.outputs.value[kept], offsets))
    first = CircuitSet("a", (silent,), original.unembedding, ((1, 4),))
    with refused(ValueError, "circuits of a must have a candidate in b by activation, got 1/4 without"):
        compare_circuits(first, reordered)
    assert compare_circuits(first, reordered, by="decoder", n_null=3).matches[0].match == f"1/{RETURNED[0][1]}"


def test_a_layer_without_dictionaries_in_the_same_model_has_no_match(original, reordered):
    only = replace(reordered, activity=reordered.activity[:1], circuits=RETURNED[:1])
    with refused(ValueError, "circuits of a must have a candidate in b by activation, got 2/7 without"):
        compare_circuits(original, only)


def test_what_cannot_be_compared_is_refused(model, original, reordered, stranger):
    fewer = tokenize_stories(random_stories(20), word_tokenizer(), 32)
    interactions = [one.interactions for one in original.activity]
    short = replace(original, name="short", activity=collect_activity(model, interactions, fewer))
    with refused(ValueError, r"second must be run on the tokens of first, a with \d+ tokens, got short with \d+\. "):
        compare_circuits(original, short)
    with refused(ValueError, "by must be activation, jaccard, promoted between different models, got form"):
        compare_circuits(original, stranger, by="form")
    with refused(ValueError, "by must be one of activation, jaccard, .* got magic"):
        compare_circuits(original, reordered, by="magic")
    with refused(ValueError, "threshold must be a correlation between -1 and 1, got nan"):
        compare_circuits(original, reordered, threshold=float("nan"))
    with refused(ValueError, "n_null must be at least 1, got 0"):
        compare_circuits(original, reordered, n_null=0)
    with refused(ValueError, "n_shifts must be at least 1, got 0"):
        compare_circuits(original, reordered, n_shifts=0)
    with refused(ValueError, "measure must be one that compares two MLPs .* got decoder"):
        compare_features("decoder", original.side(1), stranger.side(2))


@pytest.mark.parametrize(
    ("circuits", "message"),
    [
        ((), "circuits of a must be one or more, each once"),
        (((1, 4), (1, 4)), "circuits of a must be one or more, each once"),
        (((0, 4),), r"circuits of a must be of its layers \[1, 2\], got layer 0"),
        (((1, 19),), "feature must be between 0 and 18"),
    ],
)
def test_circuits_that_are_not_there_are_refused(original, circuits, message):
    with refused(ValueError, message):
        replace(original, circuits=circuits)


def test_a_side_is_some_features_of_a_layer(original):
    assert isinstance(original.one((2, 7)), Side)
    assert original.one((2, 7)).features.tolist() == [7]
    assert len(original.side(1).features) == 19
    assert original.features[19 + 7] == (2, 7)
    assert original.offset(2) == 19
