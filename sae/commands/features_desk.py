"""The work of `features`: one model and corpus for both sides, and the pages of a dictionary chunk by chunk."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from sae.commands.report_folder import ReportFolder, chunks_of

if TYPE_CHECKING:
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.interactions.activity import LayerActivity, Side
    from bilinear_circuits.interactions.profiles import Profiler
    from sae.commands.features import Arguments
    from sae.report.index import Row
    from sae.report.measure import CardMaker
    from sae.report.pages import Book


class Desk:
    """Model, dictionaries and corpus of a run, and what both sides share."""

    def __init__(self, arguments: "Arguments", stories: list[str], only: "Side | None") -> None:
        from bilinear_circuits.data.token_texts import TokenTexts
        from bilinear_circuits.models.running import context_length, unembedding

        self._arguments, self._n_stories = arguments, len(stories)
        self._model, (self.interactions,) = common.load_interactions(arguments, [arguments.layer], only)
        self._tokens = tokenized(corpus_of(arguments), stories, self._model.tokenizer, context_length(self._model))
        self._texts, self._unembedding = TokenTexts(self._model.tokenizer), unembedding(self._model)

    @cached_property
    def activity(self) -> "LayerActivity":
        """The layer on the corpus, measured when it is needed first."""
        from bilinear_circuits.interactions.activity import collect_activity

        (activity,) = collect_activity(self._model, [self.interactions], self._tokens, common.bar)
        return activity

    @cached_property
    def names(self) -> "dict[Side, tuple[str, ...]]":
        """Names of all features of both dictionaries: fixed ones, or made of their tokens."""
        from bilinear_circuits.interactions.naming import all_labels

        sides: tuple[Side, ...] = ("in", "out")
        return {side: all_labels(self.activity, self._texts, side) for side in sides}

    def check_features(self, side: "Side") -> None:
        """Refuse features that the dictionary does not have.

        Raises:
            ValueError: If there is no such feature.
        """
        d_sae = self._d_sae(side)
        for feature in self._arguments.feature or ():
            if not 0 <= feature < d_sae:
                raise ValueError(
                    f"feature must be between 0 and {d_sae - 1}, one of the {side}put dictionary, got {feature}."
                )

    def book(self, side: "Side", linked: Any) -> "Book":
        """Gather what all pages of a dictionary share.

        Args:
            side: Which dictionary.
            linked: Features of the other one that have a page: "all", a list, or None.
        """
        from sae.report.pages import Book

        other: Side = "in" if side == "out" else "out"
        corpus = records.display_name(corpus_of(self._arguments).path)
        return Book(
            layer=self._arguments.layer,
            side=side,
            features=tuple(sorted(self._arguments.feature or range(self._d_sae(side)))),
            labels=self.names[side],
            other_labels=self.names[other],
            other_features=frozenset(range(self._d_sae(other)) if linked == "all" else linked or ()),
            source=f"Model {records.display_name(self._arguments.model)}, {len(self.activity.x):,} tokens of"
            f" {self._n_stories:,} stories of {corpus}.",
        )

    def report(self, book: "Book", folder: ReportFolder) -> "list[Row]":
        """Make the pages that are not there yet; rows of all of them."""
        chunks = chunks_of(book.features)
        left = [index for index in range(len(chunks)) if not folder.finished(index)]
        if len(left) < len(chunks):
            common.note(
                f"{book.side}put features: {len(chunks) - len(left)} of {len(chunks)} chunks are finished already"
            )
        if left:
            maker = PageMaker(self, book, [feature for index in left for feature in chunks[index]])
            for index in common.bar(left, f"{book.side}put features, chunks of {len(chunks[0])}"):
                folder.write(index, *maker.make(chunks[index]))
        rows = folder.rows(len(chunks))
        if (source := self.neuronpedia_source(book.side)) is not None:
            from sae.report.neuronpedia import skipped

            folder.skip(skipped(source, [row.feature for row in rows if row.state == "dead"]))
        return rows

    def cards(self, book: "Book") -> "CardMaker":
        """Makes the cards of a dictionary."""
        from sae.report.measure import CardMaker

        return CardMaker(self.activity, book.side, self._texts, self._unembedding, book.labels)

    def profiler(self, features: Sequence[int]) -> "Profiler":
        """Measures output features."""
        from bilinear_circuits.interactions.profiles import Profiler

        return Profiler(self.activity, self._unembedding, self._texts, features)

    def vector(self, side: "Side", feature: int) -> Any:
        """Decoder row of a feature."""
        return self._dictionary(side).W_dec[feature]

    def logits(self, feature: int) -> Any:
        """Read the decoder row of an output feature by the logits."""
        row = self.interactions.sae_out.W_dec[feature]
        return row @ self._unembedding.to(row)

    def neuronpedia_source(self, side: "Side") -> Any:
        """Describe where the batches of a dictionary come from; None where none are asked for."""
        if not self._arguments.neuronpedia:
            return None
        from sae.report.neuronpedia import Source

        lengths = self._tokens.mask.sum(1)
        return Source(
            model_id=records.display_name(self._arguments.model),
            layer=self._arguments.layer,
            sae_set=records.display_name(common.saes_of(self._arguments)),
            side=side,
            d_sae_out=self._d_sae("out"),
            dataset=records.display_name(corpus_of(self._arguments).path),
            n_prompts=self._n_stories,
            n_tokens_in_prompt=int(lengths.max()),
        )

    def _d_sae(self, side: "Side") -> int:
        return self._dictionary(side).d_sae

    def _dictionary(self, side: "Side") -> "Dictionary":
        return self.interactions.sae_in if side == "in" else self.interactions.sae_out


class PageMaker:
    """Makes the pages of one dictionary: what all of them need is measured here, once."""

    def __init__(self, desk: Desk, book: "Book", features: Sequence[int]) -> None:
        self._desk, self._side, self._book, self._cards = desk, book.side, book, desk.cards(book)
        self._source = desk.neuronpedia_source(book.side)
        if book.side == "out":
            from sae.report.outputs import N_PAIRS

            self._profiler = desk.profiler(features)
            self._top = desk.interactions.top(N_PAIRS, features, per_feature=True, progress=common.bar)
        else:
            from sae.report.feeds import feeds_by_activity, feeds_by_weight

            everything = desk.profiler(range(desk.interactions.sae_out.d_sae))
            self._by_activity = feeds_by_activity(everything, progress=common.bar)
            self._by_weight = feeds_by_weight(desk.interactions, features=features, progress=common.bar)

    def make(self, features: Sequence[int]) -> "tuple[dict[int, str], list[Row], dict[str, Any] | None]":
        """Pages, rows and batch of a chunk."""
        from sae.report.index import row_of
        from sae.report.pages import feature_page

        pages, rows, exported = {}, [], []
        for card, reading in zip(self._cards.cards(features), self._readings(features), strict=True):
            pages[card.feature] = feature_page(self._book, card, reading)
            rows.append(row_of(card, reading))
            if self._source is not None and card.bands:
                exported.append(self._exported(card))
        if self._source is None:
            return pages, rows, None
        from sae.report.neuronpedia import batch

        return pages, rows, batch(self._source, exported)

    def _readings(self, features: Sequence[int]) -> Any:
        if self._side == "out":
            from sae.report.outputs import read_outputs

            return read_outputs(self._profiler, features, self._top)
        from sae.report.feeds import read_inputs

        return (read_inputs(self._by_weight, self._by_activity, feature) for feature in features)

    def _exported(self, card: Any) -> Any:
        from sae.report.neuronpedia import feature

        logits = self._desk.logits(card.feature) if self._side == "out" else None
        return feature(self._source, card, self._desk.vector(self._side, card.feature), logits)
