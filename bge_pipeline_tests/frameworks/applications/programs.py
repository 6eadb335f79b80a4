"""What the applications have in common: a block of the documentation is executed with the names that it takes."""


def run(program: str, **names: object) -> dict:
    """The names that are there after the program."""
    exec(compile(program, "docs/frameworks.md", "exec"), names)
    return names


def with_driver(url: str, driver: str) -> str:
    """The URL as SQLAlchemy wants it for a driver."""
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)
