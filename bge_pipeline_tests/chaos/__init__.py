"""Chaos: migrations that are killed, cut off and frozen while an application writes and reads, and what must be true after."""
