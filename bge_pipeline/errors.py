"""Every error this package raises on purpose. A message says what was expected and what was found;
`state` says what the database looks like now, `next_step` what to run."""

from __future__ import annotations


class BgePipelineError(Exception):
    """Something this tool can explain went wrong."""

    exit_code = 1

    def __init__(self, message: str | None = None, *, state: str | None = None, next_step: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.state = state
        self.next_step = next_step
        super().__init__(self.message)

    def __str__(self) -> str:
        lines = [self.message]
        if self.state:
            lines.append(f"State: {self.state}")
        if self.next_step:
            lines.append(f"Next: {self.next_step}")
        return "\n".join(lines)


class ConfigurationError(BgePipelineError):
    """A setting is missing or has a value it may not have."""

    exit_code = 2


class DatabaseUnavailable(BgePipelineError):
    """The database cannot be reached."""

    exit_code = 4


class LoginRefused(DatabaseUnavailable):
    """The database answers, and does not let this user in; another attempt changes nothing."""


class ConsentRequired(BgePipelineError):
    """A step that begins, takes back or destroys something has not been agreed to."""

    exit_code = 2


class SessionNotKept(BgePipelineError):
    """A connection does not keep its server process, as behind a pooler in transaction mode."""

    exit_code = 2


class ReadOnlyDatabase(BgePipelineError):
    """The database takes no changes."""

    exit_code = 2


class DiskFull(BgePipelineError):
    """The server has no space left."""


class HistoryOfAnotherTable(BgePipelineError):
    """Dagster's history is that of another table than the settings name."""

    exit_code = 2


class TargetTableError(BgePipelineError):
    """The target table is missing or has a shape that cannot be migrated."""

    exit_code = 2


class MissingPrivilege(BgePipelineError):
    """The database role lacks a privilege that the next step needs."""

    exit_code = 2


class ModelUnavailable(BgePipelineError):
    """The model, or the library that runs it, cannot be loaded."""

    exit_code = 4


class RandomWeights(ModelUnavailable):
    """Part of the model's weights is not in its files and would be random."""


class EncodingError(BgePipelineError):
    """The encoder failed on texts that it should be able to embed."""


class OutOfMemory(EncodingError, MemoryError):
    """The device or the host has no memory left for the model, or for even one text."""


class EmbeddingSpaceMismatch(BgePipelineError):
    """The vectors at hand and the column belong to different embedding spaces."""

    exit_code = 3


class PhaseError(BgePipelineError):
    """This step does not fit the phase that the table is in."""

    exit_code = 3


class ChangedMeanwhile(PhaseError):
    """Another process changed the target table while this one was at work on it."""


class OperatorBusy(BgePipelineError):
    """Another process changes the schema of the target table now."""

    exit_code = 6


class SwapRefused(BgePipelineError):
    """The columns were not exchanged because a check did not hold."""

    exit_code = 3


class LockNotAcquired(BgePipelineError):
    """A strong lock could not be had without making the application wait."""

    exit_code = 5


class Stopped(BgePipelineError):
    """Somebody asked this process to end, and it did after the batch in hand."""

    exit_code = 143


class Interrupted(Stopped):
    """Ctrl-C, before there was anything that another command could go on with."""

    exit_code = 130


class BudgetSpent(Stopped):
    """A backfill has cost as much as it may, and ended after the batch in hand."""

    exit_code = 7


class IndexBuildFailed(BgePipelineError):
    """The vector index could not be built."""
