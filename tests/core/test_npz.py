"""The NPZ reader: features, locations and columns of archives, whole ones and damaged ones."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.errors import BadSourceError, SourceChangedError, SourceNotFoundError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import PlaceBusyError, Places
from prefect_cytotable.tasks.core.sources import npz, npz_archive
from prefect_cytotable.tasks.core.sources.base import Keys, Request
from prefect_cytotable.tasks.core.sources.npz import NpzReader

READER = NpzReader(Places())
FLOAT, DOUBLE, INT, TEXT, BOOL = (
    ColumnType.FLOAT,
    ColumnType.DOUBLE,
    ColumnType.INT64,
    ColumnType.STRING,
    ColumnType.BOOL,
)
METADATA = {"Metadata_Plate": "P1", "Metadata_Site": 5, "Concentration": "", "Metadata_Model": "efficientnet"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "A01_1.npz"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one archive; each of Hypothesis' examples writes it anew."""
    return tmp_path_factory.mktemp("npz") / "A01_1.npz"


def table_of(cells: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(cells, width)).astype(np.float32)


def written(
    path: Path,
    features: Any,
    metadata: Mapping[str, object] | None = None,
    locations: Any = None,
    save: Callable[..., None] = np.savez_compressed,
) -> Source:
    """An archive as DeepProfiler writes it."""
    cells = len(features)
    if locations is None:
        locations = np.arange(2.0 * cells).reshape(cells, 2)
    whole = np.empty((), object)
    whole[()] = dict(METADATA if metadata is None else metadata)
    save(path, features=features, metadata=whole, locations=locations)
    return source_of(path)


def source_of(path: Path) -> Source:
    status = path.stat()
    return Source("cells", str(path), Format.NPZ, Fingerprint(status.st_size, status.st_mtime_ns))


def rezipped(path: Path, change: Callable[[dict[str, bytes]], object], method: int = zipfile.ZIP_DEFLATED) -> Source:
    """The archive with its members changed."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return source_of(path)


def planned(source: Source) -> tuple[tuple[str, ColumnType], ...]:
    """All columns in the types that a plan would give them."""
    types = READER.sample([source], 1 << 20, measures=True).types
    return tuple((name, types[name] or DOUBLE) for name in READER.columns(source))


def request(source: Source, columns: tuple[tuple[str, ColumnType], ...] | None = None) -> Request:
    return Request(source, Keys("", ""), planned(source) if columns is None else columns)


def read(source: Source, columns: tuple[tuple[str, ColumnType], ...] | None = None) -> pa.Table:
    answer = READER.read(request(source, columns))
    assert not answer.widened
    answer.table.validate(full=True)
    return answer.table


def features_in(table: pa.Table, prefix: str = "efficientnet") -> NDArray[Any]:
    """The features' columns as cells x features."""
    names = [name for name in table.column_names if name.startswith(f"{prefix}_")]
    return np.array([table[name].to_numpy() for name in names]).T.reshape(table.num_rows, len(names))


def refused(source: Source) -> BadSourceError:
    """The error that every way to read an archive raises."""
    found = []
    for action in (lambda: READER.columns(source), lambda: READER.read(request(source, (("DP_1", FLOAT),)))):
        with pytest.raises(BadSourceError) as caught:
            action()
        found.append(caught.value)
    assert READER.read_together([request(source, (("DP_1", FLOAT),))] * 2) is None
    for error in found:
        assert error.source == source.path
        assert error.remedy
    return found[-1]


# Right answers


def test_the_columns_of_an_archive(path: Path) -> None:
    source = written(path, table_of(4, 3))
    assert READER.columns(source) == (
        "Metadata_TableNumber",
        "Metadata_NPZSource",
        "Metadata_Plate",
        "Metadata_Site",
        "Concentration",
        "Metadata_Model",
        "Location_Center_X",
        "Location_Center_Y",
        "efficientnet_1",
        "efficientnet_2",
        "efficientnet_3",
    )
    table = read(source)
    assert table.column_names == list(READER.columns(source))
    assert table.slice(1, 1).to_pylist()[0] | dict.fromkeys(table.column_names[-3:]) == {
        "Metadata_TableNumber": None,
        "Metadata_NPZSource": "A01_1.npz",
        "Metadata_Plate": "P1",
        "Metadata_Site": 5,
        "Concentration": "",
        "Metadata_Model": "efficientnet",
        "Location_Center_X": 2.0,
        "Location_Center_Y": 3.0,
        "efficientnet_1": None,
        "efficientnet_2": None,
        "efficientnet_3": None,
    }
    assert table.schema.field("Metadata_TableNumber").type == pa.int64()


