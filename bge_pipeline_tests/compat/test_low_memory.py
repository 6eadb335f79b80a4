"""On a host of 512 MB: importing, storing, searching with given vectors and asking an endpoint load no model library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from bge_pipeline.database.connection import Database
from bge_pipeline.settings import Settings
from bge_pipeline_tests.roads import environment

HEAVY = ["torch", "transformers", "sentence_transformers", "openvino", "onnxruntime", "scipy", "sklearn", "dagster"]

REPORT = f"""
import json, sys
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


def loaded_by(script: str, variables: dict[str, str], folder: Path) -> list[str]:
    """The heavy libraries that are in memory at the end of a script in a process of its own."""
    command = [sys.executable, "-c", script + REPORT]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize(
    "script",
    [
        "import bge_pipeline; [getattr(bge_pipeline, name) for name in bge_pipeline.__all__]",
        "from bge_pipeline import EmbeddingGenerator; EmbeddingGenerator().get_embedding_dimension()",
    ],
)
def test_importing_loads_no_model_library(script: str, tmp_path: Path) -> None:
    assert loaded_by(script, dict(os.environ), tmp_path) == []


@pytest.mark.pgvector
def test_storing_and_searching_with_given_vectors_load_no_model_library(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    with database.transaction() as connection:
        connection.execute(text("COMMENT ON COLUMN segments.embedding IS NULL"))
    script = """
import numpy as np
from bge_pipeline import Retriever, SegmentsDatabase
from bge_pipeline.database.connection import Database
from bge_pipeline.settings import load_settings

settings = load_settings()
vector = np.zeros(1536, np.float32)
vector[7] = 1


class GivenVectors:
    def encode_queries(self, texts):
        return np.tile(vector, (len(texts), 1))


with SegmentsDatabase(settings=settings) as segments:
    segments.upsert_source("video", "A video")
    segments.batch_insert_segments([{"text": "given", "start": 0, "end": 1, "embedding": vector}], "video")
    assert segments.check_video_exists("video")[1] == 1
    assert segments.get_cached_voice_embeddings("video") == {}
    with segments.session_scope() as session:
        session.connection()
with Database.from_settings(settings) as database:
    given = Retriever(database, settings, query_encoder=GivenVectors())
    assert given.search("anything", top_k=1).results[0].text == "given"
    assert given.search("given", top_k=1, mode="lexical").results[0].text == "given"
"""
    assert loaded_by(script, environment(settings), tmp_path) == []
