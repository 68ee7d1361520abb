"""First-person worlds inside jit: a renderer, Miniworld's rooms and levels, and procedural houses."""
