"""The command line: `bilinear-circuits VERB`. Verbs are modules that load their heavy imports when run."""

import contextlib
import difflib
import importlib
import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from bilinear_circuits.command_line import images
from bilinear_circuits.command_line.failures import MISTAKE, TRACEBACK, explain
from bilinear_circuits.command_line.outputs import check_apart
from bilinear_circuits.command_line.usage import with_usage
from bilinear_circuits.command_line.values import check_given_once, check_values, take_values, with_typos
from bilinear_circuits.utilities import processes

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
    "names": "bilinear_circuits.command_line.names",
    "graph": "bilinear_circuits.commands.graph",
    "approximate": "bilinear_circuits.commands.approximate",
    "convert": "bilinear_circuits.commands.convert",
    "paths": "bilinear_circuits.commands.paths",
    "heads": "bilinear_circuits.commands.heads",
    "interactions": "bilinear_circuits.commands.interactions",
    "lowrank": "bilinear_circuits.commands.lowrank",
    "sample": "bilinear_circuits.commands.sample",
    "train": "bilinear_circuits.commands.train",
    "train-sae": "sae.commands.train_sae",
    "evaluate-sae": "sae.commands.evaluate",
    "sae-progress": "sae.commands.progress",
    "import": "bilinear_circuits.commands.importing",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Each verb's module holds `Arguments`, a dataclass whose attribute docstrings are the help, and `run(arguments)`,
    which prints its result on stdout; progress goes to stderr.

    Returns:
        0; after one line on stderr 2 for a mistake in what was asked or a machine too small for it, 1 for a bug; 130
        after an interrupt.
    """
    # torch's OpenMP threads spin while they wait, which on a busy machine costs most of the time. It reads this once.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from bilinear_circuits.command_line.terminal import UnwrittenError, safe_terminal

    code = 0
    with safe_terminal():
        try:
            try:
                code = _main(list(sys.argv[1:] if argv is None else argv))
            finally:  # argparse leaves by SystemExit
                sys.stdout.flush()
        except UnwrittenError as error:
            return _fail(str(error))
        except BrokenPipeError:  # the reader of our output, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from bilinear_circuits import __version__

        print(__version__)
        return 0
    if argv[0] not in VERBS:
        close = difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f"Did you mean {close[0]}?" if close else "See bilinear-circuits --help."
        return _fail(f"verb must be one of {', '.join(VERBS)}, got {argv[0]}. {hint}")
    verb = importlib.import_module(VERBS[argv[0]])
    out: Path | None = None
    try:
        arguments = _parse(argv[0], verb, argv[1:])
        out = None if getattr(arguments, "out", None) is None else Path(arguments.out)
        claim = verb.results_folder(arguments) if hasattr(verb, "results_folder") else out
        if getattr(verb, "DISTRIBUTED", False) and not processes.is_first():
            claim = None  # the first of the processes that share the run holds its folder
        out = claim or out
        if getattr(arguments, "out", None) is not None:
            check_apart(arguments, Path(arguments.out))
        with _claimed(claim):
            if claim is not None and hasattr(verb, "OUTPUTS"):
                verb.OUTPUTS.check(claim, [images.FOLDER] if getattr(arguments, "images", None) else [])
            verb.run(arguments)
    except KeyboardInterrupt:
        print(f"interrupted: {_kept(out)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()  # here, where no control sequence of its message gets through
            return explain(error, out)[1]
        return _fail(*explain(error, out))
    return 0


@contextlib.contextmanager
def _claimed(out: Path | None) -> Iterator[None]:
    """The folder a run writes, held for it; a verb for which it is not simply its --out says so itself."""
    from bilinear_circuits.command_line.claims import claimed
    from bilinear_circuits.command_line.common import check_out

    check_out(None if out is None else str(out))
    with claimed(out):
        yield


def _kept(out: Path | None) -> str:
    """What an interrupt left."""
    if out is None or not out.is_dir() or not any(out.iterdir()):
        return "nothing was written"
    if any(out.glob("run.json")) or any(out.glob("*/run.json")):
        return f"the last finished step that was saved in {out} is kept; give the same command again to go on from it"
    return f"nothing is half written in {out}; give the same command again"


def _overview() -> str:
    lines = [
        "usage: bilinear-circuits VERB [options]",
        "",
        "Read circuits of bilinear language models out of their weights.",
        "",
    ]
    for name, path in VERBS.items():
        lines.append(f"  {name:<14}{_summary(importlib.import_module(path))}")
    lines += ["", "bilinear-circuits VERB --help explains a verb.", f"{TRACEBACK}=1 shows where an error comes from."]
    return "\n".join(lines)


def _summary(verb: ModuleType) -> str:
    return (verb.__doc__ or "").strip().splitlines()[0]


def _parse(name: str, verb: ModuleType, argv: Sequence[str]) -> Any:
    from simple_parsing import ArgumentParser, DashVariant

    class Parser(ArgumentParser):
        def _preprocessing(self, args: Sequence[str] = (), namespace: Namespace | None = None) -> None:
            super()._preprocessing(args, namespace)  # which makes the options of the dataclass
            take_values(self._actions)
            check_given_once(argv, self._actions)

        def format_help(self) -> str:
            # simple-parsing heads the options with the name of the dataclass, and names defaults of None.
            text = re.sub(r"\nArguments \['arguments'\]:\n.*\n", "", super().format_help(), count=1)
            text = re.sub(r"(--([\w-]+)) bool, --no\2 bool", r"\1", text)
            return with_usage(re.sub(r"\s+\(default:\s+(None|\[\])\)", "", text), self.prog, self._actions)

        def error(self, message: str) -> NoReturn:
            message = with_typos(message, argv, self._actions)
            sys.exit(_fail(f"{message}. See bilinear-circuits {name} --help."))

    parser = Parser(
        prog=f"bilinear-circuits {name}",
        description=verb.__doc__,
        allow_abbrev=False,
        add_option_string_dash_variants=DashVariant.DASH,
    )
    parser.add_arguments(verb.Arguments, dest="arguments")
    arguments = parser.parse_args(list(argv)).arguments
    check_values(arguments)
    return arguments


def _fail(message: str, code: int = MISTAKE) -> int:
    """One line on stderr, whatever a library put into its message."""
    print(f"bilinear-circuits: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
