"""Each thing that may be wrong with vectors, made so in a real table, is found and graded; a sound table is told to be so."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bge_pipeline.database import sampling
from bge_pipeline.phases.doctor import examine
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.report.diagnosis import as_html
from bge_pipeline_tests.support import execute, fill_and_swap, schema_of

pytestmark = pytest.mark.pgvector


@pytest.fixture
def found(database, settings):
    """Grades by name, of the table as it stands when asked."""

    def look(**changed):
        diagnosis = examine(Migration(database, settings.model_copy(update=changed)))
        return {finding.name: finding for finding in diagnosis.findings}

    return look


@pytest.fixture
def migrated(database, migration):
    fill_and_swap(migration)
    retire(migration)
    return database


def grades(findings):
    return {name: finding.grade for name, finding in findings.items()}


def test_a_sound_table_is_sound_and_nothing_is_changed(migrated, settings, found):
    before = schema_of(migrated)
    assert set(grades(found()).values()) == {"ok"}
    assert set(found()) == {"vectors", "dimensions", "lengths", "index", "model", "upkeep"}
    assert schema_of(migrated) == before


def test_a_table_of_the_application_is_told_of_what_nobody_knows(database, found):
    execute(database, "COMMENT ON COLUMN segments.embedding IS NULL")
    findings = found()
    assert findings["model"].grade == "note"
    assert "LEGACY_MODEL" in findings["model"].next_step
    assert "nothing in the database keeps it current" in findings["upkeep"].told


@pytest.mark.parametrize(
    ("damage", "name", "grade", "told"),
    [
        ("UPDATE segments SET embedding = NULL WHERE id <= 7", "vectors", "warning", "7 of 300 rows"),
        ("UPDATE segments SET embedding = NULL", "vectors", "error", "no vector"),
        ("UPDATE segments SET embedding = array_fill(0, ARRAY[384])::vector WHERE id = 3", "lengths", "error", "1 vectors have"),
        ("UPDATE segments SET embedding = (2 * embedding::real[])::vector WHERE id = 3", "lengths", "note", "from 1 to 2"),
        ("UPDATE segments SET embedding = (SELECT embedding FROM segments WHERE id = 1) WHERE id IN (2, 3, 4, 5)",
         "duplicates", "warning", "5 rows (1.7%)"),
        ("UPDATE segments s SET embedding = o.embedding FROM segments o WHERE o.id = 301 - s.id", "model", "error", "0."),
        ("UPDATE segments s SET embedding = o.embedding FROM segments o WHERE o.id = 301 - s.id AND s.id BETWEEN 100 AND 120",
         "model", "warning", "newer"),
        ("UPDATE pg_index SET indisvalid = false FROM pg_class c WHERE c.oid = indexrelid AND relname = 'segments_embedding_idx'",
         "invalid index", "error", "is not valid"),
        ("ALTER TABLE segments DISABLE TRIGGER ALL", "surroundings", "warning", "disabled"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(migrated, found, damage, name, grade, told):
    execute(migrated, damage.replace("(2 * embedding::real[])::vector", "(embedding + embedding)"))
    finding = found()[name]
    assert (finding.grade, told in finding.told) == (grade, True), finding


@pytest.mark.parametrize(
    "column_type",
    ["vector", *(pytest.param(name, marks=pytest.mark.pgvector("0.7")) for name in ("halfvec", "sparsevec"))],
)
def test_the_statement_that_empties_vectors_of_length_zero_runs(database, found, column_type):
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, f"ALTER TABLE segments ALTER COLUMN embedding TYPE {column_type}(1536)")
    nothing = f"array_fill(0::real, ARRAY[1536])::vector::{column_type}"
    execute(database, f"UPDATE segments SET embedding = {nothing} WHERE id IN (3, 5)")
    statement = re.search(r"empty them: (UPDATE .* = 0);", found()["lengths"].next_step)[1]
    execute(database, statement)
    emptied = execute(database, "SELECT id FROM segments WHERE embedding IS NULL ORDER BY id")
    assert [row.id for row in emptied] == [3, 5]
    assert found()["lengths"].grade == "ok"


def test_vectors_of_several_dimensions_in_one_column(database, settings, found):
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, "ALTER TABLE segments ALTER COLUMN embedding TYPE vector")
    execute(database, "UPDATE segments SET embedding = '[1, 0, 0]' WHERE id <= 10")
    finding = found()["dimensions"]
    assert finding.grade == "error"
    assert "290 of 1536, 10 of 3" in finding.told


@pytest.mark.parametrize("column_type", ["halfvec(1536)", "sparsevec(1536)"])
@pytest.mark.pgvector("0.7")
def test_other_types_of_vectors_are_counted_too(database, found, column_type):
    execute(database, "DROP INDEX segments_embedding_idx")
    execute(database, f"ALTER TABLE segments ALTER COLUMN embedding TYPE {column_type}")
    assert grades(found())["vectors"] == "ok"
    assert grades(found())["lengths"] == "ok"


def test_a_large_table_is_sampled_unless_all_of_it_is_asked_for(database, migration, monkeypatch):
    monkeypatch.setattr(sampling, "_FEWEST_PAGES", 1)  # of this table, which is not large
    execute(database, "ANALYZE segments")
    sampled, whole = (examine(migration, most_rows=rows) for rows in (20, None))
    assert sampled.content.is_sample
    assert 0 < sampled.content.rows < 300
    assert (whole.content.is_sample, whole.content.rows) == (False, 300)


def test_the_page_shows_names_of_the_database_as_text(migrated, settings):
    execute(migrated, "UPDATE segments SET embedding = NULL WHERE id = 1")
    page = as_html(examine(Migration(migrated, settings)))
    assert "1 of 300 rows looked at have text and no vector" in page
    assert "bge-pipeline embed" in page
    assert np.char.count(page, "<script") == 0
