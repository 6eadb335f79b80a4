"""Running a transformer with PyTorch, on CPU, CUDA or MPS. Imported only when it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bge_pipeline.embedding.batching import Batch, halves, pad, plan_batches, unpadded
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.tokenizer import RaggedTokens
from bge_pipeline.errors import ConfigurationError, EncodingError, ModelUnavailable, OutOfMemory

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_CPU_TOKEN_BUDGET = 1_024
_ACCELERATOR_TOKEN_BUDGET = 65_536
_MINIMUM_TOKEN_BUDGET = 512
_SHARE_OF_FREE_MEMORY = 0.5

_NEVER = -10_000.0
"""Added to a score of attention that is not meant to be: its exponential is 0 in every precision, fp16's range included."""

_GTE_QWEN2 = "modeling_qwen.Qwen2Model"
"""The code in the folders of GTE-Qwen2: transformers' Qwen2, but every token sees all others, those after it included."""

_PACKED = "bge_pipeline_packed"
_BERT_LIKE = frozenset({"bert", "roberta", "xlm-roberta"})

_MORE_MEMORY = "free memory on the device, or choose another with EMBEDDING_DEVICE"

PackedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
"""(query, key, value, boundaries, longest, scale) -> output; tensors (tokens, heads, head size)."""


class SentenceNetwork(nn.Module):
    """Token ids to unit vectors: transformer, pooling and normalisation in one graph."""

    transformer: Any

    def __init__(self, transformer: nn.Module, pooling: str) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors float32 (b, dimensions) of padded texts (b, length)."""
        hidden = self.transformer(
            input_ids=input_ids, attention_mask=_mask_for(self.transformer, attention_mask)
        ).last_hidden_state
        return nn.functional.normalize(self._pool(hidden, attention_mask).float(), dim=-1)

    def forward_packed(self, input_ids: Tensor, boundaries: Tensor, **packing: Any) -> Tensor:
        """Vectors float32 (b, dimensions) of texts that stand one after the other, (1, tokens)."""
        hidden = self.transformer(input_ids=input_ids, cu_seq_lens_q=boundaries, **packing).last_hidden_state[0]
        return nn.functional.normalize(self._pool_packed(hidden, boundaries).float(), dim=-1)

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1)
        if self.pooling == "mean":
            hidden = hidden.float()
            return (hidden * weights).sum(1) / weights.sum(1)
        if self.pooling == "max":
            return hidden.float().masked_fill(weights == 0, -1e30).amax(1)
        last = mask.sum(1) - 1
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]

    def _pool_packed(self, hidden: Tensor, boundaries: Tensor) -> Tensor:
        starts, ends = boundaries[:-1].long(), boundaries[1:].long()
        if self.pooling == "cls":
            return hidden[starts]
        if self.pooling == "lasttoken":
            return hidden[ends - 1]
        reduce = "mean" if self.pooling == "mean" else "max"
        return torch.segment_reduce(hidden.float(), reduce, lengths=ends - starts, axis=0)


class PackedRowsNetwork(nn.Module):
    """Token ids of several texts in a row to the states of all tokens; pooling is left to the caller."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self._first_position = _first_position(transformer.config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, segments: Tensor) -> Tensor:
        """States float32 (b, length, width) of rows (b, length); a token sees those with its number in `segments`."""
        is_same_text = segments[:, None, :, None] == segments[:, None, None, :]
        states: Tensor = self.transformer(
            input_ids=input_ids,
            position_ids=position_ids + self._first_position,
            attention_mask=torch.where(is_same_text, 0.0, _NEVER),
        ).last_hidden_state
        return states.float()


class ScoringNetwork(nn.Module):
    """Token ids of pairs to one relevance logit each."""

    transformer: Any

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.transformer = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits float32 (b, 1) of padded pairs (b, length)."""
        mask = _mask_for(self.transformer, attention_mask)
        output = self.transformer(input_ids=input_ids, attention_mask=mask, token_type_ids=token_type_ids)
        logits: Tensor = output.logits.float()
        return logits


Network = SentenceNetwork | ScoringNetwork


def _mask_for(transformer: Any, mask: Tensor) -> Any:
    """The mask as those models take it ready-made: (b, 1, 1, length), so that tracing meets no code that builds one."""
    config = transformer.config
    seen = mask[:, None, None, :].bool()
    if config.model_type in _BERT_LIKE:
        return seen
    if config.model_type == "qwen2" and not getattr(config, "is_causal", True):
        return {"full_attention": seen}
    return mask


def load_network(files: ModelFiles, pooling: str | None) -> Network:
    """The network in fp32 on the CPU: a `SentenceNetwork`, or without pooling a `ScoringNetwork`.

    Raises:
        ModelUnavailable: the files are no transformer that `transformers` can load, or lack part of its weights.
        OutOfMemory: the weights do not fit into memory.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if pooling is None else AutoModel
    try:
        with _quiet_transformers(), _short_of_memory(f"no memory for the weights of {files.name}"):
            # Code that comes with weights is never run: it could do anything.
            config = AutoConfig.from_pretrained(str(files.folder), trust_remote_code=False)
            _attend_as_trained(config, files)
            config.use_cache = False  # keys and values of earlier tokens are for generating text
            loaded, report = kind.from_pretrained(
                str(files.folder),
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"{files.name}: transformers cannot load {files.folder}: {error}") from error
    # A sentence model pools for itself and never looks at the pooler, which many leave out.
    missing = sorted(key for key in report["missing_keys"] if pooling is None or "pooler" not in key)
    if missing:
        raise ModelUnavailable(
            f"{files.name}: its weights lack {len(missing)} of the tensors of {type(loaded).__name__}, {missing[0]} for one, "
            "which would be random",
            next_step="copy the model again; one that brings its own network (auto_map in config.json) cannot be run here",
        )
    loaded.eval().requires_grad_(False)
    return ScoringNetwork(loaded) if pooling is None else SentenceNetwork(loaded, pooling)


