"""How texts are laid out for a converted network: chosen when it is converted, and kept with it by the layout's name."""

from __future__ import annotations

from bge_pipeline.embedding.families import family_of
from bge_pipeline.embedding.layouts import Layout
from bge_pipeline.embedding.layouts.packed_rows import PackedRows
from bge_pipeline.embedding.layouts.padded import Padded
from bge_pipeline.embedding.models import ModelFiles
from bge_pipeline.embedding.tasks import EmbedTexts, Task

_LONGEST_PACKED = 1_024
"""Tokens in the longest text of a model that is run over packed rows: which token sees which is a square of them."""


def best_layout(files: ModelFiles, task: Task) -> str:
    """Name of the layout that suits a model: packed rows where its family allows them."""
    is_packed = (
        isinstance(task, EmbedTexts)
        and PackedRows in family_of(files.config).layouts
        and files.max_tokens <= _LONGEST_PACKED
    )
    return PackedRows.name if is_packed else Padded.name


def layout_named(name: str, pad_id: int) -> Layout:
    """The layout of that name; few shapes, since OpenVINO prepares something for every new one."""
    return PackedRows(pad_id) if name == PackedRows.name else Padded(pad_id, few_shapes=True)
