"""From settings to an encoder: which model, on which device, run by which library."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from bge_pipeline.embedding.backend import Backend
from bge_pipeline.embedding.calibration import CalibrationTexts, Guard, vector_guard
from bge_pipeline.embedding.choosing import load_proved
from bge_pipeline.embedding.configured import as_recorded, configured_model, warn_of_missing_prompts
from bge_pipeline.embedding.device import check_device, resolve_device
from bge_pipeline.embedding.encoder import Encoder, QueryEncoder
from bge_pipeline.embedding.endpoint.address import (
    Address,
    endpoint_space,
    is_of_endpoint,
    is_reachable_for,
    settings_for,
)
from bge_pipeline.embedding.endpoint.encoder import EndpointEncoder
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.model_folder import BUNDLED, BUNDLED_NAME
from bge_pipeline.embedding.models import ModelFiles, find_sentence_model
from bge_pipeline.embedding.reference import ReferenceEncoder
from bge_pipeline.embedding.road import Road
from bge_pipeline.embedding.tasks import Task
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.embedding.transformer import TransformerEncoder
from bge_pipeline.errors import ConfigurationError, ModelUnavailable
from bge_pipeline.settings import ModelSettings, Settings
from bge_pipeline.space import EmbeddingSpace

_log = logging.getLogger(__name__)

HASHING = "hashing"


def load_encoder(settings: ModelSettings, calibration_texts: CalibrationTexts | None = None) -> QueryEncoder:
    """The encoder that the settings ask for.

    Raises:
        ConfigurationError: the model does not have EMBEDDING_DIMENSIONS dimensions, or cannot run as asked.
        ModelUnavailable: the model or the library that runs it cannot be loaded.
    """
    if settings.embedding_provider == "openai":
        return EndpointEncoder(settings)
    if settings.embedding_model == HASHING:
        return HashingEncoder(settings.embedding_dimensions)
    model = configured_model(settings)
    warn_of_missing_prompts(model)

    def accelerated(precision: str) -> TransformerEncoder:
        guard = vector_guard(calibration_texts, model.passage_prompt)
        wish = settings.model_copy(update={"embedding_precision": precision})
        tokenizer, backend = load_backend(model.files, model.task, model.space("fp32").fingerprint, wish, guard)
        return TransformerEncoder(model, tokenizer, backend, batch_size=settings.embedding_batch_size)

    return load_proved(model, settings, accelerated, calibration_texts)


def road_of(encoder: Encoder) -> Road | None:
    """How an encoder's model is run and why so; None of an encoder without a model on this machine."""
    return encoder.road if isinstance(encoder, (TransformerEncoder, ReferenceEncoder)) else None


def configured_space(settings: ModelSettings) -> EmbeddingSpace:
    """The embedding space that the settings ask for, from the model's files alone: nothing is loaded to run.

    Raises:
        ModelUnavailable: the model cannot be found.
        ConfigurationError: a variable of the endpoint is missing or wrong.
    """
    if settings.embedding_provider == "openai":
        Address.from_settings(settings)
        return endpoint_space(settings)
    if settings.embedding_model == HASHING:
        return HashingEncoder(settings.embedding_dimensions).space
    return configured_model(settings).space(settings.embedding_precision)


def is_at_hand(space: EmbeddingSpace, settings: ModelSettings) -> bool:
    """Whether the model of a recorded embedding space is here, unchanged; looked for, not loaded.

    One behind an endpoint is where EMBEDDING_API_URL or EMBEDDING_API_KEY says that there is one.
    """
    if is_of_endpoint(space):
        return is_reachable_for(settings)
    return _setting_for(space, settings) is not None


def load_encoder_of(space: EmbeddingSpace, settings: Settings) -> QueryEncoder | None:
    """The encoder of a recorded embedding space, None where its model is not at hand or has changed."""
    if is_of_endpoint(space):
        of_space = settings.model_copy(update=settings_for(space, settings))
        return EndpointEncoder(of_space) if is_reachable_for(settings) else None
    name = _setting_for(space, settings)
    if name is None:
        return None
    if name == HASHING:
        return HashingEncoder.of_space(space)
    try:
        prompts = {"embedding_query_prompt": space.query_prompt, "embedding_passage_prompt": space.passage_prompt}
        return _load_named(name, space.dimensions, settings, prompts | {"embedding_truncate": True})
    except ModelUnavailable as error:
        _log.info("the model of the old vectors cannot be loaded: %s", error.message)
        return None


