"""What `compare` prints: which circuits return, and how alike they are, with what each column is in its last lines."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bilinear_circuits.comparison.likeness import Likeness
    from bilinear_circuits.comparison.stability import Stability, StabilityTable


def describe(stability: "Stability") -> str:
    """One comparison as text."""
    lines = [
        f"circuits of {stability.first} in {stability.second}, by {stability.by} on {stability.n_tokens} tokens",
        "circuit    best match   mutual  active  jaccard  promoted  decoder  encoder    form  inputs"
        "  percentile  chance      p  returns",
    ]
    for match in stability.matches:
        name = f"{match.match}{' *' if match.is_circuit else ''}"
        lines.append(
            f"{match.circuit:<9}  {name:<11}  {_yes(match.mutual):<6}  {_numbers(match.likeness)}"
            f"  {100 * match.percentile:>8.0f} %  {match.chance:>+6.2f}  {match.p_value:>5.3f}  {_yes(match.returns)}"
        )
    lines += [
        "one to one:",
        *(f"{one.first:<9}  {one.second:<19}  {_numbers(one.likeness)}" for one in stability.assignment),
    ]
    return "\n".join(lines)


def summary(table: "StabilityTable") -> str:
    """Count the circuits that return, and name the columns."""
    one = table.comparisons[0]
    lines = [
        f"{other.n_returned} of {len(other.matches)} circuits of {other.first} return in {other.second}"
        for other in table.comparisons
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"returns: mutual best match, p at most 0.05, correlation of activations at least {one.threshold:g}."
            " *: a circuit of the other file.",
            "active: correlation of activations; form: of the quadratic forms over Gaussian inputs like the corpus;"
            " inputs: overlap of the",
            f"two leading eigenvectors; percentile: among {one.n_null} random features of the layer, by how well each"
            " returns, 50 % where",
            f"all return as well, as in the model itself; chance, p: against {one.n_shifts} shifts of the tokens.",
        ]
    )


def _numbers(likeness: "Likeness") -> str:
    widths = (6, 7, 8, 7, 7, 6, 6)
    values = vars(likeness).values()
    return "  ".join(
        f"{'-' if value is None else f'{value:+.2f}':>{width}}" for value, width in zip(values, widths, strict=True)
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
