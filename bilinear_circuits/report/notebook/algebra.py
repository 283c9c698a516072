"""Spectra, interaction matrices, searches of the tensor, ledgers, correlations and statistics in notebooks."""

import torch
from markupsafe import Markup

from bilinear_circuits.algebra.leading import leading_spectrum
from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.ledger import Ledger, PairContributions
from bilinear_circuits.interactions.low_rank import LowRankCorrelation
from bilinear_circuits.report.columns import TERMS
from bilinear_circuits.report.figures import Spec
from bilinear_circuits.report.figures.results import (
    correlation_boxes,
    eigenvalue_bars,
    interaction_bars,
    ledger_map,
    magnitude_histogram,
    pair_bars,
)
from bilinear_circuits.report.notebook.dispatch import drawn, shown
from bilinear_circuits.report.notebook.fragments import N_ROWS, Cell, facts, rest_of, table, value
from bilinear_circuits.report.text import number
from bilinear_circuits.sweep import InteractionStatistics, LeadingSpectra, TopInteractions

_N_LEADING = 8
_N_COLUMNS = 12
_MOST_ENTRIES = 1 << 24  # entries of a factor up to which eigenvalues take a second or less


@shown.register
def _(tensor: InteractionTensor) -> Markup:
    held = sum(one.numel() for one in (tensor.W_gate, tensor.W_in, tensor.W_out))
    biases = [name for name in ("b_gate", "b_in", "b_out") if getattr(tensor, name) is not None]
    rows: list[tuple[str, Cell]] = [
        ("output × input × input", f"{tensor.d_out} × {tensor.d_in} × {tensor.d_in}, symmetric in the last two"),
        ("kept as", f"three matrices of {tensor.d_mlp} neurons, {held:,} numbers"),
        ("biases", ", ".join(biases) or "none"),
    ]
    return facts("InteractionTensor", rows, ["tensor(x) evaluates, tensor.matrix(u) contracts with a direction"])


@shown.register
def _(dictionary: Dictionary) -> Markup:
    activation = dictionary.activation
    rule = activation.kind if activation.k is None else f"{activation.kind}, k = {activation.k}"
    rows: list[tuple[str, Cell]] = [
        ("features", f"{dictionary.d_sae:,} on {dictionary.d_in} dimensions"),
        ("activation", rule),
        ("trained at", dictionary.hook_name or "not known"),
    ]
    return facts(f"Dictionary {dictionary.name}", rows)


@shown.register
def _(spectrum: Spectrum) -> Markup:
    batch = spectrum.eigenvalues.shape[:-1]
    size = f"{len(spectrum)} of {spectrum.dim} eigenpairs"
    if batch:
        rows = [("matrices", " × ".join(map(str, batch))), ("of each", size)]
        return facts("Spectra", rows, ["spectrum[index] is that of one matrix"])
    return facts(f"Spectrum: {size}", _spectrum_rows(spectrum))


@drawn.register
def _(spectrum: Spectrum) -> dict[str, Spec]:
    return {"spectrum": eigenvalue_bars(spectrum)}


@shown.register
def _(matrix: InteractionMatrix) -> Markup:
    d, d_mlp = matrix.left.shape
    batch = matrix.shape[:-2]
    each = f"{d} × {d}, kept as factors of {d_mlp} neurons"
    if batch:
        notes = ["matrix[index] is one of them"]
        return facts("InteractionMatrix", [("matrices", " × ".join(map(str, batch))), ("each", each)], notes)
    rows: list[tuple[str, Cell]] = [("symmetric matrix", each), ("trace", value(matrix.trace().item()))]
    if matrix.left.numel() <= _MOST_ENTRIES:
        rows += _spectrum_rows(leading_spectrum(matrix, _N_LEADING))
    return facts("InteractionMatrix", rows, ["Q(x) evaluates, Q.block(a, b) reads entries, Q.eigh(k) decomposes"])


@drawn.register
def _(matrix: InteractionMatrix) -> dict[str, Spec]:
    if len(matrix.shape) > 2:
        raise ValueError(f"matrix must be a single one to be drawn, got a batch {tuple(matrix.shape)}. Draw matrix[0].")
    return {"spectrum": eigenvalue_bars(leading_spectrum(matrix, 32))}


def _spectrum_rows(spectrum: Spectrum) -> list[tuple[str, Cell]]:
    leading = Markup(", ").join(value(eigenvalue) for eigenvalue in spectrum.eigenvalues[:_N_LEADING].tolist())
    more = " …" if spectrum.dim > _N_LEADING else ""
    norm, edge = spectrum.frobenius_norm.item(), spectrum.semicircle_edge().item()
    n_outside, whole = int(spectrum.outliers()), len(spectrum) == spectrum.dim
    outside = f"{n_outside} of {spectrum.dim}" if whole else f"{n_outside} of the {len(spectrum)} computed"
    rows: list[tuple[str, Cell]] = [
        ("leading eigenvalues", Markup("{}{}").format(leading, more)),
        ("Frobenius norm", number(norm)),
        ("outside the semicircle", f"{outside}, beyond ±{number(edge)}"),
    ]
    return [*rows, ("effective rank", number(spectrum.effective_rank().item()))] if whole else rows


