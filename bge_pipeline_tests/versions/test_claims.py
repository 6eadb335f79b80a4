"""What is said of versions anywhere is what the tests ran on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bge_pipeline.database import tested_versions
from bge_pipeline_tests.roads import ROOT
from bge_pipeline_tests.versions import results
from bge_pipeline_tests.versions.interpreters import VERSIONS
from bge_pipeline_tests.versions.page import DOCUMENT, document
from bge_pipeline_tests.versions.results import claimed, keep_result, keep_second_try, read_results, span
from bge_pipeline_tests.versions.servers import SERVERS
from bge_pipeline_tests.versions.suite import Outcome, read_report

RESULTS = read_results()
POSTGRES = claimed(RESULTS["servers"], "postgres", 1)
PGVECTOR = claimed(RESULTS["servers"], "pgvector", 2)
PYTHONS = claimed(RESULTS["pythons"], "python", 2)
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
SAID = [ROOT / "README.md", ROOT / "docs" / "migration-guide.md"]

IS_COMPLETE = all(
    name in runs and not runs[name]["failed"]
    for runs, names in ((RESULTS["servers"], [server.name for server in SERVERS]), (RESULTS["pythons"], VERSIONS))
    for name in names
)
after_all_ran = pytest.mark.skipif(
    not IS_COMPLETE, reason="make test-servers and make test-pythons have not run on all versions"
)


def test_the_page_is_in_step_with_the_results() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python -m bge_pipeline_tests.versions page"


@pytest.mark.parametrize("document", SAID, ids=lambda path: path.name)
@after_all_ran
def test_a_document_claims_the_versions_that_were_tested(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    servers = re.findall(r"(?:PostgreSQL(?: \|)?) (\d+ to \d+) with pgvector ([\d.]+ to [\d.]+)", text)
    assert servers == [(span(POSTGRES), span(PGVECTOR))]
    assert set(re.findall(r"Python(?: \|)? (3\.\d+ to 3\.\d+)", text)) == {span(PYTHONS)}


@after_all_ran
def test_the_package_claims_the_pythons_that_were_tested() -> None:
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT) == PYTHONS
    after = int(PYTHONS[-1].partition(".")[2]) + 1
    assert f'requires-python = ">={PYTHONS[0]},<3.{after}"' in PROJECT


@after_all_ran
def test_plan_knows_the_servers_that_were_tested() -> None:
    assert [str(major) for major in tested_versions.POSTGRES] == [POSTGRES[0], POSTGRES[-1]]
    assert [".".join(map(str, version)) for version in tested_versions.PGVECTOR] == [PGVECTOR[0], PGVECTOR[-1]]


@pytest.mark.parametrize("versions", [POSTGRES, PGVECTOR, PYTHONS], ids=["PostgreSQL", "pgvector", "Python"])
@after_all_ran
def test_what_is_claimed_from_one_to_another_was_tested_in_between(versions: list[str]) -> None:
    last = [int(version.rpartition(".")[2]) for version in versions]
    assert last == list(range(last[0], last[-1] + 1))


@after_all_ran
def test_continuous_integration_runs_on_all_of_them() -> None:
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert WORKFLOW["jobs"]["servers"]["strategy"]["matrix"]["server"] == [server.name for server in SERVERS]


@after_all_ran
def test_there_is_a_result_of_every_server_and_only_of_versions_that_can_be_tried() -> None:
    assert list(RESULTS["servers"]) == [server.name for server in SERVERS]
    assert set(RESULTS["pythons"]) <= set(VERSIONS)
    for server in SERVERS:
        run = RESULTS["servers"][server.name]
        assert run["from"] == server.requirement
        assert f"{run['postgres'].partition('.')[0]}-{run['pgvector'].rpartition('.')[0]}" == server.name


def test_a_version_with_a_failed_test_is_not_claimed() -> None:
    runs = {
        "15-0.5": {"postgres": "15.5", "failed": []},
        "16-0.6": {"postgres": "16.2", "failed": ["a test"]},
        "18-0.8": {"postgres": "18.4", "failed": []},
    }
    assert claimed(runs, "postgres", 1) == ["15", "18"]
    assert span(["15", "18"]) == "15 to 18"
    assert (span(["15"]), span([])) == ("15", "none")


def test_a_report_says_which_tests_failed() -> None:
    report = """<testsuites><testsuite name="pytest">
    <testcase classname="bge_pipeline_tests.db.test_session.TestTimeLimits" name="test_a[b.c]"><failure message=""/></testcase>
    <testcase classname="bge_pipeline_tests.db.test_session" name="test_d"/>
    <testcase classname="bge_pipeline_tests.db.test_session" name="test_d"><error message="in its teardown"/></testcase>
    <testcase classname="bge_pipeline_tests.db.test_session" name="test_e"/>
    <testcase classname="bge_pipeline_tests.db.test_session" name="test_f"><skipped message="came with 17"/></testcase>
    </testsuite></testsuites>"""
    failed = (
        "bge_pipeline_tests/db/test_session.py::TestTimeLimits::test_a[b.c]",
        "bge_pipeline_tests/db/test_session.py::test_d",
    )
    assert read_report(report) == Outcome(passed=1, failed=failed, skipped=1, reasons=("came with 17",))


def test_a_second_try_corrects_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    keep_result("servers", "15-0.5", {"postgres": "15.5"}, Outcome(10, ("a", "b"), 1, ("came with 17",)))
    keep_second_try("servers", "15-0.5", Outcome(1, ("b",), 0, ()))
    run = read_results()["servers"]["15-0.5"]
    assert (run["passed"], run["at_the_second_try"], run["failed"], run["skipped"]) == (11, 1, ["b"], 1)
    assert claimed({"15-0.5": run}, "postgres", 1) == []
