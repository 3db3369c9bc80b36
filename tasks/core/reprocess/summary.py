"""What a run over many plates did, as lines and as the rows of a table."""

from __future__ import annotations

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.reprocess.model import Outcome, Reprocessed, Verdict

_ORDER = (Verdict.FAIL, Verdict.CONVERT, Verdict.WAIT, Verdict.GONE, Verdict.UNCHANGED)
_WORDS = {
    Verdict.CONVERT: "converted",
    Verdict.FAIL: "failed",
    Verdict.WAIT: "waiting",
    Verdict.GONE: "gone",
    Verdict.UNCHANGED: "unchanged",
}
NAMED = 20
"""Plates that lines name, of each kind."""


def line(outcome: Outcome) -> str:
    """One plate in a line."""
    if outcome.error:
        return f"{outcome.plate}: failed ({outcome.why}): {outcome.error}"
    if outcome.verdict is Verdict.CONVERT and outcome.rows is not None:
        reused = f", {outcome.chunks_reused} done before" if outcome.chunks_reused else ""
        return (
            f"{outcome.plate}: {outcome.why}, {outcome.rows:,} rows, {outcome.chunks} chunk(s){reused}, "
            f"{outcome.seconds or 0:.1f} s"
        )
    return f"{outcome.plate}: {_WORDS[outcome.verdict]}, {outcome.why}"


def lines(done: Reprocessed, dry_run: bool = False) -> list[str]:
    """The run for a terminal or a log."""
    word = "to convert" if dry_run else "converted"
    text = [
        f"plates: {len(done.outcomes)}, {len(done.converted)} {word}, {len(done.unchanged)} unchanged, "
        f"{len(done.waiting)} waiting, {len(done.failures)} failed, {len(done.gone)} gone"
    ]
    shown = (Verdict.CONVERT, Verdict.WAIT, Verdict.FAIL) if dry_run else (Verdict.WAIT,)
    for verdict in shown:
        some = [one for one in done.outcomes if one.verdict is verdict]
        text += [f"  {one.plate}: {one.why}" for one in some[:NAMED]]
        if len(some) > NAMED:
            text.append(f"  and {len(some) - NAMED} more {_WORDS[verdict]}")
    if done.ignored:
        more = f" and {len(done.ignored) - 5} more" if len(done.ignored) > 5 else ""
        text.append(f"ignored, as nothing in it can be read: {', '.join(done.ignored[:5])}{more}")
    if done.freed:
        text.append(f"freed {show_bytes(done.freed)} of kept chunks")
    if not dry_run:
        text.append(f"index {done.index}, {done.seconds:.1f} s")
    return text


def table(done: Reprocessed, limit: int) -> list[dict[str, object]]:
    """The plates as rows, what failed first and what is unchanged last; at most `limit`."""
    ordered = sorted(done.outcomes, key=lambda one: (_ORDER.index(one.verdict), one.plate))
    return [
        {
            "plate": one.plate,
            "status": _WORDS[one.verdict],
            "why": one.why,
            "rows": one.rows,
            "chunks": one.chunks,
            "done before": one.chunks_reused,
            "seconds": one.seconds,
            "error": one.error,
        }
        for one in ordered[:limit]
    ]
