from pathlib import Path

import pytest
import torch
from helpers import D_SAE_IN, assert_near, randn, random_interactions, refused, weights_of
from sweeping import all_interactions, coarse_scores, largest, layer_of_form, random_layer, scores, search

import bilinear_circuits.sweep.products as products_module
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.sweep import Collector, Products, TopSearch, sweep

PRECISIONS = pytest.mark.parametrize("precision", ["bfloat16", "float32"])
ORDERS = pytest.mark.parametrize("order", ["magnitude", "positive", "negative"])
SCOPES = pytest.mark.parametrize("per_output", [False, True], ids=["of all", "of each"])
PAPER_SIZE = Path(__file__).parents[2] / "shared" / "weights" / "paper-size-layer"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of outputs in every search."""
    monkeypatch.setattr(products_module, "_BLOCK_OUTPUTS", 8)


def small_layer(dtype=torch.float64):
    """594 interactions in two blocks."""
    return random_layer(4, 7, 3, 11, 9, dtype)


def wide_layer(dtype=torch.float32):
    """More inputs than panels are high, more outputs than a block holds."""
    return random_layer(20, 30, 16, 150, 11, dtype)


def check(top, expected, tolerance=None):
    """Pairs, weights and scores are those expected, in their order."""
    pairs = zip(top.output.tolist(), top.first.tolist(), top.second.tolist(), strict=True)
    assert list(pairs) == [one[:3] for one in expected]
    for found, column in ((top.weights, 3), (top.scores, 4)):
        assert_near(found, torch.tensor([one[column] for one in expected], dtype=torch.float64), tolerance)


@PRECISIONS
@ORDERS
@SCOPES
@pytest.mark.parametrize("k", [1, 7, 40, 1000])
def test_the_largest_of_a_small_layer_equal_brute_force(k, per_output, order, precision):
    layer = small_layer()
    expected = largest(all_interactions(*layer), k, order, per_output)
    check(search(layer, k, precision, per_output, order), expected)
    assert len({one[0] for one in expected}) > (1 if per_output or k > 7 else 0)


@PRECISIONS
@ORDERS
@SCOPES
@pytest.mark.parametrize("k", [1, 7, 200])
def test_the_largest_of_a_wide_layer_equal_brute_force(k, per_output, order, precision):
    layer = wide_layer(torch.float64)
    expected = largest(all_interactions(*layer), k, order, per_output, outputs=[9, 10, 3])
    check(search(layer, k, precision, per_output, order, outputs=[9, 10, 3]), expected)


@PRECISIONS
@SCOPES
def test_a_layer_in_float32_has_the_largest_of_float64(per_output, precision):
    layer = wide_layer()
    check(search(layer, 7, precision, per_output), largest(all_interactions(*layer), 7, per_output=per_output))


@pytest.mark.parametrize("order", ["positive", "negative"])
def test_fewer_of_one_sign_than_asked_for_are_all_found(order):
    """Even where the least of them has the other sign by its coarse value."""
    missed = []
    for seed in range(60):
        layer = random_layer(4, 5, 3, 9, 6, seed=seed)
        found = search(layer, 25, "bfloat16", True, order)
        expected = largest(all_interactions(*layer), 25, order, True)
        missed += [seed] * (len(found) != len(expected))
    assert missed == []


@PRECISIONS
@pytest.mark.parametrize("sign", [1, -1])
def test_interactions_of_the_other_sign_only_are_none(sign, precision):
    tensor, read, write = small_layer()
    positive = InteractionTensor(*(W.abs() for W in weights_of(tensor)[:3]))
    layer = positive, read.abs(), sign * write.abs()
    found = search(layer, 5, precision, order="negative" if sign == 1 else "positive")
    assert len(found) == 0
    assert found.certificate.threshold == 0
    assert len(search(layer, 5, precision, order="positive" if sign == 1 else "negative")) == 5


@PRECISIONS
@SCOPES
@pytest.mark.parametrize("outputs", [[7, 2], [0], [8, 7, 6, 5, 4, 3, 2, 1, 0]], ids=len)
def test_subsets_of_outputs_are_searched_in_their_order(outputs, per_output, precision):
    layer = small_layer()
    found = search(layer, 5, precision, per_output, outputs=outputs)
    check(found, largest(all_interactions(*layer), 5, per_output=per_output, outputs=outputs))
    if per_output:
        assert found.output.tolist() == [output for output in outputs for _ in range(5)]


def test_those_of_one_output_can_be_had():
    layer = small_layer()
    found, expected = search(layer, 5, per_output=True), largest(all_interactions(*layer), 5, outputs=[6])
    check(found.of(6), expected)
    assert found.of(6).certificate == found.certificate
    assert len(found.of(9)) == 0


@PRECISIONS
@pytest.mark.parametrize("falling", [False, True])
def test_outputs_of_very_different_sizes_do_not_hide_each_other(falling, precision):
    """The floor that blocks leave to those after them is much too low, or met by none of theirs."""
    tensor, read, write = random_layer(20, 30, 16, 40, 30, torch.float64)
    sizes = 10.0 ** torch.linspace(-3, 3, 30)
    layer = tensor, read, write * (sizes.flip(0) if falling else sizes)
    for k in (3, 900):
        check(search(layer, k, precision), largest(all_interactions(*layer), k))


@PRECISIONS
def test_inputs_of_very_different_sizes_do_not_hide_each_other(precision):
    tensor, read, write = wide_layer(torch.float64)
    sizes = 10 ** torch.linspace(-3, 3, 150)[torch.randperm(150, generator=torch.Generator().manual_seed(1))]
    layer = tensor, read * sizes.unsqueeze(1), write
    check(search(layer, 300, precision), largest(all_interactions(*layer), 300))


# Of 150 rows: in the reach of rows, of lanes, and of all entries; more than there are.
MANY = {False: [40_000, 80_000, 130_000], True: [7000, 8000, 12_000]}


@PRECISIONS
@pytest.mark.parametrize("order", ["magnitude", "negative"])
@pytest.mark.parametrize(("per_output", "k"), [(each, k) for each, some in MANY.items() for k in some])
def test_the_floor_is_as_fine_as_k_needs(k, per_output, order, precision):
    layer = wide_layer(torch.float64)
    found = search(layer, k, precision, per_output, order)
    T = all_interactions(*layer)
    first, second = torch.triu_indices(150, 150)
    weights = torch.where(first == second, 1, 2) * T[:, first, second]
    sizes = {"magnitude": weights.abs(), "positive": weights.relu(), "negative": (-weights).relu()}[order]
    groups = sizes if per_output else sizes.flatten().unsqueeze(0)
    expected = [group[group > 0].sort(descending=True).values[:k] for group in groups]
    assert_near(found.scores.abs(), torch.cat(expected))
    assert_near(found.weights, T[found.output, found.first, found.second] * (1 + (found.first != found.second)))
    assert len(set(zip(found.output.tolist(), found.first.tolist(), found.second.tolist(), strict=True))) == len(found)
    if len(found) == k * (11 if per_output else 1):  # the k largest of all may be sought in each of two blocks
        assert found.certificate.candidates <= 1.25 * k * (11 if per_output else 2) + 20


@pytest.mark.parametrize("k", [40_000, 80_000])
def test_moments_weigh_many_interactions(k):
    layer, moments = wide_layer(), moments_of(150)
    found = search(layer, k, "float32", moments=moments)
    first, second = torch.triu_indices(150, 150)
    weights = torch.where(first == second, 1, 2) * all_interactions(*layer)[:, first, second] * moments[first, second]
    assert_near(found.scores.abs(), weights.abs().flatten().sort(descending=True).values[:k])
    assert found.certificate.candidates <= 1.25 * 2 * k


@PRECISIONS
@ORDERS
@SCOPES
def test_what_does_not_reach_a_given_floor_is_not_asked_for(per_output, order, precision):
    layer = wide_layer(torch.float64)
    everything = largest(all_interactions(*layer), 40, order, per_output)
    sizes = sorted((abs(one[4]) for one in everything), reverse=True)
    for at in (0, 25, len(sizes) - 1):
        floor = (sizes[at] + (sizes[at + 1] if at + 1 < len(sizes) else 0)) / 2
        found = search(layer, 40, precision, per_output, order, floor=floor)
        check(found, [one for one in everything if abs(one[4]) > floor])
        assert len(found) >= at + 1
    assert len(search(layer, 40, precision, per_output, order, floor=1e9)) == 0
    assert search(layer, 40, precision, floor=1e9).certificate.threshold == 1e9


@PRECISIONS
def test_a_score_as_large_as_the_floor_reaches_it(precision):
    layer = layer_of_ties()
    expected = largest(all_interactions(*layer), 50)
    found = search(layer, 50, precision, floor=abs(expected[-1][4]))
    assert list(found) == [one[:4] for one in expected]
    assert list(search(layer, 50, precision, floor=abs(expected[-1][4]) * (1 + 1e-6))) == [
        one[:4] for one in expected if abs(one[4]) > abs(expected[-1][4])
    ]


def test_a_floor_saves_work():
    layer = wide_layer()
    found = search(layer, 200)
    again = search(layer, 200, floor=found.certificate.threshold)
    assert list(again) == list(found)
    assert again.certificate.candidates < found.certificate.candidates


@PRECISIONS
@SCOPES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_layer_in_half_precision_has_exact_scores_in_float32(dtype, per_output, precision):
    tensor, read, write = small_layer(torch.float32)
    half = InteractionTensor(*(W.to(dtype) for W in weights_of(tensor)[:3])), read.to(dtype), write.to(dtype)
    found = search(half, 9, precision, per_output)
    assert found.weights.dtype == found.scores.dtype == torch.float32
    check(found, largest(all_interactions(*half), 9, per_output=per_output))


def layer_of_ties(dtype=torch.float32):
    """Integers: every product and every sum is exact in float32, and most scores are shared by many."""
    tensor, read, write = random_layer(4, 7, 3, 40, 9, dtype)
    rounded = [(W / 1.5).round().clamp(-1, 1) for W in (*weights_of(tensor)[:3], read, write)]
    return InteractionTensor(*rounded[:3]), *rounded[3:]


@ORDERS
@SCOPES
@pytest.mark.parametrize("k", [1, 7, 50, 400, 2500, 6000])
def test_ties_go_by_output_and_then_by_inputs(k, per_output, order):
    layer = layer_of_ties()
    expected = largest(all_interactions(*layer), k, order, per_output)
    found = [search(layer, k, precision, per_output, order) for precision in ("bfloat16", "float32")]
    assert len({abs(one[4]) for one in expected}) < len(expected) or k == 1
    for top in found:
        assert list(top) == [one[:4] for one in expected]
        assert torch.equal(top.scores, top.weights)


def test_there_are_ties_at_the_last_place():
    sizes = scores(all_interactions(*layer_of_ties()))[:, *torch.triu_indices(40, 40)].abs().flatten().sort().values
    assert all(sizes[-k] == sizes[-k - 1] for k in (7, 50, 400, 2500, 6000))


@PRECISIONS
@SCOPES
def test_of_zeros_the_first_are_returned(per_output, precision):
    tensor, read, write = small_layer(torch.float32)
    layer = InteractionTensor(tensor.W_gate * 0, tensor.W_in, tensor.W_out), read, write
    found = search(layer, 4, precision, per_output)
    check(found, largest(torch.zeros(9, 11, 11), 4, per_output=per_output))
    assert found.certificate.threshold == 0
    assert len(search(layer, 4, precision, per_output, "positive")) == 0


def layer_of_near_ties():
    """All interactions of the first 40 inputs are alike to 1e-4: bfloat16 cannot tell one from the next."""
    read = torch.cat([1 + 1e-4 * randn(40, 8, seed=3), 0.5 * randn(30, 8, seed=4)])[torch.randperm(70)]
    Q = torch.ones(8, 8).double() + 0.3 * torch.eye(8).double()
    return layer_of_form(Q), read, torch.ones(1, 1).double()


@pytest.mark.usefixtures("seeded")
def test_order_that_bfloat16_cannot_see_is_exact():
    layer = layer_of_near_ties()
    expected = largest(all_interactions(*layer), 60)
    check(search(layer, 60), expected)
    # Coarse values alone would have chosen others.
    values = coarse_scores(Products(*layer, precision="bfloat16"))[0][0]
    chosen = {divmod(at, len(values)) for at in values.abs().flatten().topk(60).indices.tolist()}
    assert len(chosen & {one[1:3] for one in expected}) < 50


def rounded_one_way(total, n_negative, taken, unit=2.0**-8):
    """A form of 64 x 64 entries, all moved by as much as rounding takes from them, whose signs add up to a total."""
    n = 64
    above = torch.ones(n * (n - 1) // 2).double()
    above[torch.randperm(len(above))[: len(above) - (total - n + 2 * n_negative + 2 * len(above)) // 4]] = -1
    signs = torch.diag(torch.where(torch.arange(n) < n_negative, -1.0, 1.0).double())
    signs[*torch.triu_indices(n, n, 1)] = above
    signs += signs.triu(1).T
    assert signs.sum() == total
    return (1 + 2 * unit) * signs + taken * 0.98 * unit


def misleading_layer(n_outputs=1):
    """The pair (2, 5) of the last output is larger than those of 0, 1, 3 and 4 of the first one, and looks smaller.

    Rounding takes as much from the form of the one as it adds to that of the others: in sum more than the bound on
    the error of either.
    """
    forms = [torch.zeros(128, 128).double() for _ in range(n_outputs)]
    forms[0][64:, 64:] = rounded_one_way(130, 1, -1)
    forms[-1][:64, :64] = rounded_one_way(100, 0, 1)
    parts = [layer_of_form(Q) for Q in forms]
    W_out = torch.block_diag(*[part.W_out for part in parts])
    tensor = InteractionTensor(*(torch.cat([part.W_gate for part in parts], 1) for _ in range(2)), W_out)
    first = torch.tensor([0, 0, 1, 0, 0, 1]).double().unsqueeze(1)
    read = torch.cat([first.expand(6, 64), (1 - first).expand(6, 64)], 1)
    return tensor, read, torch.eye(n_outputs).double()


@pytest.mark.usefixtures("seeded")
@PRECISIONS
@pytest.mark.parametrize("n_outputs", [1, 9], ids=["in its block", "in a later block"])
def test_what_rounding_hides_as_well_as_it_can_is_found(n_outputs, precision):
    layer = misleading_layer(n_outputs)
    for k in (1, 3, 7):
        found, expected = search(layer, k, precision), largest(all_interactions(*layer), k)
        assert next(iter(found))[:3] == expected[0][:3] == (n_outputs - 1, 2, 5)
        assert_near(found.scores, torch.tensor([one[4] for one in expected], dtype=torch.float64))
    if n_outputs == 1:
        values, _, slack, _ = coarse_scores(Products(*layer, precision="bfloat16"))
        assert values[0, 0, 1] - values[0, 2, 5] > 1.3 * slack.max()


def layer_rounded_twice(n_outputs=1):
    """The pair (0, 1) of the last output is larger than (2, 3) of the first one, and looks smaller.

    Two roundings take from it: that of 64 numbers of the first product, which the slack is for, and that of their sum.
    """
    read = torch.zeros(4, 67).double()
    read[0, :64], read[0, 64] = 143 / 128, 1.0
    read[1, :64], read[1, 64] = 1.0, 0.24
    read[2:, 65], read[2, 66], read[3, 66] = 8.0, 1.0, 0.4
    forms = torch.zeros(n_outputs, 67).double()
    forms[-1, :64], forms[-1, 64], forms[0, 65:] = 230 / 256, 1.0, 1.0
    tensor = InteractionTensor(torch.eye(67).double(), torch.eye(67).double(), forms.T)
    return tensor, read.bfloat16().double(), torch.eye(n_outputs).double()


@pytest.mark.parametrize("n_outputs", [1, 9], ids=["in its block", "in a later block"])
def test_what_two_roundings_hide_is_found(n_outputs):
    layer = layer_rounded_twice(n_outputs)
    ((output, first, second, weight, _),) = expected = largest(all_interactions(*layer), 1)
    assert (output, first, second) == (n_outputs - 1, 0, 1)
    check(search(layer, 1), expected)
    values, _, slack, unit = coarse_scores(Products(*layer, precision="bfloat16"))
    # More than the slack of its row hides it, and no more than that and the rounding of the sum.
    assert values[-1, 0, 1] + slack[-1, 0] < scores(all_interactions(*layer))[0, 2, 3] < weight / 2
    assert weight / 2 < values[-1, 0, 1] / (1 - unit) + slack[-1, 0]


def moments_of(n, seed=20, dtype=torch.float32):
    half = randn(n, n, seed=seed).abs() ** 3
    return (half + half.T).to(dtype)


@ORDERS
@SCOPES
@pytest.mark.parametrize("k", [1, 7, 60, 300, 1000])
def test_moments_weigh_the_interactions(k, per_output, order):
    layer, moments = small_layer(torch.float32), moments_of(11)
    expected = largest(all_interactions(*layer), k, order, per_output, moments=moments)
    found = search(layer, k, "float32", per_output, order, moments=moments)
    if k < (60 if per_output else 300):
        check(found, expected)
        assert {one[:3] for one in expected} != {
            one[:3] for one in largest(all_interactions(*layer), k, order, per_output)
        }
    assert len(found) == len(expected)
    assert_near(found.scores, torch.tensor([one[4] for one in expected]))


def test_moments_weigh_a_wide_layer():
    layer, moments = wide_layer(), moments_of(150)
    expected = largest(all_interactions(*layer), 50, moments=moments)
    found = search(layer, 50, "float32", moments=moments)
    check(found, expected)
    assert found.certificate.candidates < 100


@pytest.mark.usefixtures("seeded")
def test_moments_weigh_the_bound_too():
    """As in the misleading layer, but by what rounding to float32 takes, and with moments much above one."""
    first = torch.tensor([0, 0, 1, 0, 0, 1]).double().unsqueeze(1)
    read = torch.cat([first.expand(6, 64), (1 - first).expand(6, 64), (1 - first) * 89 / 4096], 1)
    forms = [rounded_one_way(100, 0, taken, 2.0**-24) for taken in (1, -1)]
    layer = layer_of_form(torch.block_diag(*forms, torch.ones(1, 1).double())), read, torch.ones(1, 1).double()
    values = coarse_scores(Products(*layer, precision="float32"))[0][0]
    assert values[0, 1] > values[2, 5]
    found = search(layer, 1, "float32", moments=torch.full((6, 6), 2.0**30))
    assert [one[:3] for one in found] == [(0, 2, 5)]
    assert found.certificate.error_bound > 2.0**30 * (values[0, 1] - values[2, 5])


def test_negative_moments_turn_the_sign_of_a_score():
    layer, moments = small_layer(torch.float32), -moments_of(11)
    moments[2, :] *= -1
    moments[:, 2] *= -1
    for order in ("positive", "negative"):
        check(
            search(layer, 9, "float32", False, order, moments=moments),
            largest(all_interactions(*layer), 9, order, moments=moments),
        )


def test_pairs_that_are_never_active_together_have_their_weight():
    layer, moments = small_layer(torch.float32), torch.zeros(11, 11)
    moments[3, 4] = moments[4, 3] = 2.0
    found = search(layer, 12, "float32", moments=moments)
    check(found, largest(all_interactions(*layer), 12, moments=moments))
    assert (found.scores == 0).sum() == 3


def test_moments_in_float64_weigh_in_float64():
    layer, moments = small_layer(), moments_of(11, dtype=torch.float64)
    check(search(layer, 9, "float32", moments=moments), largest(all_interactions(*layer), 9, moments=moments))


ONE_SIDED = torch.ones(11, 11).triu()


@pytest.mark.parametrize(
    "moments",
    [torch.ones(11, 10), torch.ones(10, 10), ONE_SIDED, 1e-12 * ONE_SIDED, torch.full((11, 11), torch.nan)],
    ids=["wide", "small", "one-sided", "small numbers", "nan"],
)
def test_moments_must_be_a_symmetric_matrix_of_the_inputs(moments):
    products = Products(*small_layer(), precision="float32")
    with refused(ValueError, rf"moments must be a symmetric \(11, 11\) matrix, got shape \({moments.shape[0]}, "):
        TopSearch(products, 5, moments=moments)


def test_moments_may_be_rounded():
    moments = 1e6 * moments_of(11)
    moments[3, 2] *= 1 + 2.0**-20
    layer = small_layer(torch.float32)
    assert len(search(layer, 9, "float32", moments=moments)) == 9


def test_moments_with_coarse_products_are_refused():
    with refused(ValueError, "moments must go with products in float32, got bfloat16"):
        TopSearch(Products(*small_layer(), precision="bfloat16"), 5, moments=torch.eye(11))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 1, "floor": -1.0}, "floor must be a magnitude, 0 or more, got -1.0"),
        ({"k": 1, "floor": float("nan")}, "floor must be a magnitude, 0 or more, got nan"),
        ({"k": 1, "order": "largest"}, "order must be one of magnitude, positive, negative, got 'largest'"),
    ],
    ids=["k", "floor", "no floor", "order"],
)
def test_a_search_for_nothing_is_refused(arguments, message):
    with refused(ValueError, message):
        TopSearch(Products(*small_layer()), **arguments)


@PRECISIONS
@SCOPES
@pytest.mark.parametrize("k", [7, 66, 67, 1000])
def test_the_certificate_counts_what_was_searched(k, per_output, precision):
    layer = small_layer(torch.float32)
    found = search(layer, k, precision, per_output, outputs=[1, 8, 3])
    certificate, available = found.certificate, 66 if per_output else 198
    assert certificate.interactions == 3 * 66
    assert certificate.precision == precision
    assert len(found) <= certificate.candidates <= certificate.interactions
    assert certificate.threshold == (found.scores.abs().min() if k <= available else 0)
    assert len(found) == (3 if per_output else 1) * min(k, available)


def test_the_threshold_is_the_least_of_those_of_each_output():
    found = search(small_layer(), 7, per_output=True)
    assert found.certificate.threshold == min(found.of(output).scores.abs().min() for output in range(9))


@PRECISIONS
def test_the_certificate_holds_for_every_interaction(precision):
    """The bounds it names, and that what they do not rule out was computed in full."""
    layer = wide_layer()
    certificate = search(layer, 20, precision).certificate
    values, held, slack, unit = coarse_scores(Products(*layer, precision=precision))
    assert certificate.relative_error == unit
    error = 2 * (values[:, :150, :150] - scores(all_interactions(*layer))).abs()
    assert (error <= certificate.error_bound + 2 * certificate.relative_error * values[:, :150, :150].abs()).all()
    reach = 2 * (values.abs() / (1 - unit) + slack.unsqueeze(2)) * held
    possible = (reach[:, :150, :150].triu() >= certificate.threshold).sum()
    assert 20 <= possible <= certificate.candidates


@PRECISIONS
def test_few_interactions_are_computed_in_full(precision):
    """What a bound that is too wide would cost, and a search that computes everything."""
    layer = random_layer(64, 90, 48, 150, 11)
    for k, per_output in ((100, False), (10, True)):
        found = search(layer, k, precision, per_output)
        assert found.certificate.interactions == 11 * 150 * 151 // 2
        assert found.certificate.candidates < (3 if precision == "bfloat16" else 1.5) * len(found)


@PRECISIONS
def test_scales_and_the_order_of_neurons_change_nothing(precision):
    tensor, read, write = layer = random_layer(8, 20, 6, 40, 11)
    a, b = (10 ** randn(20, seed=seed, dtype=torch.float32) for seed in (1, 2))
    a[::3] *= -1
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    W_gate, W_in, W_out = tensor.W_gate * a, tensor.W_in * b, tensor.W_out / (a * b).unsqueeze(1)
    other = InteractionTensor(W_gate[:, order], W_in[:, order], W_out[order])
    found, again = search(layer, 30, precision), search((other, read, write), 30, precision)
    assert [one[:3] for one in found] == [one[:3] for one in again]
    assert_near(again.weights, found.weights)


def test_gate_and_in_are_alike():
    tensor, read, write = layer = small_layer(torch.float32)
    swapped = InteractionTensor(tensor.W_in, tensor.W_gate, tensor.W_out)
    assert [one[:3] for one in search((swapped, read, write), 30)] == [one[:3] for one in search(layer, 30)]


def test_several_searches_share_a_sweep():
    layer = small_layer()
    products = Products(*layer, precision="bfloat16")
    both = TopSearch(products, 5), TopSearch(products, 3, per_output=True, order="negative")
    assert all(isinstance(one, Collector) for one in both)
    seen = []

    def progress(items, description, /):
        seen.append((len(items), description))
        return items

    sweep(products, both, progress)
    check(both[0].result(), largest(all_interactions(*layer), 5))
    check(both[1].result(), largest(all_interactions(*layer), 3, "negative", per_output=True))
    assert seen == [(1, "search interactions")]


@SCOPES
@pytest.mark.parametrize("weighted", [False, True])
def test_feature_interactions_pass_on_what_is_asked_for(weighted, per_output):
    interactions, _, _ = random_interactions()
    layer = interactions.mlp.tensor, interactions.sae_in.W_dec, interactions.sae_out.W_enc
    moments = moments_of(D_SAE_IN) if weighted else None
    found = interactions.top(4, [6, 2], per_feature=per_output, order="negative", moments=moments)
    expected = largest(all_interactions(*layer), 4, "negative", per_output, [6, 2], moments)
    check(found, expected, 1e-6 if weighted else None)
    assert found.certificate.precision in (("float32",) if weighted else ("float32", "bfloat16"))


def test_all_features_are_searched_by_default():
    interactions, _, _ = random_interactions()
    layer = interactions.mlp.tensor, interactions.sae_in.W_dec, interactions.sae_out.W_enc
    check(interactions.top(), largest(all_interactions(*layer), 20))


def check_real(layer, outputs, k, precision, per_output):
    """As `check`, where an output has millions of interactions: those found are as large as the largest there are."""
    tensor, read, write = layer
    found = search(layer, k, precision, per_output, outputs=outputs)
    groups, factors = [], (read.double() @ tensor.W_gate.double(), read.double() @ tensor.W_in.double())
    for output in outputs:
        half = (factors[0] * (tensor.W_out.double() @ write[:, output].double())) @ factors[1].T
        weights = (half + half.T).triu_()
        weights.diagonal().div_(2)
        mine = found.of(output)
        assert_near(mine.weights.double(), weights[mine.first, mine.second], 1e-7)
        groups.append(weights.abs().flatten().topk(k).values)
    found_groups = [found.of(output).scores.abs() for output in outputs] if per_output else [found.scores.abs()]
    groups = groups if per_output else [torch.cat(groups).topk(k).values]
    for mine, largest_there_are in zip(found_groups, groups, strict=True):
        torch.testing.assert_close(mine.double(), largest_there_are, rtol=1e-5, atol=0)
    assert len(set(zip(found.output.tolist(), found.first.tolist(), found.second.tolist(), strict=True))) == len(found)
    assert found.certificate.candidates < 0.001 * found.certificate.interactions


@pytest.fixture(scope="module")
def shipped_layer():
    from safetensors.torch import load_file

    from bilinear_circuits import zoo

    weights = load_file(Path(zoo.model_path("ts-17m")) / "model.safetensors")
    mlp = {name: weights[f"model.layers.3.mlp.{name}_proj.weight"].float().T for name in ("gate", "up", "down")}
    sae_in, sae_out = zoo.load_dictionaries(3)
    return InteractionTensor(*mlp.values()), sae_in.W_dec.float(), sae_out.W_enc.float()


@PRECISIONS
@SCOPES
def test_a_part_of_a_shipped_layer_equals_brute_force(shipped_layer, precision, per_output):
    tensor, read, write = shipped_layer
    check_real((tensor, read[-700:], write), [2774, 1943], 50, precision, per_output)


@pytest.mark.slow
@PRECISIONS
@SCOPES
def test_a_shipped_layer_equals_brute_force(shipped_layer, precision, per_output):
    check_real(shipped_layer, [2774, 1943, 0, 3071], 300, precision, per_output)


@pytest.mark.slow
@pytest.mark.skipif(not PAPER_SIZE.is_dir(), reason=f"there is no {PAPER_SIZE}")
@PRECISIONS
@SCOPES
def test_a_layer_of_the_size_of_the_paper_equals_brute_force(precision, per_output):
    from safetensors.torch import load_file

    mlp = load_file(PAPER_SIZE / "mlp.safetensors")
    sides = [
        load_file(PAPER_SIZE / f"blocks.4.mlp.{side}" / "sae_weights.safetensors") for side in ("hook_in", "hook_out")
    ]
    tensor = InteractionTensor(*(mlp[name].float() for name in ("W_gate", "W_in", "W_out")))
    layer = tensor, sides[0]["W_dec"].float(), sides[1]["W_enc"].float()
    check_real(layer, [2047, 0, 143, 1000, 3, 77, 500, 1500, 1999], 300, precision, per_output)
