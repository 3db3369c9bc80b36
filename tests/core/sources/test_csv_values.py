"""What the fields of a CSV file mean, value by value, and without pandas, which is no dependency."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.sources.base import Keys
from prefect_cytotable.tasks.core.sources.csv_values import converted

ODD = [
    "+5", "-0", "-0.0", "1.", ".5", "-.5e3", "1e22", "1e23", "9007199254740993", "0.1", "5e-324", "1e400", "-1e400",
    "2.4703282292062327e-324", "2.4703282292062328e-324", "1.7976931348623159e308", "inf", "-Infinity", " 2.5 ",
    "0.1000000000000000055511151231257827021181583404541015625", "123456789012345678901234567890", "0e9999",
]  # fmt: skip

BLOCKED = """
import json, sys

class Blocked:
    tried = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pandas":
            self.tried.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import pyarrow as pa
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.sources.base import Keys
from prefect_cytotable.tasks.core.sources.csv_values import converted, missing_as_null, sampled_types

def texts(values):
    from prefect_cytotable.tasks.core.arrays import from_texts
    return from_texts(values)

table = pa.Table.from_arrays(
    [texts(["1", "2.5", "x"]), texts(["1", " nan", "3"]), texts(["True", "", "no"]), texts(["", "a", "b"]),
     texts(["7", "8.0", "1e400"])],
    names=["Area", "Mean", "Flag", "Name", "ImageNumber"],
)
types = dict(zip(table.column_names, [ColumnType.INT64, ColumnType.INT64, ColumnType.BOOL, ColumnType.STRING,
                                      ColumnType.INT64]))
answer = converted(table, types, Keys("ImageNumber", "ObjectNumber"))
sampled_types(table, True)
missing_as_null(answer.table, {name: ColumnType.STRING if name == "Name" else ColumnType.INT64 for name in types})
print(json.dumps([answer.table.to_pydict(), answer.widened, Blocked.tried]))
"""


def bits(number: float) -> bytes:
    return struct.pack("<d", number)


def as_doubles(texts: list[str]) -> list[float | None]:
    table = pa.table({"Area": pa.array(texts, pa.string())})
    answer = converted(table, {"Area": ColumnType.DOUBLE}, Keys("ImageNumber", "ObjectNumber"))
    assert answer.table.schema.field("Area").type == pa.float64()
    found: list[float | None] = answer.table.column("Area").to_pylist()
    return found


def test_odd_numbers_are_the_doubles_that_python_reads() -> None:
    found = as_doubles(ODD)
    assert None not in found
    assert [bits(one) for one in found if one is not None] == [bits(float(text)) for text in ODD]


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20), st.sampled_from(["r", ".25e", ".17g", "f"]))
def test_every_double_is_the_one_that_python_reads(numbers: list[float], form: str) -> None:
    texts = [repr(one) if form == "r" else format(one, form) for one in numbers]
    assert [bits(one) for one in as_doubles(texts) if one is not None] == [bits(float(text)) for text in texts]


def test_what_is_no_number_is_missing_or_counted() -> None:
    table = pa.table({"Area": pa.array(["1.5", "", "nan", "-NaN", "0x1p3", "1_0", "twelve"])})
    answer = converted(table, {"Area": ColumnType.DOUBLE}, Keys("ImageNumber", "ObjectNumber"))
    assert answer.table.column("Area").to_pylist() == [1.5, None, None, None, None, None, None]
    assert [(one.column, one.count) for one in answer.findings] == [("Area", 3)]


def test_nothing_asks_for_pandas() -> None:
    command = [sys.executable, "-c", BLOCKED]
    output = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout
    values, widened, tried = json.loads(output)
    assert tried == []
    assert values == {
        "Area": [1.0, 2.5, None],
        "Mean": [1, None, 3],
        "Flag": [True, None, False],
        "Name": [None, "a", "b"],
        "ImageNumber": [7, 8, None],
    }
    assert widened == [["Area", "double"]]
    assert math.isinf(float("1e400"))  # what the key was: no number of an image
