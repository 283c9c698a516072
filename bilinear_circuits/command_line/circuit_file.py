"""Reading circuit.json, which `bilinear-circuits circuits` writes: the one place that knows and checks its layout."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.corpus import corpus_of
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.feature import Feature
from bilinear_circuits.utilities.folders import Fingerprint, file_hash

if TYPE_CHECKING:
    from bilinear_circuits.circuits import CircuitQuery, SearchSettings, Target

_KIND, _SCHEMA_VERSION = "circuit search", 2  # as `report.payload.search_payload` writes them
_HASH_LENGTH = 64


@dataclass(frozen=True)
class CircuitFile:
    """What a circuit.json holds, as far as proving or editing its circuits needs it.

    Attributes:
        query: Triggers and poles.
        targets: The circuits, best first, positive pole before negative.
        settings: How much the search measured.
        seed: Seed of the search: with corpus and number of stories it gives the stories that were held out.
        n_stories: Stories the search read.
        model: Name or folder of the model it read.
        model_files: SHA-256 of every file that decides what that model computes.
        saes: Name or folder of the dictionaries.
        dictionary_files: The same of every dictionary, by its name, such as blocks.4.mlp.hook_in.
        corpus: Name of the corpus, and how stories are found in it.
        corpus_hash: SHA-256 of the corpus; None where it was on the Hub.
        approximate: How bilinear layers were fitted to a model with other gates; None where its layers are bilinear.
    """

    query: "CircuitQuery"
    targets: "tuple[Target, ...]"
    settings: "SearchSettings"
    seed: int
    n_stories: int
    model: str
    model_files: Fingerprint
    saes: str
    dictionary_files: Mapping[str, Fingerprint]
    corpus: Corpus
    corpus_hash: str | None
    approximate: str | None = None

    @property
    def layers(self) -> list[int]:
        """Layers of the circuits, each once, in order."""
        return sorted({target.layer for target in self.targets})

    def only(self, names: Sequence[str]) -> "CircuitFile":
        """Keep some of the circuits, by their names (4/143), in the order asked for.

        Raises:
            ValueError: If there is none of that name, or none is asked for.
        """
        from bilinear_circuits.circuits.target import named

        return replace(self, targets=named(self.targets, names))

    def is_corpus(self, corpus: Corpus) -> bool:
        """Compare a corpus, and how its stories are found, with the one that the search read."""
        return self._same_text(corpus) and replace(corpus, path=self.corpus.path) == self.corpus

    def corpus_of(self, arguments: common.CommonArguments) -> Corpus:
        """The corpus asked for; where it is that of the search, its stories are found as the search did."""
        same = arguments.separator is None and arguments.column is None
        corpus = corpus_of(arguments)
        return replace(self.corpus, path=corpus.path) if same and self._same_text(corpus) else corpus

    def _same_text(self, corpus: Corpus) -> bool:
        found = file_hash(corpus.path)
        return found == self.corpus_hash and (found is not None or corpus.path == self.corpus.path)

    def check_source(self, arguments: common.CommonArguments) -> None:
        """Refuse a model or dictionaries other than those the circuits were found in, by the hashes of their files.

        Raises:
            FileNotFoundError: If there is no such model or dictionary.
            ValueError: If a file that decides what they compute differs.
        """
        if different := self.model_files.differences(zoo.model_fingerprint(arguments.model)):
            raise ValueError(
                f"model must be the one the circuits were found in, {self.model}, got {arguments.model}, whose"
                f" {', '.join(different)} differ. Pass --model and --saes as for circuits."
            )
        given = getattr(arguments, "approximate", None)
        if given != self.approximate and hasattr(arguments, "approximate"):
            found = "without it" if self.approximate is None else f"with --approximate {self.approximate}"
            got = "left out" if given is None else given
            raise ValueError(f"approximate must be as for circuits, which were found {found}, got {got}.")
        if given != self.approximate:
            raise ValueError(
                f"circuit must be of a bilinear model, got one that was found with --approximate {self.approximate}:"
                " weights of other gates hold no form. Write a bilinear model with bilinear-circuits approximate, and"
                " find circuits in that."
            )
        saes = zoo.dictionaries_path(common.saes_of(arguments))
        for name, known in self.dictionary_files.items():
            folder = zoo.dictionary_folder(saes, name)
            here = Fingerprint({}) if folder is None else zoo.dictionary_fingerprint(folder)
            if different := known.differences(here):
                raise ValueError(
                    f"saes must be the dictionaries the circuits were found with, {self.saes}, got"
                    f" {records.display_name(str(saes))}, in whose {name} {', '.join(different)} differ."
                )


def read_circuit_file(path: str) -> CircuitFile:
    """Read and check a circuit.json.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON, or not what `bilinear-circuits circuits` writes.
    """
    from bilinear_circuits.circuits import CircuitQuery, SearchSettings

    document = _document(path)
    query = common.from_mapping(CircuitQuery, _typed(document, "query", dict, path), f"query of {path}")
    settings = common.from_mapping(SearchSettings, _typed(document, "settings", dict, path), f"settings of {path}")
    source = _typed(document, "provenance", dict, path)
    model = _typed(source, "model", dict, f"provenance of {path}")
    config = _typed(source, "config", dict, f"provenance of {path}")
    corpus = _typed(source, "corpus", dict, f"provenance of {path}")
    dictionaries = _typed(source, "dictionaries", list, f"provenance of {path}")
    targets = [
        _target(circuit, f"circuits[{index}] of {path}")
        for index, circuit in enumerate(_typed(document, "circuits", list, path))
    ]
    names = [target.name for target in targets]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"circuits of {path} must be one or more, each once, got {', '.join(names) or 'none'}.")
    seed = _typed(document, "seed", int, path)
    common.check_seed(seed)
    where = f"dictionaries of {path}"
    return CircuitFile(
        query=query,
        targets=tuple(targets),
        settings=settings,
        seed=seed,
        n_stories=_counted(corpus, "n_stories", 1, f"corpus of {path}"),
        model=_typed(model, "name", str, f"model of {path}"),
        model_files=_files(model, f"model of {path}"),
        saes=_typed(config, "saes", str, f"config of {path}"),
        dictionary_files={_typed(source, "name", str, where): _files(source, where) for source in dictionaries},
        corpus=Corpus(_typed(corpus, "name", str, f"corpus of {path}"), corpus.get("separator"), corpus.get("column")),
        corpus_hash=_hash(corpus, f"corpus of {path}"),
        approximate=config.get("approximate") if source.get("approximations") else None,
    )


def _document(path: str) -> dict[str, Any]:
    """The file as a mapping, of the right kind and version."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"circuit must be a circuit.json of bilinear-circuits circuits, got {path}: no file.")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"circuit must be a JSON file, got {path}: {error}") from error
    kind = document.get("kind") if isinstance(document, dict) else None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if kind != _KIND or version != _SCHEMA_VERSION:
        raise ValueError(
            f"circuit must be a {_KIND!r} of version {_SCHEMA_VERSION}, as bilinear-circuits circuits writes, got"
            f" {path} with kind {kind!r:.40} and version {version!r:.40}. Give the circuits command again."
        )
    return document


