"""What the feature report measures, against loops and dense matrices on a tiny model."""

from types import SimpleNamespace

import pytest
import torch
from features_world import D_SAE_IN, D_SAE_OUT, DEAD, DENSE, activity_of, write_world


@pytest.fixture(scope="module")
def bc():
    """The modules under test, imported under the shape-checking hook."""
    from bilinear_circuits.interactions import active_features, examples, naming, profiles
    from bilinear_circuits.models import running
    from sae.report import index, measure, outputs, results, uses

    return SimpleNamespace(
        active_features=active_features, examples=examples, naming=naming, profiles=profiles, running=running,
        uses=uses,
        index=index, measure=measure, outputs=outputs, results=results,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, bc):
    model, activity = activity_of(write_world(tmp_path_factory.mktemp("world")))
    texts = bc.naming.TokenTexts(model.tokenizer)
    unembedding = bc.running.unembedding(model)
    n_tokens = len(activity.x)
    return SimpleNamespace(
        model=model, activity=activity, texts=texts, unembedding=unembedding,
        profiler=bc.profiles.Profiler(activity, unembedding, texts, range(D_SAE_OUT)),
        z_in=activity.inputs.columns(torch.arange(D_SAE_IN), n_tokens),
        z_out=activity.outputs.columns(torch.arange(D_SAE_OUT), n_tokens),
        T=torch.stack([activity.interactions.matrix(f).to_dense() for f in range(D_SAE_OUT)]).double(),
    )  # fmt: skip


SIDES = ("in", "out")


def coefficients(T):
    """Coefficients of z_a z_b of every output, from the dense interaction matrices."""
    doubled = 2 * T
    return doubled - torch.diag_embed(T.diagonal(dim1=1, dim2=2))


def test_names_of_all_features_are_those_of_one_at_a_time(bc, world):
    names = bc.naming.all_labels(world.activity, world.texts, "in")
    tokenizer = world.model.tokenizer
    assert names == tuple(bc.naming.input_label(world.activity, f, tokenizer) for f in range(D_SAE_IN))
    assert names[DEAD] == bc.naming.NOT_ACTIVE


def test_names_are_made_once_for_either_side_of_every_layer(bc, world, monkeypatch):
    tokenizer, layer = world.model.tokenizer, world.activity.interactions.mlp.layer
    names = bc.naming.FeatureNames([world.activity], tokenizer)
    expected = {
        (f, side): bc.naming.feature_label(world.activity, f, tokenizer, side) for f in (0, 5) for side in SIDES
    }
    assert {(f, side): names(layer, f, side) for f, side in expected} == expected
    assert names(layer, 5) == expected[5, "in"]
    monkeypatch.setattr(bc.naming, "feature_label", None)  # whatever was asked for before is not made again
    assert names(layer, 0, "out") == expected[0, "out"]
    assert bc.naming.made_label(names.tokens(layer, 5)) == expected[5, "out"]


def test_top_tokens_hold_the_shares_counted_by_hand(bc, world):
    ids, shares = bc.naming.all_top_tokens(world.activity.inputs, world.activity.token_ids, 4)
    for feature in (0, DEAD, DENSE, 33):
        z = world.z_in[:, feature].abs()
        for token_id, share in zip(ids[feature].tolist(), shares[feature].tolist(), strict=True):
            if token_id < 0:
                assert share == 0
                continue
            assert share == pytest.approx((z[world.activity.token_ids == token_id].sum() / z.sum()).item())
    assert ids[DEAD].tolist() == [-1] * 4


def test_rows_of_activations_are_the_columns_the_other_way_round(bc, world):
    rows, token = world.profiler.rows, torch.tensor([3, 0, 17, 3])
    features = torch.tensor([DENSE, 2, 40])
    torch.testing.assert_close(rows.dense(token, features).double(), world.z_in[token][:, features])
    torch.testing.assert_close(rows.mean_magnitudes(token), world.z_in[token].abs().mean(0))
    W_dec = world.activity.interactions.sae_in.W_dec.double()
    torch.testing.assert_close(rows.decoded(token, W_dec), world.z_in[token] @ W_dec)


@pytest.mark.parametrize("feature", [0, DENSE, 31])
def test_profiles_of_many_are_those_of_one(bc, world, feature):
    alone = bc.profiles.profile_feature(world.activity, feature, world.unembedding, world.model.tokenizer)
    (form,) = world.profiler.forms([feature])
    among = world.profiler.profile(form)
    for name in ("frequency", "top_tokens", "promoted", "suppressed", "input_labels", "examples"):
        assert getattr(alone, name) == getattr(among, name)
    torch.testing.assert_close(alone.spectrum.eigenvalues, among.spectrum.eigenvalues, rtol=1e-4, atol=1e-5)
    assert alone.rank2_correlation == pytest.approx(among.rank2_correlation, abs=1e-4)


