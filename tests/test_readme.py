"""The README's first screen is true: its first command runs as printed, offline, and its output is what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """The indented commands of the first screen, each on one line."""
    first_screen = README.split("## In Python")[0].replace(" \\\n", " ")
    return [" ".join(line.split()) for line in re.findall(r"^    (python3 .*)$", first_screen, re.MULTILINE)]


def test_the_first_command_prints_what_the_readme_says(tmp_path: Path) -> None:
    """All of it but the environment and the installation, which are those that the tests run in; offline."""
    command = commands()[0].split("pip install . && ")[1]
    command = command.replace(
        "gemma-np", f"{sys.executable} -c 'import sys; from gemma_np.cli.main import main; sys.exit(main())'"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"prints\n\n((?:    .*\n)+)", README)
    assert printed, "the README shows no output"
    assert done.stdout == re.sub(r"^    ", "", printed[1], flags=re.MULTILINE)


def test_the_second_command_is_the_test_command() -> None:
    assert commands()[1].endswith('pip install ".[test]" && python -m pytest')


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    if not link.startswith("https://"):
        assert (ROOT / link).exists()
