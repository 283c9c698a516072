"""A query as a file: words, corpus and settings in YAML, by its path or by the name of a shipped one."""

from dataclasses import dataclass

from bilinear_circuits.circuits.query import CircuitQuery
from bilinear_circuits.circuits.settings import SearchSettings
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.yaml_files import from_mapping, read_yaml
from bilinear_circuits.zoo.configs import config_file


@dataclass(frozen=True)
class QueryFile:
    """A query as its file has it.

    Attributes:
        query: The query itself.
        settings: How much is measured.
        corpus: Stories to search on, if the file names them.
        n_stories: How many of them are read.
    """

    query: CircuitQuery
    settings: SearchSettings
    corpus: Corpus | None
    n_stories: int


def read_query(path: str) -> QueryFile:
    """Read a query, given by its file or by the name of a shipped one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or a key is unknown, missing or of the wrong kind.
    """
    content = read_yaml(config_file(path, "query", "circuits"), "query")
    settings = content.pop("settings", None)
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise ValueError(f"settings of {path} must be a mapping, got {settings!r}.")
    settings = from_mapping(SearchSettings, settings, f"settings of {path}")
    corpus, n_stories = content.pop("corpus", None), content.pop("n_stories", 2000)
    if isinstance(n_stories, bool) or not isinstance(n_stories, int) or n_stories < 1:
        raise ValueError(f"n_stories of {path} must be a positive whole number, got {n_stories!r}.")
    if not isinstance(corpus, str | None):
        raise ValueError(f"corpus of {path} must be a file, a Hub id or a shipped model's name, got {corpus!r}.")
    separator, column = content.pop("separator", None), content.pop("column", None)
    if corpus is None and (separator, column) != (None, None):
        raise ValueError(f"corpus of {path} must be given with its separator or column, got none.")
    query = from_mapping(
        CircuitQuery, content, f"query {path} (besides corpus, separator, column, n_stories and settings)"
    )
    found = None if corpus is None else Corpus(corpus, separator, column)
    return QueryFile(query, settings, found, n_stories)
