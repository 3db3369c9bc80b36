"""The metadata of NPZ archives: what becomes a column, and what a stranger's pickle cannot do."""

from __future__ import annotations

import collections
import copyreg
import io
import os
import pickle
import struct
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import npz_metadata, npz_pickle
from prefect_cytotable.tasks.core.sources.base import Answer, Keys, Request
from prefect_cytotable.tasks.core.sources.npz import NpzReader
from prefect_cytotable.tasks.core.sources.npz_pickle import Array, PickleRefused, unpickled

READER = NpzReader(Places())
CELLS = 3
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def archive(path: Path, metadata: object, cells: int = CELLS) -> Source:
    """An archive of one feature, with these metadata."""
    features = np.arange(cells, dtype=np.float32)[:, None]
    whole = np.empty((), object)
    whole[()] = metadata
    np.savez(path, features=features, locations=np.zeros((cells, 2)), metadata=whole)  # type: ignore[arg-type]
    return source_of(path)


def archive_of_pickle(path: Path, pickled: bytes, cells: int = CELLS) -> Source:
    """The same, whose metadata are the bytes of a pickle."""
    archive(path, {}, cells)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    members["metadata.npy"] = header.getvalue() + pickled
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return source_of(path)


def source_of(path: Path) -> Source:
    status = path.stat()
    return Source("cells", str(path), Format.NPZ, Fingerprint(status.st_size, status.st_mtime_ns))


def read(source: Source, key: str, type_: ColumnType) -> Answer:
    return READER.read(Request(source, Keys("", ""), ((key, type_),)))


def column(source: Source, key: str = "key") -> tuple[ColumnType | None, list[object]]:
    """(type, values) of a key."""
    type_ = READER.sample([source], 1 << 20, measures=True).types[key]
    answer = read(source, key, type_ or ColumnType.DOUBLE)
    assert not answer.widened
    return type_, answer.table.column(key).to_pylist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "A01_1.npz"


# What becomes a column

SINGLE: dict[str, tuple[object, ColumnType | None, object]] = {
    "text": ("A01", ColumnType.STRING, "A01"),
    "an empty text": ("", ColumnType.STRING, ""),
    "a text beyond ASCII": ("Zelle µ 細胞 🔬\n'\"", ColumnType.STRING, "Zelle µ 細胞 🔬\n'\""),
    "a whole number": (-(2**63), ColumnType.INT64, -(2**63)),
    "a float": (0.1, ColumnType.DOUBLE, 0.1),
    "infinity": (float("-inf"), ColumnType.DOUBLE, float("-inf")),
    "true": (True, ColumnType.BOOL, True),
    "false": (False, ColumnType.BOOL, False),
    "none": (None, None, None),
    "not a number": (float("nan"), None, None),
    "NumPy's text": (np.str_("B02"), ColumnType.STRING, "B02"),
    "NumPy's empty text": (np.str_(""), ColumnType.STRING, ""),
    "NumPy's int16": (np.int16(-5), ColumnType.INT64, -5),
    "NumPy's uint64": (np.uint64(2**63 - 1), ColumnType.INT64, 2**63 - 1),
    "NumPy's float32": (np.float32(0.1), ColumnType.DOUBLE, float(np.float32(0.1))),
    "NumPy's float64": (np.float64(0.1), ColumnType.DOUBLE, 0.1),
    "NumPy's NaN": (np.float32("nan"), None, None),
    "NumPy's bool": (np.bool_(True), ColumnType.BOOL, True),
    "a number of other byte order": (np.dtype(">i4").type(7).astype(">i4"), ColumnType.INT64, 7),
    "a 0-d array of a number": (np.array(2.5, ">f8"), ColumnType.DOUBLE, 2.5),
    "a 0-d array of a text": (np.array("C03"), ColumnType.STRING, "C03"),
    "a 0-d array of an object": (np.array("D04", object), ColumnType.STRING, "D04"),
}


@pytest.mark.parametrize("case", SINGLE)
def test_a_single_value_stands_for_all_cells(path: Path, case: str) -> None:
    given_, type_, value = SINGLE[case]
    assert column(archive(path, {"key": given_})) == (type_, [value] * CELLS)


