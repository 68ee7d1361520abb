"""Environments of other suites, each through a thin adapter: gymnax, XLand-MiniGrid, navix, Craftax, MuJoCo Playground.

A suite is an optional extra, imported when one of its environments is made.
"""
