"""An account of a prompt as JSON: what the explorer shows and the server answers."""

from collections.abc import Callable
from typing import Any

import torch

from bilinear_circuits.data.token_texts import TokenTexts
from bilinear_circuits.interactions.ledger import PairContributions
from bilinear_circuits.prompts.accounts import FeatureAccount, NextTokens, PromptAccount
from bilinear_circuits.report.payload import plain
from bilinear_circuits.surgery.edits import FormEdit

N_PAIRS = 12


def prompt_payload(
    account: PromptAccount,
    text: str,
    tokenizer: Any,
    input_name: Callable[[int, int], str],
    n_pairs: int = N_PAIRS,
) -> dict[str, Any]:
    """A prompt as a JSON document: tokens, every feature's account at each of them, names of input features.

    Args:
        account: The prompt's account.
        text: The prompt as it was written.
        tokenizer: Gives token ids their text.
        input_name: Name of an input feature, from its layer and number; asked once for each feature listed.
        n_pairs: Pairs listed for each token; the sum of the others is `rest`.

    Returns:
        Dictionaries, lists, strings and finite numbers only; NaN and infinities become None.
    """
    texts = TokenTexts(tokenizer)
    mentioned: dict[int, set[int]] = {}
    for feature in account.features:
        listed = mentioned.setdefault(feature.layer, set())
        for pairs in feature.pairs:
            listed.update(torch.cat([pairs.first[:n_pairs], pairs.second[:n_pairs]]).tolist())
    document = {
        "text": text,
        "tokens": [texts(token_id) for token_id in account.token_ids.tolist()],
        "features": {feature.name: _feature(feature, texts, n_pairs) for feature in account.features},
        "labels": {
            layer: {one: input_name(layer, one) for one in sorted(listed)}
            for layer, listed in sorted(mentioned.items())
        },
    }
    return plain(document)


def _feature(account: FeatureAccount, texts: TokenTexts, n_pairs: int) -> dict[str, Any]:
    terms = {name: values.tolist() for name, values in account.ledger.terms.items()}
    return {
        "activation": account.activation,
        "pre_activation": account.pre_activation,
        "positions": [
            {"terms": {name: values[position] for name, values in terms.items()}, **_pairs(pairs, n_pairs)}
            for position, pairs in enumerate(account.pairs)
        ],
        "edit": {
            "description": _description(account.edit),
            "next": _next(account.next_tokens, texts),
        },
    }


def _description(edit: FormEdit) -> str:
    done = "removed from" if edit.factor == 0 else f"multiplied by {edit.factor:g} in"
    return f"rank-{edit.rank} form of {edit.name} {done} the weights"


def _pairs(pairs: PairContributions, n: int) -> dict[str, Any]:
    columns = (pairs.first, pairs.second, pairs.weights, pairs.contributions)
    return {
        "pairs": [list(row) for row in zip(*(column[:n].tolist() for column in columns), strict=True)],
        "n_pairs": len(pairs.contributions),
        "rest": pairs.contributions[n:].sum().item(),
    }


def _next(next_tokens: NextTokens, texts: TokenTexts) -> list[dict[str, Any]]:
    """One entry for each token of the prompt."""
    columns = {name: values.tolist() for name, values in vars(next_tokens).items()}

    def listed(position: int, ids: str, *values: str) -> list[list[Any]]:
        rows = zip(columns[ids][position], *(columns[value][position] for value in values), strict=True)
        return [[texts(token_id), *numbers] for token_id, *numbers in rows]

    return [
        {
            "before": listed(position, "before_ids", "before"),
            "after": listed(position, "after_ids", "after"),
            "changed": listed(position, "changed_ids", "changed_before", "changed_after"),
            "kl": kl,
        }
        for position, kl in enumerate(columns["kl"])
    ]