MANY: dict[str, tuple[object, ColumnType | None, list[object]]] = {
    "a list": (["a", "", "c"], ColumnType.STRING, ["a", "", "c"]),
    "a tuple": ((1, 2, 3), ColumnType.INT64, [1, 2, 3]),
    "a text that is missing": (["a", None, "c"], ColumnType.STRING, ["a", None, "c"]),
    "NaN among texts": (["a", float("nan"), "c"], ColumnType.STRING, ["a", None, "c"]),
    "whole numbers and floats": ([1, 2.5, None], ColumnType.DOUBLE, [1.0, 2.5, None]),
    "truth values": ([True, None, False], ColumnType.BOOL, [True, None, False]),
    "nothing but missing values": ([None, float("nan"), None], None, [None, None, None]),
    "NumPy scalars": ([np.int64(1), 2, np.int8(3)], ColumnType.INT64, [1, 2, 3]),
    "0-d arrays": ([np.float64(1), 2.0, np.float16(3)], ColumnType.DOUBLE, [1.0, 2.0, 3.0]),
    "an array of numbers": (np.array([1, 2, 3], ">u2"), ColumnType.INT64, [1, 2, 3]),
    "an array of texts": (np.array(["x", "", "zz"]), ColumnType.STRING, ["x", "", "zz"]),
    "an array of empty texts": (np.ndarray((3,), "U0"), ColumnType.STRING, ["", "", ""]),
    "an array of truth values": (np.array([True, False, True]), ColumnType.BOOL, [True, False, True]),
    "an array of objects": (np.array(["x", None, "z"], object), ColumnType.STRING, ["x", None, "z"]),
    "a part of an array": (np.arange(6.0)[::2], ColumnType.DOUBLE, [0.0, 2.0, 4.0]),
}


@pytest.mark.parametrize("case", MANY)
def test_a_list_has_a_value_for_each_cell(path: Path, case: str) -> None:
    given_, type_, values = MANY[case]
    assert column(archive(path, {"key": given_})) == (type_, values)


def test_keys_are_columns_in_their_order(path: Path) -> None:
    names = READER.columns(archive(path, collections.OrderedDict({"z": 1, "a b": 2, "µ'\"\n": 3})))
    assert names[2:-3] == ("z", "a b", "µ'\"\n")


def test_an_archive_without_cells_has_columns_of_their_type(path: Path) -> None:
    source = archive(path, {"one": "x", "many": []}, cells=0)
    assert column(source, "one") == (ColumnType.STRING, [])
    assert column(source, "many") == (None, [])


