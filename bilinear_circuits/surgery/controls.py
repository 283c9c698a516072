"""Edits of other features, matched to those of an edit."""

from collections.abc import Sequence

from bilinear_circuits.circuits.prove import control_sets, matched
from bilinear_circuits.circuits.rank import Screen
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.surgery.edits import FormEdit


def control_edits(
    edits: Sequence[FormEdit], activity: Sequence[LayerActivity], screens: Sequence[Screen], n: int
) -> tuple[list[list[FormEdit]], list[list[FormEdit]]]:
    """Edit other features: two kinds of controls, n sets of each, one feature for each feature edited.

    The kinds are those of `circuits.prove.control_sets`: features that act at triggers no more than chance, and
    features that act at triggers but point to no pole. Each feature is matched by its own frequency and norm; no
    feature is used twice, and fewer sets are returned where fewer features are eligible.
    """
    places = {one.interactions.mlp.layer: place for place, one in enumerate(activity)}
    kinds: tuple[list[list[FormEdit]], list[list[FormEdit]]] = ([], [])
    for kind, sets in enumerate(kinds):
        candidates = [control_sets(one, screen)[kind] for one, screen in zip(activity, screens, strict=True)]
        left = [eligible.clone() for eligible, _ in candidates]
        for edit in edits:
            left[places[edit.layer]][edit.feature] = False
        for _ in range(n):
            controls = []
            for edit in edits:
                place = places[edit.layer]
                nearest = matched(screens[place], left[place], candidates[place][1], edit.feature, 1)
                left[place][nearest] = False
                interactions = activity[place].interactions
                controls += [FormEdit.of(interactions, one, edit.rank, edit.factor) for one in nearest]
            if len(controls) == len(edits):
                sets.append(controls)
    return kinds
