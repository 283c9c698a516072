"""Which feature of a layer is meant: its number, its text, and the name of what is about it."""

import re
from typing import NamedTuple

_WRITTEN = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


class Feature(NamedTuple):
    """A feature of a dictionary of one layer; equal to the plain pair, as text 4/143.

    Attributes:
        layer: Layer of the MLP.
        number: Number of the feature in its dictionary.
    """

    layer: int
    number: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Feature":
        """Read a feature as it is written, such as 4/143.

        Raises:
            ValueError: If the text is none.
        """
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError(f"features must be written as layer/feature, such as 4/143, got {text!r:.40}.")
        return cls(int(match[1]), int(match[2]))


class OfFeature:
    """What is about one feature, in its attributes `layer` and `feature`."""

    layer: int
    feature: int

    @property
    def key(self) -> Feature:
        """Layer and number of the feature."""
        return Feature(self.layer, self.feature)

    @property
    def name(self) -> str:
        """Layer and number, as 4/143."""
        return str(self.key)
