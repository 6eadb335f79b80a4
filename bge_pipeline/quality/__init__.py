"""Measures vectors and searches, and judges them: metrics, evidence with labels and without, recall of an index, the gate.

Knows databases and encoders; neither the phases of a migration nor Dagster.
"""
