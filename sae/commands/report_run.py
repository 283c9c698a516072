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
    from sae.report.measure import SummaryMaker
    from sae.report.pages import DictionaryReport


class ReportRun:
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

    def shared(self, side: "Side", linked: Any) -> "DictionaryReport":
        """Gather what all pages of a dictionary share.

        Args:
            side: Which dictionary.
            linked: Features of the other one that have a page: "all", a list, or None.
        """
        from sae.report.pages import DictionaryReport

        other: Side = "in" if side == "out" else "out"
        corpus = records.display_name(corpus_of(self._arguments).path)
        return DictionaryReport(
            layer=self._arguments.layer,
            side=side,
            features=tuple(sorted(self._arguments.feature or range(self._d_sae(side)))),
            labels=self.names[side],
            other_labels=self.names[other],
            other_features=frozenset(range(self._d_sae(other)) if linked == "all" else linked or ()),
            source=f"Model {records.display_name(self._arguments.model)}, {len(self.activity.x):,} tokens of"
            f" {self._n_stories:,} stories of {corpus}.",
            fit=str(self.interactions.mlp.approximation or ""),
        )

    def report(self, shared: "DictionaryReport", folder: ReportFolder) -> "list[Row]":
        """Make the pages that are not there yet; rows of all of them."""
        chunks = chunks_of(shared.features)
        left = [index for index in range(len(chunks)) if not folder.finished(index)]
        if len(left) < len(chunks):
            common.note(
                f"{shared.side}put features: {len(chunks) - len(left)} of {len(chunks)} chunks are finished already"
            )
        if left:
            maker = PageMaker(self, shared, [feature for index in left for feature in chunks[index]])
            for index in common.bar(left, f"{shared.side}put features, chunks of {len(chunks[0])}"):
                folder.write(index, *maker.make(chunks[index]))
        rows = folder.rows(len(chunks))
        if (source := self.neuronpedia_source(shared.side)) is not None:
            from sae.report.neuronpedia import skipped

            folder.skip(skipped(source, [row.feature for row in rows if row.state == "dead"]))
        return rows

    def summaries(self, shared: "DictionaryReport") -> "SummaryMaker":
        """Makes the summaries of a dictionary."""
        from sae.report.measure import SummaryMaker

        return SummaryMaker(self.activity, shared.side, self._texts, self._unembedding, shared.labels)

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

    def __init__(self, report_run: ReportRun, shared: "DictionaryReport", features: Sequence[int]) -> None:
        self._desk, self._side, self._book, self._cards = report_run, shared.side, shared, report_run.summaries(shared)
        self._source = report_run.neuronpedia_source(shared.side)
        if shared.side == "out":
            from sae.report.outputs import N_PAIRS

            self._profiler = report_run.profiler(features)
            self._top = report_run.interactions.top(N_PAIRS, features, per_feature=True, progress=common.bar)
        else:
            from sae.report.uses import uses_by_activity, uses_by_weight

            everything = report_run.profiler(range(report_run.interactions.sae_out.d_sae))
            self._by_activity = uses_by_activity(everything, progress=common.bar)
            self._by_weight = uses_by_weight(report_run.interactions, features=features, progress=common.bar)

    def make(self, features: Sequence[int]) -> "tuple[dict[int, str], list[Row], dict[str, Any] | None]":
        """Pages, rows and batch of a chunk."""
        from sae.report.index import row_of
        from sae.report.pages import feature_page

        pages, rows, exported = {}, [], []
        for summary, reading in zip(self._cards.summaries(features), self._readings(features), strict=True):
            pages[summary.feature] = feature_page(self._book, summary, reading)
            rows.append(row_of(summary, reading))
            if self._source is not None and summary.bands:
                exported.append(self._exported(summary))
        if self._source is None:
            return pages, rows, None
        from sae.report.neuronpedia import batch

        return pages, rows, batch(self._source, exported)

    def _readings(self, features: Sequence[int]) -> Any:
        if self._side == "out":
            from sae.report.outputs import read_outputs

            return read_outputs(self._profiler, features, self._top)
        from sae.report.uses import read_inputs

        return (read_inputs(self._by_weight, self._by_activity, feature) for feature in features)

    def _exported(self, summary: Any) -> Any:
        from sae.report.neuronpedia import feature

        logits = self._desk.logits(summary.feature) if self._side == "out" else None
        return feature(self._source, summary, self._desk.vector(self._side, summary.feature), logits)
