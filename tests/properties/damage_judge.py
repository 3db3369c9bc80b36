"""The verdict on a run over damaged files: a right table with what is missing accounted for, or a named error."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from damage_said import Row, Said, Source, World
from damage_values import LOST, agrees, key_of

from prefect_cytotable.tasks.core.errors import (
    BadSourceError,
    CytotableError,
    DuplicateKeyError,
    LayoutError,
    SourceNotFoundError,
)
from prefect_cytotable.tasks.core.join import Step, steps_from
from prefect_cytotable.tasks.core.model import Account, Cause, Relation, Report
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER, Namer


@dataclass(frozen=True)
class Shape:
    """What is known of a preset's tables.

    Attributes:
        object_numbers: The column that numbers objects, by compartment; none where rows have no keys.
        identifying: Columns that get "Metadata_" before their name.
        keyed: Whether rows have keys and are joined.
        unnumbered: Columns that the output may have beyond those of the tables.
    """

    object_numbers: dict[str, str]
    identifying: frozenset[str]
    keyed: bool = True
    unnumbered: frozenset[str] = frozenset({TABLE_NUMBER})


class Verdict:
    """Judges one run."""

    def __init__(self, world: World, shape: Shape, touched: bool) -> None:
        self.world, self.shape, self.touched = world, shape, touched

    # A run that ends in an error

    def error(self, error: CytotableError, root: str, strict: bool) -> None:
        """Holds that an error names what is there, and that there is a reason for it.

        Args:
            error: What was raised.
            root: The source path.
            strict: Whether the run was to stop at the first bad source.
        """
        text = str(error)
        assert text.strip(), "an error without a message"
        assert "Traceback" not in text and "\n\n\n" not in text, text
        assert len(text) < 100_000, f"a message of {len(text)} characters"
        assert root in text, f"it does not say where: {text}"
        assert type(error) is not CytotableError, text
        assert self.touched, f"nothing is wrong with the files: {text}"
        if isinstance(error, DuplicateKeyError):
            assert self._doubtful() or self._repeated(), text
        elif isinstance(error, BadSourceError):
            assert strict, f"a bad source is to be skipped: {text}"
            assert self._doubtful() or self._lacking(), text
        elif isinstance(error, SourceNotFoundError):
            assert not self._readable(), text
        else:
            assert isinstance(error, LayoutError), f"{type(error).__name__}: {text}"
            assert "can be read" not in text or not self._readable(), text

    def _sources(self) -> list[tuple[str, str, Source]]:
        return [(name, key, source) for name, tables in self.world.items() for key, source in tables.items()]

    def _readable(self) -> bool:
        """Whether some table of objects is beyond doubt."""
        return any(key != "image" and self._has_keys(key, source.said) for _, key, source in self._sources())

    def _doubtful(self) -> bool:
        unread = any(not tables for tables in self.world.values())
        return not self.world or unread or any(source.said is None for *_, source in self._sources())

    def _lacking(self) -> bool:
        return any(not self._has_keys(key, source.said) for _, key, source in self._sources())

    def _has_keys(self, key: str, said: Said | None) -> bool:
        wanted = {"ImageNumber", self.shape.object_numbers.get(key, "ImageNumber")} if self.shape.keyed else set()
        return said is not None and wanted <= set(said.header)

    def _repeated(self) -> bool:
        for _, key, source in self._sources():
            if source.said is not None and self._has_keys(key, source.said):
                columns = ["ImageNumber", *([self.shape.object_numbers[key]] if key != "image" else [])]
                keys = Counter(tuple(one) for one in _keys(source.said, columns) if None not in one)
                if max(keys.values(), default=0) > 1:
                    return True
        return False

    # A run that ends in a table

    def table(self, report: Report, table: pa.Table) -> None:
        """Holds that the table is right and that the report tells of all that is missing."""
        assert sum(one.rows_out for one in report.accounts) == table.num_rows
        assert all(account.balanced for account in report.accounts), report.accounts
        skipped = {(one.dataset, one.compartment): one for one in report.skipped}
        self._check_skipped(report)
        names = [account.dataset for account in report.accounts]
        assert len(set(names)) == len(names)
        parts = {name: self._whole_of(name) for name in names if name not in self.world}
        assert None not in parts.values(), (parts, list(self.world))
        for name in set(self.world) - set(names) - set(parts.values()):
            assert any(name.startswith(one.dataset) for one in report.skipped), f"nothing is said of {name!r}"
        origin = json.loads(report.provenance)
        relations = tuple(Relation(one["child"], one["parent"], one["column"]) for one in origin["relations"])
        known = {label.lower() for label, _ in report.tables_in}
        used: World = {
            name: {
                key: source for key, source in self.world[name].items() if (name, key) not in skipped and key in known
            }
            for name in names
            if name not in parts
        }
        sources = self._columns(used, names, table, origin["base"])
        self._check_parts(report, parts, origin["base"])
        lost: Counter[tuple[str, str]] = Counter()
        numbers: list[object] = []
        start = 0
        for account in report.accounts:
            block = table.slice(start, account.rows_out)
            start += account.rows_out
            numbers += _one_number(block, len(names))
            if account.dataset in parts:
                continue
            one = _Dataset(account, used[account.dataset], block, origin["base"], steps_from(origin["base"], relations))
            if self.shape.keyed:
                one.judge(known, sources, self.shape, lost, skipped)
            else:
                one.judge_unkeyed(sources, lost, skipped)
        assert len(set(numbers)) == len(numbers), f"two datasets have the same number: {numbers}"
        self._check_notes(report, lost)

    def _check_parts(self, report: Report, parts: dict[str, str | None], base: str) -> None:
        """Holds that the rows of a doubtful database that can be made out are told of, in whichever dataset."""
        for whole in {one for one in parts.values() if one}:
            accounts = [one for one in report.accounts if parts.get(one.dataset) == whole]
            told: float = sum(one.rows_in for one in accounts)
            skipped = [one for one in report.skipped if one.compartment == base and one.dataset.startswith(whole)]
            told += sum(math.inf if one.rows is None else one.rows for one in skipped)
            source = self.world[whole].get(base)
            rows = 0 if source is None else len(source.said.rows if source.said else source.legible)
            assert rows <= told, f"{whole}: {rows} rows of {base} can be made out, and the report tells of {told}"

    def _whole_of(self, name: str) -> str | None:
        """The doubtful database that a dataset is a part of: which rows are its own is beyond the strict reader."""
        for whole, tables in self.world.items():
            doubtful = any(source.said is None for source in tables.values())
            if name.startswith(f"{whole}, ") and doubtful:
                return whole
        return None

    def _check_skipped(self, report: Report) -> None:
        for one in report.skipped:
            assert one.cause.strip(), one
            source = self.world.get(one.dataset, {}).get(one.compartment)
            if source is not None:
                assert not self._has_keys(one.compartment, source.said), f"skipped without a reason: {one}"

    def _columns(self, used: World, names: list[str], table: pa.Table, base: str) -> dict[str, list[tuple[str, str]]]:
        """(compartment, column) pairs by output name, the one that is taken first; all that should be there are."""
        found: dict[str, list[tuple[str, str]]] = {}
        order = [base, "image", "cells", "nuclei", "cytoplasm"]
        doubtful = set(used) != set(names)
        for key in dict.fromkeys(order):
            namer = Namer(key.capitalize(), self.shape.identifying)
            for tables in used.values():
                said = tables[key].said if key in tables else None
                doubtful |= key in tables and said is None
                for column in said.header if said else ():
                    name = namer(column) if self.shape.keyed else column
                    pairs = found.setdefault(name, [])
                    if (key, column) not in pairs and not (key != base and column == "ImageNumber"):
                        pairs.append((key, column))
        found = {name: pairs for name, pairs in found.items() if pairs}
        columns = set(table.column_names) - self.shape.unnumbered
        if not doubtful:
            assert columns == set(found) - self.shape.unnumbered, columns ^ set(found)
        return {name: found.get(name, []) for name in columns}

    def _check_notes(self, report: Report, lost: Counter[tuple[str, str]]) -> None:
        told = {note.subject: note.count for note in report.notes if "became null" in note.finding}
        for note in report.notes:
            if "became null" in note.finding:
                told[note.subject] = max(told[note.subject], note.count)
        for (key, column), count in lost.items():
            notes = sum(one.count for one in report.notes if one.subject == f"{key}.{column}" and "null" in one.finding)
            assert notes >= count, f"{count} value(s) of {key}.{column} became null, and the notes tell of {notes}"


def _one_number(block: pa.Table, datasets: int) -> list[object]:
    """The TableNumber of a dataset's rows, where there are any."""
    if TABLE_NUMBER not in block.column_names or not block.num_rows or datasets < 2:
        assert datasets < 2 or not block.num_rows, "rows of several datasets, and no TableNumber"
        return []
    numbers = set(block.column(TABLE_NUMBER).to_pylist())
    assert len(numbers) == 1, f"rows of one dataset have the numbers {numbers}"
    return list(numbers)


