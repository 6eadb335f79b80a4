"""What a forked child forgets: it has none of its parent's worker threads, and the locks as they were held."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_forked_child(forget: Callable[[], None]) -> None:
    """Call `forget` in every child that this process forks, before the child's own code; nothing where nothing forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)
