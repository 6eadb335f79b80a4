"""What a backfill has done so far, summed over its passes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from bge_pipeline.database.writer import Stored


@dataclass
class BackfillTotals:
    """Sums over all passes; each field is written by one stage alone."""

    written: int = 0
    in_page: int = 0
    left_changed: int = 0
    quarantined: int = 0
    truncated: int = 0
    tokens: int = 0
    read_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    encode_lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stored: Stored) -> None:
        """Take note of a commit."""
        self.written += stored.rows
        self.in_page += stored.in_page
