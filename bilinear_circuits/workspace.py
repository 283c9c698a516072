"""One model, its dictionaries and a corpus, loaded once and asked many things: where a notebook begins."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bilinear_circuits import zoo
from bilinear_circuits.circuits import CircuitQuery, CircuitSearch, SearchSettings, find_circuits
from bilinear_circuits.circuits.query_file import read_query
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.data.stories import StoryTokens, tokenize_stories
from bilinear_circuits.data.token_texts import TokenTexts
from bilinear_circuits.discovery import DiscoverySearch, DiscoverySettings, discover
from bilinear_circuits.interactions.activity import LayerActivity, collect_activity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.fit import LEAST_RECOVERED, approximations
from bilinear_circuits.interactions.naming import FeatureNames
from bilinear_circuits.interactions.profiles import FeatureProfile, profile_feature
from bilinear_circuits.interventions import CircuitProofs, ProofSettings, prove_circuits
from bilinear_circuits.models.running import context_length, unembedding
from bilinear_circuits.prompts.accounts import PromptAccount, explain_prompt, prompt_tokens
from bilinear_circuits.report import circuits_page
from bilinear_circuits.report.pages import discovery_page, proof_page
from bilinear_circuits.runs.replacement import FIT_STORIES, Fit, read_layers
from bilinear_circuits.surgery import FormEdit, edit_model
from bilinear_circuits.utilities.devices import check_device
from bilinear_circuits.utilities.feature import Feature
from bilinear_circuits.utilities.kinds import check_kind
from bilinear_circuits.utilities.progress import Progress, bar
from bilinear_circuits.zoo.provenance import provenance

_SEARCH = "find_circuits returns one, and its only(['4/143']) keeps some of its circuits."
_RESULTS = "find_circuits, prove and discover return one each."


@dataclass(frozen=True, eq=False, repr=False)
class Workspace:
    """A model between dictionaries, and the stories it is read on; what is costly is done when it is first needed.

    Attributes:
        model_name: Name, folder or Hub id of the model.
        saes: Name or folder of its dictionaries.
        corpus: Where the stories are.
        model: The model, a TransformerBridge.
        interactions: Its layers between their dictionaries.
        stories: The stories.
        seed: Seed of everything random.
        progress: Wraps the long loops.
    """

    model_name: str
    saes: str
    corpus: Corpus
    model: Any
    interactions: tuple[FeatureInteractions, ...]
    stories: tuple[str, ...]
    seed: int
    progress: Progress

    def __repr__(self) -> str:
        layers = ", ".join(str(layer.mlp.layer) for layer in self.interactions)
        return f"Workspace({self.model_name!r}, layers [{layers}], {len(self.stories):,} stories, seed={self.seed})"

    @classmethod
    def open(
        cls,
        model: str = zoo.DEFAULT_MODEL,
        saes: str | None = None,
        corpus: str | Corpus | None = None,
        layers: int | Sequence[int] | None = None,
        n_stories: int = 2000,
        device: str = "cpu",
        seed: int = 0,
        progress: Progress = bar,
        approximate: Fit | None = None,
        least_recovered: float = LEAST_RECOVERED,
    ) -> "Workspace":
        """Load a model, dictionaries and stories.

        Args:
            model: A shipped model, a Hugging Face folder, or a Hub id.
            saes: Folder of dictionaries blocks.L.mlp.hook_in and hook_out; those shipped with the model by default.
            corpus: Stories: a file, a Hub id, or a `Corpus` that says how they are found; those shipped by default.
            layers: Layers, or one; all that have dictionaries by default.
            n_stories: Stories read.
            device: Where to compute.
            seed: Seed of everything random.
            progress: Wraps the long loops: bars on stderr by default; `utilities.progress.silent` shows nothing.
            approximate: How bilinear layers are fitted to MLPs with other gates, on the first 300 stories; see
                `runs.replacement.read_layers`. By default such models are refused.
            least_recovered: Least share of the variance of an MLP's output that a fitted layer must recover.

        Raises:
            FileNotFoundError: If the model, a dictionary or the corpus is missing.
            ValueError: If nothing is shipped for the model and dictionaries or corpus are not given, or what is given
                does not fit together.
        """
        zoo.model_path(model)  # an unknown model is the first thing to say
        check_device(device)
        if isinstance(n_stories, bool) or not isinstance(n_stories, int) or n_stories < 1:
            raise ValueError(f"n_stories must be a whole number, at least 1, got {n_stories!r}.")
        shipped = {"saes": (saes, "dictionaries"), "corpus": (corpus, "stories")}
        zoo.refuse_missing(model, {name: what for name, (given, what) in shipped.items() if given is None})
        saes, where = saes or model, corpus or model
        found = where if isinstance(where, Corpus) else Corpus(zoo.corpus_path(where))
        found.check()
        stories = tuple(found.read(n_stories))
        chosen = _chosen(layers, zoo.dictionary_layers(saes), saes)
        bridge = zoo.load_model(model, device)

        def fit_tokens() -> StoryTokens:
            return tokenize_stories(stories[:FIT_STORIES], bridge.tokenizer, context_length(bridge))

        mlps = read_layers(bridge, chosen, approximate, fit_tokens, progress)
        interactions = tuple(
            FeatureInteractions(mlp, *zoo.load_dictionaries(layer, saes, device), least_recovered=least_recovered)
            for layer, mlp in mlps.items()
        )
        return cls(model, saes, found, bridge, interactions, stories, seed, progress)

    @cached_property
    def tokens(self) -> StoryTokens:
        """The stories as tokens, cut at the context."""
        return tokenize_stories(self.stories, self.model.tokenizer, context_length(self.model))

    @cached_property
    def activity(self) -> tuple[LayerActivity, ...]:
        """Activity of the layers and their dictionaries on the stories."""
        return collect_activity(self.model, self.interactions, self.tokens, self.progress)

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, commit, hashes and seed, which it takes to repeat a result."""
        dictionaries = [dictionary for layer in self.interactions for dictionary in (layer.sae_in, layer.sae_out)]
        source = provenance(self.model_name, self.saes, dictionaries, self.corpus, len(self.stories))
        source |= approximations([one.mlp for one in self.interactions])
        return source | {"config": {"seed": self.seed, "layers": [layer.mlp.layer for layer in self.interactions]}}

    def layer(self, layer: int) -> FeatureInteractions:
        """The interactions of one layer.

        Raises:
            ValueError: If it was not opened.
        """
        known = {one.mlp.layer: one for one in self.interactions}
        if layer not in known:
            raise ValueError(f"layer must be one that was opened, {', '.join(map(str, known))}, got {layer!r}.")
        return known[layer]

    def find_circuits(self, query: CircuitQuery | str, settings: SearchSettings | None = None) -> CircuitSearch:
        """Find and prove the circuits that act at a query's triggers and move the model between its poles.

        Args:
            query: A query, or a shipped one's name or a YAML file, of which words and settings are taken.
            settings: How much is measured; by default what the file says.

        Raises:
            FileNotFoundError: If there is no query of that name, and no such file.
            TypeError: If it is neither.
            ValueError: If words or stories are too few for it, as for `circuits.find_circuits`.
        """
        if isinstance(query, str):
            file = read_query(query)
            query, settings = file.query, file.settings if settings is None else settings
        settings = SearchSettings() if settings is None else settings
        check_kind("settings", settings, SearchSettings, "Leave it out for the defaults.")
        context = min(settings.context, context_length(self.model))
        tokens = tokenize_stories(self.stories, self.model.tokenizer, context)
        return find_circuits(
            self.model, self.interactions, query, tokens, settings=settings, seed=self.seed, progress=self.progress
        )

    def prove(self, search: CircuitSearch, settings: ProofSettings | None = None) -> CircuitProofs:
        """Prove the circuits of a search edge by edge, on the stories that it held out.

        Raises:
            TypeError: If it is no search.
            ValueError: If one of them is active at too few triggers, as for `interventions.prove_circuits`.
        """
        check_kind("search", search, CircuitSearch, _SEARCH)
        return prove_circuits(
            self.model, self.interactions, search, self.stories, settings, self.seed, progress=self.progress
        )

    def edit(self, search: CircuitSearch, factor: float = 0.0, rank: int = 2) -> Any:
        """Multiply the rank-r forms of a search's circuits in the weights: a stock Llama; the model stays as it is.

        All circuits of the search are edited, of either pole, proved or not: `search.only(["4/143"])` keeps some.

        Args:
            search: The circuits.
            factor: 0 removes them, -1 inverts, 2 doubles.
            rank: Rank of the forms.

        Raises:
            TypeError: If it is no search.
            ValueError: If the factor is not finite, or the rank not between 1 and d_in.
        """
        check_kind("search", search, CircuitSearch, _SEARCH)
        if rank == 0:
            raise ValueError("rank must be at least 1 for an edit to change something, got 0.")
        edits = [FormEdit.of(self.layer(target.layer), target.feature, rank, factor) for target in search.targets]
        return edit_model(self.model, edits)

    def discover(self, settings: DiscoverySettings | None = None) -> DiscoverySearch:
        """Search all output features for motifs, without a query."""
        return discover(self.interactions, self.activity, settings, self.seed, self.progress)

    def profile(self, layer: int, feature: int) -> FeatureProfile:
        """Measure one output feature."""
        self.layer(layer)
        (activity,) = (
            layer_activity for layer_activity in self.activity if layer_activity.interactions.mlp.layer == layer
        )
        return profile_feature(activity, feature, unembedding(self.model).to(activity.x), self.model.tokenizer)

    def explain(self, prompt: str, features: Sequence[tuple[int, int] | str]) -> PromptAccount:
        """Account for output features, as (4, 143) or "4/143", at every token of a prompt.

        Raises:
            ValueError: If a feature or the prompt is none, as for `explain_prompt`.
        """
        tokens = prompt_tokens(prompt, self.model.tokenizer, context_length(self.model))
        given = [features] if isinstance(features, str) else features
        asked = [Feature.parse(feature) if isinstance(feature, str) else feature for feature in given]
        return explain_prompt(self.model, self.interactions, asked, tokens)

    def write_page(self, result: CircuitSearch | CircuitProofs | DiscoverySearch, path: str | Path) -> Path:
        """Write a search, its proofs, or motifs as one self-contained HTML file; its folder is made if needed.

        Raises:
            TypeError: If it is none of these.
            ValueError: If the path is a folder.
        """
        check_kind("result", result, (CircuitSearch, CircuitProofs, DiscoverySearch), _RESULTS)
        file = Path(path)
        if file.is_dir():
            raise ValueError(f"path must be a file, such as report.html, got {path}, which is a folder.")
        page = self._page(result)
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_name(f".{file.name}.part")
        half.write_text(page, encoding="utf-8")
        os.replace(half, file)
        return file

    def _page(self, result: CircuitSearch | CircuitProofs | DiscoverySearch) -> str:
        if isinstance(result, CircuitSearch):
            return circuits_page(result, self.provenance)
        if isinstance(result, CircuitProofs):
            return proof_page(result, self.provenance, TokenTexts(self.model.tokenizer))
        return discovery_page(result, (), (), FeatureNames(self.activity, self.model.tokenizer), self.provenance)


def _chosen(layers: int | Sequence[int] | None, known: Sequence[int], saes: str) -> list[int]:
    """The layers asked for, each once, of those that have dictionaries."""
    if layers is None:
        return list(known)
    asked = list(dict.fromkeys([layers] if isinstance(layers, int) else layers))
    if isinstance(layers, bool) or not asked or not set(asked) <= set(known):
        raise ValueError(
            f"layers must be layers that have dictionaries in {saes}, {', '.join(map(str, known))}, got {layers!r}."
        )
    return asked
