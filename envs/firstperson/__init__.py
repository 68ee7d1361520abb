"""Environments with a first-person view: Miniworld's rooms and levels, and procedural houses; with their renderer."""
