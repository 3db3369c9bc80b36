"""Chunks that are kept stay the same ones when a site among many changes, comes or goes."""

from __future__ import annotations

import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from small import inspect_source, plan_source, tables, write_csv, write_sqlite

from prefect_cytotable.tasks.core.steady import coarse, groups, steady_share

SITES = 40


def stretches(names: list[str], weights: list[int], limit: int) -> set[tuple[str, ...]]:
    return {tuple(names[start:stop]) for start, stop in groups(names, weights, limit)}


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 300)), max_size=60), st.integers(1, 400))
def test_groups_cover_all_in_order_and_none_is_too_heavy(items: list[tuple[str, int]], limit: int) -> None:
    names, weights = [name for name, _ in items], [weight for _, weight in items]
    found = list(groups(names, weights, limit))
    assert [one for start, stop in found for one in range(start, stop)] == list(range(len(items)))
    assert all(stop - start == 1 or sum(weights[start:stop]) <= limit for start, stop in found)


def test_a_name_that_comes_goes_or_changes_moves_few_boundaries() -> None:
    chance = random.Random(7)
    names = [f"site-{number}" for number in range(1000)]
    chance.shuffle(names)
    weights = [chance.randint(50, 150) for _ in names]
    before = stretches(names, weights, 1000)
    assert len(before) > 100
    new: dict[str, list[int]] = {"added": [], "removed": [], "grown": []}
    for _ in range(60):
        at = chance.randrange(len(names))
        more = stretches([*names[:at], "new", *names[at:]], [*weights[:at], 100, *weights[at:]], 1000)
        less = stretches(names[:at] + names[at + 1 :], weights[:at] + weights[at + 1 :], 1000)
        grown = stretches(names, [*weights[:at], weights[at] + 3, *weights[at + 1 :]], 1000)
        for kind, found in (("added", more), ("removed", less), ("grown", grown)):
            new[kind].append(len(found - before))
    assert sum(new["grown"]) / 60 < 0.5
    assert sum(new["added"]) / 60 < 3
    assert sum(new["removed"]) / 60 < 3
    assert max(max(one) for one in new.values()) < 12


@given(st.integers(1, 2**50))
def test_rounded_estimates_are_upwards_by_an_eighth_at_most(value: int) -> None:
    assert value <= coarse(value) <= value * 9 / 8 + 1


def test_the_share_of_a_chunk_does_not_follow_small_changes() -> None:
    limit = 64 << 20
    shares = [steady_share(size << 20, limit) for size in range(1, 2000)]
    assert shares == sorted(shares)
    assert sum(one != other for one, other in pairwise(shares)) <= 3
    assert steady_share(1000 << 20, limit) == limit


def keys(source: Path, **arguments: Any) -> set[str]:
    return {chunk.key for chunk in plan_source(source, keep_chunks=True, **arguments).chunks}


def site(folder: Path, number: int, cells: int) -> None:
    write_csv(folder / f"site-{number:03d}", tables({number: cells}))


def test_one_site_of_many_changes_only_its_own_chunk(tmp_path: Path) -> None:
    plate = tmp_path / "plate"
    for number in range(SITES):
        site(plate, number, 8 + number % 5)
    before = keys(plate, chunk_size=40)
    assert len(before) >= 8
    (plate / "site-017" / "Cells.csv").unlink()
    site(plate, 17, 9 + 17 % 5)  # one cell more; its image table, which numbers it, is what it was
    assert len(keys(plate, chunk_size=40) - before) == 1
    site(plate, 900, 9)
    assert 1 <= len(keys(plate, chunk_size=40) - before) <= 5
    shutil.rmtree(plate / "site-900")
    shutil.rmtree(plate / "site-030")
    assert 1 <= len(keys(plate, chunk_size=40) - before) <= 5


def test_longer_texts_of_one_site_change_no_estimate_of_the_others(tmp_path: Path) -> None:
    plate = tmp_path / "plate"
    for number in range(SITES):
        site(plate, number, 40 + number % 5)
    (before,) = [one for one in inspect_source(plate).schemas if one.compartment == "cytoplasm"]
    plan = plan_source(plate, keep_chunks=True, chunk_size=150)
    file = plate / plan.datasets[0].name / "Cytoplasm.csv"  # the first is among those that are sampled
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *(f"{row}{16 * '0'}" for row in rows), ""]))
    (after,) = [one for one in inspect_source(plate).schemas if one.compartment == "cytoplasm"]
    assert after.text_bytes > before.text_bytes
    assert coarse(after.text_bytes) == coarse(before.text_bytes)
    rows = {chunk.key: chunk.rows for chunk in plan.chunks}
    again = {chunk.key: chunk.rows for chunk in plan_source(plate, keep_chunks=True, chunk_size=150).chunks}
    assert len(set(again) - set(rows)) == 1
    assert {key: rows[key] for key in set(rows) & set(again)} == {key: again[key] for key in set(rows) & set(again)}


def test_one_database_of_many_changes_only_its_own_chunks(tmp_path: Path) -> None:
    plate = tmp_path / "plate"
    for number in range(6):
        write_sqlite(plate / f"{number}.sqlite", tables(dict.fromkeys(range(1, 5), 6 + number)))
    arguments = {"preset": "cellprofiler_sqlite", "chunk_size": 14, "sort_output": False}
    before = plan_source(plate, keep_chunks=True, **arguments).chunks
    (plate / "2.sqlite").unlink()
    write_sqlite(plate / "2.sqlite", tables(dict.fromkeys(range(1, 5), 13)))
    after = plan_source(plate, keep_chunks=True, **arguments).chunks
    same = {chunk.key for chunk in before} & {chunk.key for chunk in after}
    assert {chunk.name for chunk in before if chunk.key not in same} == {
        chunk.name for chunk in before if chunk.name.startswith("2.sqlite")
    }


def test_without_kept_chunks_they_are_filled_one_after_the_other(tmp_path: Path) -> None:
    for number in range(10):
        site(tmp_path / "plate", number, 10)
    plain = plan_source(tmp_path / "plate", chunk_size=40)
    kept = plan_source(tmp_path / "plate", chunk_size=40, keep_chunks=True)
    assert len(plain.chunks) <= len(kept.chunks)
    assert sum(len(chunk.slices) for chunk in kept.chunks) == 10
    assert [one.dataset for chunk in kept.chunks for one in chunk.slices] == list(range(10))