def test_ledger_of_a_profile_is_that_of_the_interactions(bc, world):
    feature = 31
    token, _ = world.activity.outputs[feature]
    (form,) = world.profiler.forms([feature])
    profile = world.profiler.profile(form)
    ledger = world.activity.interactions.ledger(world.activity.x[token], feature)
    for name, term in ledger.terms.items():
        assert profile.terms[name] == pytest.approx(term.mean().item(), abs=1e-5)
    assert profile.completeness == pytest.approx(ledger.completeness.median().item(), rel=1e-4)


def test_rank_2_correlation_is_that_of_numpy(world):
    import numpy as np

    feature = 31
    (form,) = world.profiler.forms([feature])
    token, value = world.activity.outputs[feature]
    values, vectors = np.linalg.eigh(world.activity.interactions.form(feature).matrix.to_dense().double().numpy())
    chosen = np.argsort(-np.abs(values))[:2]
    x = world.activity.x[token].double().numpy()
    predicted = sum(values[i] * (x @ vectors[:, i]) ** 2 for i in chosen)
    expected = np.corrcoef(predicted, value.double().numpy())[0, 1]
    assert world.profiler.profile(form).rank2_correlation == pytest.approx(expected, abs=1e-4)


def test_a_feature_hardly_active_is_refused(bc, world):
    with pytest.raises(ValueError, match="active at two tokens of the corpus or more, got 5 of layer 1, active at 0"):
        bc.profiles.profile_feature(world.activity, DEAD, world.unembedding, world.model.tokenizer)


def test_pairs_add_what_loops_over_tokens_say(bc, world):
    feature = 31
    (form,) = world.profiler.forms([feature])
    token, _ = world.activity.outputs[feature]
    pairs = bc.outputs.co_active_pairs(world.profiler.rows, world.activity.interactions.sae_in.W_dec, form.Q, token)
    z, T = world.z_in[token], coefficients(world.T)[feature]
    expected = {}
    for a in range(D_SAE_IN):
        for b in range(a, D_SAE_IN):
            expected[a, b] = (T[a, b] * (z[:, a] * z[:, b]).mean()).item()
    largest = sorted(expected, key=lambda pair: -abs(expected[pair]))[:6]
    found = pairs.largest(6)
    assert [(one.first, one.second) for one in found] == largest
    for one in found:
        assert one.added == pytest.approx(expected[one.first, one.second], rel=1e-3)
        assert one.weight == pytest.approx(T[one.first, one.second].item(), rel=1e-3)
    total = sum(expected.values())
    ledger = world.activity.interactions.ledger(world.activity.x[token], feature)
    assert total == pytest.approx(ledger.feature_feature.mean().item(), rel=1e-3)


@pytest.mark.parametrize("few", [False, True])
def test_inputs_feed_the_outputs_that_the_whole_tensor_says(bc, world, few):
    asked = [0, DEAD, 33, D_SAE_IN - 1]
    table = bc.uses.uses_by_weight(world.activity.interactions, k=5, features=asked if few else None)
    T = coefficients(world.T)
    for a in asked:
        best = T[:, a].abs().amax(1)
        outputs = best.topk(5).indices.tolist()
        uses = table.of(a, False)
        assert [one.output for one in uses] == outputs
        for one in uses:
            partner = T[one.output, a].abs().argmax().item()
            assert (one.partner, one.added) == (partner, None)
            assert one.weight == pytest.approx(T[one.output, a, partner].item(), rel=1e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_sweep_finds_the_largest_interaction_of_every_input_and_output(bc, world, precision, tolerance):
    from bilinear_circuits.sweep import sweep

    products = world.activity.interactions.products(None, precision)
    strongest = bc.uses.StrongestOutputs(products, D_SAE_OUT)
    sweep(products, [strongest])
    expected = coefficients(world.T).abs().amax(2).T / 2  # coarse scores are half the coefficients
    found = torch.zeros(products.n_rows, D_SAE_OUT).scatter(1, strongest.output, strongest.score)[:D_SAE_IN]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * expected.max().item())


def test_inputs_feed_by_activity_what_they_add_most_to(bc, world):
    table = bc.uses.uses_by_activity(world.profiler, k=3)
    T = coefficients(world.T)
    added = torch.zeros(D_SAE_OUT, D_SAE_IN, D_SAE_IN, dtype=torch.double)
    for f in range(D_SAE_OUT):
        active = world.z_out[:, f] != 0
        if active.sum() > 1:
            z = world.z_in[active]
            added[f] = T[f] * (z.T @ z) / len(z)
    for a in (0, DENSE, 33):
        best = added[:, a].abs().amax(1)
        uses = table.of(a, True)
        assert [one.output for one in uses] == best.topk(3).indices.tolist()
        for one in uses:
            assert one.added == pytest.approx(added[one.output, a, one.partner].item(), rel=1e-3)
    assert table.of(DEAD, True) == ()


