"""Every command has help, stands in the README, and the README names no command that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flows.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent


def commands(group, path: str = "malmm") -> dict[str, object]:
    """Full name -> click command of every command, groups opened."""
    found = {}
    for name, command in group.commands.items():
        full = f"{path} {name}"
        found |= commands(command, full) if hasattr(command, "commands") else {full: command}
    return found


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented(name):
    command = COMMANDS[name]
    assert command.help and command.help.strip().endswith(".")
    for parameter in command.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"
    assert re.search(rf"^\| `{name}[ `]", (ROOT / "README.md").read_text(), re.M), f"README's table lacks {name}"


def test_the_readme_names_no_other_command():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`(malmm [a-z]+(?: (?:ls|show|gc|sync|lock|build|frames))?)", text))
    assert named <= set(COMMANDS), named - set(COMMANDS)


def test_a_wrong_call_is_one_message_and_an_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "flows", "status", "gone.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 78 and "no config file gone.yaml" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-m", "flows", "stauts"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "No such command" in done.stderr and "Traceback" not in done.stderr