def _keys(said: Said, columns: Sequence[str]) -> list[list[int | None]]:
    places = [said.header.index(one) for one in columns]
    return [[key_of(row[at]) for at in places] for row in said.rows]


Skips = dict[tuple[str, str], object]


@dataclass(frozen=True)
class _Dataset:
    """One dataset of the output."""

    account: Account
    used: dict[str, Source]
    block: pa.Table
    base: str
    steps: tuple[Step, ...]

    @property
    def dropped(self) -> int:
        return sum(rows for _, rows in self.account.dropped)

    def judge(
        self,
        known: set[str],
        sources: dict[str, list[tuple[str, str]]],
        shape: Shape,
        lost: Counter[tuple[str, str]],
        skipped: Skips,
    ) -> None:
        """Holds the rows against what the files say."""
        if self.base not in self.used:
            self._judge_without_base(skipped)
            return
        said = {key: source.said for key, source in self.used.items()}
        if any(one is None for one in said.values()):
            self._judge_doubtful(sources)
            return
        tables = {key: _Keyed(one, shape.object_numbers.get(key, "")) for key, one in said.items() if one is not None}
        expected = self._expected(tables, known)
        assert self.account.rows_in == len(tables[self.base].said.rows), (self.account, "rows of the base table")
        assert self.account.rows_out == len(expected), (self.account, [one[self.base] for one in expected])
        self._compare(expected, tables, sources, lost)

    def _expected(self, tables: dict[str, _Keyed], known: set[str]) -> list[dict[str, Row | None]]:
        """The joined rows in their order: of each compartment the row that belongs there."""
        base, found = tables[self.base], []
        for row, (image, one) in zip(base.said.rows, base.keys, strict=True):
            if image is None or one is None or ("image" in known and "image" not in tables):
                continue
            joined: dict[str, Row | None] = {self.base: row}
            for step in self.steps:
                parent = self._partner(step, tables, joined, image)
                if parent is None:
                    break
                joined[step.compartment] = parent
            else:
                joined["image"] = tables["image"].by_key().get((image, None)) if "image" in tables else None
                found.append(((image, one), joined))
        return [joined for _, joined in sorted(found, key=lambda pair: pair[0])]

    def _partner(self, step: Step, tables: dict[str, _Keyed], joined: dict[str, Row | None], image: int) -> Row | None:
        via = joined[step.via]
        if step.compartment not in tables or via is None:
            return None
        if step.up:
            number = tables[step.via].key(via, step.column)
            return None if number is None else tables[step.compartment].by_key().get((image, number))
        number = tables[step.via].key(via, tables[step.via].number)
        return tables[step.compartment].by_parent(step.column).get((image, number))

    def _compare(
        self,
        expected: list[dict[str, Row | None]],
        tables: dict[str, _Keyed],
        sources: dict[str, list[tuple[str, str]]],
        lost: Counter[tuple[str, str]],
    ) -> None:
        for name, pairs in sources.items():
            found = self.block.column(name).to_pylist()
            key, column = next(((key, one) for key, one in pairs if key in self._order), (self.base, ""))
            for value, joined in zip(found, expected, strict=True):
                row = joined.get(key)
                has = row is not None and key in tables and column in tables[key].said.header
                raw = row[tables[key].said.header.index(column)] if has and row is not None else None
                text = has and tables[key].said.texts
                verdict = agrees(value, raw, text) if has else value is None
                assert verdict, f"{self.account.dataset}: {name} is {value!r}, and {key}.{column} said {raw!r:.200}"
                if verdict is LOST:
                    lost[key, column] += 1

    @property
    def _order(self) -> set[str]:
        return {"image", self.base, *(step.compartment for step in self.steps)}

    def _judge_doubtful(self, sources: dict[str, list[tuple[str, str]]]) -> None:
        """Rows that can be made out, and are gone, are counted as dropped."""
        base = self.used[self.base]
        rows = len(base.said.rows) if base.said else len(base.legible)
        missing = rows - self.account.rows_out - self.dropped
        assert missing <= (0 if base.said else 1), f"{missing} of {rows} rows are gone, and nothing is said of them"

    def _judge_without_base(self, skipped: Skips) -> None:
        """No file of the compartment that gives the output its rows could be used."""
        assert not self.block.num_rows
        bad = skipped.get((self.account.dataset, self.base))
        rows = getattr(bad, "rows", 0) or 0
        assert dict(self.account.dropped).get(Cause.BAD_SOURCE, 0) == rows == self.account.rows_in

    def judge_unkeyed(
        self, sources: dict[str, list[tuple[str, str]]], lost: Counter[tuple[str, str]], skipped: Skips
    ) -> None:
        """Holds the rows of a table without keys against what its file says."""
        if self.base not in self.used:
            self._judge_without_base(skipped)
            return
        source = self.used[self.base]
        if source.said is None:
            self._judge_doubtful(sources)
            return
        assert self.account.rows_in == self.account.rows_out == len(source.said.rows)
        keyed = {self.base: _Keyed(source.said, "")}
        self._compare([{self.base: row} for row in source.said.rows], keyed, sources, lost)


