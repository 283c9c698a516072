"""What a search without a query found, in notebooks."""

from collections import Counter

from markupsafe import Markup

from bilinear_circuits.discovery.results import Block, Discovery, DiscoverySearch
from bilinear_circuits.report.figures import Spec
from bilinear_circuits.report.figures.results import motif_scores
from bilinear_circuits.report.notebook.dispatch import drawn, shown
from bilinear_circuits.report.notebook.fragments import N_ROWS, Cell, facts, rest_of, table, value
from bilinear_circuits.report.text import number
from bilinear_circuits.utilities.feature import Feature

_N_MEMBERS = 4


@shown.register
def _(search: DiscoverySearch) -> Markup:
    counts: list[Counter[str]] = [
        Counter(discovery.motif for discovery in part) for part in (search.discoveries, search.echoes, search.apart)
    ]
    rows = [
        (motif, *(f"{count[motif]:,}" for count in counts), _cutoff(cutoff)) for motif, cutoff in search.cutoffs.items()
    ]
    header = ("motif", "discoveries", "echoes", "inputs apart", "smallest significant score")
    rate = f"{100 * search.settings.fdr:g} %"
    title = f"Motifs of {search.n_features:,} output features at a false-discovery rate of {rate}"
    best = [
        (
            discovery.name,
            discovery.motif,
            number(discovery.score),
            number(discovery.q),
            "; ".join(map(_block, discovery.blocks)),
        )
        for discovery in search.discoveries[:N_ROWS]
    ]
    more = rest_of(len(search.discoveries), N_ROWS, "discoveries")
    header_best = ("feature", "motif", "score", "q", "products of input features")
    return Markup("<div>{}{}</div>").format(
        table(title, header, rows), table("Highest scores", header_best, best, more) if best else ""
    )


@drawn.register
def _(search: DiscoverySearch) -> dict[str, Spec]:
    return {"motifs": motif_scores(search)}


@shown.register
def _(one: Discovery) -> Markup:
    positive, negative = one.outliers
    rows: list[tuple[str, Cell]] = [
        ("score", f"{number(one.score)}, without what others explain {number(one.corrected)}"),
        ("q", number(one.q)),
        ("leading eigenvalues over norm", Markup("{}, {}").format(value(positive), value(negative))),
        *((f"product {index}", _block(block)) for index, block in enumerate(one.blocks, 1)),
    ]
    if one.echo_of is not None:
        rows.append(("echo of", str(Feature(one.layer, one.echo_of))))
    return facts(f"{one.motif}: feature {one.name}", rows)


def _block(block: Block) -> str:
    first, second = (_members(part) for part in (block.first, block.second))
    product = f"({first})²" if block.first == block.second else f"({first}) × ({second})"
    return f"{'+' if block.strength > 0 else '−'}{number(abs(block.strength))} {product}"


def _members(features: tuple[int, ...]) -> str:
    more = " …" if len(features) > _N_MEMBERS else ""
    return ", ".join(map(str, features[:_N_MEMBERS])) + more


def _cutoff(score: float) -> str:
    return number(score) if score != float("inf") else "none"
