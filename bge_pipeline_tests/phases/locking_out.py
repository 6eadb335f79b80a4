"""Something that happens between the catch-up of a swap and its lock on writers."""

from __future__ import annotations

from bge_pipeline.phases import swap as swap_module


def before_writers_are_locked_out(monkeypatch, act):
    """Run `act` after the catch-up and before each attempt to lock."""
    original = swap_module.lock_out_writers

    def lock(*arguments):
        act()
        original(*arguments)

    monkeypatch.setattr(swap_module, "lock_out_writers", lock)
