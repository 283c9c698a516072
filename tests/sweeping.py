"""All interactions of a layer between two bases, and the largest of them, the slow way."""

from fractions import Fraction

import numpy as np
import torch
from helpers import randn, random_tensor

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.sweep import Products, TopSearch, sweep


def random_layer(d_in, d_mlp, d_out, n_inputs, n_outputs, dtype=torch.float32, seed=0, biases=()):
    """A random layer, its read basis (n_inputs, d_in), and its write basis (d_out, n_outputs)."""
    tensor = random_tensor(seed, biases, d_in, d_mlp, d_out, dtype)
    read, write = randn(n_inputs, d_in, seed=10 * seed + 7, dtype=dtype), randn(d_out, n_outputs, seed=10 * seed + 8)
    return tensor, read, write.to(dtype)


def layer_of_form(Q):
    """A layer of one output whose interaction matrix is Q."""
    values, vectors = torch.linalg.eigh(Q.double())
    return InteractionTensor(vectors, vectors, values.unsqueeze(1))


def all_interactions(tensor, read, write):
    """T[f, a, b] in float64, from dense forms: 2 n^2 d operations for each output."""
    gate, linear, out = tensor.W_gate.double(), tensor.W_in.double(), tensor.W_out.double()
    Q = torch.einsum("mf,im,jm->fij", out @ write.double(), gate, linear)
    return read.double() @ ((Q + Q.mT) / 2) @ read.double().T


def exactly(matrix):
    """The same numbers as fractions, whose products and sums are not rounded."""
    return np.vectorize(Fraction, otypes=[object])(matrix.double().numpy())


def form_in_fractions(tensor, direction):
    """The interaction matrix of one direction, not rounded at all."""
    gate, linear, out = (exactly(W) for W in (tensor.W_gate, tensor.W_in, tensor.W_out))
    half = (gate * (out @ exactly(direction))) @ linear.T
    return (half + half.T) / 2


def scores(T):
    """What a sweep compares: T_ab above the diagonal, half of T_aa on it, zero below."""
    return T.triu() - torch.diag_embed(T.diagonal(dim1=1, dim2=2)) / 2


def largest(T, k, order="magnitude", per_output=False, outputs=None, moments=None):
    """(output, first, second, weight, score) of the k largest by brute force; ties by output, first and second."""
    outputs = range(len(T)) if outputs is None else outputs
    first, second = torch.triu_indices(T.shape[1], T.shape[1])
    weights = torch.where(first == second, 1, 2) * T[:, first, second]
    weighted = weights if moments is None else weights * moments[first, second]
    wanted = {"magnitude": lambda score: True, "positive": lambda score: score > 0, "negative": lambda score: score < 0}
    groups = []
    for output in outputs:
        columns = (first.tolist(), second.tolist(), weights[output].tolist(), weighted[output].tolist())
        groups.append([(output, *one) for one in zip(*columns, strict=True) if wanted[order](one[3])])
    if not per_output:
        groups = [[one for group in groups for one in group]]
    return [one for group in groups for one in sorted(group, key=lambda one: (-abs(one[4]), *one[:3]))[:k]]


def blocks_of(products):
    """All blocks of a sweep, one at a time: each uses the memory of the one before."""
    for group in products.groups:
        yield from products.blocks(group)


def coarse_scores(products):
    """Coarse scores of all panels as (output, a, b) with padding, times each is held, slack (output, a), and unit."""
    n, rows = len(products.outputs), products.n_rows
    values, held = torch.zeros(n, rows, rows, dtype=torch.float64), torch.zeros(n, rows, rows)
    slack, done = torch.zeros(n, rows, dtype=torch.float64), 0
    for block in blocks_of(products):
        mine = slice(done, done + len(block.outputs))
        for panel in block.panels():
            height = slice(panel.start, panel.start + len(panel.values))
            values[mine, height, panel.start :] = panel.values.double().transpose(0, 1)
            held[mine, height, panel.start :] += 1
        slack[mine], unit, done = block.slack.double().T, block.unit, mine.stop
    return values, held, slack, unit


def search(layer, k, precision="bfloat16", per_output=False, order="magnitude", outputs=None, moments=None, floor=0.0):
    """The same by the sweep."""
    outputs = None if outputs is None else torch.tensor(outputs)
    products = Products(*layer, outputs, precision)
    collector = TopSearch(products, k, per_output, order, moments, floor)
    sweep(products, [collector])
    return collector.result()
