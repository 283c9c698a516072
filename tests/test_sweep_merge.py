"""A sweep in parts is a sweep over everything, to the last bit and with the same order of ties."""

import pytest
import torch
from helpers import randn, refused
from sweeping import random_layer, search

from bilinear_circuits.sweep import Certificate, Products, TopInteractions, TopSearch, sweep
from bilinear_circuits.sweep.merge import Part, Reached, merge

COLUMNS = ("output", "first", "second", "weights", "scores")
SCOPES = pytest.mark.parametrize("per_output", [False, True], ids=["of all", "of each"])


def layer():
    """More outputs than forms are made together; four of them are one and the same, so that scores tie."""
    tensor, read, write = random_layer(12, 20, 9, 40, 70)
    write[:, [1, 17, 68]] = write[:, :1]
    return tensor, read, write


def in_parts(
    layer,
    size,
    k,
    precision="bfloat16",
    per_output=False,
    order="magnitude",
    outputs=None,
    moments=None,
    handed_on=False,
):
    """The largest of parts, each of which may know what those before it reached."""
    whole = Products(*layer, None if outputs is None else torch.tensor(outputs), precision)
    parts, reached = [], Reached(k)
    for places in torch.arange(len(whole.outputs)).split(size):
        part = Part(whole, places)
        collector = TopSearch(part, k, per_output, order, moments, reached.floor if handed_on else 0.0)
        sweep(part, [collector])
        parts.append(collector.result())
        reached.add(parts[-1])
    return merge(parts, k, per_output)


def check_equal(parts, whole):
    for name in COLUMNS:
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    for name in ("threshold", "interactions", "precision"):
        assert getattr(parts.certificate, name) == getattr(whole.certificate, name)


@SCOPES
@pytest.mark.parametrize("size", [1, 3, 64, 100])
@pytest.mark.parametrize("k", [1, 6, 300])
@pytest.mark.slow
def test_parts_of_any_size_find_what_one_sweep_finds(k, size, per_output):
    check_equal(in_parts(layer(), size, k, per_output=per_output), search(layer(), k, per_output=per_output))


@pytest.mark.parametrize("order", ["magnitude", "positive", "negative"])
@pytest.mark.parametrize("size", [3, 64])
@pytest.mark.parametrize("k", [1, 6, 300, 3000])
def test_parts_that_hand_on_what_they_reached_find_what_one_sweep_finds(k, size, order):
    """Ties at the last place come from parts before and after."""
    whole = search(layer(), k, order=order)
    parts = in_parts(layer(), size, k, order=order, handed_on=True)
    check_equal(parts, whole)
    alone = in_parts(layer(), size, k, order=order).certificate.candidates
    assert parts.certificate.candidates < alone if size < 64 else parts.certificate.candidates <= alone


def test_weighted_parts_hand_on_what_they_reached():
    z = randn(50, 40, seed=3, dtype=torch.float32).relu()
    arguments = {"k": 30, "precision": "float32", "outputs": [9, 69, 0, 17, 1, 2], "moments": z.T @ z / 50}
    check_equal(in_parts(layer(), 2, **arguments, handed_on=True), search(layer(), **arguments))


def test_the_floor_is_the_kth_largest_of_all_parts():
    reached = Reached(3)
    for scores, floor in (([3.0, -2.0], 0.0), ([1.0], 1.0), ([], 1.0), ([-5.0, 0.5], 2.0), ([2.0, 4.0], 3.0)):
        reached.add(part(scores))
        assert reached.floor == floor


@SCOPES
@pytest.mark.parametrize("order", ["positive", "negative"])
def test_parts_search_by_sign(order, per_output):
    arguments = {"k": 30, "precision": "float32", "order": order, "per_output": per_output}
    check_equal(in_parts(layer(), 7, **arguments), search(layer(), **arguments))


@SCOPES
def test_parts_search_weighted_and_among_some_outputs_in_any_order(per_output):
    z = randn(50, 40, seed=3, dtype=torch.float32).relu()
    arguments = {"k": 30, "precision": "float32", "outputs": [9, 69, 0, 17, 1, 2], "moments": z.T @ z / 50}
    check_equal(
        in_parts(layer(), 2, **arguments, per_output=per_output), search(layer(), **arguments, per_output=per_output)
    )


def test_more_than_there_are_is_all_there_are():
    merged = in_parts(layer(), 1, 4000, outputs=[0, 1, 2, 3])
    check_equal(merged, search(layer(), 4000, outputs=[0, 1, 2, 3]))
    assert len(merged) == merged.certificate.interactions == 4 * 40 * 41 // 2
    assert merged.certificate.threshold == 0


@SCOPES
def test_scores_that_tie_are_kept_by_output(per_output):
    """The four outputs that are one hold each score four times; k cuts between them."""
    same = [0, 1, 17, 68]
    arguments = {"k": 6, "outputs": [17, 68, 0, 1], "per_output": per_output}
    merged = in_parts(layer(), 1, **arguments)
    check_equal(merged, search(layer(), **arguments))
    assert merged.output.tolist() == ([17] * 6 + [68] * 6 + [0] * 6 + [1] * 6 if per_output else [*same, 0, 1])


def part(scores, output=0, threshold=0.5, error=0.1, relative=0.0, precision="bfloat16"):
    scores = torch.tensor(scores)
    index = torch.arange(len(scores))
    certificate = Certificate(threshold, error, relative, len(scores) + 2, 100, precision)
    return TopInteractions(torch.full_like(index, output), index, index + 1, 2 * scores, scores, certificate)


def test_certificates_add_up():
    parts = [part([3.0, -2.0], 0, threshold=2.0, error=0.3, relative=0.1), part([-4.0, 2.0, 1.0], 1, threshold=1.0)]
    assert merge(parts, 3).certificate == Certificate(2.0, 0.3, 0.1, 9, 200, "bfloat16")
    assert merge(parts, 6).certificate.threshold == 0
    assert merge(parts, 3, per_output=True).certificate == Certificate(1.0, 0.3, 0.1, 9, 200, "bfloat16")


def test_the_largest_come_first_and_ties_by_output_whatever_the_order_of_parts():
    merged = merge([part([2.0, -1.0], 1), part([-2.0, 1.5], 0)], 3)
    assert merged.output.tolist() == [0, 1, 0]
    assert merged.scores.tolist() == [-2.0, 2.0, 1.5]
    assert merged.weights.tolist() == [-4.0, 4.0, 3.0]


def test_of_each_output_parts_follow_each_other():
    assert merge([part([1.0], 3), part([2.0], 0)], 1, per_output=True).output.tolist() == [3, 0]


def test_an_empty_part_adds_nothing():
    assert merge([part([]), part([1.0])], 2).scores.tolist() == [1.0]


def test_parts_that_do_not_belong_together_are_refused():
    with refused(ValueError, "parts must be one or more, of products in one precision, got none"):
        merge([], 3)
    with refused(ValueError, r"of products in one precision, got \['bfloat16', 'float32'\]"):
        merge([part([1.0]), part([1.0], precision="float32")], 3)
