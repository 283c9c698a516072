"""Options that verbs share."""

from dataclasses import dataclass
from typing import Literal

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.data.corpora import Corpus

Fit = Literal["gates", "output", "transcoder"]
"""That of `runs.replacement`, which needs torch."""


@dataclass(kw_only=True)
class CorpusArguments:
    """Which stories are read, and how they are found in a file."""

    corpus: str | None = None
    """Stories: a file of text, CSV, JSON lines or parquet, or a Hub id; by default those of the query or recipe, or
    those shipped with the model."""

    separator: str | None = None
    """How the stories of a text are separated: line (one story a line), blank-line (blank lines between stories), or
    the text between them; by default <|endoftext|>."""

    column: str | None = None
    """Column of CSV, JSON lines, parquet or a Hub dataset that holds the stories; by default text."""

    def __post_init__(self) -> None:
        if self.corpus is not None and not self.corpus.strip():
            raise ValueError(f"corpus must be a file or a Hub id, got {self.corpus!r}. Leave it out for the default.")
        Corpus("", self.separator, self.column)  # refuses what no corpus can have
        n_stories = getattr(self, "n_stories", None)  # of the verbs that count them
        if n_stories is not None and n_stories < 1:
            raise ValueError(f"n_stories must be at least 1, got {n_stories}.")


@dataclass(kw_only=True)
class ModelArguments:
    """Model and dictionaries."""

    model: str = zoo.DEFAULT_MODEL
    """A shipped model, a Hugging Face model folder, or a Hub id."""

    saes: str | None = None
    """Dictionaries: a folder of SAELens folders of MLP inputs and outputs, or of outputs alone, under any names; a
    repository of the Hub; or a SAELens release, RELEASE/ID. By default those shipped with the model."""


@dataclass(kw_only=True)
class CommonArguments(CorpusArguments, ModelArguments):
    """Model, dictionaries and corpus."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)


@dataclass(kw_only=True)
class LabelArguments(CommonArguments):
    """Options of verbs that name features."""

    labels: str | None = None
    """YAML or JSON file of names of features, under the keys in and out: layer/feature: name, such as 4/143: negation,
    or feature: name where there is one layer. The others have the names stored with their dictionary, or are named by
    the tokens they are active at."""


@dataclass(kw_only=True)
class GateArguments:
    """Options of verbs that read models whose MLPs are not bilinear."""

    approximate: Fit | None = field(default=None, metavar="{gates,output,transcoder}")  # noqa: RUF009
    """Read MLPs with other gates, such as SwiGLU ones, through bilinear layers fitted to them on the first 300 stories:
    affine functions on their gates; those with the output matrix solved again; or all matrices, by gradient descent. It
    is said what they recover; interventions are made on the model itself."""

    least_recovered: float = 0.5
    """Least share of the variance of an MLP's output that a fitted layer must recover."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the options beside which these stand
        if not 0 <= self.least_recovered <= 1:
            raise ValueError(f"least_recovered must be a share between 0 and 1, got {self.least_recovered}.")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch does not take.

    Raises:
        ValueError: If it is negative or does not fit 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be between 0 and 2**63 - 1, got {seed}.")