BAD: dict[str, tuple[object, str]] = {
    "too few values": (["a", "b"], "'key' has 2 values, and there are 3 cells"),
    "too many values": (np.arange(4), "'key' has 4 values, and there are 3 cells"),
    "one value in a list": (["a"], "'key' has 1 values, and there are 3 cells"),
    "bytes": (b"A01", "'key' holds a value of the kind 'bytes'"),
    "an array of bytes": (np.array([b"a", b"b", b"c"]), "'key' holds a value of the kind 'bytes'"),
    "a dictionary": ({"a": 1}, "'key' holds a value of the kind 'dict'"),
    "a list of lists": ([[1], [2], [3]], "'key' holds a value of the kind 'list'"),
    "an array of two dimensions": (np.zeros((3, 2)), "'key' holds a value of the kind 'array of 2 dimensions'"),
    "an array in a list": ([np.zeros(2), 1, 2], "'key' holds a value of the kind 'array'"),
    "a complex number in NumPy": (np.complex128(1j), "'key' holds a value of the kind \"NumPy's c16\""),
    "a date in NumPy": (np.datetime64("2024-01-01"), "'key' holds a value of the kind \"NumPy's M8\""),
    "an array of dates": (np.zeros(3, "M8[s]"), "'key' holds a value of the kind \"NumPy's M8\""),
    "an array of structures": (np.zeros(3, "i4,f4"), "'key' holds a value of the kind \"NumPy's structured values\""),
    "a whole number beyond 64 bits": (2**63, "'key' holds a whole number beyond 64 bits"),
    "a huge whole number": (1 << 100_000, "'key' holds a whole number beyond 64 bits"),
    "texts and numbers": (["a", 1, 2], "'key' mixes values of the kinds int and str"),
    "truth values and numbers": ([True, 1, 2], "'key' mixes values of the kinds bool and int"),
    "half a surrogate pair": ("\ud800", "'key' holds a text that is not valid Unicode"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_is_no_column_is_refused_by_its_key(path: Path, case: str) -> None:
    value, cause = BAD[case]
    source = archive(path, {"Metadata_Well": "A01", "key": value})
    with pytest.raises(BadSourceError) as caught:
        READER.columns(source)
    assert cause in caught.value.cause
    assert str(caught.value).startswith(str(path))
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["", "\udfff", 5, ("a",), b"a", None])
def test_a_key_that_is_no_name_is_refused(path: Path, key: object) -> None:
    with pytest.raises(BadSourceError, match="key"):
        READER.columns(archive(path, {key: 1}))


@pytest.mark.parametrize("metadata", [None, [1], "text", 5, np.zeros(3)], ids=str)
def test_metadata_that_are_no_dictionary_are_refused(path: Path, metadata: object) -> None:
    with pytest.raises(BadSourceError, match="holds no dictionary"):
        READER.columns(archive(path, metadata))


@pytest.mark.parametrize("array", [np.zeros(3), np.array("text"), np.array([{"a": 1}], object)], ids=str)
def test_an_array_that_holds_no_dictionary_is_refused(path: Path, array: Any) -> None:
    np.savez(path, features=np.zeros((1, 1), np.float32), locations=np.zeros((1, 2)), metadata=array)
    with pytest.raises(BadSourceError, match="holds no dictionary"):
        READER.columns(source_of(path))


def test_a_text_that_all_cells_together_make_huge_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_metadata, "METADATA_LIMIT", 3000)
    assert column(archive(path, {"key": "x" * 1000})) == (ColumnType.STRING, ["x" * 1000] * 3)
    with pytest.raises(BadSourceError, match="'key' takes 3,003 bytes of text over 3 cells"):
        READER.columns(archive(path, {"key": "x" * 1001}))


def test_metadata_that_are_too_large_are_refused_unread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_metadata, "METADATA_LIMIT", 3000)
    monkeypatch.setattr(npz_metadata, "unpickled", lambda data: pytest.fail("they were read"))
    with pytest.raises(BadSourceError, match="more than the 3,000 that are read"):
        READER.columns(archive(path, {"key": ["x" * 1200] * 3 + ["y" * 3000]}))


# Types that were planned from other archives


@pytest.mark.parametrize(
    ("value", "type_", "expected"),
    [
        (5, ColumnType.DOUBLE, [5.0] * 3),
        (5, ColumnType.STRING, ["5"] * 3),
        (0.1, ColumnType.STRING, ["0.1"] * 3),
        (True, ColumnType.STRING, ["True"] * 3),
        ([1, None, 3], ColumnType.STRING, ["1", None, "3"]),
        ([1, None, 3], ColumnType.DOUBLE, [1.0, None, 3.0]),
        (None, ColumnType.STRING, [None] * 3),
        (float("nan"), ColumnType.BOOL, [None] * 3),
        (None, ColumnType.FLOAT, [None] * 3),
    ],
)
def test_a_value_is_given_in_the_wider_type_that_was_planned(
    path: Path, value: object, type_: ColumnType, expected: list[object]
) -> None:
    answer = read(archive(path, {"key": value}), "key", type_)
    assert not answer.widened
    assert answer.table.column("key").to_pylist() == expected


