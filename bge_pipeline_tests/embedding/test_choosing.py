"""Which way a model takes: proved once, never taken when it does not agree, and said."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from bge_pipeline.embedding import choosing, proof
from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline_tests.embedding.conftest import TEXTS, with_own_code


@pytest.fixture
def settings(settings, tiny_sentence_model, tmp_path):
    """A tiny model on PyTorch, and a data folder of its own, so that nothing was proved before."""
    chosen = {
        "embedding_model": str(tiny_sentence_model),
        "embedding_dimensions": 32,
        "embedding_backend": "torch",
        "embedding_precision": "fp32",
        "bge_pipeline_home": tmp_path / "home",
    }
    return settings.model_copy(update=chosen)


@pytest.fixture
def comparisons(monkeypatch):
    """What was compared so far."""
    made = []
    compare = choosing.compare_with_reference
    monkeypatch.setattr(choosing, "compare_with_reference", lambda *pair: made.append(pair) or compare(*pair))
    return made


def wrong(monkeypatch):
    """Our own way pools wrongly, as with an architecture that nobody has looked at."""
    cut = TransformerEncoder._cut
    monkeypatch.setattr(
        TransformerEncoder, "_cut", lambda self, vectors: np.ascontiguousarray(cut(self, vectors)[:, ::-1])
    )


def test_a_way_is_proved_once(settings, comparisons):
    first = load_encoder(settings)
    assert first.road.library == "PyTorch"
    assert first.road.proof.texts == proof.PROOF_TEXTS
    assert "agrees with sentence-transformers in fp32 on 64 texts" in str(first.road)
    second = load_encoder(settings)
    assert len(comparisons) == 1
    assert second.road == first.road
    np.testing.assert_allclose(second.encode(second.tokenize(TEXTS)), first.encode(first.tokenize(TEXTS)), atol=1e-6)


def test_other_weights_precisions_and_libraries_are_proved_anew(settings, comparisons, folder, monkeypatch):
    load_encoder(settings)
    load_encoder(settings.model_copy(update={"embedding_query_prompt": "find: "}))
    load_encoder(settings.model_copy(update={"embedding_precision": "bf16"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    load_encoder(settings.model_copy(update={"embedding_model": str(folder)}))
    monkeypatch.setattr(proof, "digest_of_source_and_libraries", lambda *_: "upgraded")
    load_encoder(settings)
    assert len(comparisons) == 5


def test_threads_that_start_at_once_prove_it_once(settings, comparisons):
    with ThreadPoolExecutor(3) as pool:
        encoders = list(pool.map(lambda _: load_encoder(settings), range(3)))
    assert len(comparisons) == 1
    assert len({str(encoder.road) for encoder in encoders}) == 1


def test_what_does_not_agree_is_not_used_and_said(settings, monkeypatch, caplog, reference_vectors):
    wrong(monkeypatch)
    encoder = load_encoder(settings)
    assert encoder.road.library == "sentence-transformers"
    assert "PyTorch in fp32 on cpu does not give the vectors of sentence-transformers: min cosine" in str(encoder.road)
    assert "does not give the vectors" in caplog.text
    np.testing.assert_allclose(encoder.encode(encoder.tokenize(TEXTS)), reference_vectors, atol=1e-5)


@pytest.fixture
def reference_vectors(tiny_sentence_model):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_sentence_model), device="cpu").encode(TEXTS, normalize_embeddings=True)


@pytest.mark.thorough
def test_whoever_insists_on_a_way_that_does_not_agree_is_refused(settings, monkeypatch):
    pytest.importorskip("openvino")
    wrong(monkeypatch)
    insisting = settings.model_copy(update={"embedding_backend": "openvino"})
    with pytest.raises(ConfigurationError, match=r"EMBEDDING_BACKEND=openvino cannot run .* min cosine") as caught:
        load_encoder(insisting)
    assert "leave EMBEDDING_BACKEND" in caught.value.next_step


def test_the_texts_of_the_table_are_compared_and_kept_nowhere(settings, monkeypatch):
    seen = []
    tokenize = TransformerEncoder.tokenize
    monkeypatch.setattr(TransformerEncoder, "tokenize", lambda self, texts: seen.extend(texts) or tokenize(self, texts))
    asked = []
    own = [f"a secret of the table, number {number}" for number in range(200)]
    load_encoder(settings, lambda: asked.append(1) or own)
    load_encoder(settings, lambda: asked.append(1) or own)
    assert len(asked) == 1
    assert sum("secret" in text for text in seen) == proof.PROOF_TEXTS - len(proof.odd_texts(64))
    assert {"", " \n\t "} <= set(seen)
    kept = [path.read_text() for path in (settings.home / "proofs").glob("*.json")]
    assert len(kept) == 1
    assert "secret" not in kept[0]


def test_a_data_folder_that_cannot_be_written_costs_the_verdict_and_nothing_else(
    settings, comparisons, tmp_path, caplog
):
    (tmp_path / "file").write_text("")
    elsewhere = settings.model_copy(update={"bge_pipeline_home": tmp_path / "file"})
    for _ in range(2):
        assert load_encoder(elsewhere).road.library == "PyTorch"
    assert len(comparisons) == 2
    assert "cannot be written" in caplog.text


def test_a_verdict_that_was_half_written_counts_for_nothing(settings, comparisons):
    load_encoder(settings)
    (kept,) = (settings.home / "proofs").glob("*.json")
    kept.write_text(kept.read_text()[:20])
    assert load_encoder(settings).road.library == "PyTorch"
    assert len(comparisons) == 2


def test_a_vector_that_is_no_number_misses_the_bound():
    reference = np.eye(3, dtype=np.float32)
    ours = reference.copy()
    assert proof.compare_with_reference(ours, reference).is_enough
    ours[1] = np.nan
    assert not proof.compare_with_reference(ours, reference).is_enough
    reference[1] = 0  # of which the library makes nothing, and which is therefore not compared
    assert proof.compare_with_reference(ours, reference).is_enough
    assert not proof.compare_with_reference(ours, np.zeros_like(ours)).is_enough


def test_weights_that_are_partly_random_are_run_nowhere(folder, settings):
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    broken = settings.model_copy(update={"embedding_model": str(folder)})
    with pytest.raises(ModelUnavailable, match="its weights lack 1 of the tensors"):
        load_encoder(broken)
    modules = json.loads((folder / "modules.json").read_text())
    drop = {"idx": 3, "name": "3", "path": "3_Dropout", "type": "sentence_transformers.models.Dropout"}
    (folder / "modules.json").write_text(json.dumps([*modules, drop]))
    (folder / "3_Dropout").mkdir()
    (folder / "3_Dropout/config.json").write_text(json.dumps({"dropout": 0.1}))
    with pytest.raises(ModelUnavailable, match="its weights lack 1 of the tensors of BertModel"):
        load_encoder(broken)


def test_gte_qwen2_agrees_with_the_library_that_is_told_what_its_code_says(tiny_models, settings, tmp_path):
    files = with_own_code(tiny_models["qwen2"], tmp_path / "gte-qwen2", "modeling_qwen.Qwen2Model")
    (files.folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (files.folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    (files.folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    encoder = load_encoder(settings.model_copy(update={"embedding_model": str(files.folder)}))
    assert encoder.road.library == "PyTorch"
    assert encoder.space.pooling == "lasttoken"


def test_an_undeclared_pooling_is_the_same_for_the_library(settings, folder):
    (folder / "modules.json").unlink()
    encoder = load_encoder(settings.model_copy(update={"embedding_model": str(folder)}))
    assert (encoder.road.library, encoder.space.pooling) == ("PyTorch", "mean")


@pytest.mark.parametrize("insists", [{"embedding_precision": "int8"}, {"embedding_backend": "openvino"}])
def test_int8_and_openvino_are_refused_where_only_the_library_runs_the_model(settings, bundled, tmp_path, insists):
    from bge_pipeline_tests.embedding.built import build

    folder = build("layer-norm", tmp_path / "layer-norm", bundled.files.folder)
    asked = {"embedding_model": str(folder), "embedding_backend": "auto"} | insists
    with pytest.raises(ConfigurationError, match="only sentence-transformers runs its module LayerNorm"):
        load_encoder(settings.model_copy(update=asked))


def test_the_words_say_why():
    road = choosing.Road("sentence-transformers", None, ("only sentence-transformers runs its module Dense",))
    assert str(road) == "sentence-transformers; only sentence-transformers runs its module Dense"
    assert replace(road, detours=()).as_metadata() == {"library": "sentence-transformers", "proof": None, "detours": []}
