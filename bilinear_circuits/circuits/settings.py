"""How much a search measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSettings:
    """How much is measured.

    Attributes:
        ranking_stories: Stories the features are ranked on.
        loss_stories: Further stories for the change of cross-entropy.
        loss_tokens: Tokens of each of them.
        sites: Trigger sites for the proof, at most one per story.
        site_position: Latest position of a site in its story.
        shortlist: Features of either sign and layer that are scored in full.
        circuits: Circuits of either sign that are proved.
        controls: Control features of either set per circuit.
        baseline: Random features of a layer that outliers and AND shape are compared with.
        rank: Rank of the form removed.
        context: Longest row, in tokens, [BOS] included.
    """

    ranking_stories: int = 200
    loss_stories: int = 32
    loss_tokens: int = 128
    sites: int = 160
    site_position: int = 64
    shortlist: int = 16
    circuits: int = 2
    controls: int = 12
    baseline: int = 32
    rank: int = 2
    context: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
