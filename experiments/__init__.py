"""Presets, the command line, figures and benchmarks: everything that knows both the library and the environments."""
