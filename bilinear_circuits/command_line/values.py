"""What no option of any verb can be, refused where the command line is read, before a verb sees it."""

import argparse
import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from errno import ENOENT, ENOTDIR
from pathlib import Path
from typing import Any

# Options that name files, folders or what is on the Hub; what a verb says of its own folder, it says itself.
_PLACES = ("model", "models", "saes", "corpus", "circuit", "circuits", "labels", "query", "recipe", "prompts", "folder",
           "source", "subfolder", "tokenizer")  # fmt: skip
_CLOSE = 0.75  # how alike a wrong option is to the one that was meant
_SHOWN = 60  # characters of a value in a message
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE)


def take_values(actions: Sequence[argparse.Action]) -> None:
    """Let every option that is no flag need its value, and read numbers as people write them.

    simple-parsing lets the value of an option with the default None be left out, which then means the default: half a
    command would run as a whole one. Python's own int and float read 1_0, digits of other scripts and line ends.
    """
    for action in actions:
        if not action.option_strings or action.nargs == 0 or isinstance(action.default, bool):
            continue
        action.nargs = {"?": None, "*": "+"}.get(str(action.nargs), action.nargs)
        if action.metavar == "[list]":  # simple-parsing's; what the list holds says more
            action.metavar = getattr(action.type, "__name__", "value")
        if reader := _READERS.get(action.type):
            shown, action.type = reader
            action.metavar = action.metavar or shown


def whole_number(text: str) -> int:
    """Read a whole number.

    Raises:
        argparse.ArgumentTypeError: If it is none, or has more digits than Python reads.
    """
    try:
        return int(_matching(_WHOLE, text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"invalid int value: {short(text)}: write a whole number such as 12"
        ) from error


def number(text: str) -> float:
    """Read a number; that it is finite is checked with all others.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    try:
        return float(_matching(_NUMBER, text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid float value: {short(text)}: write a number such as 0.5") from error


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(text)
    return text


# What help shows, and what reads it.
_READERS: Mapping[Any, tuple[str, Callable[[str], float]]] = {int: ("int", whole_number), float: ("float", number)}


def check_given_once(words: Sequence[str], actions: Sequence[argparse.Action]) -> None:
    """Refuse an option of several values given again, whose first ones argparse would drop, and a mark for a value.

    Of an option with one value the last counts, as everywhere on command lines.

    Args:
        words: The command line after the verb.
        actions: Arguments and options of the verb.

    Raises:
        ValueError: If there is one.
    """
    own = {name: action for action in actions for name in action.option_strings}
    options = words[: words.index("--")] if "--" in words else words
    given = Counter(action.dest for word in options if (action := own.get(word.partition("=")[0])) is not None)
    for word in options:
        name, _, value = word.partition("=")
        if name in own and value == "--":  # which argparse reads as no value at all
            raise ValueError(f"{own[name].dest.rpartition('.')[2]} must have a value, got {word}.")
    for action in actions:
        several = action.nargs in ("+", "*") and not isinstance(action, argparse._ExtendAction)
        if given[action.dest] > 1 and several:
            name, option = action.dest.rpartition(".")[2], action.option_strings[0]
            raise ValueError(
                f"{name} must be given once, got {option} {given[action.dest]} times. Name all after one {option}."
            )


def check_values(arguments: Any) -> None:
    """Refuse numbers that nothing can be counted or measured with, and texts that name nothing.

    Raises:
        ValueError: If there is one.
    """
    for name, given in vars(arguments).items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str):
                _check_text(name, value)
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} must be a number of at most 63 bits, got one of {value.bit_length()} bits.")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}.")


def with_typos(message: str, words: Sequence[str], actions: Sequence[argparse.Action]) -> str:
    """Add to what argparse says of a command line which of its options are none, and which were meant.

    argparse names options that are missing first, and so does not name the one that was written wrong.
    """
    known = [name for action in actions for name in action.option_strings]
    options = words[: words.index("--")] if "--" in words else words
    wrong = [word.partition("=")[0] for word in options if word.startswith("--") and len(word) > len("--")]
    hints = []
    for name in dict.fromkeys(name for name in wrong if name not in known):
        close = difflib.get_close_matches(name, known, n=1, cutoff=_CLOSE)
        hints.append(f"{name} is no option" + (f", did you mean {close[0]}?" if close else "."))
    return f"{message}: {' '.join(hints)}".rstrip(".") if hints else message


def check_least(arguments: Any, **least: int) -> None:
    """Refuse counts below the least that makes sense; options that may be left out may be None.

    Args:
        arguments: Arguments of a verb.
        least: The least of each, by its name.

    Raises:
        ValueError: If one is below.
    """
    for name, limit in least.items():
        if (value := getattr(arguments, name)) is not None and value < limit:
            raise ValueError(f"{name} must be at least {limit}, got {value}.")


def check_most(arguments: Any, **most: int) -> None:
    """Refuse counts of what is made one by one and held together, where no machine holds or finishes it.

    Args:
        arguments: Arguments of a verb.
        most: The most of each, by its name.

    Raises:
        ValueError: If one is above.
    """
    for name, limit in most.items():
        if (value := getattr(arguments, name)) > limit:
            raise ValueError(f"{name} must be at most {limit:,}, got {value:,}: all of them are held at once.")


def _check_text(name: str, text: str) -> None:
    """Refuse a text of no encoding, a blank one, and a place whose name no file can have."""
    if name == "out":
        return  # by common.check_out, and by the verb that writes a file
    what = "the name of a file or folder" if name in _PLACES else "text"
    if reason := why_no_name(text) if name in _PLACES else _why_no_text(text):
        raise ValueError(f"{name} must be {what}, got {short(text)}: {reason}.")
    if not text.strip() and name != "separator":  # which may be a line end
        option = f"--{name.replace('_', '-')}"
        raise ValueError(f"{name} must be {what}, got {text!r}. Write one, or leave {option} out where it may be.")


def why_no_name(text: str, new: bool = False) -> str | None:
    """Say why a text is the name of no file or folder.

    Args:
        text: The text.
        new: Whether it is for something to be written, in whose name control characters would stay.
    """
    if reason := _why_no_text(text):
        return reason
    if new and _CONTROL.search(text):
        return "it holds a control character, such as a line end"
    home = Path(text).parts[0] if text.startswith("~") else ""
    try:
        if home and not Path(home).exists():
            return f"no shell has put a folder in place of {home}. Write that in full, or ./{home} if it is a name"
        Path(text).stat()
    except OSError as error:
        return None if error.errno in (ENOENT, ENOTDIR) else str(error.strerror).lower()
    return None


def _why_no_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    return "it holds a zero byte" if "\0" in text else None


def short(text: str) -> str:
    """Show a value in a message: as Python writes it, cut where it is long."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."