@shown.register
def _(top: TopInteractions) -> Markup:
    rows = [
        (str(output), f"{a} × {b}" if a != b else f"{a}²", value(weight))
        for (output, a, b, weight), _ in zip(top, range(N_ROWS), strict=False)
    ]
    certificate = top.certificate
    note = (
        f"exact: of {certificate.interactions:,} interactions {certificate.candidates:,} were computed in full; what"
        f" was left out is below {number(certificate.threshold)} in score"
    )
    header = ("output feature", "input features", "coefficient")
    return table(f"{len(top):,} largest interactions", header, rows, [*rest_of(len(top), N_ROWS, "rows"), note])


@drawn.register
def _(top: TopInteractions) -> dict[str, Spec]:
    return {"interactions": interaction_bars(top)}


@shown.register
def _(leading: LeadingSpectra) -> Markup:
    spectrum, n = leading.spectrum, len(leading.residuals)
    rows: list[tuple[str, Cell]] = [
        ("matrices", f"{n:,}, {len(spectrum)} eigenpairs of each"),
        ("largest residual |Q v − λ v|", number(leading.residuals.max().item() if n else None)),
        ("by iteration", f"{int(leading.iterated.sum()):,}, the others decomposed in full"),
    ]
    return facts("LeadingSpectra", rows, [".spectrum[index] is that of one matrix"])


@shown.register
def _(ledger: Ledger) -> Markup:
    terms = {name: term.reshape(-1) for name, term in {**ledger.terms, "total": ledger.total}.items()}
    n = len(terms["total"])
    if n == 1:
        said = {**TERMS, "total": "the pre-activation, before TopK or ReLU"}
        one = [(name, value(term.item()), said[name]) for name, term in terms.items()]
        return table("Ledger of a pre-activation", ("term", "", ""), one)
    if n <= _N_COLUMNS:
        header, columns = [f"at {i}" for i in range(n)], {name: term.tolist() for name, term in terms.items()}
    else:
        header = ["mean", "least", "largest"]
        columns = {name: torch.stack([term.mean(), term.min(), term.max()]).tolist() for name, term in terms.items()}
    rows = [(name, *map(value, numbers)) for name, numbers in columns.items()]
    return table(f"Ledger of a pre-activation at {n:,} positions", ["term", *header], rows)


@drawn.register
def _(ledger: Ledger) -> dict[str, Spec]:
    return {"ledger": ledger_map(ledger)}


@shown.register
def _(pairs: PairContributions) -> Markup:
    columns = (pairs.first, pairs.second, pairs.weights, pairs.contributions)
    rows = [
        (f"{a} × {b}" if a != b else f"{a}²", value(weight), value(added))
        for a, b, weight, added in zip(*(column[:N_ROWS].tolist() for column in columns), strict=True)
    ]
    n = len(pairs.contributions)
    others = [("others", "", value(pairs.contributions[N_ROWS:].sum().item()))] if n > N_ROWS else []
    header = ("input features", "coefficient", "added")
    return table(f"What {n:,} pairs of input features add", header, [*rows, *others])


@drawn.register
def _(pairs: PairContributions) -> dict[str, Spec]:
    return {"pairs": pair_bars(pairs)}


@shown.register
def _(result: LowRankCorrelation) -> Markup:
    rows = []
    for rank in result.ranks:
        share = result.share_above(rank)
        interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
        name = f"{rank} (full)" if rank == result.ranks[-1] else str(rank)
        rows.append((name, number(result.mean(rank)), f"{100 * share.value:.1f} % ({interval})"))
    n, left_out = int(result.kept.sum()), int((~result.kept).sum())
    notes = [f"{n:,} output features; {left_out:,} left out, active on {result.min_active} tokens or fewer"]
    header = ("rank", "mean correlation", "above 0.75 (95 % interval)")
    return table("Correlation of low-rank forms with activations", header, rows, notes)


@drawn.register
def _(result: LowRankCorrelation) -> dict[str, Spec]:
    return {"correlation": correlation_boxes(result)}


@shown.register
def _(statistics: InteractionStatistics) -> Markup:
    n = statistics.n * len(statistics.outputs)
    top = max(1, n // 1000)
    rows: list[tuple[str, Cell]] = [
        ("output features", f"{len(statistics.outputs):,}"),
        ("interactions of each", f"{statistics.n_self:,} self, {statistics.n_cross:,} cross"),
        ("kurtosis, self", number(statistics.overall_kurtosis("self"))),
        ("kurtosis, cross", number(statistics.overall_kurtosis("cross"))),
        ("largest magnitude", f"below {number(statistics.edges[-1].item())}"),
        (f"share of the {top:,} largest in all magnitude", f"{100 * statistics.overall_mass_in_top(top):.1f} %"),
    ]
    return facts("InteractionStatistics", rows, ["kurtosis of a normal distribution: 3"])


@drawn.register
def _(statistics: InteractionStatistics) -> dict[str, Spec]:
    return {"magnitudes": magnitude_histogram(statistics)}