@pytest.mark.parametrize(
    ("value", "planned", "needed"),
    [
        (1.5, ColumnType.INT64, ColumnType.DOUBLE),
        (5, ColumnType.FLOAT, ColumnType.DOUBLE),
        ("x", ColumnType.DOUBLE, ColumnType.STRING),
        (["x", None, ""], ColumnType.INT64, ColumnType.STRING),
        (True, ColumnType.INT64, ColumnType.STRING),
    ],
)
def test_a_type_that_is_too_narrow_is_reported(
    path: Path, value: object, planned: ColumnType, needed: ColumnType
) -> None:
    assert read(archive(path, {"key": value}), "key", planned).widened == (("key", needed),)


# The language of pickles

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_plain_values_are_what_pickle_makes_of_them(value: object, protocol: int) -> None:
    found = unpickled(pickle.dumps(value, protocol))
    assert repr(found) == repr(value)


def test_values_that_are_shared_are_shared(path: Path) -> None:
    shared = [1, 2]
    found = unpickled(pickle.dumps({"a": shared, "b": shared}))
    assert isinstance(found, dict)
    assert found["a"] is found["b"]


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_are_read_in_every_protocol_and_under_both_names_of_numpy(protocol: int, core: str) -> None:
    values = {
        "list": [np.float32(1.5), np.int64(-3), np.str_("é")],
        "array": np.arange(5, dtype=">i4"),
        "objects": np.array(["a", None], object),
    }
    found = unpickled(under(core, pickle.dumps(values, protocol)))
    assert isinstance(found, dict)
    assert found["list"] == [1.5, -3, "é"]
    assert found["array"].items() == [0, 1, 2, 3, 4]
    assert found["objects"].items() == ["a", None]


def under(core: str, pickled: bytes) -> bytes:
    """A pickle with NumPy's inner module called as older or newer versions call it."""
    for module in (b"multiarray", b"numeric"):
        for old in (b"numpy._core.", b"numpy.core."):
            name, other = old + module, b"numpy." + core.encode() + b"." + module
            pickled = pickled.replace(bytes([0x8C, len(name)]) + name, bytes([0x8C, len(other)]) + other)
            pickled = pickled.replace(b"c" + name + b"\n", b"c" + other + b"\n")
    return pickled


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, what: Callable[..., Any], *arguments: object) -> None:
        self.call = what, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_code_in_metadata_never_runs(path: Path, tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    whole = np.empty((), object)
    whole[()] = {"Metadata_Well": "A01", "key": Calls(os.system, f"touch '{trace}'")}
    pickled = pickle.dumps(whole, protocol)
    pickle.loads(pickled)
    assert trace.exists(), "the attack is no attack"
    trace.unlink()
    source = archive_of_pickle(path, pickled)
    with pytest.raises(BadSourceError, match=f"{os.system.__module__}.system"):
        READER.columns(source)
    with pytest.raises(BadSourceError, match=f"{os.system.__module__}.system"):
        read(source, "key", ColumnType.STRING)
    assert READER.count(source) == CELLS
    assert READER.checksum(source)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Calls(subprocess.Popen, "true"), "subprocess.Popen"),
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(getattr, "x", "upper"), "builtins.getattr"),
        (Calls(open, "/etc/hostname"), "open"),
        (Calls(np.load, "x.npy"), "numpy.load"),
        (Calls(np.fromfile, "x"), "fromfile"),
        (Calls(collections.Counter), "collections.Counter"),
        (Calls(bytearray, 1 << 40), "builtins.bytearray"),
        (datetime(2024, 1, 1), "datetime.datetime"),
        (1j, "builtins.complex"),
        ({1, 2}, ""),
        (np.ma.masked_array([1]), "numpy.ma"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_value_is_refused_by_name(call: object, named: str) -> None:
    for protocol in PROTOCOLS:
        with pytest.raises(PickleRefused) as caught:
            unpickled(pickle.dumps({"key": call}, protocol))
        if protocol >= 3:  # before, modules go by the names of Python 2
            assert named in str(caught.value)


def test_a_call_is_never_made_of_what_is_only_named() -> None:
    """`numpy.ndarray((10**12,))`, and a call of a text."""
    with pytest.raises(PickleRefused, match="cannot be called"):
        unpickled(b"\x80\x02cnumpy\nndarray\n\x8a\x06\x00\x10\xa5\xd4\xe8\x00\x85\x85R.")
    with pytest.raises(PickleRefused, match="cannot be called"):
        unpickled(b"\x80\x04\x8c\x01x)R.")
    with pytest.raises(PickleRefused, match="a class of its own"):
        unpickled(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\n)N\x87R.")


def test_references_to_outside_are_refused(path: Path) -> None:
    class Outside(pickle.Pickler):
        def persistent_id(self, value: object) -> str | None:
            return "key" if value == "here" else None

    for protocol in (0, 4):
        file = io.BytesIO()
        Outside(file, protocol).dump(["here"])
        with pytest.raises(PickleRefused, match="outside of the file"):
            unpickled(file.getvalue())
    with pytest.raises(PickleRefused, match="outside of the file"):
        unpickled(b"\x80\x05\x97.")  # a buffer that is handed over beside the pickle
    copyreg.add_extension("posix", "system", 0xEE)
    try:
        with pytest.raises(PickleRefused, match="EXT1"):
            unpickled(b"\x80\x02\x82\xee.")
    finally:
        copyreg.remove_extension("posix", "system", 0xEE)


@pytest.mark.parametrize("pickled", [b"(iposix\nsystem\n.", b"(cposix\nsystem\no.", b"cposix\nsystem\n)\x81."])
def test_older_and_newer_ways_to_make_objects_are_refused(pickled: bytes) -> None:
    with pytest.raises(PickleRefused, match=r"system|INST|OBJ"):
        unpickled(pickled)


STATE = b"}\x8c\x0c__defaults__Ns"  # {"__defaults__": None}


@pytest.mark.parametrize(
    "target", [b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"]", b"N", b"}"]
)
def test_nothing_can_be_altered_through_a_state(target: bytes) -> None:
    of_dtype = pickle.dumps((3, "<", None, None, None, -1, -1, 0), 2)[2:-1]
    of_array = b"(K\x01)cnumpy\ndtype\n\x8c\x02O8\x85R\x89]Nat"  # shape (), of objects
    for state in (STATE, b"N" + STATE + b"\x86", b")", of_dtype, of_array):
        with pytest.raises(PickleRefused):
            unpickled(b"\x80\x04" + target + state + b"b.")


def test_a_scalar_that_holds_an_object_is_refused() -> None:
    pickled = b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R]\x86R."
    with pytest.raises(PickleRefused, match="holds a Python object"):
        unpickled(pickled)


