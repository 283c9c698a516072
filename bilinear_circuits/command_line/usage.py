"""The usage line of a verb: what it needs first, then what may be left out, in brackets."""

import argparse
import re
import textwrap
from collections.abc import Sequence

_WIDTH = 100
_OPTIONAL_VALUE = re.compile(
    r"(--[\w-]+) \[(\w+)\]( ?)"
)  # simple-parsing's way to write an option that may be left out
_USAGE = re.compile(r"\Ausage: .*?(?=\n\n)", re.DOTALL)


def with_usage(text: str, prog: str, actions: Sequence[argparse.Action]) -> str:
    """Put the usage line of a verb into its help.

    Args:
        text: Help as argparse and simple-parsing write it.
        prog: The command.
        actions: Its arguments and options.
    """
    text = _OPTIONAL_VALUE.sub(lambda found: f"{found[1]} {found[2]}{3 * found[3]}", text)
    return _USAGE.sub(lambda _: usage(prog, actions), text, count=1)


def usage(prog: str, actions: Sequence[argparse.Action]) -> str:
    """Write the usage line: arguments, options that are needed, options that are not."""
    shown = [action for action in actions if action.help != argparse.SUPPRESS]
    places = [_name(action) for action in shown if not action.option_strings]
    needed = [_option(action) for action in shown if action.option_strings and action.required]
    left = [f"[{_option(action)}]" for action in shown if action.option_strings and not action.required]
    head = f"usage: {prog} "
    # An option and its value stay on one line: a space of another kind holds them together until the lines are made.
    words = [part.replace(" ", "\0") for part in (*places, *needed, *left)]
    lines = textwrap.wrap(" ".join(words), _WIDTH - len(head), break_long_words=False, break_on_hyphens=False)
    return head + f"\n{' ' * len(head)}".join(lines).replace("\0", " ")


def _option(action: argparse.Action) -> str:
    name = next(option_string for option_string in action.option_strings if option_string.startswith("--"))
    is_flag = action.nargs == 0 or isinstance(action.default, bool)
    return name if is_flag else f"{name} {_name(action)}"


def _name(action: argparse.Action) -> str:
    if action.choices is not None:
        return f"{{{','.join(map(str, action.choices))}}}"
    name = action.metavar if isinstance(action.metavar, str) else getattr(action.type, "__name__", "value")
    return f"{name.strip('[]')} ..." if action.nargs in ("*", "+") else name.strip("[]")
