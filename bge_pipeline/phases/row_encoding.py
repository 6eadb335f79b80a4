"""Rows to vectors: what an encoder returns is checked, and a row that it cannot embed is told from a broken encoder."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bge_pipeline.database.pending_reader import PendingBatch
from bge_pipeline.embedding.encoder import PLAIN_SENTENCE, Encoder, TextsRefused, TokenizedTexts
from bge_pipeline.errors import BgePipelineError, EncodingError
from bge_pipeline.quality.bounds import UNIT_LENGTH_TOLERANCE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedBatch:
    """Rows, with the tokens of their texts in the same order."""

    batch: PendingBatch
    tokens: TokenizedTexts


@dataclass(frozen=True)
class UntokenizableBatch:
    """Rows of which the tokeniser chokes on one at least; which, is found by halving."""

    batch: PendingBatch
    error: Exception


@dataclass(frozen=True)
class EncodedBatch:
    """What a batch became.

    Attributes:
        batch: the n rows that have a vector.
        vectors: float32 (n, dimensions), in the same order.
        tokens: tokens that the encoder read of them.
        truncated: how many of them were longer than the encoder reads.
        failures: batches of one row that cannot be embedded, each with its error.
    """

    batch: PendingBatch
    vectors: NDArray[np.float32]
    tokens: int
    truncated: int
    failures: tuple[tuple[PendingBatch, str], ...] = ()


class BatchEncoder:
    """Tokenises and encodes batches of rows; as thread-safe as the encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def tokenize(self, batch: PendingBatch) -> TokenizedBatch | UntokenizableBatch:
        """Tokens of the batch, or that a text of it cannot be tokenised."""
        try:
            return TokenizedBatch(batch, self._encoder.tokenize(batch.texts))
        except BgePipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - any library may sit behind an encoder
            return UntokenizableBatch(batch, error)

    def encode(self, tokenized: TokenizedBatch | UntokenizableBatch) -> EncodedBatch:
        """Encode a batch; rows at fault are encoded again in ever smaller batches until they stand alone.

        An encoder that knows which rows those are is not asked again for the others.

        Raises:
            EncodingError: the encoder fails on a plain sentence too, or returns arrays of another shape.
        """
        batch = tokenized.batch
        if isinstance(tokenized, UntokenizableBatch):
            return self._encode_apart(batch, _told(tokenized.error), tokenized.error)
        tokens = tokenized.tokens
        try:
            vectors = self._encoder.encode(tokens)
        except TextsRefused as refusal:
            return self._without_refused(batch, tokens, refusal)
        except BgePipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - any library may sit behind an encoder; the rows are told apart below
            return self._encode_apart(batch, _told(error), error)
        expected = (len(batch), self._encoder.space.dimensions)
        if vectors.shape != expected:
            raise self._broken(f"it returned an array of shape {vectors.shape}: expected {expected}")
        return self._checked(batch, tokens, vectors)

    def _encode_rows(self, batch: PendingBatch) -> EncodedBatch:
        return self.encode(self.tokenize(batch))

    def _checked(self, batch: PendingBatch, tokens: TokenizedTexts, vectors: NDArray[np.float32]) -> EncodedBatch:
        """Keep vectors that are finite and of unit length; a zero or a NaN would be found by no search."""
        lengths = np.linalg.norm(vectors, axis=1)
        is_sound = np.abs(lengths - 1.0) <= UNIT_LENGTH_TOLERANCE
        if is_sound.all():
            return EncodedBatch(batch, vectors, int(tokens.token_counts.sum()), int(tokens.truncated.sum()))
        unsound = np.flatnonzero(~is_sound).tolist()
        error = f"the encoder returned a vector of length {lengths[unsound[0]]:.3f}: expected 1"
        if len(unsound) == len(batch):
            return self._encode_apart(batch, error, None)
        kept = np.flatnonzero(is_sound)
        sound = EncodedBatch(
            batch.only(kept.tolist()),
            vectors[kept],
            int(tokens.token_counts[kept].sum()),
            int(tokens.truncated[kept].sum()),
        )
        return _joined(sound, self._encode_rows(batch.only(unsound)))

    def _without_refused(self, batch: PendingBatch, tokens: TokenizedTexts, refusal: TextsRefused) -> EncodedBatch:
        """The rows that have a vector, and each that was refused with its reason."""
        self._require_working_encoder(refusal)
        kept = [position for position in range(len(batch)) if position not in refusal.reasons]
        sound = TokenizedTexts(None, tokens.token_counts[kept], tokens.truncated[kept])
        failures = tuple((batch.only([position]), reason) for position, reason in sorted(refusal.reasons.items()))
        encoded = self._checked(batch.only(kept), sound, refusal.vectors[kept])
        return replace(encoded, failures=encoded.failures + failures)

    def _encode_apart(self, batch: PendingBatch, error: str, cause: Exception | None) -> EncodedBatch:
        if len(batch) == 1:
            self._require_working_encoder(cause)
            nothing = np.empty((0, self._encoder.space.dimensions), np.float32)
            return EncodedBatch(batch.only([]), nothing, 0, 0, ((batch, error),))
        logger.info("a batch of %d rows cannot be embedded (%s); halving it", len(batch), error)
        first, second = batch.halves()
        return _joined(self._encode_rows(first), self._encode_rows(second))

    def _require_working_encoder(self, cause: Exception | None) -> None:
        """Tell a bad text from a broken encoder: an encoder that fails on a plain sentence is broken."""
        try:
            vector = self._encoder.encode(self._encoder.tokenize([PLAIN_SENTENCE]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the encoder does not work
            raise self._broken(f"{type(error).__name__}: {error}") from (cause or error)
        length = float(np.linalg.norm(vector))
        is_sound = abs(length - 1.0) <= UNIT_LENGTH_TOLERANCE
        if not is_sound:
            raise self._broken(f"it returns vectors of length {length:.3f}: expected 1") from cause

    def _broken(self, reason: str) -> EncodingError:
        return EncodingError(
            f"the encoder {self._encoder.space.model} fails on a plain sentence: {reason}",
            state="every committed batch is kept, no row was quarantined for it",
            next_step="correct the model or the device, then run the backfill again; it resumes",
        )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _joined(first: EncodedBatch, second: EncodedBatch) -> EncodedBatch:
    return EncodedBatch(
        first.batch.joined(second.batch),
        np.concatenate([first.vectors, second.vectors]),
        first.tokens + second.tokens,
        first.truncated + second.truncated,
        first.failures + second.failures,
    )
