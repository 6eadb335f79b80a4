"""Code that comes with a model: not run, then run in the version that was read, and in no other."""

import json
import shutil

import numpy as np
import pytest

from bge_pipeline.embedding.loading import load_encoder
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.trusted_code import require_trusted, version_of_code
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline_tests.embedding.conftest import TEXTS, write_json

THEIR_CODE = '''
from transformers import BertConfig, BertModel


class TheirConfig(BertConfig):
    model_type = "theirs"


class TheirModel(BertModel):
    """Adds one to every state, so that it shows who ran."""

    config_class = TheirConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output["last_hidden_state"] = output.last_hidden_state + 1
        return output
'''


@pytest.fixture
def with_code(folder):
    """The tiny model, made by code of its own."""
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "their_code.TheirConfig", "AutoModel": "their_code.TheirModel"}
    write_json(folder / "config.json", config | {"auto_map": own, "model_type": "theirs"})
    (folder / "their_code.py").write_text(THEIR_CODE)
    return folder


@pytest.fixture
def settings(settings, with_code, tmp_path):
    chosen = {"embedding_model": str(with_code), "embedding_dimensions": 32, "embedding_precision": "fp32"}
    return settings.model_copy(update=chosen | {"embedding_backend": "torch", "bge_pipeline_home": tmp_path / "home"})


def test_the_version_that_was_read_is_run_and_said(settings, with_code, tiny_sentence_model, caplog):
    version = version_of_code(with_code)
    encoder = load_encoder(settings.model_copy(update={"trust_remote_code": version}))
    assert encoder.road.library == "sentence-transformers"
    assert "only sentence-transformers runs the code that comes with it" in str(encoder.road)
    assert f"code that comes with the model is run, as of {version}" in caplog.text
    plain = load_encoder(settings.model_copy(update={"embedding_model": str(tiny_sentence_model)}))
    theirs, ours = (one.encode(one.tokenize(TEXTS)) for one in (encoder, plain))
    assert not np.allclose(theirs, ours, atol=1e-2)
    assert not encoder.space.is_same_as(plain.space)


def test_another_version_is_refused(settings, with_code):
    version = version_of_code(with_code)
    (with_code / "their_code.py").write_text(THEIR_CODE + "\n# changed\n")
    with pytest.raises(ConfigurationError, match=f"TRUST_REMOTE_CODE={version}, but the code .* is sha256:") as caught:
        load_encoder(settings.model_copy(update={"trust_remote_code": version}))
    assert version_of_code(with_code) in caught.value.next_step


def test_nothing_of_it_runs_unasked(settings, with_code):
    (with_code / "their_code.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelUnavailable, match="sentence-transformers cannot load"):
        load_encoder(settings)


def test_the_version_of_a_snapshot_of_the_hub_is_its_commit(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--their--model" / "snapshots" / commit
    folder.mkdir(parents=True)
    assert version_of_code(folder) == commit


@pytest.mark.parametrize("place", ["snapshots/nomic", "models--nomic/snapshots/nomic", f"snapshots/{'0' * 40}"])
def test_a_folder_that_only_looks_like_a_snapshot_is_known_by_its_files(settings, with_code, tmp_path, place):
    folder = shutil.copytree(with_code, tmp_path / place)
    of_folder = {"embedding_model": str(folder), "trust_remote_code": version_of_code(folder)}
    assert of_folder["trust_remote_code"] == version_of_code(with_code)
    (folder / "their_code.py").write_text("raise SystemExit('run')")
    for trusted in (of_folder["trust_remote_code"], folder.name):
        with pytest.raises(ConfigurationError, match=r"but the code .* is sha256:"):
            load_encoder(settings.model_copy(update=of_folder | {"trust_remote_code": trusted}))


@pytest.mark.parametrize("trusted", ["main", "v1.0", "0" * 39, "0" * 41, f"{'0' * 40}\n"])
def test_code_of_another_repository_is_trusted_at_a_commit_alone(settings, with_code, trusted):
    config = json.loads((with_code / "config.json").read_text())
    named = {kind: f"their/repository--{code}" for kind, code in config["auto_map"].items()}
    write_json(with_code / "config.json", config | {"auto_map": named})
    with pytest.raises(ConfigurationError, match="expected the 40 digits of a commit of their/repository"):
        load_encoder(settings.model_copy(update={"trust_remote_code": trusted}))
    assert require_trusted("theirs", with_code, "a1" * 20) == "a1" * 20


def test_a_model_without_code_runs_as_ever(settings, tiny_sentence_model):
    plain = find_sentence_model(str(tiny_sentence_model), trusted_code="0" * 40)
    assert plain == find_sentence_model(str(tiny_sentence_model))
