"""An environment that holds a wheel and what it declares, and nothing else; made of the packages at hand, without a network."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@dataclass(frozen=True)
class WheelEnvironment:
    """A virtual environment with the wheel in it."""

    folder: Path

    @property
    def programs(self) -> Path:
        """Where its commands are."""
        return self.folder / ("Scripts" if sys.platform == "win32" else "bin")

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.programs / "python"


def make_environment(wheel: Path, folder: Path) -> WheelEnvironment:
    """Install the wheel beside links to its declared dependencies, and theirs; extras of the wheel stay out."""
    venv.create(folder, with_pip=False, symlinks=sys.platform != "win32")
    environment = WheelEnvironment(folder)
    site = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(
        subprocess.run([environment.python, *site], capture_output=True, text=True, check=True).stdout.strip()
    )
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)], check=True)
    (metadata,) = packages.glob("bge_pipeline-*.dist-info")
    for found in closure(Distribution.at(metadata)):
        for entry in entries(found):
            link = packages / entry.name
            if not link.exists():
                link.symlink_to(entry, target_is_directory=entry.is_dir())
    return environment


def closure(root: Distribution) -> list[Distribution]:
    """What a distribution requires here without extras, and what those require, each once."""
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    wanted = list(required(root, ""))
    for name, extra in wanted:
        if (name, extra) in asked:
            continue
        asked.add((name, extra))
        try:
            found.setdefault(name, distribution(name))
        except PackageNotFoundError:
            raise AssertionError(f"{name} is declared and not installed here") from None
        wanted += required(found[name], extra)
    return list(found.values())


def required(found: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    """Name and extra of each requirement that holds on this machine."""
    for line in found.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in ("", *requirement.extras):
                yield canonicalize_name(requirement.name), wanted


def entries(found: Distribution) -> Iterable[Path]:
    """The files and folders of a distribution at the top of its site-packages."""
    files = found.files or []
    names = {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__") and not file.is_absolute()}
    return [Path(str(found.locate_file(name))) for name in sorted(names)]
