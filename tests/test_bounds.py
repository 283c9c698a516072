"""Bounds that are never violated, and reached where they can be; completeness against loops over pairs."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import assert_near, randn, random_matrix, refused
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.activity import collect_activity
from bilinear_circuits.interactions.bounds import QUANTILES, Summary, norm_radius, truncation_bound, truncation_error
from bilinear_circuits.interactions.completeness import circuit_completeness, group_edges
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.probe import RMSNorm

KINDS = pytest.mark.parametrize("kind", ["indefinite", "positive", "negative"])
SIZES = pytest.mark.parametrize(("d", "d_mlp"), [(5, 7), (9, 4), (12, 3), (3, 40)])
FEATURE = 7


@pytest.fixture(scope="module")
def activity():
    model = tiny_llama()
    stories = tokenize_stories(random_stories(60), word_tokenizer(), 32)
    return collect_activity(model, [interactions_of(model, 1)], stories)[0]


def eigenpairs(matrix):
    """By numpy-like loops over torch.linalg.eigh of the dense form: sorted by falling magnitude."""
    values, vectors = torch.linalg.eigh(matrix.to_dense().double())
    order = values.abs().argsort(descending=True)
    return values[order], vectors[:, order]


def holds(bound, x):
    low, high = bound(x)
    error = bound.error(x)
    return bool(((low <= error) & (error <= high)).all())


@KINDS
@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_is_never_violated(kind, d, d_mlp, dtype):
    matrix = random_matrix(3, d=d, d_mlp=d_mlp, kind=kind, dtype=dtype)
    values, vectors = eigenpairs(matrix)
    directions = [vectors.T, -vectors.T, vectors.T + 1e-9 * randn(d, d, seed=5), randn(d, d, seed=4)]
    x = torch.cat([randn(500, d, seed=1), *directions, torch.zeros(1, d, dtype=torch.float64)])
    for rank in range(d + 1):
        bound = truncation_bound(matrix, rank)
        for scale in (1e-6, 1.0, 1e6):
            assert holds(bound, scale * x)
            assert holds(bound, (scale * x).to(dtype))
        assert bound.rounding < 1e-10 * values.abs().sum() * (d + d_mlp)


@KINDS
@SIZES
def test_the_error_is_that_of_the_discarded_eigenpairs(kind, d, d_mlp):
    matrix, x = random_matrix(3, d=d, d_mlp=d_mlp, kind=kind), randn(6, d, seed=1)
    values, vectors = eigenpairs(matrix)
    for rank in (0, 1, d - 1, d):
        bound = truncation_bound(matrix, rank)
        rest = values[rank:]
        expected = [sum(rest[i] * (row @ vectors[:, rank + i]) ** 2 for i in range(len(rest))) for row in x]
        assert_near(bound.error(x), torch.tensor([float(one) for one in expected], dtype=torch.float64))
        assert bound.lowest == pytest.approx(rest.min().item() if len(rest) else 0, abs=1e-10)
        assert bound.highest == pytest.approx(rest.max().item() if len(rest) else 0, abs=1e-10)


@KINDS
def test_the_bound_is_reached_by_discarded_eigenvectors_and_sharper_than_the_plain_one(kind):
    matrix = random_matrix(3, d=9, d_mlp=14, kind=kind)
    values, vectors = eigenpairs(matrix)
    bound, rest = truncation_bound(matrix, 2), values[2:]
    low_at, high_at = (2 + int(at) for at in (rest.argmin(), rest.argmax()))
    x = 3 * torch.stack([vectors[:, low_at], vectors[:, high_at]])
    low, high = bound(x)
    assert_near(bound.error(x)[0], low[0])
    assert_near(bound.error(x)[1], high[1])
    x = randn(200, 9, seed=1)
    low, high = bound(x)
    assert (torch.maximum(low.abs(), high.abs()) < rest[0].abs() * x.square().sum(1)).all()
    if kind == "positive":
        assert (low > -1e-9).all()
    if kind == "negative":
        assert (high < 1e-9).all()


def test_kept_directions_are_exact_and_the_whole_form_has_no_error():
    matrix = random_matrix(3, d=9, d_mlp=14)
    _, vectors = eigenpairs(matrix)
    low, high = truncation_bound(matrix, 3)(vectors[:, :3].T)
    assert max(low.abs().max(), high.abs().max()) < 1e-10
    low, high = truncation_bound(matrix, 9)(randn(5, 9))
    assert max(low.abs().max(), high.abs().max()) < 1e-9


@KINDS
def test_bounds_of_a_ball_hold_and_are_reached(kind):
    matrix = random_matrix(3, d=6, d_mlp=9, kind=kind)
    bound = truncation_bound(matrix, 1)
    low, high = bound.within(2.0)
    _, vectors = eigenpairs(matrix)
    x = 2 * torch.cat([torch.nn.functional.normalize(randn(300, 6, seed=1), dim=1), vectors.T])
    error = torch.cat([bound.error(x), bound.error(0 * x)])
    assert low <= error.min()
    assert error.max() <= high
    assert_near(error.min(), low)
    assert_near(error.max(), high)


@KINDS
@pytest.mark.parametrize("rank", [0, 2])
def test_bounds_after_a_norm_hold_without_data_and_are_reached(kind, rank):
    d = 8
    matrix, norm = random_matrix(3, d=d, d_mlp=9, kind=kind), RMSNorm(1 + 0.3 * randn(d, seed=7), 1e-6)
    bound = truncation_bound(matrix, rank)
    low, high = bound.after_norm(norm)
    weighted = torch.linalg.eigh(bound.discarded.to_dense() * norm.weight * norm.weight.unsqueeze(1))
    residual = torch.cat(
        [1e4 * weighted.eigenvectors.T, randn(500, d, seed=2), 1e-3 * randn(5, d, seed=3), 0 * randn(1, d)]
    )
    x = norm(residual)
    error = bound.error(x)
    assert low <= error.min()
    assert error.max() <= high
    assert low == pytest.approx(min(0.0, error.min().item()), rel=1e-4, abs=1e-9)
    assert high == pytest.approx(max(0.0, error.max().item()), rel=1e-4, abs=1e-9)
    assert (x.norm(dim=1) <= norm_radius(norm)).all()
    ball = bound.within(norm_radius(norm))
    assert ball[0] <= low + 1e-9
    assert high <= ball[1] + 1e-9
    float32 = RMSNorm(norm.weight.float(), 1e-6)
    assert (float32((1e4 * randn(2000, d)).float()).double().norm(dim=1) <= norm_radius(float32)).all()


def test_equal_norm_weights_bound_the_norm_sharply():
    norm = RMSNorm(torch.full((16,), 2.0, dtype=torch.float64), 0.0)
    assert norm_radius(norm) == pytest.approx(8, rel=1e-5)
    assert norm(randn(16)).norm().item() == pytest.approx(8)


def test_a_summary_holds_mean_and_quantiles():
    values = randn(37)
    summary = Summary.of(values)
    assert summary.mean == pytest.approx(values.mean().item())
    assert summary.quantiles == pytest.approx(values.quantile(torch.tensor(QUANTILES).double()).tolist())
    assert (summary.median, summary.largest, summary.n) == (summary.quantiles[3], values.max().item(), 37)
    assert math.isnan(Summary.of(values[:0]).mean)
    assert Summary.of(values[:1]).quantiles == (values[0].item(),) * len(QUANTILES)


@pytest.mark.parametrize("active_only", [True, False])
def test_the_report_of_a_feature_is_what_its_tokens_say(activity, active_only):
    interactions = activity.interactions
    form = interactions.form(FEATURE)
    rows = activity.outputs[FEATURE][0] if active_only else torch.arange(len(activity.x))
    x = activity.x[rows].double()
    values, vectors = eigenpairs(form.matrix)
    rest = values[2:]
    error = (x @ vectors[:, 2:]).square() @ rest
    perp = (x @ vectors[:, 2:]).square().sum(1)
    either = perp * max(-rest.min().item(), rest.max().item())
    plain = x.square().sum(1) * rest[0].abs()
    report = truncation_error(activity, FEATURE, 2, active_only)
    assert report.n_violations == 0
    assert (report.layer, report.feature, report.rank, report.error.n) == (1, FEATURE, 2, len(x))
    assert report.lowest == pytest.approx(rest.min().item(), abs=1e-8)
    assert report.highest == pytest.approx(rest.max().item(), abs=1e-8)
    for got, values in ((report.error, error), (report.size, error.abs()), (report.bound, either)):
        assert got.quantiles == pytest.approx(Summary.of(values).quantiles, abs=1e-6)
    assert report.looseness == pytest.approx((either.mean() / error.abs().mean()).item(), rel=1e-6)
    assert report.plain_looseness == pytest.approx((plain.mean() / error.abs().mean()).item(), rel=1e-6)
    assert 1 <= report.looseness <= report.plain_looseness
    pre = interactions.sae_out.pre_activations(interactions.mlp(activity.x[rows])).double()[:, FEATURE]
    assert report.certified == pytest.approx((either < pre.abs()).double().mean().item(), abs=1.5 / len(x))
    assert report.any_input[0] <= error.min()
    assert error.max() <= report.any_input[1]


def test_the_certified_sign_is_that_of_the_pre_activation_with_its_constant(activity):
    one = activity.interactions
    shifted = FeatureInteractions(one.mlp, one.sae_in, replace(one.sae_out, b_enc=one.sae_out.b_enc + 4))
    report = truncation_error(replace(activity, interactions=shifted), FEATURE, 2, active_only=False)
    low, high = truncation_bound(one.form(FEATURE).matrix, 2)(activity.x)
    pre = shifted.sae_out.pre_activations(one.mlp(activity.x))[:, FEATURE]
    certified = (torch.maximum(-low, high) < pre.abs()).double().mean().item()
    assert certified > truncation_error(activity, FEATURE, 2, active_only=False).certified + 0.1
    assert report.certified == pytest.approx(certified, abs=1.5 / len(pre))


def test_the_whole_form_certifies_every_sign(activity):
    report = truncation_error(activity, FEATURE, 12)
    assert report.certified == 1
    assert report.size.largest < 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: truncation_bound(m, 6), "rank must be between 0 and d=5, got 6"),
        (lambda m: truncation_bound(m, -1), "rank must be between 0 and d=5, got -1"),
        (lambda m: truncation_bound(random_matrix(1, (2,)), 1), r"matrix must be a single form, got a batch \(2,\)"),
        (lambda m: truncation_bound(m, 1).within(-1.0), "radius must be a finite number of at least 0, got -1"),
        (
            lambda m: truncation_bound(m, 1).within(float("nan")),
            "radius must be a finite number of at least 0, got nan",
        ),
        (
            lambda m: truncation_bound(m, 1).after_norm(RMSNorm(torch.ones(4), 0.0)),
            r"norm must have d=5 weights, got \(4,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with refused(ValueError, message):
        call(random_matrix(1))


def test_an_unknown_feature_is_refused(activity):
    with refused(ValueError, "feature must be between 0 and 18"):
        truncation_error(activity, 19, 2)


def looped(activity, feature, edges):
    """Per active token: what the edges add, what all pairs add, the magnitudes, and the pre-activation; by loops."""
    interactions = activity.interactions
    T = interactions.matrix(feature).to_dense().double()
    rows = []
    for token in activity.outputs[feature][0].tolist():
        x = activity.x[token]
        z = interactions.sae_in.encode(x).double().tolist()
        active = [a for a, value in enumerate(z) if value]
        terms = {(a, b): T[a, b].item() * z[a] * z[b] * (1 if a == b else 2) for a in active for b in active if a <= b}
        inside = [value for (a, b), value in terms.items() if (a, b) in edges or (b, a) in edges]
        pre = interactions.sae_out.pre_activations(interactions.mlp(x))[feature].item()
        rows.append((sum(inside), sum(terms.values()), sum(map(abs, inside)), sum(map(abs, terms.values())), pre))
    return torch.tensor(rows, dtype=torch.double)


def test_completeness_equals_loops_over_pairs(activity):
    edges = {(3, 1), (0, 0), (5, 9), (2, 16), (4, 7), (8, 8), (11, 6)}
    got = circuit_completeness(activity, FEATURE, edges)
    inside, pairs, inside_size, size, pre = looped(activity, FEATURE, edges).unbind(1)
    assert 0 < (inside != 0).sum() < len(inside)
    assert (got.layer, got.feature, got.n_edges, got.n_active, got.circuit.n) == (1, FEATURE, 7, len(pre), len(pre))
    assert got.circuit.quantiles == pytest.approx(Summary.of(inside / pre).quantiles, rel=1e-3, abs=1e-3)
    assert got.pairs.quantiles == pytest.approx(Summary.of(pairs / pre).quantiles, rel=1e-3, abs=1e-3)
    assert got.circuit_total == pytest.approx((inside.sum() / pre.sum()).item(), rel=1e-4)
    assert got.pairs_total == pytest.approx((pairs.sum() / pre.sum()).item(), rel=1e-4)
    assert got.covered == pytest.approx((inside_size.sum() / size.sum()).item(), rel=1e-4)


def test_all_edges_are_the_feature_pairs_of_the_ledger_and_no_edges_nothing(activity):
    everything = circuit_completeness(activity, FEATURE, group_edges(range(17)))
    assert everything.n_edges == 17 * 18 // 2
    assert everything.circuit.quantiles == pytest.approx(everything.pairs.quantiles)
    assert (everything.covered, everything.circuit_total) == pytest.approx((1, everything.pairs_total))
    nothing = circuit_completeness(activity, FEATURE, ())
    assert (nothing.n_edges, nothing.circuit_total, nothing.covered) == (0, 0, 0)
    assert set(nothing.circuit.quantiles) == {0}


def test_a_sample_of_the_tokens_is_repeated_by_its_seed(activity):
    one, same, other = (circuit_completeness(activity, FEATURE, {(0, 1)}, max_tokens=9, seed=s) for s in (4, 4, 5))
    assert one == same
    assert one.pairs.n == 9 < one.n_active
    assert one.pairs != other.pairs


def test_groups_give_each_pair_once():
    assert group_edges([3, 1], [2, 3]) == {(2, 3), (3, 3), (1, 2), (1, 3)}
    assert group_edges([3, 1]) == {(1, 1), (1, 3), (3, 3)}


def test_completeness_refuses_what_is_not_there(activity):
    with refused(ValueError, r"edges must be pairs of input features between 0 and 16, got \(0, 17\)"):
        circuit_completeness(activity, FEATURE, {(0, 17)})
    with refused(ValueError, "max_tokens must be at least 1, got 0"):
        circuit_completeness(activity, FEATURE, {(0, 1)}, max_tokens=0)
    with refused(ValueError, "feature must be between 0 and 18"):
        circuit_completeness(activity, -1, {(0, 1)})


def test_a_gauge_of_the_neurons_moves_no_bound():
    matrix = random_matrix(1, d=6, d_mlp=9)
    scale, other = randn(9, seed=5).exp(), -randn(9, seed=6).exp()
    same = InteractionMatrix(matrix.left * scale, matrix.right * other, matrix.weights / (scale * other))
    x = randn(20, 6)
    for one, two in zip(truncation_bound(matrix, 2)(x), truncation_bound(same, 2)(x), strict=True):
        assert_near(one, two)
