"""Groups and motifs: against dense templates, on forms made of one motif each, and under every change of convention."""

import pytest
import torch
from helpers import assert_near, randn, random_tensor

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.discovery.groups import group_directions
from bilinear_circuits.discovery.motifs import MOTIFS, TEMPLATES, motif_scores


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


def sym(left, right):
    return (torch.outer(left, right) + torch.outer(right, left)) / 2


def form_of(motif, groups):
    """The form of a motif of groups of rows."""
    first, *others = [unit(group.sum(0)) for group in groups]
    return {
        "and": lambda: sym(first, others[0]),
        "suppression": lambda: -sym(first, others[0]),
        "flip": lambda: sym(first, others[0] - others[1]),
        "xor": lambda: sym(first - others[0], first - others[0]),
        "contrast": lambda: sym(first + others[0], first - others[0]),
        "square": lambda: sym(first, first),
    }[motif]()


def test_a_pursuit_takes_the_nearest_row_until_none_is_nearer_than_chance():
    rows = unit(randn(40, 30))
    target = rows[3] + 0.7 * rows[8] - 0.5 * rows[20] + 0.02 * randn(30, seed=1)
    groups = group_directions(target[None], rows, steps=3)
    rest, total = target.clone(), torch.zeros(30, dtype=torch.double)
    noise = (2 * torch.log(torch.tensor(40.0)) / 30).sqrt()
    for step in range(3):
        cosine = rows @ rest
        best = cosine.argmax()
        if cosine[best] <= noise * rest.norm():
            assert groups.feature[0, step:].tolist() == [-1] * (3 - step)
            break
        assert groups.feature[0, step] == best
        assert_near(groups.weight[0, step], cosine[best])
        rest, total = rest - cosine[best] * rows[best], total + cosine[best] * rows[best]
    assert total.norm() > 0.5 * target.norm()
    assert_near(groups.direction[0], unit(total))


def test_a_group_is_found_with_its_weights_and_repeats_are_added_up():
    rows = torch.eye(50, dtype=torch.double)[:20]
    target = 3 * rows[4] + 2 * rows[7] + rows[9]
    groups = group_directions(torch.stack([target, torch.zeros_like(target), -target]), rows)
    assert groups.members(0) == ((4, 7, 9), (3.0, 2.0, 1.0))
    # Features have no negative activations, and a direction of zero has no group.
    assert groups.members(1) == groups.members(2) == ((), ())
    assert groups.direction[1:].abs().max() == 0
    near = unit(torch.stack([rows[0] + 0.9 * rows[1], rows[1]]))
    feature, weight = group_directions((2 * rows[0] - 0.05 * rows[2])[None], near).members(0)
    assert feature == (0,)
    assert len(weight) == 1


def test_rows_of_zeros_join_no_group():
    rows = torch.eye(30, dtype=torch.double)[:10].clone()
    rows[3] = 0
    assert group_directions(torch.eye(30, dtype=torch.double)[3:4], rows).members(0) == ((), ())


@pytest.mark.parametrize("motif", MOTIFS)
@pytest.mark.parametrize("size", [1, 3])
def test_a_form_made_of_one_motif_is_that_motif_with_its_groups(motif, size):
    rows = unit(randn(300, 240, seed=2))
    groups = [rows[start : start + size] for start in (0, 10, 20)]
    n_groups = {"flip": 3, "square": 1}.get(motif, 2)
    scores = motif_scores(form_of(motif, groups[:n_groups])[None], rows)
    assert MOTIFS[scores.score[0].argmax()] == motif
    assert scores.score[0].max() > 0.8
    blocks = TEMPLATES[scores.template[0, MOTIFS.index(motif)]][1]
    ends = {end for first, second, _ in blocks for end in (first, second)}
    found = {feature for end in ends for feature in scores.groups.members(0, end)[0]}
    assert {start + i for start in (0, 10, 20)[:n_groups] for i in range(size)} <= found


def test_scores_are_cosines_with_dense_templates():
    rows = unit(randn(60, 40))
    motifs = [
        form_of(motif, [rows[[start, start + 1]] for start in (0, 10, 20)]) for motif in ("and", "flip", "contrast")
    ]
    Q = torch.stack([*motifs, form_of("xor", [rows[:1], rows[5:6]]), -motifs[0], form_of("square", [rows[:2]])])
    Q = Q + 0.02 * sum(sym(randn(40, seed=i), randn(40, seed=9 + i)) for i in range(3)) / 6
    scores = motif_scores(Q, rows)
    checked = 0
    for f in range(len(Q)):
        for m in range(len(MOTIFS)):
            value = scores.score[f, m]
            if value == 0:
                continue
            S = torch.zeros(40, 40, dtype=torch.double)
            entries = []
            for i, j, sign in TEMPLATES[scores.template[f, m]][1]:
                g, h = scores.groups.direction[f, i], scores.groups.direction[f, j]
                S += sign * (torch.outer(g, g) if i == j else 2 * sym(g, h))
                entries.append(sign * (g @ Q[f] @ h))
            assert_near(value, (Q[f] * S).sum() / (Q[f].norm() * S.norm()))
            assert min(entries) > 0
            assert min(entries) >= 0.5 * max(entries)
            checked += 1
    assert checked >= 8


def test_outliers_are_the_leading_eigenvalues_of_either_sign():
    Q = torch.stack(
        [sym(randn(9, seed=s), randn(9, seed=50 + s)) + sym(randn(9, seed=99), randn(9, seed=99)) for s in range(4)]
    )
    values = torch.linalg.eigvalsh(Q)
    outliers = motif_scores(Q, unit(randn(14, 9))).outliers
    assert_near(outliers, torch.stack([values[:, -1], values[:, 0]], 1) / Q.flatten(1).norm(dim=1)[:, None], 1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_form_of_one_sign_has_no_products(sign):
    v = randn(40)
    rows = unit(torch.cat([v[None], randn(30, 40, seed=1)]))
    scores = motif_scores(sign * torch.outer(v, v)[None], rows).score[0]
    expected = "square" if sign > 0 else "suppression"
    assert MOTIFS[scores.argmax()] == expected
    assert scores[MOTIFS.index("and")] == scores[MOTIFS.index("flip")] == scores[MOTIFS.index("contrast")] == 0


def test_a_product_of_groups_that_point_the_same_way_is_no_and():
    rows = unit(randn(40, 30, seed=4))
    beside = unit(rows[0] + 0.2 * rows[1])
    scores = motif_scores(sym(rows[0], beside)[None], rows).score[0]
    assert MOTIFS[scores.argmax()] == "square"
    assert scores[MOTIFS.index("and")] == 0


def test_scores_do_not_depend_on_gauge_order_of_neurons_or_scale_of_dictionaries():
    tensor = random_tensor(d_in=24, d_mlp=31, d_out=6)
    u, rows = randn(5, 6, seed=3), unit(randn(40, 24, seed=4))
    base = motif_scores(tensor.matrix(u).to_dense(), rows)
    assert (base.score > 0).any()
    a, b = randn(31, seed=5), randn(31, seed=6)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(0))
    gauge = InteractionTensor(tensor.W_gate * a, tensor.W_in * b, tensor.W_out / (a * b)[:, None])
    permuted = InteractionTensor(tensor.W_gate[:, order], tensor.W_in[:, order], tensor.W_out[order])
    for changed, directions in ((gauge, u), (permuted, u), (tensor, 7 * u)):
        scores = motif_scores(changed.matrix(directions).to_dense(), rows)
        assert_near(scores.score, base.score, 1e-7)
        assert scores.template.equal(base.template)
