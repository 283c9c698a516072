"""Oracles: every formula once more, as loops over numbers in float64. Imports nothing of the package."""

import math

import torch


def interaction_tensor(W_gate, W_in, W_out):
    """B[o, i, j] = sum_m W_out[m, o] (W_gate[i, m] W_in[j, m] + W_gate[j, m] W_in[i, m]) / 2."""
    gate, linear, out = W_gate.tolist(), W_in.tolist(), W_out.tolist()
    n_in, n_mlp, n_out = len(gate), len(out), len(out[0])
    dense = torch.zeros(n_out, n_in, n_in, dtype=torch.float64)
    for o in range(n_out):
        for i in range(n_in):
            for j in range(n_in):
                dense[o, i, j] = sum(
                    out[m][o] * (gate[i][m] * linear[j][m] + gate[j][m] * linear[i][m]) / 2 for m in range(n_mlp)
                )
    return dense


def symmetric_matrix(left, right, weights):
    """sum_m weights[m] (left[i, m] right[j, m] + left[j, m] right[i, m]) / 2, for one row of weights or several."""
    rows = weights.reshape(-1, weights.shape[-1])
    dense = interaction_tensor(left, right, rows.T)
    return dense.reshape(*weights.shape[:-1], *dense.shape[1:])


def layer(x, W_gate, W_in, W_out, b_gate=None, b_in=None, b_out=None):
    """((x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out at one x."""
    n_mlp, n_out = W_out.shape
    gate = [_affine(x, W_gate, b_gate, m) for m in range(n_mlp)]
    linear = [_affine(x, W_in, b_in, m) for m in range(n_mlp)]
    out = [sum(gate[m] * linear[m] * W_out[m, o].item() for m in range(n_mlp)) for o in range(n_out)]
    out = [y + (0 if b_out is None else b_out[o].item()) for o, y in enumerate(out)]
    return torch.tensor(out, dtype=torch.float64)


def bilinear_form(x, y, W_gate, W_in, W_out, b_gate=None, b_in=None, b_out=None):
    """The layer at two inputs: half of gate(x) in(y) and half of gate(y) in(x)."""
    n_mlp, n_out = W_out.shape
    total = torch.zeros(n_out, dtype=torch.float64)
    for o in range(n_out):
        for m in range(n_mlp):
            product = _affine(x, W_gate, b_gate, m) * _affine(y, W_in, b_in, m)
            product += _affine(y, W_gate, b_gate, m) * _affine(x, W_in, b_in, m)
            total[o] += W_out[m, o].item() * product / 2
        total[o] += 0 if b_out is None else b_out[o].item()
    return total


def torch_layer(x, W_gate, W_in, W_out, b_gate=0.0, b_in=0.0, b_out=0.0):
    """The same layer in torch, for automatic differentiation."""
    return ((x @ W_gate + b_gate) * (x @ W_in + b_in)) @ W_out + b_out


def feature_matrix(Q, D):
    """T[a, b] = sum_ij D[a, i] Q[i, j] D[b, j]."""
    q, d = Q.tolist(), D.tolist()
    dim, n = len(q), len(d)
    T = torch.zeros(n, n, dtype=torch.float64)
    for a in range(n):
        for b in range(n):
            T[a, b] = sum(d[a][i] * q[i][j] * d[b][j] for i in range(dim) for j in range(dim))
    return T


def encode(pre, rule, k=None, threshold=None):
    """Sparsity rules on one row of pre-activations."""
    row = pre.tolist()
    if rule == "relu":
        kept = [max(p, 0.0) for p in row]
    elif rule == "jumprelu":
        kept = [p if p > 0 and p > t else 0.0 for p, t in zip(row, threshold.tolist(), strict=True)]
    else:
        size = [abs(p) if rule == "abstopk" else p for p in row]
        chosen = sorted(range(len(row)), key=lambda i: -size[i])[:k]
        kept = [0.0] * len(row)
        for i in chosen:
            kept[i] = row[i] if rule == "abstopk" else max(row[i], 0.0)
    return torch.tensor(kept, dtype=torch.float64)


def ledger(x, z, W_dec, b_dec, weights, encoder_row, constant):
    """Every term of one pre-activation at one x, from x = sum_a z_a d_a + b_dec + error.

    `weights` is (W_gate, W_in, W_out, b_gate, b_in, b_out); `constant` is what the encoder adds to w . MLP(x).
    """
    W_gate, W_in, W_out, b_gate, b_in, b_out = weights
    n_in, n_mlp = W_gate.shape
    Q = torch.einsum("o,oij->ij", encoder_row, interaction_tensor(W_gate, W_in, W_out)).tolist()
    neuron = [sum(W_out[m, o].item() * encoder_row[o].item() for o in range(len(encoder_row))) for m in range(n_mlp)]
    gate_bias = [0.0] * n_mlp if b_gate is None else b_gate.tolist()
    in_bias = [0.0] * n_mlp if b_in is None else b_in.tolist()
    linear = [
        sum(neuron[m] * (W_gate[i, m].item() * in_bias[m] + W_in[i, m].item() * gate_bias[m]) for m in range(n_mlp))
        for i in range(n_in)
    ]
    feature = [sum(z[a].item() * W_dec[a, i].item() for a in range(len(z))) for i in range(n_in)]
    bias = b_dec.tolist()
    error = [x[i].item() - feature[i] - bias[i] for i in range(n_in)]

    def form(p, q):
        return sum(p[i] * Q[i][j] * q[j] for i in range(n_in) for j in range(n_in))

    def through_biases(p):
        return sum(p[i] * linear[i] for i in range(n_in))

    constant += sum(neuron[m] * gate_bias[m] * in_bias[m] for m in range(n_mlp))
    constant += 0.0 if b_out is None else sum(b_out[o].item() * encoder_row[o].item() for o in range(len(b_out)))
    return {
        "feature_feature": form(feature, feature),
        "feature_bias": form(feature, bias) + form(bias, feature),
        "feature_error": form(feature, error) + form(error, feature),
        "bias_bias": form(bias, bias),
        "bias_error": form(bias, error) + form(error, bias),
        "error_error": form(error, error),
        "feature_linear": through_biases(feature),
        "bias_linear": through_biases(bias),
        "error_linear": through_biases(error),
        "constant": constant,
    }


def top_pairs(T, k):
    """The k largest of T_aa and 2 T_ab, a < b, as (a, b, coefficient)."""
    n = len(T)
    pairs = [(a, b, T[a, b].item() * (1 if a == b else 2)) for a in range(n) for b in range(a, n)]
    return sorted(pairs, key=lambda pair: -abs(pair[2]))[:k]


def pearson(x, y):
    """Pearson correlation of two lists of numbers."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    var_x, var_y = sum((a - mean_x) ** 2 for a in x), sum((b - mean_y) ** 2 for b in y)
    return cov / math.sqrt(var_x * var_y)


def _affine(x, W, b, m):
    value = sum(x[i].item() * W[i, m].item() for i in range(len(x)))
    return value if b is None else value + b[m].item()