class _Keyed:
    """A table whose rows are found by their keys."""

    def __init__(self, said: Said, number: str) -> None:
        self.said, self.number = said, number
        names = [one for one in ("ImageNumber", number) if one]
        if set(names) <= set(said.header):
            self.keys = [(one[0], one[1] if number else None) for one in _keys(said, names)]
        self._found: dict[tuple[int, int | None], Row] | None = None

    def by_key(self) -> dict[tuple[int, int | None], Row]:
        """Rows by (image, object); of the image table by (image, None)."""
        if self._found is None:
            whole = [
                (key, row)
                for key, row in zip(self.keys, self.said.rows, strict=True)
                if key[0] is not None and (key[1] is not None or not self.number)
            ]
            self._found = {(image, one): row for (image, one), row in whole if image is not None}
            assert len(self._found) == len(whole), "two rows have the same key, and the run went on"
        return self._found

    def by_parent(self, column: str) -> dict[tuple[int | None, int | None], Row]:
        """Rows by (image, the number in `column`)."""
        rows = zip(self.keys, self.said.rows, strict=True)
        return {(key[0], self.key(row, column)): row for key, row in rows if (self.key(row, column) or 0) > 0}

    def key(self, row: Row, column: str) -> int | None:
        """The number in a column, None where there is none or no such column."""
        return key_of(row[self.said.header.index(column)]) if column in self.said.header else None
