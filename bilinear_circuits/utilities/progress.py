"""The one way analyses report progress: a callable that wraps an iterable. They never print."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Progress(Protocol):
    """Anything that yields the items of a sequence, reporting as it goes."""

    def __call__(self, items: Sequence[T], description: str, /) -> Iterable[T]:
        """Yield the items."""
        ...


def silent(items: Sequence[Any], description: str, /) -> Iterable[Any]:
    """Report nothing."""
    return items


def bar(items: Sequence[T], description: str, /) -> Iterable[T]:
    """Show a progress bar on stderr, there from the first moment: 0 of so many."""
    from tqdm import tqdm

    return tqdm(items, desc=description, file=sys.stderr, leave=False)
