"""How good a dictionary is: what it reconstructs, how its features behave, what the model loses when it is spliced in.

All numbers are over the stories' own tokens: [BOS] and padding are neither measured nor spliced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.models.running import capture_mlp, model_device, model_width, run_logits
from bilinear_circuits.runs.splice import Side, spliced
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent

_STORIES_PER_BATCH = 32
_TOKENS_PER_CHUNK = 4096
_DENSE = 0.1


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction(Brief):
    """What a dictionary makes of its activations.

    Attributes:
        n_tokens: Tokens measured.
        fvu: Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean x|^2.
        l0: Mean number of active features.
        frequency: Share of the tokens each feature is active on.
    """

    n_tokens: int
    fvu: float
    l0: float
    frequency: Float[Tensor, " d_sae"]

    @property
    def dead(self) -> Int[Tensor, " n"]:
        """Features that were never active."""
        return (self.frequency == 0).nonzero().flatten()

    @property
    def dense(self) -> Int[Tensor, " n"]:
        """Features active on more than 10 % of the tokens."""
        return (self.frequency > _DENSE).nonzero().flatten()


@dataclass(frozen=True)
class SpliceLoss:
    """Cross-entropy of the next token, in nats per token, with one side of an MLP replaced.

    Attributes:
        base: The model as it is.
        spliced: The dictionary's reconstruction in place of the activation.
        zero: Zero in its place.
    """

    base: float
    spliced: float
    zero: float

    @property
    def added(self) -> float:
        """Cross-entropy that the splice adds."""
        return self.spliced - self.base

    @property
    def recovered(self) -> float:
        """(zero - spliced) / (zero - base): 1 is no loss, 0 is as bad as zero; nan where zero costs nothing."""
        cost = self.zero - self.base
        return (self.zero - self.spliced) / cost if cost else float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class DuplicatePairs(Brief):
    """Pairs of features whose decoder rows point the same way.

    Attributes:
        threshold: Cosine above which a pair is listed.
        pairs: Features, the smaller number first.
        cosine: Cosine of each pair.
    """

    threshold: float
    pairs: Int[Tensor, "n 2"]
    cosine: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Brief):
    """All there is to say about one dictionary.

    Attributes:
        dictionary: The dictionary.
        reconstruction: FVU, L0, dead and dense features.
        loss: Cross-entropies.
        duplicates: Features that point the same way.
    """

    dictionary: Dictionary
    reconstruction: Reconstruction
    loss: SpliceLoss
    duplicates: DuplicatePairs


@torch.no_grad()
def reconstructions(
    model: nn.Module, dictionaries: Sequence[Dictionary], tokens: StoryTokens, progress: Progress = silent
) -> tuple[Reconstruction, ...]:
    """FVU, L0 and frequencies of dictionaries at any MLPs of a model, from one forward pass over the stories.

    Raises:
        ValueError: If a dictionary does not sit at a side of an MLP of the model, or there is no token.
    """
    sides = [_side(model, dictionary) for dictionary in dictionaries]
    _check_tokens(tokens)
    layers = sorted({side.layer for side in sides})
    tallies = [Tally(dictionary) for dictionary in dictionaries]
    for batch in progress(batches_of(tokens), "reconstruct"):
        captured = capture_mlp(model, batch.ids.to(model_device(model)), layers)
        for side, tally in zip(sides, tallies, strict=True):
            seen = captured[side.layer]
            tally.add((seen.x if side.side == "hook_in" else seen.y)[batch.mask])
    return tuple(tally.result() for tally in tallies)


@torch.no_grad()
def cross_entropy(model: nn.Module, tokens: StoryTokens, progress: Progress = silent) -> float:
    """Mean cross-entropy of the model over the stories' own tokens, in nats.

    Raises:
        ValueError: If there is no token.
    """
    _check_tokens(tokens)
    return sum(_token_losses(model, batch) for batch in progress(batches_of(tokens), "run the model")) / int(
        tokens.mask.sum()
    )


@torch.no_grad()
def splice_loss(
    model: nn.Module,
    dictionary: Dictionary,
    tokens: StoryTokens,
    *,
    base: float | None = None,
    progress: Progress = silent,
) -> SpliceLoss:
    """Cross-entropy of the model, with the dictionary in its place, and with zero in that place.

    Args:
        model: nn.Module of the three kinds of model.
        dictionary: At a side of one of its MLPs.
        tokens: Stories.
        base: Cross-entropy of the model as it is, where already known.
        progress: Wraps the batches.

    Raises:
        ValueError: If the dictionary does not sit at a side of an MLP of the model, or there is no token.
    """
    side = _side(model, dictionary)
    _check_tokens(tokens)
    if base is None:
        base = cross_entropy(model, tokens, progress)
    with_dictionary = with_zero = 0.0
    for batch in progress(batches_of(tokens), f"splice {dictionary.name}"):
        with spliced(model, side, lambda x: dictionary.decode(dictionary.encode(x)), batch.mask):
            with_dictionary += _token_losses(model, batch)
        with spliced(model, side, torch.zeros_like, batch.mask):
            with_zero += _token_losses(model, batch)
    n_tokens = int(tokens.mask.sum())
    return SpliceLoss(base, with_dictionary / n_tokens, with_zero / n_tokens)


@torch.no_grad()
def duplicate_pairs(dictionary: Dictionary, threshold: float = 0.9, block: int = 1024) -> DuplicatePairs:
    """Pairs of features whose decoder rows have a cosine above a threshold.

    Cost: d_sae^2 d_in; memory for block x d_sae cosines at a time.

    Raises:
        ValueError: If the threshold is no cosine, or the block is empty.
    """
    if not -1 <= threshold < 1:
        raise ValueError(f"threshold must be a cosine below 1, got {threshold}.")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}.")
    rows = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
    pairs, cosines = [], []
    for start in range(0, len(rows), block):
        # Only partners from this block on: every pair once, its smaller number in this block.
        cosine = (rows[start : start + block] @ rows[start:].T).triu(diagonal=1)
        above = (cosine > threshold).triu(diagonal=1).nonzero()
        pairs.append(above + start)
        cosines.append(cosine[above[:, 0], above[:, 1]])
    return DuplicatePairs(threshold, torch.cat(pairs), torch.cat(cosines))


def evaluate(
    model: nn.Module,
    dictionaries: Sequence[Dictionary],
    tokens: StoryTokens,
    *,
    duplicate_threshold: float = 0.9,
    progress: Progress = silent,
) -> tuple[Evaluation, ...]:
    """Everything about some dictionaries of a model: 1 + 2 runs per dictionary over the stories, and one up to them.

    Args:
        model: nn.Module of the three kinds of model.
        dictionaries: Each at a side of one of its MLPs.
        tokens: Stories.
        duplicate_threshold: Decoder cosine above which two features count as duplicates.
        progress: Wraps the batches.

    Raises:
        ValueError: If a dictionary does not sit at a side of an MLP of the model, or there is no token.
    """
    found = reconstructions(model, dictionaries, tokens, progress)
    base = cross_entropy(model, tokens, progress)
    return tuple(
        Evaluation(
            dictionary,
            reconstruction,
            splice_loss(model, dictionary, tokens, base=base, progress=progress),
            duplicate_pairs(dictionary, duplicate_threshold),
        )
        for dictionary, reconstruction in zip(dictionaries, found, strict=True)
    )


class Tally:
    """Running sums of one dictionary over batches of activations, in float64."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._dictionary = dictionary
        device = dictionary.W_dec.device
        self._n, self._error, self._square = 0, 0.0, 0.0
        self._sum = torch.zeros(dictionary.d_in, dtype=torch.double, device=device)
        self._active = torch.zeros(dictionary.d_sae, dtype=torch.long, device=device)

    def add(self, x: Float[Tensor, "token d_in"]) -> None:
        """Take in activations of one batch."""
        for chunk in x.split(_TOKENS_PER_CHUNK):
            chunk = chunk.to(self._dictionary.W_enc)
            z = self._dictionary.encode(chunk)
            self._n += len(chunk)
            self._error += (chunk - self._dictionary.decode(z)).double().square().sum().item()
            self._square += chunk.double().square().sum().item()
            self._sum += chunk.double().sum(0)
            self._active += (z != 0).sum(0)

    def result(self) -> Reconstruction:
        """Combine all batches into one result."""
        variance = self._square - self._sum.square().sum().item() / self._n
        fvu = self._error / variance if variance > 0 else float("nan")
        return Reconstruction(self._n, fvu, self._active.sum().item() / self._n, self._active.double() / self._n)


