import subprocess
import sys

import pytest

from bge_pipeline.embedding.openvino import recipe as recipe_module
from bge_pipeline.embedding.openvino.recipe import SOURCES, recipe

MAKE_NOTHING = {
    "bge_pipeline.embedding",
    "bge_pipeline.embedding.attention",
    "bge_pipeline.embedding.declarations",
    "bge_pipeline.embedding.layouts",
    "bge_pipeline.embedding.layouts.end_to_end",
    "bge_pipeline.embedding.layouts.packed_rows",
    "bge_pipeline.embedding.layouts.padded",
    "bge_pipeline.embedding.library",
    "bge_pipeline.embedding.memory",
    "bge_pipeline.embedding.model_folder",
    "bge_pipeline.embedding.models",
    "bge_pipeline.embedding.openvino",
    "bge_pipeline.embedding.pooling",
    "bge_pipeline.space",
    "bge_pipeline.embedding.tasks",
    "bge_pipeline.embedding.tokens",
    "bge_pipeline.embedding.trusted_code",
}
"""What the child of a conversion imports of this room without a trace of it in the network or its tokenizer."""


@pytest.fixture(autouse=True)
def _afresh():
    recipe.cache_clear()
    yield
    recipe.cache_clear()


def test_every_module_that_makes_a_network_is_part_of_the_recipe():
    script = (
        "import sys, bge_pipeline.embedding.openvino.conversion, bge_pipeline.embedding.networks, "
        "bge_pipeline.embedding.weights;"
        "print(*sorted(name for name in sys.modules if name.startswith('bge_pipeline.embedding')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - MAKE_NOTHING == set(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_another_source_is_another_recipe(module, monkeypatch):
    before, read = {kind: recipe(kind) for kind in ("fp32", "int8")}, recipe_module._source
    recipe.cache_clear()
    monkeypatch.setattr(recipe_module, "_source", lambda name: read(name) + "# changed" * (name == module))
    assert all(recipe(kind) != before[kind] for kind in before)


@pytest.mark.parametrize(
    ("library", "remade"),
    [
        ("openvino", {"fp32", "int8"}),
        ("torch", {"fp32", "int8"}),
        ("transformers", {"fp32", "int8"}),
        ("tokenizers", {"fp32", "int8"}),
        ("nncf", {"int8"}),
        ("numpy", set()),
    ],
)
def test_another_version_of_a_library_that_takes_part_is_another_recipe(library, remade, monkeypatch):
    before, read = {kind: recipe(kind) for kind in ("fp32", "int8")}, recipe_module._version
    recipe.cache_clear()
    monkeypatch.setattr(recipe_module, "_version", lambda name: "99" if name == library else read(name))
    assert {kind for kind in before if recipe(kind) != before[kind]} == remade


def test_a_library_that_is_absent_is_no_error():
    assert recipe_module._version("no-such-library") == "absent"


def test_the_source_is_read_and_not_imported():
    script = (
        "import sys; from bge_pipeline.embedding.openvino.recipe import recipe; recipe('fp32');"
        "print(*{'torch', 'transformers', 'tokenizers', 'nncf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
