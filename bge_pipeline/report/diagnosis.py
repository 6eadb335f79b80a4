"""What the doctor found: findings with a grade each, and a page of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from bge_pipeline.quality.content import ColumnContent
from bge_pipeline.report.pages import html_page
from bge_pipeline.report.sections import Headline, Section

Grade = Literal["ok", "note", "warning", "error"]
GRADES: tuple[Grade, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what, in a word or two that stay the same.
        grade: `ok`; `note`, to know; `warning`, search is worse than it could be; `error`, search is wrong.
        told: what was found.
        next_step: what to run; None where nothing has to be done.
    """

    name: str
    grade: Grade
    told: str
    next_step: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings about one column.

    Attributes:
        table: schema-qualified, quoted.
        column: the one that search reads.
        column_type: as PostgreSQL prints it.
        model: what made its vectors, as far as anybody recorded it.
        content: counts.
        findings: in the order in which they were looked for.
    """

    table: str
    column: str
    column_type: str
    model: str | None
    content: ColumnContent
    findings: tuple[Finding, ...]

    @property
    def grade(self) -> Grade:
        """The worst of all findings."""
        return max((finding.grade for finding in self.findings), key=GRADES.index, default="ok")

    def reaches(self, grade: Grade) -> bool:
        """Whether anything was found that is as bad as `grade`."""
        return GRADES.index(self.grade) >= GRADES.index(grade)

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"grade": self.grade}


def as_html(found: Diagnosis) -> str:
    """One HTML file that needs no other; names of the database are inert in it."""
    content = found.content
    looked = "rows looked at, on random pages" if content.is_sample else "rows, all of them"
    rows = [["", "found", "what to do"]]
    rows += [[f"{f.name}: {f.grade}", f.told, f.next_step or ""] for f in found.findings]
    return html_page(
        f"{found.table}: {found.grade}",
        {"column": f"{found.column} {found.column_type}", "model": found.model or "not recorded"},
        [Headline(looked, f"{content.rows:,}"), Headline("vectors", f"{content.vectors:,}")],
        [Section("Findings", rows)],
    )
