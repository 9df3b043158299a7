"""The command, run in this process."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process: exit code, standard output, standard error."""
    from scdd.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["scdd", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run
