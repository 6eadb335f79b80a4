"""Which way a model is run here: the fastest that agrees with sentence-transformers, and that itself where none does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from bge_pipeline.embedding.agreement import Agreement
from bge_pipeline.embedding.calibration import CalibrationTexts
from bge_pipeline.embedding.device import best_precision, check_device, resolve_device
from bge_pipeline.embedding.families import family_of
from bge_pipeline.embedding.models import SentenceModel
from bge_pipeline.embedding.proof import Proofs, compare_with_reference, proof_texts
from bge_pipeline.embedding.reference import ReferenceEncoder
from bge_pipeline.embedding.road import SENTENCE_TRANSFORMERS, Road
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.errors import ConfigurationError, ModelUnavailable, OutOfMemory, RandomWeights
from bge_pipeline.settings import ModelSettings

_log = logging.getLogger(__name__)

Accelerated = Callable[[str], TransformerEncoder]
"""Makes the encoder that runs the model our own way, in that precision; `auto` and `int8` among them."""

ProvedEncoder = TransformerEncoder | ReferenceEncoder


def load_proved(
    model: SentenceModel,
    settings: ModelSettings,
    accelerated: Accelerated,
    calibration_texts: CalibrationTexts | None = None,
) -> ProvedEncoder:
    """The encoder of a model, by the first way that agrees with sentence-transformers; its `road` says which and why.

    The ways, in turn: our own in the precision that was asked for, our own in fp32, sentence-transformers in that
    precision, and in fp32, which needs no proof.

    Args:
        accelerated: makes an encoder that runs it our own way.
        calibration_texts: gives texts like those to be embedded; asked only where a proof is still to be made.

    Raises:
        ConfigurationError: the settings insist on what does not run this model, or not rightly.
        ModelUnavailable: the model or the library that runs it cannot be loaded.
        OutOfMemory: there is no memory for it.
    """
    chooser = _Chooser(model, settings, accelerated, calibration_texts)
    encoder = chooser.our_own() if model.obstacle is None else None
    if encoder is not None:
        return encoder
    if model.obstacle is not None:
        chooser.detour(f"only {SENTENCE_TRANSFORMERS} runs {model.obstacle}")
    return chooser.library()


class _Chooser:
    """One choice, and what was learnt on the way."""

    def __init__(
        self,
        model: SentenceModel,
        settings: ModelSettings,
        accelerated: Accelerated,
        calibration_texts: CalibrationTexts | None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._accelerated = accelerated
        self._calibration_texts = calibration_texts
        self._proofs = Proofs(settings.home / "proofs", model)
        self._detours: list[str] = []

    def our_own(self) -> ProvedEncoder | None:
        """The encoder that runs the model our own way, None where none agrees."""
        refused: set[str] = set()
        for precision in (self._settings.embedding_precision, "fp32"):
            if refused & {precision, "fp32"}:
                return None
            load = partial(self._accelerated, precision)
            try:
                encoder = load()
            except RandomWeights:
                raise
            except ModelUnavailable as error:
                if self._insisted is not None:
                    raise
                self.detour(error.message)
                return None
            refused.add(encoder.space.precision)
            proved = self._proved(encoder, load)
            if proved is not None:
                return proved
        return None

    def library(self) -> ProvedEncoder:
        """The encoder that runs the model in sentence-transformers."""
        if self._insisted is not None:
            raise ConfigurationError(
                f"{self._insisted} cannot run {self._model.files.name}: {'; '.join(self._detours)}",
                next_step="leave EMBEDDING_BACKEND and EMBEDDING_PRECISION at auto",
            )
        device = resolve_device(self._settings.embedding_device, self._settings.embedding_backend)
        check_device(device)
        precision = self._library_precision(device)
        if precision != "fp32":
            load = partial(self._reference, device, precision)
            proved = self._proved(load(), load)
            if proved is not None:
                return proved
        encoder = self._reference(device, "fp32")
        encoder.road = Road(SENTENCE_TRANSFORMERS, None, tuple(self._detours))
        return encoder

    def detour(self, why: str) -> None:
        """Note why a way is not taken, and say so."""
        self._detours.append(why)
        _log.warning("%s: %s", self._model.files.name, why)

    @property
    def _insisted(self) -> str | None:
        """The setting that asks for a way of our own by name, as it was set."""
        if self._settings.embedding_backend == "openvino":
            return "EMBEDDING_BACKEND=openvino"
        return "EMBEDDING_PRECISION=int8" if self._settings.embedding_precision == "int8" else None

    def _proved(self, encoder: ProvedEncoder, load: Callable[[], ProvedEncoder]) -> ProvedEncoder | None:
        """The encoder, or another by `load`, if it agrees with sentence-transformers; None, and a detour, if not."""
        closed: list[ProvedEncoder] = []

        def prove() -> Agreement:
            # The two are never in memory together.
            closed.append(encoder)
            if encoder.space.precision != "int8":
                return self._compare(encoder)
            encoder.close()
            return self._compare(self._accelerated("fp32"))

        # int8 has a verdict of its own, on the network that it was made from; here that network is judged.
        precision = "fp32" if encoder.space.precision == "int8" else encoder.space.precision
        proof = self._proofs.verdict(encoder.library, encoder.device, precision, prove)
        if proof.is_enough:
            proved = load() if closed else encoder
            proved.road = Road(proved.library, proof, tuple(self._detours))
            return proved
        if not closed:
            encoder.close()
        self.detour(
            f"{encoder.library} in {precision} on {encoder.device} does not give the vectors of {SENTENCE_TRANSFORMERS}: "
            f"{'; '.join(proof.shortfalls)}"
        )
        return None

    def _compare(self, encoder: ProvedEncoder) -> Agreement:
        """Agreement of the encoder, which is closed, with sentence-transformers in fp32, which is loaded after it."""
        _log.info(
            "comparing %s in %s with %s on some texts; this is done once",
            self._model.files.name,
            encoder.library,
            SENTENCE_TRANSFORMERS,
        )
        texts = proof_texts(self._model, self._calibration_texts)
        try:
            vectors = encoder.encode(encoder.tokenize(texts))
        finally:
            encoder.close()
        try:
            reference = self._reference(encoder.device, "fp32")
        except OutOfMemory:
            reference = self._reference("cpu", "fp32")
        try:
            return compare_with_reference(vectors, reference.encode(reference.tokenize(texts)))
        finally:
            reference.close()

    def _reference(self, device: str, precision: str) -> ReferenceEncoder:
        return ReferenceEncoder(
            self._model, device=device, precision=precision, batch_size=self._settings.embedding_batch_size
        )

    def _library_precision(self, device: str) -> str:
        asked = self._settings.embedding_precision
        if asked != "auto":
            return asked
        return best_precision(device, family_of(self._model.files.config)) if self._model.has_transformer else "fp32"