def test_the_real_archive_gives_what_is_expected(samples: Path) -> None:
    source = source_of(samples / "deepprofiler" / "SQ00014812" / "A01_5.npz")
    expected = pq.read_table(samples / "expected" / "deepprofiler_a01_5.parquet")
    table = read(source)
    assert table.column_names == expected.column_names
    assert table.schema.field("efficientnet_6400").type == pa.float32()
    assert table.cast(expected.schema).equals(expected)


DTYPES = ["f2", "f4", "f8", ">f4", ">f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", ">i4", "?"]
OWN = {"f2": FLOAT, "f4": FLOAT, ">f4": FLOAT, "f8": DOUBLE, ">f8": DOUBLE, "?": BOOL}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KEYS = TEXTS.filter(lambda key: bool(key) and not key.startswith(("Metadata_", "Location_", "DP_")))
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS


@settings(max_examples=60)
@given(st.data())
def test_every_archive_gives_what_numpy_holds(file: Path, data: st.DataObject) -> None:
    cells, width = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 9))
    dtype = data.draw(st.sampled_from(DTYPES))
    features = data.draw(arrays.arrays(dtype, (cells, width)))
    locations = data.draw(arrays.arrays(st.sampled_from(["f8", "f4", ">i4", "u1"]), (cells, 2)))
    features, locations = (np.asarray(one, order=data.draw(st.sampled_from("CF"))) for one in (features, locations))
    many = st.lists(st.none() | TEXTS, min_size=cells, max_size=cells)
    metadata = data.draw(st.dictionaries(KEYS, SCALARS | many, max_size=5))
    source = written(file, features, metadata, locations, data.draw(st.sampled_from([np.savez, np.savez_compressed])))
    types = dict(planned(source))
    assert {types[f"DP_{number}"] for number in range(1, width + 1)} == ({OWN.get(dtype, INT)} if width else set())
    with np.load(file, allow_pickle=True) as loaded:
        table = read(source)
        np.testing.assert_array_equal(features_in(table, "DP").astype(dtype), loaded["features"])
        np.testing.assert_array_equal(table["Location_Center_Y"].to_numpy(), loaded["locations"][:, 1].astype(float))
        for key, value in loaded["metadata"].item().items():
            assert table[key].to_pylist() == (value if isinstance(value, list) else [value] * cells)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0, 1e-45])
