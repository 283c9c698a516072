"""Which output features an input feature takes part in most: one pass over all interactions, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.profiles import Profiler
from bilinear_circuits.sweep import Block, Panel, Products, sweep
from bilinear_circuits.sweep.keys import magnitudes
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent
from sae.report.outputs import co_active_pairs
from sae.report.results import InputReading, InputUse

N_USES = 12
_SPARE = 2  # coarse values order what is then computed in full: some more than asked for are kept
_ROWS = 4  # looked through together: what is read stays in the cache
_OUTPUTS_TOGETHER = 64
_FEW = 1 / 8  # share of input features up to which a sweep over all of them does not pay
_FEW_TOGETHER = 4096


@dataclass(frozen=True, eq=False, repr=False)
class UseTable(Brief):
    """For each input feature, output features in the order of the score, each with its strongest partner.

    Attributes:
        output: Output feature.
        partner: Input feature with which the interaction is largest.
        weight: Coefficient of z_a z_b in the pre-activation of the output feature.
        added: What it adds where the output feature is active, if measured.
        score: What they are ordered by, largest first; 0 where there are fewer.
    """

    output: Int[Tensor, "d_sae_in k"]
    partner: Int[Tensor, "d_sae_in k"]
    weight: Float[Tensor, "d_sae_in k"]
    added: Float[Tensor, "d_sae_in k"]
    score: Float[Tensor, "d_sae_in k"]

    @classmethod
    def empty(cls, n: int, device: torch.device) -> "UseTable":
        """A table without columns."""
        numbers = torch.empty(n, 0, device=device)
        whole = torch.empty(n, 0, dtype=torch.long, device=device)
        return cls(whole, whole, numbers, numbers, numbers)

    def merged(self, other: "UseTable", k: int) -> "UseTable":
        """The k largest of both."""
        score = torch.cat([self.score, other.score], 1)
        best = score.topk(min(k, score.shape[1])).indices
        output, partner, weight, added = (
            torch.cat([getattr(self, name), getattr(other, name)], 1).gather(1, best)
            for name in ("output", "partner", "weight", "added")
        )
        return UseTable(output, partner, weight, added, score.gather(1, best))

    def of(self, feature: int, measured: bool) -> tuple[InputUse, ...]:
        """The entries of one input feature; `measured` says whether `added` is."""
        columns = (self.output, self.partner, self.weight, self.added, self.score)
        rows = zip(*(column[feature].tolist() for column in columns), strict=True)
        return tuple(
            InputUse(f, b, weight, added if measured else None) for f, b, weight, added, score in rows if score
        )


class StrongestOutputs:
    """Collects, from a sweep, the output features with the largest interactions of each input feature."""

    def __init__(self, products: Products, k: int) -> None:
        """Keep k outputs of each input."""
        self._products, self._k = products, k
        device = products.outputs.device
        self._peak: Tensor | None = None
        self.score = torch.zeros(products.n_rows, 0, device=device)
        self.output = torch.zeros(products.n_rows, 0, dtype=torch.long, device=device)

    def scan(self, panel: Panel) -> None:
        """Largest magnitudes of each row and of each column of a panel, by output."""
        n_outputs, n_rows = panel.values.shape[1], self._products.n_rows
        if self._peak is None:
            dtype = torch.int16 if panel.values.dtype == torch.bfloat16 else panel.values.dtype
            self._peak = torch.zeros(n_outputs, n_rows, dtype=dtype, device=panel.values.device)
        columns, room = self._peak[:, panel.start :], torch.empty_like(panel.values[:_ROWS])
        for start in range(0, len(panel.values), _ROWS):
            some = panel.values[start : start + _ROWS]
            # Bits of a magnitude in bfloat16 are in its order: see `sweep.keys`.
            part = torch.abs(some, out=room[: len(some)]).view(self._peak.dtype)
            rows = columns[:, start : start + len(part)]
            # A maximum over lanes first: whole registers are faster than along a row.
            along = part.unflatten(2, (-1, panel.n_lanes)).amax(2).amax(2)
            for one in part:
                torch.maximum(columns, one, out=columns)
            torch.maximum(rows, along.T, out=rows)

    def finish(self, block: Block) -> None:
        """Keep the largest of what is known and the block."""
        if self._peak is None:
            return
        score = torch.cat([self.score, magnitudes(self._peak).T.to(self.score)], 1)
        output = torch.cat([self.output, block.outputs.expand(len(score), -1)], 1)
        best = score.topk(min(self._k, score.shape[1])).indices
        self.score, self.output, self._peak = score.gather(1, best), output.gather(1, best), None


@torch.no_grad()
def uses_by_weight(
    interactions: FeatureInteractions,
    k: int = N_USES,
    features: Sequence[int] | None = None,
    progress: Progress = silent,
) -> UseTable:
    """The k output features with the largest interactions of each input feature, each with its partner.

    For many input features a sweep of coarse products ranks twice as many outputs, whose interactions are then computed
    in full and ranked again; for few they are computed in full at once.

    Args:
        interactions: The layer between its dictionaries.
        k: Output features of each input feature.
        features: Input features asked for, the rows of others may be empty; all by default.
        progress: Wraps the blocks.
    """
    n = interactions.sae_in.d_sae
    if features is not None and len(features) <= _FEW * n:
        return _of_few(interactions, k, torch.tensor(list(features), device=interactions.sae_in.W_dec.device), progress)
    products = interactions.products()
    strongest = StrongestOutputs(products, _SPARE * k)
    sweep(products, [strongest], progress)
    output = strongest.output[:n]
    partner, weight = torch.zeros_like(output), torch.zeros(output.shape, device=output.device)
    read = interactions.sae_in.W_dec
    forms = QuadraticForms(interactions.mlp.tensor, interactions.sae_out.W_enc)
    for some in torch.arange(interactions.sae_out.d_sae, device=output.device).split(_OUTPUTS_TOGETHER):
        for f, Q in zip(some.tolist(), forms(some).Q.to(read), strict=True):
            row, column = (output == f).nonzero(as_tuple=True)
            partner[row, column], weight[row, column] = _strongest_partner(read, Q, row)
    return UseTable.empty(n, output.device).merged(_by_weight(output, partner, weight), k)


def _of_few(interactions: FeatureInteractions, k: int, rows: Tensor, progress: Progress) -> UseTable:
    """Find the outputs from all interactions of some input features."""
    read, d_out = interactions.sae_in.W_dec, interactions.sae_out.d_sae
    forms = QuadraticForms(interactions.mlp.tensor, interactions.sae_out.W_enc)
    table = UseTable.empty(len(read), read.device)
    outputs = torch.arange(d_out, device=read.device).split(max(1, _FEW_TOGETHER // len(rows)))
    for some in progress(outputs, "interactions"):
        partner = torch.zeros(len(read), len(some), dtype=torch.long, device=read.device)
        weight = torch.zeros(len(read), len(some), device=read.device)
        found = _strongest_partner(read, forms(some).Q.to(read), rows)
        partner[rows], weight[rows] = found[0].T, found[1].T.float()
        table = table.merged(_by_weight(some.expand(len(read), -1), partner, weight), k)
    return table


def _strongest_partner(
    read: Float[Tensor, "d_sae d_in"], Q: Float[Tensor, "*output d_in d_in"], rows: Int[Tensor, " n"]
) -> tuple[Int[Tensor, "*output n"], Float[Tensor, "*output n"]]:
    """Partner with the largest coefficient of z_a z_b for each of some input features, and the coefficient."""
    coefficients = 2 * (read[rows] @ Q) @ read.T
    coefficients[..., torch.arange(len(rows), device=rows.device), rows] /= 2
    partner = coefficients.abs().argmax(-1)
    return partner, coefficients.gather(-1, partner.unsqueeze(-1)).squeeze(-1)


def _by_weight(output: Tensor, partner: Tensor, weight: Tensor) -> UseTable:
    return UseTable(output, partner, weight.float(), torch.zeros_like(weight, dtype=torch.float), weight.abs().float())


@torch.no_grad()
def uses_by_activity(profiler: Profiler, k: int = N_USES, progress: Progress = silent) -> UseTable:
    """The k output features to which each input feature adds most, with one partner, where they are active.

    See `co_active_pairs`, which says what is left out. A pair counts by its mean contribution at the active tokens.

    Args:
        profiler: The layer on a corpus, with all output features.
        k: Output features of each input feature.
        progress: Wraps the groups of output features.
    """
    activity = profiler.activity
    interactions, n = activity.interactions, activity.interactions.sae_in.d_sae
    forms = QuadraticForms(interactions.mlp.tensor, interactions.sae_out.W_enc)
    table = UseTable.empty(n, activity.x.device)
    alive = (activity.outputs.counts > 1).nonzero().squeeze(1)
    for some in progress(alive.split(_OUTPUTS_TOGETHER), "pairs at active tokens"):
        part = UseTable(
            some.expand(n, -1),
            *(torch.zeros(n, len(some), dtype=dtype, device=some.device) for dtype in (torch.long, *[torch.float] * 3)),
        )
        for column, (f, Q) in enumerate(zip(some.tolist(), forms(some).Q, strict=True)):
            pairs = co_active_pairs(profiler.rows, interactions.sae_in.W_dec, Q, activity.outputs[f][0])
            if len(pairs.members) == 0:
                continue
            best = pairs.added.abs().argmax(1)
            at = torch.arange(len(best), device=best.device)
            part.partner[pairs.members, column] = pairs.members[best]
            part.weight[pairs.members, column] = pairs.weight[at, best].float()
            part.added[pairs.members, column] = pairs.added[at, best].float()
            part.score[pairs.members, column] = pairs.added[at, best].abs().float()
        table = table.merged(part, k)
    return table


def read_inputs(by_weight: UseTable, by_activity: UseTable, feature: int) -> InputReading:
    """Find the output features in which one input feature interacts most."""
    return InputReading(by_weight.of(feature, False), by_activity.of(feature, True))
