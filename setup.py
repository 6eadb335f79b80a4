"""Puts the Alembic revisions, which stand at the top of the project, into the package; pyproject.toml says all else."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

REVISIONS = Path("migrations")


class BuildWithRevisions(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in revision_files():
                target = Path(self.build_lib, "bge_pipeline", source)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, revision_files())]


def revision_files() -> list[Path]:
    return sorted(path for suffix in ("py", "mako") for path in REVISIONS.rglob(f"*.{suffix}"))


setup(cmdclass={"build_py": BuildWithRevisions})