def test_no_feature_and_no_location_is_altered(path: Path, value: float) -> None:
    features, locations = np.full((2, 3), value, np.float32), np.full((2, 2), value)
    table = read(written(path, features, locations=locations))
    assert features_in(table).tobytes() == features.tobytes()
    assert table["Location_Center_X"].to_numpy().tobytes() == locations[:, 0].tobytes()
    assert table["efficientnet_1"].null_count == 0


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("cells", [1, 7, 300])
def test_an_archive_is_read_piece_by_piece(path: Path, order: Any, cells: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("prefect_cytotable.tasks.core.sources.npz_features.PIECE_BYTES", 1000)
    features = table_of(cells, 40)
    np.testing.assert_array_equal(features_in(read(written(path, np.asarray(features, order=order)))), features)


@pytest.mark.parametrize("model", [None, "", " ", 5, float("nan"), ["a", "b"], "absent"])
def test_features_are_called_dp_where_the_model_has_no_name(path: Path, model: object) -> None:
    metadata = {} if model == "absent" else {"Metadata_Model": model}
    assert READER.columns(written(path, table_of(2, 2), metadata))[-2:] == ("DP_1", "DP_2")


def test_features_are_called_after_a_model_of_any_name(path: Path) -> None:
    source = written(path, table_of(2, 1), {"Metadata_Model": "ResNet 50 'µ'"})
    assert READER.columns(source)[-1] == "ResNet 50 'µ'_1"


@pytest.mark.parametrize("features", [np.empty((0, 5), np.float32), np.empty((0, 5), np.float32, "F")], ids=["C", "F"])
def test_an_archive_without_cells_is_an_empty_table(path: Path, features: Any) -> None:
    source = written(path, features)
    table = read(source)
    assert (table.num_rows, table.num_columns) == (0, 13)
    assert table.schema.field("efficientnet_5").type == pa.float32()
    assert READER.count(source) == 0
    assert READER.index([source], Keys("", ""), False)[0].rows == 0


def test_arrays_that_are_empty_altogether_are_an_archive_without_cells(path: Path) -> None:
    source = written(path, np.empty(0), locations=np.empty(0))
    assert (read(source).num_rows, READER.columns(source)[-1]) == (0, "Location_Center_Y")


def test_archives_alike_share_their_names(tmp_path: Path) -> None:
    names = [READER.columns(written(tmp_path / f"{one}.npz", table_of(one, 5))) for one in (1, 2, 3)]
    assert names[0] is names[1] is names[2]


def test_a_file_of_any_name_is_read(tmp_path: Path) -> None:
    for name in ("a 'b\"\n", "µ", "100%"):
        source = written(tmp_path / f"{name}.npz", table_of(1, 1))
        assert read(source)["Metadata_NPZSource"].to_pylist() == [f"{name}.npz"]


def test_rows_stay_together_and_are_counted_by_the_header(path: Path) -> None:
    source = written(path, table_of(7, 2))
    (index,) = READER.index([source], Keys("", ""), False)
    assert [(one.image, one.rows, one.spans) for one in index.images] == [(1, 7, ())]
    assert (index.keyless, READER.count(source)) == (0, 7)
    rezipped(path, lambda members: members.pop("metadata.npy"))
    assert READER.count(source_of(path)) == 7
    path.write_bytes(b"PK\x03\x04 and nothing else")
    assert READER.count(source_of(path)) is None


def test_a_sample_tells_types_and_sizes(tmp_path: Path) -> None:
    one = written(tmp_path / "1.npz", table_of(10, 100), {"a": 1, "b": None, "c": "x" * 50})
    two = written(tmp_path / "2.npz", table_of(10, 100).astype(np.float64), {"a": 1.5, "b": True, "c": ""})
    sample = READER.sample([one], 1, True)
    expected = {"Metadata_TableNumber": INT, "Metadata_NPZSource": TEXT, "a": INT, "b": None, "c": TEXT}
    assert sample.types == expected | dict.fromkeys(["Location_Center_X", "Location_Center_Y"], DOUBLE) | dict.fromkeys(
        [f"DP_{number}" for number in range(1, 101)], FLOAT
    )
    assert sample.text_bytes == one.fingerprint.size // 10
    table = read(one)
    assert table.nbytes / 10 <= sample.row_bytes <= 1.1 * table.nbytes / 10
    both = READER.sample([one, two], 1, True)
    assert [both.types[name] for name in ("a", "b", "DP_1")] == [DOUBLE, BOOL, DOUBLE]
    assert both.row_bytes > 800


# Types that were planned from other archives


@pytest.mark.parametrize(
    ("dtype", "plan", "expected"),
    [
        ("f4", DOUBLE, [1.0, 0.0]),
        ("f2", DOUBLE, [1.0, 0.0]),
        ("i4", DOUBLE, [1.0, 0.0]),
        ("f4", TEXT, ["1.0", "0.0"]),
        ("i8", TEXT, ["1", "0"]),
        ("?", TEXT, ["True", "False"]),
    ],
)
def test_features_are_given_in_the_wider_type_that_was_planned(
    path: Path, dtype: str, plan: ColumnType, expected: list[object]
) -> None:
    source = written(path, np.array([[1], [0]], dtype))
    assert read(source, (("efficientnet_1", plan),))["efficientnet_1"].to_pylist() == expected


def test_features_of_two_planned_types_in_any_order(path: Path) -> None:
    features = table_of(5, 6)
    names = [("efficientnet_5", DOUBLE), ("efficientnet_1", FLOAT), ("efficientnet_2", DOUBLE), ("absent", FLOAT)]
    source = written(path, features)
    table = read(source, (*names[:1], ("Location_Center_Y", DOUBLE), *names[1:], ("efficientnet_6", FLOAT)))
    assert table.schema.names == [
        "efficientnet_5",
        "Location_Center_Y",
        "efficientnet_1",
        "efficientnet_2",
        "efficientnet_6",
    ]
    assert [str(one) for one in table.schema.types] == ["double", "double", "float", "double", "float"]
    np.testing.assert_array_equal(features_in(table), features[:, [4, 0, 1, 5]])


@pytest.mark.parametrize("numbers", [(2, 5, 4), (4, 3, 2), (6, 1), (3,), (1, 2, 3, 4, 5, 6)])
def test_features_are_given_in_the_order_in_which_they_were_asked_for(path: Path, numbers: tuple[int, ...]) -> None:
    features = table_of(5, 6)
    table = read(written(path, features), tuple((f"efficientnet_{number}", FLOAT) for number in numbers))
    np.testing.assert_array_equal(features_in(table), features[:, [number - 1 for number in numbers]])


@pytest.mark.parametrize(
    ("dtype", "plan", "needed"), [("f8", FLOAT, DOUBLE), ("f4", INT, DOUBLE), ("i8", FLOAT, DOUBLE), ("?", FLOAT, TEXT)]
)
def test_a_planned_type_that_is_too_narrow_is_reported(
    path: Path, dtype: str, plan: ColumnType, needed: ColumnType
) -> None:
    source = written(path, np.ones((2, 2), dtype))
    columns = (("efficientnet_2", plan), ("Metadata_Plate", TEXT))
    assert READER.read(request(source, columns)).widened == (("efficientnet_2", needed),)
    assert READER.read_together([request(source, columns)] * 2) is None


# Several at once


def test_archives_together_are_what_they_are_one_by_one(tmp_path: Path) -> None:
    sources = [
        written(tmp_path / "a.npz", table_of(3, 50, 1), METADATA | {"each": ["x", None, ""]}),
        written(tmp_path / "b.npz", table_of(0, 50), METADATA | {"each": []}),
        written(tmp_path / "c.npz", table_of(4, 50, 2), METADATA | {"each": "z", "Metadata_Site": 7}),
        written(tmp_path / "d.npz", np.asfortranarray(table_of(2, 50, 3)), METADATA | {"each": None}, save=np.savez),
    ]
    columns = planned(sources[0])
    together = READER.read_together([request(one, columns) for one in sources])
    assert together is not None
    together.table.validate(full=True)
    assert together.table.equals(pa.concat_tables([read(one, columns) for one in sources]).combine_chunks())
    assert together.counts == (3, 0, 4, 2)
    assert together.order.tolist() == [0, 0, 0, 2, 2, 2, 2, 3, 3]
    assert together.order.dtype == np.int32
    assert {column.num_chunks for column in together.table.columns} == {1}


UNLIKE: dict[str, tuple[Any, dict[str, object]]] = {
    "other features": (table_of(2, 6), METADATA),
    "features of another type": (table_of(2, 5).astype(">f4"), METADATA),
    "other keys": (table_of(2, 5), METADATA | {"more": 1}),
    "another model": (table_of(2, 5), METADATA | {"Metadata_Model": "other"}),
    "a wider type": (table_of(2, 5), METADATA | {"Metadata_Site": "five"}),
    "ragged metadata": (table_of(2, 5), METADATA | {"Metadata_Site": [1]}),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_archives_that_differ_are_read_one_by_one(tmp_path: Path, case: str) -> None:
    one = written(tmp_path / "a.npz", table_of(2, 5))
    other = written(tmp_path / "b.npz", *UNLIKE[case])
    columns = planned(one)
    assert READER.read_together([request(one, columns), request(one, columns)]) is not None
    assert READER.read_together([request(one, columns), request(other, columns)]) is None
    assert READER.read_together([request(one, columns), request(one, columns[:-1])]) is None


def test_an_archive_that_was_replaced_is_no_part_of_several(path: Path) -> None:
    source = written(path, table_of(5, 3))
    asked = [request(source)] * 2
    assert READER.read_together(asked) is not None
    written(path, table_of(5, 3, seed=1))
    assert READER.read_together(asked) is None


def test_a_damaged_archive_is_no_part_of_several(path: Path) -> None:
    source = written(path, table_of(200, 300), save=np.savez)
    columns = planned(source)
    damaged = bytearray(path.read_bytes())
    damaged[100_000] ^= 1
    path.write_bytes(damaged)
    assert READER.read_together([request(source, columns)] * 2) is None
    with pytest.raises(BadSourceError, match="Bad CRC-32"):
        READER.read(request(source, columns))


def test_texts_too_long_for_one_column_are_read_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [request(written(path, table_of(10, 1), {"key": "x" * 10}))] * 3
    monkeypatch.setattr(npz, "TOGETHER_TEXT", 300)
    assert READER.read_together(asked) is not None
    monkeypatch.setattr(npz, "TOGETHER_TEXT", 299)
    assert READER.read_together(asked) is None


def test_memory_beside_the_columns_is_one_packed_archive_and_a_piece(path: Path) -> None:
    asked = [request(written(path, table_of(400, 4000)))] * 3
    READER.read_together(asked[:2])
    tracemalloc.start()
    try:
        together = READER.read_together(asked)
        assert together is not None
        beside = tracemalloc.get_traced_memory()[1] - 3 * 400 * 4000 * 4
    finally:
        tracemalloc.stop()
    assert together.table.num_rows == 1200
    assert path.stat().st_size > 5 << 20
    assert beside < path.stat().st_size + (5 << 20)


# What is fetched


@dataclass(frozen=True, eq=False)
class Watched(Places):
    """The places of all, which remember what was read of them."""

    reads: list[tuple[int, int | None]] = field(default_factory=list)

    def read(self, path: str, start: int = 0, stop: int | None = None, mark: str = "") -> bytes:
        self.reads.append((start, stop))
        return super().read(path, start, stop, mark)


def test_a_header_takes_two_reads_and_no_more(path: Path) -> None:
    source = written(path, table_of(200, 1000))
    size, window = source.fingerprint.size, npz_archive.WINDOW
    assert size > 3 * window
    places = Watched()
    reader = NpzReader(places)
    reader.columns(source)
    assert places.reads == [(size - window, size), (0, window)]
    reader.sample([source], 1, True)
    reader.index([source], Keys("", ""), False)
    reader.checksum(source)
    assert len(places.reads) == 2
    reader.read(request(source))
    assert places.reads[2:] == [(0, None)]


def test_an_archive_with_its_metadata_anywhere_is_read(path: Path) -> None:
    source = written(path, table_of(200, 1000))
    for first in ("metadata.npy", "locations.npy"):
        rezipped(path, lambda members, first=first: members.update({first: members.pop(first)}))
        source = source_of(path)
        np.testing.assert_array_equal(features_in(read(source)), table_of(200, 1000))


def test_a_changed_archive_is_looked_at_again(path: Path) -> None:
    assert len(READER.columns(written(path, table_of(2, 3)))) == 11
    assert len(READER.columns(written(path, table_of(2, 4)))) == 12


def test_a_file_that_is_gone_is_not_called_bad(path: Path) -> None:
    source = written(path, table_of(1, 1))
    asked = request(source)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        NpzReader(Watched()).columns(Source("cells", str(path), Format.NPZ, Fingerprint(source.fingerprint.size, 1)))
    with pytest.raises(SourceNotFoundError):
        READER.read(asked)
    with pytest.raises(SourceNotFoundError):
        READER.read_together([asked, asked])


@dataclass(frozen=True, eq=False)
class Failing(Watched):
    """Places whose last read fails."""

    good: int = 0
    error: type[Exception] = SourceChangedError

    def read(self, path: str, start: int = 0, stop: int | None = None, mark: str = "") -> bytes:
        if len(self.reads) == self.good:
            raise self.error("no more")
        return super().read(path, start, stop, mark)


@pytest.mark.parametrize("error", [PlaceBusyError, SourceChangedError])
@pytest.mark.parametrize("good", [0, 1, 2, 3])
@pytest.mark.parametrize("together", [False, True])
def test_a_place_that_fails_makes_no_archive_bad(path: Path, good: int, together: bool, error: type[Exception]) -> None:
    """Its small arrays lie in the middle, so that a header takes three reads."""
    written(path, table_of(200, 1000))
    more = np.random.default_rng(0).bytes(2 * npz_archive.WINDOW)
    source = rezipped(path, lambda members: members.update({"more": more}))
    assert len(READER.columns(source)) == 1008
    reader = NpzReader(Failing(good=good, error=error))
    columns = (("efficientnet_1", FLOAT),)
    with pytest.raises(error):
        reader.columns(source)
        reader.read_together([request(source, columns)] * 2) if together else reader.read(request(source, columns))


def test_pandas_is_not_imported(path: Path) -> None:
    source = written(path, table_of(3, 4), METADATA | {"each": ["x", None, ""], "b": True})
    code = f"""if True:
        import sys
        from prefect_cytotable.tasks.core.model import Fingerprint, Format, Source, ColumnType
        from prefect_cytotable.tasks.core.places import PlaceBusyError, Places
        from prefect_cytotable.tasks.core.sources.base import Keys, Request
        from prefect_cytotable.tasks.core.sources.npz import NpzReader
        source = Source("cells", {str(path)!r}, Format.NPZ, Fingerprint({source.fingerprint.size}, 0))
        reader = NpzReader(Places())
        types = reader.sample([source], 1, True).types
        asked = Request(source, Keys("", ""), tuple((name, types[name]) for name in reader.columns(source)))
        print(reader.read_together([asked, asked]).table.num_rows, reader.read(asked).table.num_rows)
        print("pandas" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "3", "False"]


# The number that tells archives apart


def test_the_checksum_is_of_the_members_and_not_of_their_packing(path: Path) -> None:
    source = written(path, table_of(20, 30))
    with zipfile.ZipFile(path) as file:
        expected = 0
        for name in ("features.npy", "locations.npy", "metadata.npy"):
            content = file.read(name)
            entry = name.encode() + struct.pack("<I", zlib.crc32(content)) + struct.pack("<Q", len(content))
            expected = zlib.crc32(entry, expected)
    assert READER.checksum(source) == expected
    backwards = rezipped(path, lambda members: members.update({one: members.pop(one) for one in sorted(members)[::-1]}))
    assert READER.checksum(backwards) == expected
    assert READER.checksum(rezipped(path, len, zipfile.ZIP_STORED)) == expected
    assert READER.checksum(written(path, table_of(20, 30, seed=1))) != expected


def test_the_checksum_of_an_archive_with_bad_arrays_is_told_all_the_same(path: Path) -> None:
    expected = READER.checksum(written(path, table_of(2, 2), {"bad": [1]}))
    assert READER.checksum(written(path.with_name("other.npz"), table_of(2, 2), {"bad": [1]})) == expected
    path.write_bytes(b"no archive")
    with pytest.raises(BadSourceError):
        READER.checksum(source_of(path))


# Bad archives

FLOATS = np.zeros((2, 1), np.float32)
ARRAYS: dict[str, tuple[Any, Any, str]] = {
    "one dimension": (np.zeros(2, np.float32), None, r"features have shape \(2,\)"),
    "three dimensions": (np.zeros((2, 1, 1), np.float32), None, r"features have shape \(2, 1, 1\)"),
    "no dimension": (np.float32(1), np.zeros((1, 2)), r"features have shape \(\)"),
    "objects": (np.array([["a"], ["b"]], object), None, "features are object values"),
    "structures": (np.zeros((2, 1), "f4,f4"), None, "features are .* values"),
    "texts": (np.array([["a"], ["b"]]), None, "features are <U1 values"),
    "complex numbers": (np.zeros((2, 1), complex), None, "features are complex128 values"),
    "longer floats": (np.zeros((2, 1), np.longdouble), None, "features are float128 values"),
    "dates": (np.zeros((2, 1), "M8[s]"), None, "features are .* values"),
    "a whole number that no column holds": (np.full((2, 1), 2**63, np.uint64), None, "beyond the 63 bits"),
    "more features than are read": (np.zeros((0, 100_001), np.float32), None, "100,001 features, more than"),
    "fewer locations": (FLOATS, np.zeros((1, 2)), "the locations of 1 cells, and the features of 2"),
    "more locations": (FLOATS, np.zeros((3, 2)), "the locations of 3 cells, and the features of 2"),
    "locations of one dimension": (FLOATS, np.zeros(4), r"locations have shape \(4,\)"),
    "locations of three places": (FLOATS, np.zeros((2, 3)), r"locations have shape \(2, 3\)"),
    "locations that are texts": (FLOATS, np.full((2, 2), "a"), "locations are <U1 values"),
    "locations that are objects": (FLOATS, np.full((2, 2), None), "locations are object values"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_no_table_of_cells_are_refused(path: Path, case: str) -> None:
    features, locations, cause = ARRAYS[case]
    metadata = np.array({}, object)
    np.savez(path, features=features, metadata=metadata, locations=np.zeros((2, 2)) if locations is None else locations)
    source = source_of(path)
    with pytest.raises(BadSourceError, match=cause) as caught:
        READER.read(request(source, (("DP_1", INT),)))
    assert caught.value.source == str(path)
    assert READER.read_together([request(source, (("DP_1", INT),))] * 2) is None


@pytest.mark.parametrize("key", ["Metadata_TableNumber", "Metadata_NPZSource", "Location_Center_X", "DP_2"])
def test_a_key_that_is_the_name_of_another_column_is_refused(path: Path, key: str) -> None:
    source = written(path, table_of(1, 3), {"DP_4": 1, key: 1})
    assert f"metadata key {key!r} is also the name of another column" in str(refused(source))


@pytest.mark.parametrize("name", ["features", "locations", "metadata"])
def test_an_array_that_is_missing_is_named_beside_what_is_there(path: Path, name: str) -> None:
    written(path, table_of(1, 1))
    source = rezipped(path, lambda members: members.update({"other.npy": members.pop(f"{name}.npy")}))
    error = str(refused(source))
    assert f"it has no array {name!r}" in error
    assert "'other'" in error


def test_other_members_are_ignored(path: Path) -> None:
    written(path, table_of(2, 3))
    source = rezipped(path, lambda members: members.update({"more.npy": b"?", "../../etc/x": b"?", "notes.txt": b"?"}))
    np.testing.assert_array_equal(features_in(read(source)), table_of(2, 3))


def test_two_arrays_of_one_name_are_refused(path: Path) -> None:
    written(path, table_of(2, 3))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("features.npy", b"?")
    assert "2 arrays called 'features'" in str(refused(source_of(path)))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"ImageNumber,ObjectNumber\n1,2\n", "it is no NPZ archive"),
        (b"\x93NUMPY\x01\x00", "it is no NPZ archive"),
        (b"PK\x03\x04" + b"\0" * 1000, "damaged or cut off"),
        (b"PK\x05\x06" + b"\0" * 18, "it is no NPZ archive"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(path: Path, content: bytes, cause: str) -> None:
    path.write_bytes(content)
    assert cause in str(refused(source_of(path)))


def test_an_archive_that_is_cut_off_anywhere_is_refused(path: Path) -> None:
    written(path, table_of(5, 20))
    whole = path.read_bytes()
    for end in range(0, len(whole), 13):
        path.write_bytes(whole[:end])
        refused(source_of(path))


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_archive_gives_a_table_or_one_kind_of_error(file: Path, data: st.DataObject) -> None:
    written(file, table_of(4, 6), save=data.draw(st.sampled_from([np.savez, np.savez_compressed])))
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged)
    try:
        table = READER.read(request(source_of(file), (("efficientnet_1", FLOAT), ("Metadata_Plate", TEXT)))).table
    except BadSourceError as error:
        assert error.source == str(file)
    else:
        table.validate(full=True)


@pytest.mark.parametrize("name", ["features", "locations", "metadata"])
def test_a_wrong_checksum_is_noticed(path: Path, name: str) -> None:
    written(path, table_of(50, 60), save=np.savez)
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(f"{name}.npy")
    damaged = bytearray(path.read_bytes())
    damaged[info.header_offset + 30 + len(info.filename) + len(info.extra) + info.file_size] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(BadSourceError, match=f"Bad CRC-32 for file '{name}.npy'"):
        source = source_of(path)
        READER.read(request(source, (("efficientnet_1", FLOAT), ("Location_Center_X", DOUBLE))))


def test_an_encrypted_archive_is_refused(path: Path) -> None:
    written(path, table_of(2, 2))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + place] |= 1
            at = content.find(mark, at + 1)
    path.write_bytes(content)
    assert "is encrypted" in str(refused(source_of(path)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packing_that_numpy_does_not_write_is_refused(path: Path, method: int) -> None:
    written(path, table_of(2, 2))
    assert f"packed by method {method}" in str(refused(rezipped(path, len, method)))


def npy_header(shape: object, descr: str = "<f4", fortran: object = False, version: int = 1) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}}}".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + b"\n"


HEADERS: dict[str, tuple[bytes, str]] = {
    "100 GB that are not there": (npy_header((10**6, 25_000)), "promises float32 values"),
    "a number beyond all memory": (npy_header((2**62, 2**62)), "promises float32 values"),
    "negative numbers": (npy_header((-1, -8)) + bytes(32), "promises float32 values"),
    "fewer values than there are": (npy_header((2, 2)) + bytes(32), "holds 32 bytes of them"),
    "a huge item": (npy_header((1, 1), "V2147483647"), "promises"),
    "no shape": (npy_header("x"), "no header that NumPy can read"),
    "no type": (npy_header((2, 2), "nonsense") + bytes(16), "no header that NumPy can read"),
    "no header": (b"features", "no header that NumPy can read"),
    "an empty member": (b"", "no header that NumPy can read"),
    "an unknown version": (b"\x93NUMPY\x09\x00" + bytes(200), "version 9.0"),
    "a header of 4 GB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(1 << 20), "no header that NumPy can read"),
    "a header that nests deeply": (b"\x93NUMPY\x01\x00\x40\x1f" + b"-" * 7999 + b"1", "no header that NumPy can read"),
    "a header of many brackets": (b"\x93NUMPY\x01\x00\x40\x1f" + b"(" * 8000, "no header that NumPy can read"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_costs_nothing(path: Path, case: str) -> None:
    content, cause = HEADERS[case]
    written(path, table_of(2, 2))
    source = rezipped(path, lambda members: members.update({"features.npy": content}))
    tracemalloc.start()
    try:
        assert cause in str(refused(source))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_header_of_the_second_version_is_read(path: Path) -> None:
    features = table_of(2, 2)
    written(path, features)
    content = npy_header((2, 2), version=2) + features.tobytes()
    source = rezipped(path, lambda members: members.update({"features.npy": content}))
    np.testing.assert_array_equal(features_in(read(source)), features)


def directory_entry(content: bytes | bytearray, name: str) -> int:
    """Where an archive's directory tells of a member."""
    at = content.find(b"PK\x01\x02")
    while content[at + 46 : at + 46 + len(name)] != name.encode():
        at = content.find(b"PK\x01\x02", at + 1)
    return at


def with_sizes(content: bytes, name: str, packed: int | None, whole: int) -> bytes:
    """An archive whose directory gives a member other sizes."""
    changed = bytearray(content)
    at = directory_entry(changed, name)
    if packed is not None:
        struct.pack_into("<I", changed, at + 20, packed)
    struct.pack_into("<I", changed, at + 24, whole)
    return bytes(changed)


def bomb(path: Path, whole: int, packed: int | None = None, content: bytes = b"") -> Source:
    """Features that say they are 25,000 x 40,000: 4 GB, of which the directory tells as many as `whole`."""
    written(path, table_of(2, 2))
    members = npy_header((25_000, 40_000)) + content
    rezipped(path, lambda one: one.update({"features.npy": members}))
    path.write_bytes(with_sizes(path.read_bytes(), "features.npy", packed, whole))
    return source_of(path)


@pytest.mark.parametrize(
    ("whole", "packed", "content", "cause"),
    [
        (4_000_000_100, None, b"", "which cannot be"),
        (4_000_000_100, 4_100_000, b"", "which cannot be"),
        (4_000_000_100, None, bytes(64 << 20), "which cannot be"),
        (1000, None, bytes(64 << 20), "damaged or cut off"),
    ],
)
def test_sizes_that_lie_cost_nothing(path: Path, whole: int, packed: int | None, content: bytes, cause: str) -> None:
    source = bomb(path, whole, packed, content)
    tracemalloc.start()
    try:
        assert cause in str(refused(source))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_member_that_unpacks_to_more_than_it_says_is_cut_there(path: Path) -> None:
    features = table_of(50, 40)
    written(path, features)
    content = npy_header((2, 40)) + features.tobytes()
    rezipped(path, lambda members: members.update({"features.npy": content}))
    path.write_bytes(with_sizes(path.read_bytes(), "features.npy", None, len(npy_header((2, 40))) + 2 * 40 * 4))
    assert "Bad CRC-32" in str(refused_reading(source_of(path)))


def refused_reading(source: Source) -> BadSourceError:
    with pytest.raises(BadSourceError) as caught:
        READER.read(request(source, (("efficientnet_1", FLOAT),)))
    return caught.value


def test_a_member_that_ends_early_is_noticed(path: Path) -> None:
    """Its directory and its header agree on 50 cells; its stream ends after two, with the right checksum of these."""
    header, name = npy_header((50, 40)), b"features.npy"
    short = header + table_of(2, 40).tobytes()
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packed.compress(short) + packed.flush()
    written(path, table_of(50, 40))
    rezipped(path, lambda members: members.update({"features.npy": stream}), zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    entry = directory_entry(content, "features.npy")
    local = struct.unpack_from("<I", content, entry + 42)[0]
    assert content[local + 30 : local + 30 + len(name)] == name
    for place in (entry + 10, local + 8):
        struct.pack_into("<H", content, place, zipfile.ZIP_DEFLATED)
    struct.pack_into("<I", content, entry + 16, zlib.crc32(short))
    path.write_bytes(with_sizes(bytes(content), "features.npy", None, len(header) + 50 * 40 * 4))
    assert "features.npy ends 7,680 bytes too early" in str(refused_reading(source_of(path)))
