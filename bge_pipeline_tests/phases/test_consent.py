"""Nothing begins the next migration or goes forward after a rollback before somebody has agreed, whichever road it takes."""

from __future__ import annotations

import pytest

from bge_pipeline.database.target import TargetTable
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import ConfigurationError, ConsentRequired, PhaseError
from bge_pipeline.phases import swap as swap_module
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.consent import require_confirmation, step_ahead, with_consent
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migrate import migrate
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.state import require_table, space_of
from bge_pipeline.phases.status import read_status
from bge_pipeline.phases.swap import swap as swap_as_it_is
from bge_pipeline_tests.support import (
    ENCODER,
    execute,
    fill,
    fill_and_swap,
    schema_of,
    swap,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

OTHER = HashingEncoder(seed=7, name="other")


@pytest.fixture
def quiet(make_settings):
    """Settings that measure no quality, and consent to nothing."""
    return make_settings(quality_gate="off", search_probes=10)


@pytest.fixture
def finished(database, quiet):
    fill_and_swap(Migration(database, quiet))
    retire(Migration(database, quiet))
    return database


@pytest.fixture
def went_back(database, quiet):
    fill_and_swap(Migration(database, quiet))
    rollback(Migration(database, quiet))
    return database


def vectors(database):
    return execute(database, "SELECT id, embedding::text FROM segments ORDER BY id")


class TestTheNextMigration:
    @pytest.mark.parametrize("road", ["expand", "migrate"])
    def test_is_refused_with_nothing_changed(self, finished, quiet, road):
        before, searched = schema_of(finished), vectors(finished)
        act = {
            "expand": lambda: expand(Migration(finished, quiet), OTHER.space),
            "migrate": lambda: migrate(Migration(finished, quiet), EmbeddingsService(OTHER, quiet)),
        }[road]
        with pytest.raises(ConsentRequired) as refused:
            act()
        assert (schema_of(finished), vectors(finished)) == (before, searched)
        assert refused.value.exit_code == 2
        assert refused.value.state == "nothing was changed"
        for said in ("hashing (384 dimensions", "other (384 dimensions", "300 rows", "fills a new column"):
            assert said in refused.value.message
        for said in (
            "--yes",
            "BEGIN_NEXT_MIGRATION=hashing",
            "begin_next_migration",
            "EMBEDDING_DIMENSIONS=384",
            "embed",
        ):
            assert said in refused.value.next_step

    def test_begins_for_a_caller_who_says_so(self, finished, quiet):
        assert expand(Migration(finished, quiet), OTHER.space, begin_next=True).added

    @pytest.mark.parametrize("name", ["hashing", "other"])
    def test_begins_where_the_settings_name_its_model(self, finished, make_settings, name):
        assert expand(Migration(finished, make_settings(begin_next_migration=name)), OTHER.space).added

    def test_does_not_begin_by_consent_to_another_model(self, finished, make_settings):
        with pytest.raises(ConsentRequired):
            expand(Migration(finished, make_settings(begin_next_migration="BAAI/bge-small-en-v1.5")), OTHER.space)

    def test_is_not_asked_for_again_once_it_is_under_way(self, finished, quiet):
        expand(Migration(finished, quiet), OTHER.space, begin_next=True)
        backfill(Migration(finished, quiet), OTHER)
        result = migrate(Migration(finished, quiet), EmbeddingsService(OTHER, quiet))
        assert result.swap.exchanged
        assert wrong_vectors(finished, OTHER, "embedding") == []

    def test_wants_consent_anew_after_it_was_discarded(self, finished, quiet):
        fill(Migration(finished, quiet), OTHER)
        collapse(Migration(finished, quiet))
        with pytest.raises(ConsentRequired):
            expand(Migration(finished, quiet), OTHER.space)

    def test_wants_the_last_one_retired_even_by_consent(self, database, quiet):
        fill_and_swap(Migration(database, quiet))
        with pytest.raises(PhaseError, match="still keeps"):
            expand(Migration(database, quiet), OTHER.space, begin_next=True)

    def test_is_what_a_swap_that_dropped_the_old_vectors_leaves_to_consent(self, database, make_settings):
        settings = make_settings(old_embedding="drop")
        fill_and_swap(Migration(database, settings))
        with pytest.raises(ConsentRequired, match="OLD_EMBEDDING=drop"):
            expand(Migration(database, settings), OTHER.space)


def test_a_first_migration_and_repeating_a_finished_one_need_no_consent(database, quiet):
    service = EmbeddingsService(ENCODER, quiet)
    assert migrate(Migration(database, quiet), service).swap.exchanged
    retire(Migration(database, quiet))
    before = schema_of(database)
    assert not migrate(Migration(database, quiet), service).swap.exchanged
    assert schema_of(database) == before


class TestAfterARollback:
    @pytest.mark.parametrize("road", ["expand", "swap", "migrate"])
    def test_nothing_goes_forward_by_itself(self, went_back, quiet, road):
        before, searched = schema_of(went_back), vectors(went_back)
        service = EmbeddingsService(ENCODER, quiet)
        when = read_status(Migration(went_back, quiet)).rolled_back
        act = {
            "expand": lambda: expand(Migration(went_back, quiet), ENCODER.space),
            "swap": lambda: swap_as_it_is(Migration(went_back, quiet), service),
            "migrate": lambda: migrate(Migration(went_back, quiet), service),
        }[road]
        for _ in range(2):
            with pytest.raises(ConsentRequired, match=f"rolled back to the old vectors at {when}") as refused:
                act()
            assert f"FORWARD_AFTER_ROLLBACK={when}" in refused.value.next_step
        assert (schema_of(went_back), vectors(went_back)) == (before, searched)

    def test_the_index_that_search_uses_again_is_not_dropped(self, went_back, quiet):
        with pytest.raises(ConsentRequired):
            expand(Migration(went_back, quiet), ENCODER.space)
        assert execute(went_back, "SELECT to_regclass('segments_embedding_idx') IS NOT NULL") == [(True,)]

    def test_pending_rows_are_still_embedded(self, went_back, quiet):
        execute(went_back, "UPDATE segments SET text = 'changed' WHERE id = 1")
        assert backfill(Migration(went_back, quiet), ENCODER).rows == 1
        assert read_status(Migration(went_back, quiet)).rolled_back is not None

    def test_whoever_names_its_moment_goes_forward_and_it_is_forgotten(self, went_back, make_settings, quiet):
        when = rollback_moment(went_back, quiet)
        agreed = make_settings(forward_after_rollback=when, quality_gate="off", search_probes=10)
        assert migrate(Migration(went_back, agreed), EmbeddingsService(ENCODER, agreed)).swap.exchanged
        assert (
            read_status(Migration(went_back, quiet)).phase,
            read_status(Migration(went_back, quiet)).rolled_back,
        ) == ("swapped", None)
        assert require_table(Migration(went_back, quiet)).table.embedding.note.rolled_back is None

    def test_consent_that_was_interrupted_is_not_asked_for_again(self, went_back, make_settings, quiet):
        expand(
            Migration(went_back, make_settings(forward_after_rollback=rollback_moment(went_back, quiet))), ENCODER.space
        )
        assert migrate(Migration(went_back, quiet), EmbeddingsService(ENCODER, quiet)).swap.exchanged

    def test_the_moment_of_an_earlier_rollback_is_no_consent(self, went_back, make_settings, quiet):
        earlier = make_settings(forward_after_rollback=rollback_moment(went_back, quiet))
        swap(Migration(went_back, earlier))
        rollback(Migration(went_back, quiet))
        with pytest.raises(ConsentRequired):
            expand(Migration(went_back, earlier), ENCODER.space)

    def test_the_moment_has_one_form(self, make_settings):
        with pytest.raises(ConfigurationError, match="FORWARD_AFTER_ROLLBACK"):
            make_settings(forward_after_rollback="yes")

    def test_of_a_second_migration_it_is_remembered_too(self, finished, quiet):
        fill_and_swap(Migration(finished, quiet), OTHER)
        rollback(Migration(finished, quiet))
        with pytest.raises(ConsentRequired, match="rolled back"):
            migrate(Migration(finished, quiet), EmbeddingsService(OTHER, quiet))
        assert space_of(require_table(Migration(finished, quiet)).table.embedding) == ENCODER.space

    def test_a_swap_that_began_before_another_swap_and_rollback_is_stopped_under_its_lock(
        self, database, quiet, monkeypatch
    ):
        fill(Migration(database, quiet))
        searched = vectors(database)
        compact = swap_module.compact_pending_index
        meanwhile = []

        def swap_and_go_back_meanwhile(*arguments):
            compact(*arguments)
            if not meanwhile:
                meanwhile.append("another process")
                swap(Migration(database, quiet))
                rollback(Migration(database, quiet))

        monkeypatch.setattr(swap_module, "compact_pending_index", swap_and_go_back_meanwhile)
        with pytest.raises(ConsentRequired, match="rolled back"):
            swap_as_it_is(Migration(database, quiet), EmbeddingsService(ENCODER, quiet))
        assert vectors(database) == searched


def rollback_moment(database, settings):
    return read_status(Migration(database, settings)).rolled_back


def test_consent_is_given_to_the_step_that_was_ahead_and_to_no_other(database, quiet):
    def given(settings):
        return settings.begin_next_migration, settings.forward_after_rollback

    def ahead():
        return step_ahead(require_table(Migration(database, quiet)), OTHER.space)

    assert (ahead(), given(with_consent(quiet, require_table(Migration(database, quiet))))) == ("first", (None, None))
    fill(Migration(database, quiet))
    assert (ahead(), given(with_consent(quiet, require_table(Migration(database, quiet))))) == (None, (None, None))
    swap(Migration(database, quiet))
    assert (ahead(), given(with_consent(quiet, require_table(Migration(database, quiet))))) == (None, (None, None))
    rollback(Migration(database, quiet))
    moment = rollback_moment(database, quiet)
    assert (ahead(), given(with_consent(quiet, require_table(Migration(database, quiet))))) == (
        "forward",
        (None, moment),
    )
    swap(Migration(database, quiet))
    retire(Migration(database, quiet))
    assert (ahead(), given(with_consent(quiet, require_table(Migration(database, quiet))))) == (
        "next",
        ("hashing", None),
    )


@pytest.mark.parametrize("typed", ["public.Order Notes", '"public"."Order Notes"', " public.Order Notes "])
def test_a_table_is_confirmed_by_its_name(typed):
    require_confirmation(TargetTable("public", "Order Notes", ("id",), "text", "embedding"), typed)


@pytest.mark.parametrize("typed", ["", "yes", "Order Notes", "public.order notes", "other.Order Notes"])
def test_anything_else_confirms_nothing(typed):
    with pytest.raises(ConsentRequired, match=r"expected 'public\.Order Notes'"):
        require_confirmation(TargetTable("public", "Order Notes", ("id",), "text", "embedding"), typed)
