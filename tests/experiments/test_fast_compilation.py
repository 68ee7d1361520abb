"""The flags of XLA with which tests compile."""

import os

import pytest

from relic_jax.experiments import fast_compilation


@pytest.mark.parametrize(("jaxlib", "only_common"), [("0.10.2", False), ("0.12.0.1", True)])
def test_flags_that_a_version_may_not_know_are_left_out(monkeypatch, jaxlib, only_common):
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(fast_compilation, "version", lambda package: jaxlib)
    fast_compilation.compile_fast()
    assert (tuple(os.environ["XLA_FLAGS"].split()) == fast_compilation.COMMON) == only_common


def test_the_users_flags_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    fast_compilation.compile_fast()
    assert os.environ["XLA_FLAGS"] == ""
