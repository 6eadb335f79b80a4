"""sentence-transformers itself: what every other way to run a model must agree with, and what runs a model that has none.

The other ways, the accelerators, are `torch_backend` and `openvino`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Reference:
    """A model as sentence-transformers runs it. Thread-safe.

    Args:
        name: hub name or local folder.
        device: as PyTorch names it.
    """

    def __init__(self, name: str, *, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(name, device=device)
        self._encoding = threading.Lock()

    def encode(self, texts: Sequence[str], *, batch_size: int) -> NDArray[np.float32]:
        """Unit vectors float32 (n, dimensions) of texts as they stand, in order."""
        # Tokenizers of transformers change their own state while they truncate.
        with self._encoding:
            vectors: NDArray[np.float32] = self._model.encode(
                list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
            )
        return vectors