def _target(content: Any, where: str) -> "Target":
    """One entry of `circuits`."""
    from bilinear_circuits.circuits.target import Target

    evidence, profile = (_typed(content, key, dict, where) for key in ("evidence", "profile"))
    groups = _typed(profile, "groups", dict, f"profile in {where}")
    first, second = (
        tuple(
            _counted(one, "feature", 0, f"group {name!r} in {where}")
            for one in _typed(groups, name, list, f"groups in {where}")
        )
        for name in ("first", "second")
    )
    sign = _typed(evidence, "sign", int, f"evidence in {where}")
    if sign not in (1, -1):
        raise ValueError(f"sign in evidence in {where} must be 1 or -1, got {sign}.")
    layer, feature = (_counted(evidence, name, 0, f"evidence in {where}") for name in ("layer", "feature"))
    return Target(layer, feature, sign, (first, second))


def _typed(content: Any, key: str, kind: type, where: str) -> Any:
    """The value of a key, which must be there and of the kind given; true and false are no numbers."""
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{where} must hold the key {key}, got {content!r:.60}.")
    value = content[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {dict: "a mapping", list: "a list", str: "a text", int: "a whole number"}
        raise ValueError(f"{key} of {where} must be {names[kind]}, got {value!r:.60}.")
    return value


def _counted(content: Any, key: str, least: int, where: str) -> int:
    """A whole number of at least `least`."""
    value = _typed(content, key, int, where)
    if value < least:
        raise ValueError(f"{key} of {where} must be at least {least}, got {value}.")
    return value


def _files(content: Any, where: str) -> Fingerprint:
    """The hashes of a model's or dictionary's files in the provenance."""
    files = _typed(content, "files", dict, where)
    for name, value in files.items():
        if not isinstance(value, str) or len(value) != _HASH_LENGTH:
            raise ValueError(f"{name} of files of {where} must be a SHA-256, got {value!r:.80}.")
    return Fingerprint(files)


def _hash(content: Any, where: str) -> str | None:
    """The SHA-256 of an entry of the provenance, or None."""
    if isinstance(content, dict) and content.get("sha256", "") is None:
        return None
    value = _typed(content, "sha256", str, where)
    if len(value) != _HASH_LENGTH:
        raise ValueError(f"sha256 of {where} must have {_HASH_LENGTH} characters, got {value!r:.80}.")
    return value


def read_ranking(path: str) -> dict[Feature, int]:
    """Every feature the search scored in full, best first, and the pole it pushes to, 1 or -1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON, or not what `bilinear-circuits circuits` writes.
    """
    ranking: dict[Feature, int] = {}
    for index, evidence in enumerate(_typed(_document(path), "ranking", list, path)):
        where = f"ranking[{index}] of {path}"
        layer, feature = (_counted(evidence, name, 0, where) for name in ("layer", "feature"))
        sign = _typed(evidence, "sign", int, where)
        if sign not in (1, -1):
            raise ValueError(f"sign of {where} must be 1 or -1, got {sign}.")
        ranking.setdefault(Feature(layer, feature), sign)
    return ranking


def read_proofs(path: str) -> dict[str, dict[str, Any]]:
    """Read the proofs of every circuit of the file, by name: verdict, effects, pole and its words.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON, or not what `bilinear-circuits circuits` writes.
    """
    document = _document(path)
    query = _typed(document, "query", dict, path)
    proofs = {}
    for index, circuit in enumerate(_typed(document, "circuits", list, path)):
        where = f"circuits[{index}] of {path}"
        known, verdict, proof = (
            _target(circuit, where),
            *(_typed(circuit, key, dict, where) for key in ("verdict", "proof")),
        )
        pole = "positive" if known.sign > 0 else "negative"
        effects = {name: _typed(proof, name, dict, where) for name in ("removal", "control", "ce_removal")}
        proofs[known.name] = {**verdict, "pole": pole, "words": _typed(query, pole, list, path), **effects}
    return proofs
