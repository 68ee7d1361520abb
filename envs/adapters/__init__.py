"""Thin adapters of other suites: gymnax, XLand-MiniGrid, navix, Craftax and MuJoCo Playground.

Each suite is an optional extra, imported when one of its environments is made.
"""