def over_packed_rows(network: Network) -> PackedRowsNetwork | None:
    """The network as it runs over rows that hold several texts, None where it cannot."""
    return PackedRowsNetwork(network.transformer) if _can_be_packed(network) else None


def _can_be_packed(network: Network) -> bool:
    """Whether texts may stand side by side: it pools, and its family's positions and masks are known here."""
    return isinstance(network, SentenceNetwork) and network.transformer.config.model_type in _BERT_LIKE


def _attend_as_trained(config: Any, files: ModelFiles) -> None:
    """Undo the mask of a decoder for a model that was trained without it, and warn of other code that is not run."""
    own_code = getattr(config, "auto_map", {}).get("AutoModel")
    if own_code == _GTE_QWEN2:
        config.is_causal = False
    elif own_code is not None:
        _log.warning(
            "%s: its folder brings its own code (%s), which is not run; transformers' own %s takes its place, so compare some "
            "vectors with the publisher's",
            files.name,
            own_code,
            config.model_type,
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no report about unused weights on the terminal while a model loads."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_progress_bar:
            transformers_logging.enable_progress_bar()


def best_device() -> str:
    """`cuda:0`, `mps` or `cpu`, whichever is the first that this machine has."""
    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise ConfigurationError unless PyTorch can use the device."""
    wanted = torch.device(device)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"EMBEDDING_DEVICE={device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here",
            next_step="set EMBEDDING_DEVICE=auto, or install a PyTorch build for this machine's CUDA driver",
        )
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("EMBEDDING_DEVICE=mps: PyTorch cannot use Metal on this machine")


def best_precision(device: str, family: str = "bert") -> str:
    """On CPUs bf16 where there are instructions for it, else fp32; on accelerators fp16, but see `family`.

    Args:
        family: `model_type` of the network. fp16 has more digits than bf16 and less range: CUDA gets bf16, where it has it,
            for families other than BERT's, of which GTE-Qwen2 for one leaves the range of fp16.
    """
    if device.startswith("cuda") and family not in _BERT_LIKE and torch.cuda.is_bf16_supported():
        return "bf16"
    if not device.startswith("cpu"):
        return "fp16"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no memory left; libraries of CUDA say so in words of their own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    says = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in says or "status_alloc_failed" in says or ("alloc" in says and "memory" in says)
    )


@contextmanager
def _short_of_memory(problem: str) -> Iterator[None]:
    """Raise OutOfMemory for whatever says within the block that there is none."""
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(problem, next_step=_MORE_MEMORY) from error


class TorchBackend:
    """Runs a network over ragged tokens. Thread-safe.

    On CUDA, where PyTorch and transformers offer attention over packed texts, nothing is padded.

    Args:
        network: from `load_network`.
        packed_attention: attention over packed texts; None decides by what is installed.

    Raises:
        OutOfMemory: the network does not fit on the device.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: str,
        precision: str,
        pad_id: int,
        token_budget: int | None = None,
        packed_attention: PackedAttention | None = None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.quantization = None
        self.concurrent_calls = 2 if device.startswith("cuda") else 1
        self._pad_id = pad_id
        self._device = torch.device(device)
        self._empty_cache()  # of a larger model that was tried before
        with _short_of_memory(f"no memory on {device} for the network in {precision}"):
            self._network: Network | None = network.to(self._device, _DTYPES[precision])
        self._packed_attention = packed_attention or _packed_attention(network, self._device, precision)
        if self._packed_attention is not None:
            _use_packed_attention(network.transformer)
        self._token_budget = token_budget or self._budget_for_free_memory(network)

    @property
    def token_budget(self) -> int:
        """Most padded tokens in one forward pass; halves for good when memory runs out."""
        return self._token_budget

    def run(self, tokens: RaggedTokens, *, max_texts: int) -> NDArray[np.float32]:
        """The network's output float32 (n, width), in the order of the texts.

        Raises:
            OutOfMemory: memory runs out even on the smallest batch.
        """
        with torch.inference_mode(), _short_of_memory(f"out of memory on {self.device}"):
            outputs = [(batch.rows, output) for batch, output in self._forward_all(tokens, max_texts)]
            rows = np.concatenate([rows for rows, _ in outputs])
            together = torch.cat([output for _, output in outputs]).cpu().numpy()
        result = np.empty_like(together)
        result[rows] = together
        return result

    def close(self) -> None:
        """Release the network and give the device's memory back."""
        self._network = None
        self._empty_cache()

    def _forward_all(self, tokens: RaggedTokens, max_texts: int) -> Iterator[tuple[Batch, Tensor]]:
        left = plan_batches(tokens.lengths, token_budget=self._token_budget, max_texts=max_texts)
        left.reverse()
        while left:
            batch = left.pop()
            try:
                output = self._forward(tokens, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(batch, error)
            else:
                yield batch, output
                continue
            left.extend(reversed(halves(batch)))

    def _forward(self, tokens: RaggedTokens, batch: Batch) -> Tensor:
        if self._network is None:
            raise EncodingError("this encoder was shut down")
        if self._packed_attention is not None:
            assert isinstance(self._network, SentenceNetwork)
            packed = self._to_device(_pack(tokens, batch, _first_position(self._network.transformer.config)))
            return self._network.forward_packed(**packed, attend=self._packed_attention)
        output: Tensor = self._network(**self._to_device(pad(tokens, batch, self._pad_id)))
        return output

    def _to_device(self, arrays: dict[str, Any]) -> dict[str, Any]:
        on_cuda = self._device.type == "cuda"
        moved = {}
        for name, value in arrays.items():
            if isinstance(value, np.ndarray):
                host = torch.from_numpy(value)
                moved[name] = (host.pin_memory() if on_cuda else host).to(self._device, non_blocking=on_cuda)
            else:
                moved[name] = value
        return moved

    def _shrink(self, batch: Batch, error: BaseException) -> None:
        if len(batch.rows) == 1:
            raise OutOfMemory(
                f"out of memory on {self.device} with a single text of {batch.length} tokens", next_step=_MORE_MEMORY
            ) from error
        tried = len(batch.rows) * batch.length
        self._token_budget = max(1, min(self._token_budget, tried) // 2)
        self._empty_cache()
        _log.warning(
            "out of memory on %s with %d tokens; going on with at most %d", self.device, tried, self._token_budget
        )

    def _empty_cache(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _budget_for_free_memory(self, network: Network) -> int:
        if self._device.type != "cuda":
            return _CPU_TOKEN_BUDGET if self._device.type == "cpu" else _ACCELERATOR_TOKEN_BUDGET // 4
        free, _ = torch.cuda.mem_get_info(self._device)
        config = network.transformer.config
        # Live at the peak of a layer: the feed-forward's two intermediates and about eight hidden states.
        bytes_per_token = 2 * (2 * config.intermediate_size + 8 * config.hidden_size)
        budget = int(free * _SHARE_OF_FREE_MEMORY / bytes_per_token)
        return max(_MINIMUM_TOKEN_BUDGET, min(budget, _ACCELERATOR_TOKEN_BUDGET))


def _first_position(config: Any) -> int:
    """Position of a text's first token: the RoBERTa family counts from after its padding id."""
    return 0 if config.model_type == "bert" else int(config.pad_token_id) + 1


def _pack(tokens: RaggedTokens, batch: Batch, position_offset: int) -> dict[str, Any]:
    """The batch as one row of tokens without padding, and where each text begins."""
    lengths, positions, ids = unpadded(tokens, batch.rows)
    return {
        "input_ids": ids.astype(np.int64)[None],
        "position_ids": (positions + position_offset)[None],
        "boundaries": np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        "max_length_q": int(lengths.max()),
    }


def _packed_attention(network: Network, device: torch.device, precision: str) -> PackedAttention | None:
    """PyTorch's own attention over packed texts (torch 2.10 and later, Ampere and later), where it applies."""
    if device.type != "cuda" or precision == "fp32" or not _can_be_packed(network):
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
        from transformers import AttentionInterface  # noqa: F401
    except ImportError:
        return None

    def attend(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float) -> Tensor:
        output = varlen_attn(query, key, value, boundaries, boundaries, longest, longest, scale=scale)
        assert isinstance(output, Tensor)
        return output

    return attend


def _use_packed_attention(transformer: Any) -> None:
    """Make the transformer call the `attend` that it is given, instead of an attention over padded texts."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def packed(
        _module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        heads_last = (states[0].transpose(0, 1) for states in (query, key, value))
        output = kwargs["attend"](*heads_last, kwargs["cu_seq_lens_q"], kwargs["max_length_q"], kwargs["scaling"])
        return output.unsqueeze(0), None

    AttentionInterface.register(_PACKED, packed)
    AttentionMaskInterface.register(_PACKED, lambda *_args, **_kwargs: None)
    transformer.set_attn_implementation(_PACKED)
