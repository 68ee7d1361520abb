"""Multi-object Darkroom: each episode of a trial asks for one of several objects, which stay in their cells."""