def load_encoder_named(name: str, dimensions: int, settings: Settings) -> QueryEncoder:
    """The encoder of another model than the configured one, run here as well as it goes.

    Raises:
        ConfigurationError: the model does not have so many dimensions.
        ModelUnavailable: the model or the library that runs it cannot be loaded.
    """
    return _load_named(name, dimensions, settings, {})


def _load_named(name: str, dimensions: int, settings: Settings, chosen: dict[str, object]) -> QueryEncoder:
    """Another model, of which nothing is set but what is `chosen` here; what is set is meant for the configured one.

    PyTorch, where it is set, stays: it insists on nothing that another model may not have.
    """
    unset = {
        "embedding_provider": "local",
        "embedding_model": name,
        "embedding_dimensions": dimensions,
        "embedding_precision": "auto",
        "embedding_backend": "torch" if settings.embedding_backend == "torch" else "auto",
        "embedding_query_prompt": None,
        "embedding_passage_prompt": None,
        "embedding_truncate": False,
        "trust_remote_code": None,
    }
    return load_encoder(settings.model_copy(update=unset | chosen))


def _setting_for(space: EmbeddingSpace, settings: ModelSettings) -> str | None:
    """The value of EMBEDDING_MODEL that gives the model of a recorded space, None where there is none."""
    if space.revision.startswith(f"{HASHING}-"):
        return HASHING if HashingEncoder.of_space(space).space.is_same_as(space) else None
    # The bundled model is recorded under its own name, under which the hub has it, too.
    for name in (BUNDLED, space.model) if space.model == BUNDLED_NAME else (space.model,):
        try:
            found = find_sentence_model(name, allow_pickle=settings.allow_pickled_weights)
            if as_recorded(found, space).space("fp32").is_same_as(space):
                return name
        except (ModelUnavailable, ConfigurationError) as error:
            _log.info("the model of the old vectors cannot be found: %s", error.message)
    return None


def load_backend(
    files: ModelFiles, task: Task, cache_key: str, settings: ModelSettings, guard: Guard
) -> tuple[Tokenizer, Backend]:
    """The tokenizer and the network of a model, run by the library and on the device that the settings ask for.

    Args:
        task: what its network is run for.
        cache_key: names the folder of the converted model.
        guard: judges an int8 model.

    Raises:
        ConfigurationError: device, backend and precision do not fit together.
        ModelUnavailable: the model or the library cannot be loaded.
        OutOfMemory: it does not fit into memory.
    """
    device = resolve_device(settings.embedding_device, settings.embedding_backend)
    precision = settings.embedding_precision
    wish = settings.embedding_backend
    if wish == "openvino" and device != "cpu":
        raise ConfigurationError(f"EMBEDDING_BACKEND=openvino runs on EMBEDDING_DEVICE=cpu, got {device}")
    if wish == "torch" or device != "cpu" or (wish == "auto" and not _has_openvino(precision)):
        return _load_torch(files, task, device, precision)
    if not _has_openvino(precision):
        raise ModelUnavailable(
            "EMBEDDING_BACKEND=openvino needs the extra `openvino`, which is not installed",
            next_step="pip install 'bge-pipeline[openvino]'",
        )
    from bge_pipeline.embedding.openvino.cache import ConvertedModels

    models = ConvertedModels(settings.home / "models", cache_key, files, task)
    try:
        return models.load(precision, guard)
    except ModelUnavailable as error:
        if wish == "openvino" or precision == "int8":
            raise
        _log.warning("%s; running it with PyTorch instead, which is slower on a CPU", error.message)
        return _load_torch(files, task, device, precision)


def _has_openvino(precision: str) -> bool:
    return find_spec("openvino") is not None and (precision != "int8" or find_spec("nncf") is not None)


def _load_torch(files: ModelFiles, task: Task, device: str, precision: str) -> tuple[Tokenizer, Backend]:
    from bge_pipeline.embedding.torch_backend import load_torch_backend

    if precision == "int8":
        raise ConfigurationError(
            f"EMBEDDING_PRECISION=int8 runs on OpenVINO on a CPU, got EMBEDDING_DEVICE={device} with PyTorch",
            next_step="set EMBEDDING_DEVICE=cpu and pip install 'bge-pipeline[openvino]', or choose another precision",
        )
    check_device(device)
    tokenizer = Tokenizer(files)
    return tokenizer, load_torch_backend(files, task, device=device, precision=precision, pad_id=tokenizer.pad_id)