@pytest.mark.parametrize("items", [b"]", b"](K\x01K\x02e", b"N", b"C\x00"])
def test_an_array_of_objects_with_another_number_of_values_is_refused(items: bytes) -> None:
    made = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    dtype = b"cnumpy\ndtype\n\x8c\x02O8\x85R"
    state = [made + b"(K\x01K\x01\x85" + dtype + b"\x89" + one + b"tb." for one in (b"]K\x01a", items)]
    found = unpickled(state[0])
    assert isinstance(found, Array)
    assert found.items() == [1]
    with pytest.raises(PickleRefused, match="another number of values"):
        unpickled(state[1])


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_a_scalar_of_other_bytes_than_its_type_needs_is_refused(size: int) -> None:
    pickled = pickle.dumps(np.float64(1.5), 3)
    right = b"C\x08" + struct.pack("<d", 1.5)
    assert unpickled(pickled) == 1.5
    assert pickled.count(right) == 1
    with pytest.raises(PickleRefused, match="other bytes than it needs"):
        unpickled(pickled.replace(right, b"C" + bytes([size]) + bytes(size)))


@pytest.mark.parametrize(
    "shape", [(2**40,), (2**60,), (-1,), (-1, -2), (2.0,), (10**300,), (2, *(1,) * 70), ("2",)], ids=repr
)
def test_the_shape_of_an_array_is_checked_before_it_is_made(shape: tuple[Any, ...]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PickleRefused):
            unpickled(_with_state(shape))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def _with_state(shape: tuple[Any, ...]) -> bytes:
    """The pickle of an array of two doubles that says it has another shape."""
    before = pickle.dumps(np.zeros(2), 2)
    head, tail = before.split(b"K\x02\x85", 1)  # the shape (2,)
    return head + pickle.dumps(shape, 2)[2:-1].replace(b"q\x00", b"") + tail


