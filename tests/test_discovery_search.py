"""Discovery end to end on planted circuits: what is there is found, what is not there is not."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import assert_near, randn, refused
from scipy.stats import rankdata

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.discovery import (
    MOTIFS,
    DiscoverySearch,
    DiscoverySettings,
    FeatureActivity,
    PlantedSettings,
    discover,
    interference,
    plane_pairs,
    plant,
    randomised_layer,
    refitted_encoders,
    score_layer,
)
from bilinear_circuits.discovery.echoes import echoes
from bilinear_circuits.discovery.motifs import leading_plane, motif_scores
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.utilities.saving import load_result, save_result

BASE = PlantedSettings(d_model=80, circuits=5, tokens=6000, seed=1)
SMALL = PlantedSettings(d_model=48, circuits=3, tokens=4000, seed=5)
QUICK = DiscoverySettings(replicates=4)
LOOSE = DiscoverySettings(replicates=2, fdr=0.5)


@pytest.fixture(scope="module")
def planted():
    return plant(BASE)


@pytest.fixture(scope="module")
def small():
    return plant(SMALL)


@pytest.fixture(scope="module")
def search(planted):
    return discover([planted.interactions], [planted.activity], QUICK)


def sym(left, right):
    return (torch.outer(left, right) + torch.outer(right, left)) / 2


def test_planted_forms_are_what_they_say():
    clean = plant(replace(SMALL, noise=0.0))
    tensor, sae_in = clean.interactions.mlp.tensor.to(torch.float64), clean.interactions.sae_in
    read, write = sae_in.W_dec.double(), clean.interactions.sae_out.W_dec.double()
    seen = set()
    for one in clean.circuits:
        first, *others = [torch.nn.functional.normalize(read[list(group)].sum(0), dim=0) for group in one.groups]
        expected = {
            "and": lambda: sym(first, others[0]),  # noqa: B023
            "suppression": lambda: -sym(first, others[0]),  # noqa: B023
            "flip": lambda: sym(first, others[0] - others[1]),  # noqa: B023
            "xor": lambda: sym(first - others[0], first - others[0]),  # noqa: B023
            "contrast": lambda: sym(first + others[0], first - others[0]),  # noqa: B023
            "square": lambda: sym(first, first),  # noqa: B023
        }[one.motif]()
        # The neuron that writes to this output, seen along its own direction.
        u = torch.nn.functional.normalize(write[one.output], dim=0)
        mine = (torch.nn.functional.normalize(tensor.W_out, dim=1) @ u) > 0.999
        assert mine.sum() == 1
        form = (tensor.W_out @ u)[mine] * sym(tensor.W_gate[:, mine][:, 0], tensor.W_in[:, mine][:, 0])
        assert_near(form, expected / expected.norm(), 1e-4)
        seen.add((one.motif, one.meets))
    assert seen == {*((motif, True) for motif in MOTIFS), ("and", False)}


def test_planted_noise_has_the_norm_asked_for():
    interactions = plant(replace(SMALL, noise=2.0)).interactions
    layer, n = interactions.mlp.tensor, SMALL.noise_neurons
    noise = InteractionTensor(layer.W_gate[:, -n:], layer.W_in[:, -n:], layer.W_out[-n:])
    units = torch.nn.functional.normalize(interactions.sae_out.W_dec, dim=1)
    norms = noise.matrix(units).frobenius_norm()
    assert 1.8 < norms.square().mean().sqrt() < 2.2


def test_planted_groups_meet_and_decoys_never_do(planted):
    inputs = planted.activity.inputs
    for one in planted.circuits:
        if len(one.groups) < 2:
            continue
        first, second = ({t for f in group for t in inputs[f][0].tolist()} for group in one.groups[:2])
        assert (len(first & second) > 10) == one.meets


def test_what_is_planted_is_found_and_hardly_anything_else(planted, search):
    truth = {one.output: one for one in planted.circuits if one.meets}
    right = [one for one in search.discoveries if one.feature in truth and truth[one.feature].motif == one.motif]
    assert len(right) >= 0.9 * len(truth)
    assert len(search.discoveries) - len(right) <= 2
    for one in right:
        members = {f for block in one.blocks for f in (*block.first, *block.second)}
        wanted = {f for group in truth[one.feature].groups for f in group}
        assert len(members & wanted) / len(members | wanted) >= 0.5
        assert one.q <= QUICK.fdr
        assert one.corrected >= 0.5 * one.score


def test_high_scores_are_the_hundredth_from_the_top(small):
    search = discover([small.interactions], [small.activity], LOOSE)
    layer = score_layer(small.interactions, small.activity, LOOSE)
    for name, part in (("layer", layer.scores.score), ("refit", layer.null[0]), ("rotation", layer.null[1])):
        for motif, column in zip(MOTIFS, part.T, strict=True):
            above = (column > search.high_scores[name][motif]).double().mean()
            assert above <= 0.01
            assert (column >= search.high_scores[name][motif]).double().mean() >= 0.01


def test_inputs_that_never_meet_are_set_apart(planted, search):
    decoys = {one.output for one in planted.circuits if not one.meets}
    assert decoys <= {one.feature for one in search.apart}
    assert not decoys & {one.feature for one in search.discoveries}


def test_blocks_say_what_the_weights_and_the_corpus_say(planted, search):
    interactions, inputs, n_tokens = planted.interactions, planted.activity.inputs, len(planted.activity.x)
    one = next(one for one in search.discoveries if one.motif == "flip")
    signs = []
    for block in one.blocks:
        unit_rows = torch.nn.functional.normalize(interactions.sae_in.W_dec.double(), dim=1)
        g, h = (
            torch.nn.functional.normalize(torch.tensor(w, dtype=torch.double) @ unit_rows[list(f)], dim=0)
            for f, w in ((block.first, block.first_weights), (block.second, block.second_weights))
        )
        Q = interactions.form(one.feature).matrix.to_dense().double()
        assert_near(torch.tensor(block.strength), g @ Q @ h / Q.norm(), 1e-4)
        T, total, together = interactions.matrix(one.feature).to_dense().double(), 0.0, set()
        for a in block.first:
            for b in block.second:
                z_a, z_b = (torch.zeros(n_tokens, dtype=torch.double) for _ in range(2))
                z_a[inputs[a][0]], z_b[inputs[b][0]] = inputs[a][1].double(), inputs[b][1].double()
                total += T[a, b] * (z_a * z_b).mean()
                together |= set(((z_a > 0) & (z_b > 0)).nonzero().flatten().tolist())
        assert_near(torch.tensor(block.weighted, dtype=torch.double), total, 1e-4)
        assert block.together == len(together)
        signs.append(math.copysign(1, block.strength))
    assert signs == [1, -1]


def test_scales_of_dictionaries_change_no_score(small):
    interactions, activity = small.interactions, small.activity
    scale_in = randn(interactions.sae_in.d_sae, dtype=torch.float32).exp()
    scale_out = randn(interactions.sae_out.d_sae, seed=1, dtype=torch.float32).exp()
    sae_in, sae_out = interactions.sae_in, interactions.sae_out
    scaled = FeatureInteractions(
        interactions.mlp,
        replace(sae_in, W_dec=sae_in.W_dec * scale_in[:, None], W_enc=sae_in.W_enc / scale_in),
        replace(sae_out, W_dec=sae_out.W_dec / scale_out[:, None], W_enc=sae_out.W_enc * scale_out),
    )
    inputs = replace(activity.inputs, value=activity.inputs.value / scale_in[activity.inputs.feature])
    outputs = replace(activity.outputs, value=activity.outputs.value * scale_out[activity.outputs.feature])
    few = DiscoverySettings(replicates=1)
    again = score_layer(scaled, FeatureActivity(activity.x, inputs, outputs), few)
    before = score_layer(interactions, activity, few)
    assert (before.scores.score > 0.2).sum() > 15
    for field in ("score", "outliers"):
        assert_near(getattr(again.scores, field), getattr(before.scores, field), 1e-3)
    assert_near(again.null.sort(1).values, before.null.sort(1).values, 5e-3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_it_is_saved_whole(tmp_path):
    small = plant(SMALL)
    first, again = (discover([small.interactions], [small.activity], LOOSE, seed=3) for _ in range(2))
    assert first == again
    assert first.discoveries
    save_result(first, tmp_path)
    assert load_result(DiscoverySearch, tmp_path) == first


def test_interference_counts_large_weights_that_never_meet(small):
    interactions, inputs, n_tokens = small.interactions, small.activity.inputs, len(small.activity.x)
    k = 40
    got = interference(interactions, inputs, n_tokens, k)
    T = torch.stack([interactions.matrix(f).to_dense() for f in range(interactions.sae_out.d_sae)])
    z = torch.zeros(n_tokens, interactions.sae_in.d_sae)
    z[inputs.token, inputs.feature] = inputs.value
    moments = z.T @ z / n_tokens
    upper = torch.triu_indices(len(moments), len(moments), 1)
    raw, meet = (2 * T[:, upper[0], upper[1]]).abs().flatten(), moments[upper[0], upper[1]].repeat(len(T))
    order = raw.argsort(descending=True)[: 10 * k]
    assert math.isclose(got.never, (meet[order[:k]] == 0).double().mean().item())
    largest = (raw * meet)[order].argsort(descending=True)[:k]
    assert math.isclose(got.kept, (largest < k).double().mean().item(), abs_tol=1.5 / k)
    ranks = [torch.tensor(rankdata(column[order[:k]])) for column in (raw, raw * meet)]
    assert math.isclose(got.rank_correlation, torch.corrcoef(torch.stack(ranks))[0, 1].item(), abs_tol=1e-3)
    assert 0 < got.never_random < 1


@pytest.mark.slow
def test_random_layers_with_dictionaries_of_their_own_report_nothing():
    """At most 5 % of runs report anything; 20 runs."""
    reported = 0
    for seed in range(20):
        base = plant(replace(SMALL, d_model=64, seed=100 + seed))
        layer = randomised_layer(base.interactions.mlp.tensor, torch.Generator().manual_seed(seed))
        x, sae_out = base.activity.x, base.interactions.sae_out
        encoders = refitted_encoders(layer(x), base.activity.outputs).float()
        own = replace(sae_out, W_enc=encoders, W_dec=encoders.T / encoders.norm(dim=0)[:, None] ** 2)
        interactions = FeatureInteractions(replace(base.interactions.mlp, tensor=layer), base.interactions.sae_in, own)
        reported += bool(discover([interactions], [base.activity], QUICK, seed=1000 + seed).discoveries)
    assert reported <= 1


def test_what_another_encoder_reads_along_is_an_echo():
    rows = torch.linalg.qr(randn(6, 6)).Q
    directions = torch.stack(
        [torch.stack([rows[0], rows[1]]), torch.stack([rows[0], rows[1]]), torch.stack([rows[2], rows[3]])]
    )
    product = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.double).expand(3, 2, 2)
    scores, norms = torch.tensor([0.9, 0.3, 0.2]).double(), torch.tensor([2.0, 1.5, 1.0]).double()
    cutoffs = torch.full((3,), 0.1, dtype=torch.double)
    overlap = torch.tensor([[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.5, 0.0, 1.0]], dtype=torch.double)
    left, source = echoes(scores, cutoffs, overlap, norms, directions, product)
    # Feature 1 reads a quarter of the product of 0: 0.9 x 2 x 0.25 of its norm 1.5. Feature 2 has another plane.
    assert_near(left, torch.tensor([0.9, 0.3 - 0.9 * 2 * 0.25 / 1.5, 0.2]).double(), 1e-6)
    assert source.tolist() == [-1, 0, -1]
    # Less than half explained, and significant still: it stands.
    left, source = echoes(scores, cutoffs, overlap * torch.tensor([[1], [0.4], [1]]), norms, directions, product)
    assert_near(left[1], torch.tensor(0.3 - 0.9 * 2 * 0.2 * 0.5 / 1.5).double(), 1e-6)
    assert source.tolist() == [-1, -1, -1]


def test_a_motif_of_the_other_sign_is_explained_with_its_sign():
    rows = torch.linalg.qr(randn(6, 6)).Q
    directions = torch.stack([torch.stack([rows[0], rows[1]])] * 2)
    product = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.double)
    coefficients = torch.stack([product, -product])
    overlap = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.double)
    one, half = torch.ones(2, dtype=torch.double), torch.tensor([0.8, 0.4]).double()
    left, source = echoes(half, 0.1 * one, overlap, one, directions, coefficients)
    assert_near(left, torch.tensor([0.8, 0.0]).double(), 1e-9)
    assert source.tolist() == [-1, 0]


@pytest.mark.slow
def test_antipodal_features_are_paired():
    small = plant(SMALL)
    interactions = small.interactions
    sae = interactions.sae_out
    first = next(one.output for one in small.circuits if one.motif == "flip")
    other = next(f for f in range(sae.d_sae) if f not in {one.output for one in small.circuits})
    W_enc, W_dec = sae.W_enc.clone(), sae.W_dec.clone()
    W_enc[:, other], W_dec[other] = -W_enc[:, first], -W_dec[first]
    layer = FeatureInteractions(interactions.mlp, interactions.sae_in, replace(sae, W_enc=W_enc, W_dec=W_dec))
    pairs = plane_pairs(layer, score_layer(layer, small.activity, LOOSE))
    pair = pairs[0]
    assert set(pair.features) == {first, other}
    assert pair.kind == "antipodal"
    assert math.isclose(pair.overlap, 1, abs_tol=1e-4)
    assert math.isclose(pair.correlation, -1, abs_tol=1e-4)
    assert math.isclose(pair.decoder_cosine, -1, abs_tol=1e-4)
    assert len({pair.features for pair in pairs}) == len(pairs) >= small.interactions.sae_out.d_sae / 2
    assert {f for one in pairs for f in one.features} == set(range(sae.d_sae))
    assert pair.q < pairs[-1].q
    assert [one.overlap for one in pairs] == sorted((one.overlap for one in pairs), reverse=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nulls": ()}, "nulls must be one or more of refit, weights, symmetric, rotation, dictionary, got none."),
        ({"nulls": ("refit", "none")}, "nulls must be one or more of .*, got refit, none"),
        ({"replicates": 0}, "replicates must be a whole number of at least 1, got 0"),
        ({"fdr": 1.0}, "fdr must be a number between 0 and 1, got 1.0"),
        ({"fdr": "5 %"}, "fdr must be a number between 0 and 1, got '5 %'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with refused(ValueError, message):
        DiscoverySettings(**change)


def test_a_null_named_twice_counts_once():
    assert DiscoverySettings(nulls=("refit", "rotation", "refit")).nulls == ("refit", "rotation")


def test_too_little_text_and_too_many_circuits_are_refused(planted):
    with refused(ValueError, "outputs must hold features active on more than 5000 tokens, got none. Use more text"):
        discover([planted.interactions], [planted.activity], DiscoverySettings(min_active=5000))
    with refused(ValueError, "features x d_model must be at least 112 for 8 circuits of each motif, got 64"):
        PlantedSettings(d_model=32)
    with refused(ValueError, "frequency must lie between 0 and 1"):
        PlantedSettings(frequency=0.0)


def test_a_plane_has_either_sign_however_many_pairs_of_one_are_larger():
    """Five positive eigenvalues above the only negative one; a form without a negative one has none."""
    d = 12
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.double))
    values = torch.tensor([9.0, 8, 7, 6, 5, -4, 3, 2, 1, 0.5, 0.2, 0.1]).double()
    mixed, positive = ((basis * some) @ basis.T for some in (values, values.abs()))
    largest, vectors, norm = leading_plane(torch.stack([mixed, positive]))
    torch.testing.assert_close(largest, torch.tensor([[9.0, -4], [9, 0]]).double())
    torch.testing.assert_close((vectors[0] * basis[:, [0, 5]]).sum(0).abs(), torch.ones(2).double())
    assert (vectors[1, :, 1] == 0).all()
    torch.testing.assert_close(norm, torch.stack([mixed.norm(), positive.norm()]))


def test_a_known_plane_changes_no_score():
    small = plant(SMALL).interactions
    Q = torch.stack([small.form(feature).matrix.to_dense() for feature in range(5)])
    rows = torch.nn.functional.normalize(small.sae_in.W_dec, dim=1)
    alone, given = motif_scores(Q, rows), motif_scores(Q, rows, leading_plane(Q))
    assert torch.equal(alone.score, given.score)
    assert torch.equal(alone.template, given.template)
