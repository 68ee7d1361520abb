"""The console script."""

import builtins
import gc
from unittest import mock

import pytest

from relic_jax.experiments import cli, entry


def test_an_interrupt_during_the_imports_ends_quietly(monkeypatch, capsys):
    imported = builtins.__import__

    def interrupted(name, globals=None, locals=None, fromlist=(), level=0):
        if "cli" in (fromlist or ()):
            raise KeyboardInterrupt
        return imported(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 130 and capsys.readouterr() == ("", "")


def test_it_runs_the_command_line_with_rare_garbage_collection():
    with mock.patch.object(cli, "main") as main, mock.patch.object(gc, "set_threshold") as threshold:
        entry.main()
    main.assert_called_once_with()
    assert threshold.call_args.args[0] > 10_000
