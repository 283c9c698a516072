"""The command line: `bilinear-circuits VERB`. Verbs are modules that load their heavy imports when run."""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

VERBS = {
    "circuits": "bilinear_circuits.commands.circuits",
    "explore": "bilinear_circuits.commands.explore",
    "serve": "bilinear_circuits.commands.serve",
    "prove": "bilinear_circuits.commands.prove",
    "edit": "bilinear_circuits.commands.edit",
    "compare": "bilinear_circuits.commands.compare",
    "discover": "bilinear_circuits.commands.discover",
    "inspect": "bilinear_circuits.commands.inspect",
    "features": "sae.commands.features",
    "graph": "bilinear_circuits.commands.graph",
    "interactions": "bilinear_circuits.commands.interactions",
    "lowrank": "bilinear_circuits.commands.lowrank",
    "sample": "bilinear_circuits.commands.sample",
    "train": "bilinear_circuits.commands.train",
    "train-sae": "sae.commands.train_sae",
    "evaluate-sae": "sae.commands.evaluate",
    "sae-progress": "sae.commands.progress",
    "import": "bilinear_circuits.commands.importing",
}
_TRACEBACK = "BILINEAR_CIRCUITS_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Each verb's module holds `Arguments`, a dataclass whose attribute docstrings are the help, and `run(arguments)`,
    which prints its result on stdout; progress goes to stderr.

    Returns:
        0, or 2 for a mistake in what was asked (one line on stderr), or 130 after an interrupt.
    """
    # torch's OpenMP threads spin while they wait, which on a busy machine costs most of the time. It reads this once.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from bilinear_circuits import __version__

        print(__version__)
        return 0
    if argv[0] not in VERBS:
        return _fail(f"verb must be one of {', '.join(VERBS)}, got {argv[0]}. See bilinear-circuits --help.")
    verb = importlib.import_module(VERBS[argv[0]])
    try:
        verb.run(_parse(argv[0], verb, argv[1:]))
    except (ValueError, OSError) as error:
        if os.environ.get(_TRACEBACK):
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _overview() -> str:
    lines = [
        "usage: bilinear-circuits VERB [options]",
        "",
        "Read circuits of bilinear language models out of their weights.",
        "",
    ]
    for name, path in VERBS.items():
        lines.append(f"  {name:<14}{_summary(importlib.import_module(path))}")
    lines += ["", "bilinear-circuits VERB --help explains a verb.", f"{_TRACEBACK}=1 shows where an error comes from."]
    return "\n".join(lines)


def _summary(verb: ModuleType) -> str:
    return (verb.__doc__ or "").strip().splitlines()[0]


def _parse(name: str, verb: ModuleType, argv: Sequence[str]) -> Any:
    from simple_parsing import ArgumentParser, DashVariant

    class Parser(ArgumentParser):
        def format_help(self) -> str:
            # simple-parsing heads the options with the name of the dataclass, and names defaults of None.
            text = re.sub(r"\nArguments \['arguments'\]:\n.*\n", "", super().format_help(), count=1)
            return re.sub(r"\s+\(default:\s+None\)", "", text)

        def error(self, message: str) -> NoReturn:
            sys.exit(_fail(f"{message}. See bilinear-circuits {name} --help."))

    parser = Parser(
        prog=f"bilinear-circuits {name}",
        description=verb.__doc__,
        allow_abbrev=False,
        add_option_string_dash_variants=DashVariant.DASH,
    )
    parser.add_arguments(verb.Arguments, dest="arguments")
    return parser.parse_args(list(argv)).arguments


def _fail(message: str) -> int:
    """One line on stderr, whatever a library put into its message."""
    print(f"bilinear-circuits: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
