"""What no option of any verb can be is one line, whatever the verb, and nothing is written."""

import pytest

from bilinear_circuits.cli import main

MISTAKES = {
    ("lowrank", "--saes"): "argument --saes: expected one argument",
    ("discover", "--layers"): "argument --layers: expected at least one argument",
    ("circuits", "q.yaml", "--n-stories"): "argument --n-stories: expected one argument",
    ("interactions", "--layer", "1", "--out", "o", "--precision"): "argument --precision: expected one argument",
    (
        "lowrank",
        "--n-stories",
        "1_0",
    ): "argument --n-stories: invalid int value: '1_0': write a whole number such as 12.",
    ("lowrank", "--n-stories", "\u0663"): "argument --n-stories: invalid int value: ",
    ("lowrank", "--n-stories", "9" * 5000): "argument --n-stories: invalid int value: ",
    ("edit", "c.json", "--out", "o", "--factor", "1_0"): "argument --factor: invalid float value: '1_0'",
    ("discover", "--fdr", "1\n"): "argument --fdr: invalid float value: ",
    ("discover", "--fdr", "inf"): "fdr must be a finite number, got inf.",
    ("lowrank", "--ranks", "1", "--ranks", "2"): "ranks must be given once, got --ranks 2 times. Name all after one",
    (
        "lowrank",
        "--out",
        "~nobody/x",
    ): "out must be the name of a folder, got '~nobody/x': no shell has put a folder in",
    ("lowrank", "--out", "a\nb"): "out must be the name of a folder, got 'a\\nb': it holds a control character",
    ("lowrank", "--out", "a\udcff"): "out must be the name of a folder, got 'a\\udcff': it is not UTF-8",
    ("sample", "--out", "~/x.txt"): "out must be the name of a file, got '~/x.txt': no shell has put a folder in",
    ("sample", "--out", "a\udcff.txt"): "out must be the name of a file, got 'a\\udcff.txt': it is not UTF-8",
    ("sample", "--n", "99999999999", "--out", "s.txt"): "n must be at most 10,000,000, got 99,999,999,999: all of them",
    ("discover", "--replicates", "99999999999"): "replicates must be at most 10,000, got 99,999,999,999: all",
    ("discover", "--n-largest", "99999999999"): "n_largest must be at most 1,000,000, got 99,999,999,999: all",
    ("compare", "a", "b", "--n-shifts", "99999999999"): "n_shifts must be at most 100,000, got 99,999,999,999: all",
    ("lowrank", "--model", "~nobody/x"): "model must be the name of a file or folder, got '~nobody/x': no shell has",
    ("lowrank", "--saes", "a" * 300): "aaa'...: file name too long.",
    ("import", "p", "--out", "o", "--subfolder", ""): "subfolder must be the name of a file or folder, got ''.",
    (
        "graph",
        "--creator",
        "\udcff",
        "--prompt",
        "a",
        "--layer",
        "1",
        "--feature",
        "1",
        "--out",
        "o",
    ): "creator must be",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda arguments: ascii(" ".join(arguments))[:60])
def test_a_value_that_no_option_can_have_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("bilinear-circuits: error: ")
    assert captured.err.count("\n") == 1
    assert MISTAKES[arguments] in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--corpus", "--out"])
def test_a_link_to_itself_names_the_option(option, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for verb in ("lowrank", "sample") if option == "--out" else ("lowrank",):
        assert main([verb, option, str(tmp_path / "loop")]) == 2
        said = capsys.readouterr().err
        assert f"error: {option[2:]} must be the name of a f" in said
        assert "symbolic links" in said


def test_a_folder_that_begins_with_a_tilde_and_is_there_is_written(tmp_path, monkeypatch):
    from bilinear_circuits.command_line.common import check_out

    monkeypatch.chdir(tmp_path)
    (tmp_path / "~mine").mkdir()
    check_out("~mine/x")
    check_out("./~other/x")