# Bombs: an error, at once and in little memory

DEEP = 300_000
BOMBS: dict[str, bytes] = {
    "a deeply nested key": b"\x80\x02})" + b"\x85" * DEEP + b"Ns.",
    "a deeply nested item of a set": b"\x80\x04\x8f()" + b"\x85" * DEEP + b"\x90.",
    "a place in the memo far away": b"\x80\x02Nr\xff\xff\xff\x7f" * 2,
    "bytes that are not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N",
    "a whole number that is not there": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"\x01.",
    "a long decimal number": b"L" + b"9" * 1_000_000 + b"L\n.",
    "too many lists": b"\x80\x02(" + b"]" * (npz_pickle.STEPS_LIMIT + 10) + b"l.",
    "too many marks": b"\x80\x02" + b"(" * (npz_pickle.STEPS_LIMIT + 10) + b".",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_an_error(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_pickle, "STEPS_LIMIT", npz_pickle.STEPS_LIMIT // 10 if "many" in case else DEEP * 2)
    with pytest.raises(PickleRefused):
        unpickled(BOMBS[case])


def test_the_limit_of_steps_bounds_the_memory() -> None:
    tenth = b"\x80\x02(" + b"]\x94" * (npz_pickle.STEPS_LIMIT // 20 - 2) + b"l."
    tracemalloc.start()
    try:
        assert isinstance(unpickled(tenth), list)
        assert 10 * tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()


def test_a_deeply_nested_value_is_refused_by_its_key(path: Path) -> None:
    deep = b"]" * 100_000 + b"a" * 99_999
    whole = pickle.dumps(np.array({"key": "HERE"}, object), 2)
    source = archive_of_pickle(path, whole.replace(b"X\x04\x00\x00\x00HERE", deep), cells=1)
    with pytest.raises(BadSourceError, match="'key' holds a value of the kind 'list'"):
        READER.columns(source)


@pytest.mark.parametrize("kind", ["a list", "a dictionary", "an array", "the metadata themselves"])
def test_a_value_that_holds_itself_is_refused(path: Path, kind: str) -> None:
    metadata: dict[str, Any] = {}
    if kind == "a list":
        metadata["key"] = []
        metadata["key"].append(metadata["key"])
    elif kind == "a dictionary":
        metadata["key"] = {}
        metadata["key"]["inside"] = metadata["key"]
    elif kind == "an array":
        metadata["key"] = np.empty((), object)
        metadata["key"][()] = metadata["key"]
    else:
        metadata["key"] = metadata
    with pytest.raises(BadSourceError, match="'key' holds a value of the kind"):
        READER.columns(archive(path, metadata, cells=1))


VALID = pickle.dumps({"a": [1, "x", np.float64(2)], "b": np.arange(3), "c": np.array(["é"], object)}, 2)


def test_a_pickle_that_is_cut_off_anywhere_is_damaged() -> None:
    assert unpickled(VALID)
    for end in range(len(VALID)):
        with pytest.raises(PickleRefused):
            unpickled(VALID[:end])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=300)
@given(st.data())
def test_a_damaged_pickle_gives_values_or_one_kind_of_error(data: st.DataObject) -> None:
    damaged = bytearray(pickle.dumps({"a": [1, "x", np.float64(2)], "b": np.arange(3)}, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpickled(bytes(damaged))
    except PickleRefused:
        return
    assert found is None or isinstance(
        found,
        bool
        | int
        | float
        | str
        | bytes
        | list
        | tuple
        | dict
        | Array
        | npz_pickle.Dtype
        | npz_pickle.Opaque
        | npz_pickle.Known,
    )


@given(st.binary(max_size=200))
def test_bytes_that_are_no_pickle_give_one_kind_of_error(data: bytes) -> None:
    try:
        unpickled(b"\x80\x04" + data)
    except PickleRefused as error:
        assert str(error)
