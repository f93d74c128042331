"""The command line's table, its help and the one-paragraph errors."""

import subprocess
import sys

import pytest

from statefield.cli.main import VERBS, main


def test_every_verb_in_the_table_can_be_loaded():
    for verb in VERBS.values():
        assert callable(verb.load())


def test_help_names_every_command_without_importing_torch():
    code = "import sys; from statefield.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for words in VERBS:
        assert " ".join(words) in shown


def test_a_field_alone_shows_its_verbs(capsys):
    assert main(["medical"]) == 0
    shown = capsys.readouterr().out
    assert "medical train" in shown and "medical predict" in shown and "convert" not in shown


@pytest.mark.parametrize("words", [["medcal", "train"], ["medical", "trian"]])
def test_an_unknown_command_is_a_paragraph_with_a_suggestion_and_status_2(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "did you mean" in said and "medical" in said and "Traceback" not in said
