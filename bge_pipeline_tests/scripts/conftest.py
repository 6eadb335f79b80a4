"""The tiny models, for scripts that run a real network."""

from bge_pipeline_tests.embedding.conftest import bundled, tiny_cross_encoder, tiny_sentence_model

__all__ = ["bundled", "tiny_cross_encoder", "tiny_sentence_model"]
