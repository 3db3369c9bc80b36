"""The values of a run over many plates: frozen, small, and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What is to be done with a plate."""

    CONVERT = "convert"
    UNCHANGED = "unchanged"
    WAIT = "wait"
    GONE = "gone"
    FAIL = "fail"
    """It cannot even be looked at."""


class Status(StrEnum):
    """What is known of a plate, in the index."""

    CONVERTED = "converted"
    """The output is there, and made of what the source was when it was last looked at."""
    CONVERTING = "converting"
    """Its conversion has begun and has not ended, or was killed."""
    FAILED = "failed"
    """The last attempt failed; an output of an earlier state may be there."""
    WAITING = "waiting"
    """The source was changed so lately that it may still be written to."""
    GONE = "gone"
    """The source is no longer there; the output, if there is one, is left alone."""


class NewVersion(StrEnum):
    """What a new version of this program means for plates that an earlier one converted."""

    KEEP = "keep"
    CONVERT = "convert"


@dataclass(frozen=True)
class Plate:
    """A folder or a file below the root, as it was listed.

    Attributes:
        files: How many files a conversion may read.
        size: Their bytes.
        newest: When any file of the plate was last changed, nanoseconds since 1970.
        fingerprint: Changes when a file that a conversion may read comes, goes or changes.
        problem: Why it could not be listed; empty where it could.
    """

    name: str
    source: str
    files: int
    size: int
    newest: int
    fingerprint: str
    problem: str = ""


@dataclass(frozen=True)
class Listing:
    """What lies at the root; `ignored` are names in which nothing can be read."""

    plates: tuple[Plate, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class IndexRow:
    """One plate in the index. What speaks of an output speaks of the last one that became whole.

    Attributes:
        path: Of the output. It is named before the first conversion begins, when nothing lies there yet.
        fingerprint: Of the source that the output was made of; empty from the beginning of a conversion to its end.
        options: Hash of the arguments that decide what is in an output.
        rows: Of the output, or of all its tables together.
        rows_dropped: Rows of the base compartment that are not in the output.
        size: Bytes of the output.
        converted_at: Microseconds since 1970, UTC.
        seconds: How long the conversion took.
        error: Of the last attempt; empty where it went well.
        checked_at: When the plate was last looked at with a change of its status, microseconds since 1970, UTC.
    """

    plate: str
    source: str
    status: Status
    path: str = ""
    fingerprint: str = ""
    options: str = ""
    tool_version: str = ""
    rows: int | None = None
    columns: int | None = None
    rows_dropped: int | None = None
    size: int | None = None
    converted_at: int | None = None
    seconds: float | None = None
    chunks: int | None = None
    chunks_reused: int | None = None
    source_files: int | None = None
    source_size: int | None = None
    checked_at: int | None = None
    error: str = ""

    @property
    def has_output(self) -> bool:
        """Whether an output became whole at some time."""
        return self.converted_at is not None


@dataclass(frozen=True)
class Decision:
    """What is to be done with one plate, and why. `plate` is None for one that is gone."""

    name: str
    verdict: Verdict
    why: str
    plate: Plate | None = None
    row: IndexRow | None = None


@dataclass(frozen=True)
class Settings:
    """A run over many plates as it was asked for, checked, with every default filled in.

    Attributes:
        settle: Seconds for which a plate must have been left alone.
        options: Hash of the arguments that decide what is in an output.
        suffix: Of an output's name; empty where an output is a folder of tables.
        work_root: Where the parts of all plates lie, in a folder for each.
        plates_at_once: Conversions under way at once; each gets `share` bytes of the memory budget.
        keep: Bytes of parts that stay for later runs; 0 keeps none.
        keep_seconds: How long parts stay that no run has used.
    """

    source_root: str
    destination_root: str
    settle: float
    options: str
    suffix: str
    work_root: str
    plates_at_once: int
    share: int
    workers: int
    keep: int
    keep_seconds: float
    new_version: NewVersion
    overwrite: bool
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    storage: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of one plate in this run; the counts are those of its output, where it was converted now."""

    plate: str
    verdict: Verdict
    why: str
    rows: int | None = None
    chunks: int | None = None
    chunks_reused: int | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Reprocessed:
    """What a run over many plates did.

    Attributes:
        index: Path or URL of the index table.
        outcomes: One for each plate that is there or was there, by name.
        freed: Bytes of kept chunks that were removed to hold the bounds.
    """

    destination: str
    index: str
    outcomes: tuple[Outcome, ...]
    ignored: tuple[str, ...]
    seconds: float
    freed: int = 0

    @property
    def converted(self) -> tuple[str, ...]:
        """Plates that were converted, or in a dry run would be."""
        return self._of(Verdict.CONVERT)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Plates whose output is what it should be."""
        return self._of(Verdict.UNCHANGED)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Plates that may still be written to."""
        return self._of(Verdict.WAIT)

    @property
    def gone(self) -> tuple[str, ...]:
        """Plates whose source is no longer there."""
        return self._of(Verdict.GONE)

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(plate, error) of those that failed."""
        return tuple((one.plate, one.error) for one in self.outcomes if one.error)

    @property
    def attempted(self) -> int:
        """Plates that were to be converted."""
        return len(self.converted) + len(self.failures)

    def _of(self, verdict: Verdict) -> tuple[str, ...]:
        return tuple(one.plate for one in self.outcomes if one.verdict is verdict and not one.error)