def batches_of(tokens: StoryTokens) -> list[StoryTokens]:
    """Stories of like length together, cut at the longest of them: little is spent on padding."""
    batches = []
    for rows in tokens.mask.sum(1).argsort().split(_STORIES_PER_BATCH):
        width = int(tokens.mask[rows].sum(1).max()) + 1
        batches.append(StoryTokens(tokens.ids[rows, :width], tokens.mask[rows, :width]))
    return batches


def _token_losses(model: nn.Module, batch: StoryTokens) -> float:
    """Sum of the cross-entropy at the tokens of the mask, each predicted from those before it."""
    ids = batch.ids.to(model_device(model))
    targets = batch.mask[:, 1:].to(ids.device)
    logits = run_logits(model, ids)[:, :-1][targets].float()
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][targets], reduction="sum").item()


def _side(model: nn.Module, dictionary: Dictionary) -> Side:
    """The side of an MLP that a dictionary sits at, if it fits there."""
    side = Side.of_model(model, dictionary.hook_name)
    if dictionary.d_in != (width := model_width(model)):
        raise ValueError(
            f"dictionary must fit the model, of width {width}, got {dictionary.name} with W_enc"
            f" {tuple(dictionary.W_enc.shape)}, of width {dictionary.d_in}. Is it of another model?"
        )
    return side


def _check_tokens(tokens: StoryTokens) -> None:
    if not tokens.mask.any():
        raise ValueError("tokens must hold at least one token besides [BOS] and padding, got none.")
