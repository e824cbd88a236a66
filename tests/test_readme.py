"""The README is true: what it shows runs, offline, and gives what it says; commands, options and names are those that
there are."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLI = "gemma_np.cli.main"  # the module of main, parsed and parser
IN_BLOCKS = re.findall(r"^    (gemma-np .*)$", README, re.MULTILINE)
IN_SENTENCES = re.findall(r"`(gemma-np [^`]*)`", README)


def commands() -> list[str]:
    """The indented commands of the first screen, each on one line."""
    first_screen = README.split("## In Python")[0].replace(" \\\n", " ")
    return [" ".join(line.split()) for line in re.findall(r"^    (python3 .*)$", first_screen, re.MULTILINE)]


def test_the_first_command_prints_what_the_readme_says(tmp_path: Path) -> None:
    """All of it but the environment and the installation, which are those that the tests run in; offline."""
    command = commands()[0].split("pip install . && ")[1]
    command = command.replace("gemma-np", f"{sys.executable} -c 'import sys; from {CLI} import main; sys.exit(main())'")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"prints\n\n((?:    .*\n)+)", README)
    assert printed, "the README shows no output"
    assert done.stdout == re.sub(r"^    ", "", printed[1], flags=re.MULTILINE)


def test_the_second_command_is_the_test_command() -> None:
    assert commands()[1].endswith('pip install ".[test]" && python -m pytest')


def test_the_python_example_runs_and_finds_the_right_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("GEMMA_NP_MODEL", raising=False)
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    exec(block, {})
    numbers = [float(number) for number in re.findall(r"-?\d\.\d+", capsys.readouterr().out)]
    assert len(numbers) == 2
    assert numbers[0] > numbers[1], "Mars is the Red Planet"


def subcommands(name: str | None = None) -> dict[str, argparse.ArgumentParser]:
    """The commands' parsers; the one called `name` has its options."""
    top = importlib.import_module(CLI).parser(name)
    (found,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


@pytest.mark.parametrize("line", IN_BLOCKS)
def test_commands_are_accepted_as_shown(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[-1] != "\\":  # the first screen's, which runs, is in several lines
        importlib.import_module(CLI).parsed(words)


@pytest.mark.parametrize("command", IN_SENTENCES)
def test_commands_in_sentences_exist_with_their_options(command: str) -> None:
    _, name, *words = shlex.split(command)
    options = subcommands(name)[name].format_help()
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"^  .*(?<!\S){re.escape(word)}\b", options, re.MULTILINE), f"{name} has no {word}"


def test_every_command_is_shown() -> None:
    assert {shlex.split(line, comments=True)[1] for line in IN_BLOCKS} >= set(subcommands())


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    if not link.startswith("https://"):
        assert (ROOT / link).exists()
