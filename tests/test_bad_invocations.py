"""What no verb can be asked for, over all verbs and options: one line that names it, exit code 2, nothing changed."""

import argparse
import os
import sys
from collections import Counter

import pytest
from verbs import asked, write_world

from bilinear_circuits import cli
from bilinear_circuits.command_line.values import number, whole_number

PLACES = {
    "model", "models", "saes", "corpus", "circuit", "circuits", "labels", "query", "recipe", "prompts", "folder",
    "source", "tokenizer",
}  # fmt: skip
NO_TEXT = ("", "a\udcff", "a\0b")
NO_NUMBER = (
    "", " ", "x", "nan", "inf", "-inf", "1e400", "9" * 5000, "\u0663", "\uff11", "1\n", "1_0", "0x10", "1,5", "true",
    "\x1b[31m5",
)  # fmt: skip
NO_COUNT = (*NO_NUMBER, "1.5", "1e30", "-1", str(10**30))
NO_NAME = (*NO_TEXT, " ", "~nobody/x", "a" * 300, "a/" * 3000, "LOOP", "FILE/x")
NO_PLACE = (*NO_NAME, "MISSING", "DANGLING", "EMPTY", "BINARY", "/dev/null", "no/such", ".")
NO_FOLDER = (*NO_NAME, "a\nb", "a\x1b[31mb", "FILE", "/dev/null")
NO_FLAG = ("maybe", "2", "")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    made = write_world(root)
    assert cli.main(asked("circuits", made, root / "found")) == 0
    assert cli.main(asked("train-sae", made, root / "dictionaries")) == 0
    for name in ("bad", "bad/empty", "cwd"):
        (root / name).mkdir()
    (root / "bad/file").write_text("hello\n")
    (root / "bad/binary").write_bytes(bytes(range(256)))
    (root / "bad/loop").symlink_to(root / "bad/loop")
    (root / "bad/dangling").symlink_to(root / "bad/nowhere")
    made |= {name: str(root / "bad" / name.lower()) for name in ("FILE", "BINARY", "LOOP", "DANGLING", "EMPTY")}
    return root, made | {"FILE/x": str(root / "bad/file/x"), "MISSING": str(root / "bad/missing")}


def actions_of(verb, monkeypatch):
    """The arguments and options of a verb, from its own parser."""
    found = []
    with monkeypatch.context() as patched:
        patched.setattr(cli, "with_usage", lambda text, prog, actions: found.extend(actions) or text)
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
    return [action for action in found if action.dest != "help"]


def groups_of(words):
    """A command line as its options, each with its values; arguments without one are those of None."""
    groups, option = {None: []}, None
    for word in words:
        option = word if word.startswith("--") else option
        groups.setdefault(option, [])
        if word != option:
            groups[option].append(word)
    return groups


def words_of(groups):
    return [word for option, values in groups.items() for word in ([] if option is None else [option]) + values]


def bad_values(action, name):
    if action.option_strings and (action.nargs == 0 or isinstance(action.default, bool)):
        return NO_FLAG
    kinds = {whole_number: NO_COUNT, number: NO_NUMBER}
    if action.type in kinds:
        return kinds[action.type]
    if action.choices is not None:
        return (*NO_TEXT, "nope", "--")
    return NO_FOLDER if name == "out" else NO_PLACE if name in PLACES else NO_TEXT


def invocations(verb, actions, places):
    """What is wrong, how the refusal may name it, and the command line."""
    groups = groups_of(asked(verb, places, "OUT" if verb != "sample" else "OUT.txt")[1:])
    if any(action.required for action in actions):
        yield "nothing", ("required", "must be given"), []
    yield "unknown option", ("--nonsense",), [*words_of(groups), "--nonsense", "3"]
    yield "unknown letter", ("-z",), [*words_of(groups), "-z"]
    yield "stray word", ("stray", "circuits"), [*words_of(groups), "--", "stray"]
    for action in actions:
        option = next((text for text in action.option_strings if text.startswith("--")), None)
        name = action.dest.rpartition(".")[2]
        others = words_of({key: values for key, values in groups.items() if key != option})
        names = (name, name.rstrip("s"), option or action.metavar)
        free = verb == "import" and name == "model"  # a name that goes into the metadata
        for value in NO_TEXT if free else bad_values(action, name):
            given = [places.get(value, value)]
            words = given if option is None else [f"{option}={given[0]}"]
            yield f"{option or name} {value[:20]!r}", names, others + words if option else words + others
        values = groups.get(option, ["1"])
        if action.required:
            yield f"{option or name} left out", names, others
        if option is None:
            continue
        if action.nargs != 0 and not isinstance(action.default, bool):
            yield f"{option} without a value", names, [*others, option]
        if action.nargs in ("+", "*") and not isinstance(action, argparse._ExtendAction):
            yield f"{option} twice", names, [*others, option, *values, option, *values]
        for wrong in (option[:-1], f"{option}x", option.upper()):
            yield f"{option} as {wrong}", (wrong, f"required: {option}"), [*others, wrong, *values]


def snapshot(root):
    """Every folder, and every file with its state; a folder made for a run and taken away again is no trace."""
    found = {}
    for folder, folders, files in os.walk(root):
        found |= {os.path.join(folder, name): None for name in folders}
        for name in files:
            state = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def fault_of(words, names, capsys):
    """What a refusal lacks, if anything."""
    try:
        code = cli.main(words)
    except SystemExit as done:
        code = done.code
    except Exception as error:  # the one thing that must never come
        code = repr(error)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("loading ")]
    if code != 2:
        return f"code {code}: {err[-300:]!r}"
    if out or len(lines) != 1 or not lines[0].startswith("bilinear-circuits: error: "):
        return f"more than one line: {out[-300:]!r} {err[-300:]!r}"
    return None if any(name in lines[0] for name in names) else f"does not name {names[0]}: {lines[0]}"


@pytest.mark.slow
def test_every_bad_invocation_of_every_verb_is_refused(world, monkeypatch, capsys):
    root, places = world
    monkeypatch.chdir(root / "cwd")
    counts, faults, before = Counter(), [], snapshot(root)
    for verb in cli.VERBS:
        actions = actions_of(verb, monkeypatch)
        capsys.readouterr()
        for what, names, words in invocations(verb, actions, places):
            counts[verb] += 1
            if fault := fault_of([verb, *words], names, capsys):
                faults.append(f"{verb}, {what}: {fault}")
            if (after := snapshot(root)) != before:
                faults.append(f"{verb}, {what}: changed {sorted(after.items() ^ before.items())[:3]}")
                before = after
    with capsys.disabled():
        sys.stdout.write(f"\n{counts.total():,} bad invocations, {len(faults)} faults: {dict(counts)}\n")
    assert counts.total() >= 1950
    assert not faults, "\n".join(faults)
