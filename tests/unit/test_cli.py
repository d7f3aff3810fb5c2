"""The command lines: every verb explains itself, and errors are messages."""

import subprocess
import sys
from importlib import import_module
from typing import get_type_hints

import pytest

from ringmoe.cli.console import guarded
from ringmoe.cli.main import VERBS, find, usage
from ringmoe.errors import SceneError


def _ringmoe(*arguments: str) -> subprocess.CompletedProcess:
    code = "from ringmoe.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_a_function_of_one_config(name):
    function = getattr(import_module(VERBS[name].module), VERBS[name].function)
    assert set(get_type_hints(function)) == {"config", "return"}
    assert name in usage()


def test_two_words_are_found_before_one():
    assert find(["shards", "build", "a", "--x"]) == ("shards build", ["a", "--x"])
    assert find(["models", "--json"]) == ("models", ["--json"])
    assert find(["shards"]) is None


def test_an_unknown_verb_lists_those_there_are():
    answer = _ringmoe("shard", "build")
    assert answer.returncode == 2
    assert "no verb 'shard build'" in answer.stdout
    assert "shards build" in answer.stdout


def test_help_of_a_verb_names_its_options():
    answer = _ringmoe("synth", "--help")
    assert answer.returncode == 0
    assert "--seed" in answer.stdout


def _raises(error: BaseException) -> None:
    raise error


def test_what_a_user_can_mend_is_a_message_and_exit_code_2(capsys):
    assert guarded(lambda: _raises(SceneError("scene [x].tif is short: download it again"))) == 2
    assert "scene [x].tif is short: download it again" in capsys.readouterr().err
    assert guarded(lambda: _raises(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: _raises(ZeroDivisionError()))
