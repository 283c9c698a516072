"""What a causal proof shows, in plain words computed from its numbers."""

import math
from dataclasses import dataclass

from bilinear_circuits.circuits.prove import CausalProof, Effect
from bilinear_circuits.report.text import signed

PROVED = "proved on held-out stories"
MIN_SITES = 10


@dataclass(frozen=True)
class Verdict:
    """Whether a circuit is proved, and if not, what failed.

    Attributes:
        proved: True if nothing failed.
        text: One sentence.
        note: What the reader should know besides, or nothing.
    """

    proved: bool
    text: str
    note: str = ""


def verdict(proof: CausalProof, sign: int) -> Verdict:
    """Judge a proof by four conditions, all of which must hold.

    1. The feature is active at ten trigger sites or more, and the 95 % interval of the removal excludes zero.
    2. The removal moves the model away from the pole the circuit pushes to, as predicted.
    3. The interval of the mean effect of controls of like frequency and norm includes zero: the edit as such does
       nothing.
    4. No control moves the model as much, those that act at triggers included.

    Args:
        proof: The measured effects.
        sign: Pole the circuit pushes to: +1 positive, -1 negative.
    """
    failures = [*_removal_failures(proof.removal, sign), *_control_failures(proof)]
    text = "not proved: " + "; ".join(failures) if failures else PROVED
    return Verdict(not failures, text, _note(proof))


def _note(proof: CausalProof) -> str:
    """The form is removed at all tokens: where the feature is off, it can act the other way, and win."""
    everywhere = proof.removal_all_sites
    if proof.removal.excludes_zero and everywhere.excludes_zero and everywhere.mean * proof.removal.mean < 0:
        return (
            f"over all trigger sites the removal acts the other way ({signed(everywhere.mean)}):"
            " the form also acts where the feature is off"
        )
    return ""


def _removal_failures(removal: Effect, sign: int) -> list[str]:
    if removal.n < MIN_SITES or _unmeasured(removal):
        sites = (
            f"{removal.n} trigger sites" if removal.n > 1 else "one trigger site" if removal.n else "no trigger site"
        )
        return [f"the feature is active at {sites}, fewer than {MIN_SITES}"]
    if not removal.excludes_zero:
        return ["the interval of the removal includes zero"]
    if removal.mean * sign > 0:
        return [f"the removal acts against the prediction ({signed(removal.mean)})"]
    return []


def _control_failures(proof: CausalProof) -> list[str]:
    if _unmeasured(proof.control):
        return ["no control was measured"]
    failures = []
    if proof.control.excludes_zero:
        failures.append(f"the controls move the model too (mean {signed(proof.control.mean)}, interval without zero)")
    every = (*proof.controls, *proof.trigger_controls)
    if as_much := sum(abs(control.effect.mean) >= abs(proof.removal.mean) for control in every):
        failures.append(f"{as_much} of {len(every)} controls move the model as much")
    return failures


def _unmeasured(effect: Effect) -> bool:
    """True where the interval is NaN, which would otherwise pass for one that includes zero."""
    return effect.n == 0 or not all(map(math.isfinite, (effect.mean, effect.low, effect.high)))