def test_cards_say_when_a_feature_is_active(bc, world):
    names = list(bc.naming.all_labels(world.activity, world.texts, "out"))
    names[31] = "a name"
    maker = bc.measure.SummaryMaker(world.activity, "out", world.texts, world.unembedding, names)
    summaries = {summary.feature: summary for summary in maker.summaries(range(D_SAE_OUT))}
    assert summaries[31].label == "a name"
    assert (summaries[DEAD].state, summaries[DENSE].state) == ("dead", "dense")
    assert summaries[DEAD].bands == () == summaries[DEAD].histogram.counts
    assert summaries[DEAD].label == bc.naming.NOT_ACTIVE
    for feature in (31, DENSE):
        z = world.z_out[:, feature]
        summary = summaries[feature]
        assert summary.n_active == (z != 0).sum() == sum(summary.histogram.counts)
        assert summary.strongest == pytest.approx(z.max().item(), rel=1e-5)
        assert summary.mean == pytest.approx(z[z != 0].mean().item(), rel=1e-5)
    W_dec = world.activity.interactions.sae_out.W_dec
    cosine = torch.nn.functional.cosine_similarity(W_dec[31:32], W_dec)
    for feature, value in summaries[31].neighbours:
        assert value == pytest.approx(cosine[feature].item(), abs=1e-5)
    logits = W_dec[31] @ world.unembedding
    assert summaries[31].promoted[0] == (
        world.texts(int(logits.argmax())),
        pytest.approx(logits.max().item(), rel=1e-4),
    )
    assert summaries[31].suppressed[0][1] == pytest.approx(logits.min().item(), rel=1e-4)


def test_an_input_feature_promotes_nothing(bc, world):
    maker = bc.measure.SummaryMaker(world.activity, "in", world.texts, world.unembedding, [""] * D_SAE_IN)
    (summary,) = maker.summaries([3])
    assert summary.promoted == () == summary.suppressed


def test_bands_cover_the_whole_range_once(bc, world):
    token, value = world.activity.outputs[DENSE]
    finder = bc.examples.ExampleFinder(world.activity, token, value, world.texts)
    strongest, *quarters = bc.measure.bands(finder, value)
    assert strongest.most == pytest.approx(value.max().item())
    assert [(one.low, one.high) for one in quarters] == [(0.75, 1.0), (0.5, 0.75), (0.25, 0.5), (0.0, 0.25)]
    assert sum(one.share for one in quarters) == pytest.approx(1)
    assert quarters[-1].least == pytest.approx(value.min().item())
    for band in (strongest, *quarters):
        for example in band.examples:
            shown = example.values[example.centre]
            assert band.least - 1e-4 <= shown <= band.most + 1e-4
            place = int((world.z_out[:, DENSE] - shown).abs().argmin())
            assert example.tokens[example.centre] == world.texts(int(world.activity.token_ids[place]))


def test_histogram_counts_by_hand(bc):
    found = bc.measure.histogram(torch.tensor([0.1, 0.4, 0.9, 1.0, -1.0]), n_bins=4)
    assert (found.low, found.high, found.counts) == (-1.0, 1.0, (1, 0, 2, 2))


@pytest.mark.parametrize(("n_active", "state"), [(0, "dead"), (10, "rare"), (11, ""), (100, ""), (101, "dense")])
def test_states(bc, n_active, state):
    assert bc.measure.state_of(n_active, 1000) == state


def test_outlier_is_that_of_the_ranking(bc, world):
    from bilinear_circuits.circuits.rank import _form_of

    for form in world.profiler.forms([3, 31]):
        expected = _form_of(world.activity, form.feature).outlier_ratio
        assert form.spectrum.outlier_ratio().item() == pytest.approx(expected, rel=1e-3)


def test_interesting_features_are_products_of_low_rank_that_stand_out(bc):
    def row(feature, r, outlier, shape, state=""):
        numbers = {"rank2_correlation": r, "outlier": outlier, "and_shape": shape}
        return bc.index.Row(feature, "", state, [], [], [], 0.01, 50, 1.0, **numbers)

    rows = [row(0, 0.9, 1.0, 0.5), row(1, 0.7, 9.0, 0.5), row(2, 0.8, 3.0, 0.5), row(3, 0.99, 8.0, 0.5, "dense")]
    rows += [row(4, None, None, None), row(5, 0.8, 4.0, 0.2)]
    assert [one.feature for one in bc.index.interesting(rows)] == [2, 5, 0]


def test_interesting_inputs_add_most(bc):
    rows = [
        bc.index.Row(f, "", "", [], [], [], 0.01, 50, 1.0, added=added) for f, added in enumerate([0.1, -0.5, None])
    ]
    assert [one.feature for one in bc.index.interesting(rows)] == [1, 0, 2]
