"""What a fetch writes is what SOMA reads: values, types, order, labels, in every format."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from fetching_tools import decoded, frame_of, plain_read

from prefect_cytotable.flows import fetch_obs
from prefect_cytotable.tasks.core.errors import ArgumentError, LayoutError, SourceNotFoundError

pytestmark = pytest.mark.usefixtures("local")

LUNG = "tissue_general == 'lung'"


def read(path: str | Path) -> pa.Table:
    path = Path(path)
    if path.suffix == ".csv":
        return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True))
    return pq.read_table(path) if path.suffix == ".parquet" else pyarrow.feather.read_table(path)


def labels(table: pa.Table, name: str) -> list[str]:
    """The labels of a column, whether its rows use them or not."""
    (dictionary,) = {tuple(chunk.dictionary.to_pylist()) for chunk in table.column(name).chunks}
    return list(dictionary)


def first_met(values: list[str | None]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value is not None]


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["feather", "arrow", "parquet", "csv"])
@pytest.mark.parametrize("tissue", ["lung", "ureter"])
def test_every_format_holds_what_soma_reads(census: Path, tissue: str, ending: str) -> None:
    expected = plain_read(census, f"tissue_general == '{tissue}'")
    assert 100 < expected.num_rows < 20_000
    fetched = fetch_obs(census, f"out.{ending}", tissue=tissue)
    found = read(fetched.path)
    assert (fetched.rows, fetched.columns, fetched.table_rows) == (expected.num_rows, 28, 30_000)
    assert fetched.size == Path(fetched.path).stat().st_size
    if ending == "csv":
        assert found.column_names == expected.column_names
        assert found.to_pylist() == decoded(expected).to_pylist()
    else:
        assert decoded(found).equals(decoded(expected))
    if ending in ("feather", "arrow"):
        assert found.schema.remove_metadata().equals(expected.schema.remove_metadata())
    if ending == "parquet":
        assert pa.types.is_dictionary(found.schema.field("donor_id").type)


@pytest.mark.parametrize("ending", ["feather", "parquet"])
def test_labels_are_those_that_are_used_in_the_order_in_which_they_come(census: Path, ending: str) -> None:
    found = read(fetch_obs(census, f"out.{ending}", tissue="ureter").path)
    for name in ("donor_id", "cell_type", "tissue_general", "sex"):
        assert labels(found, name) == first_met(found.column(name).to_pylist()), name
    assert labels(found, "tissue_general") == ["ureter"]
    assert len(labels(read(fetch_obs(census, f"all.{ending}").path), "tissue_general")) > 10


def test_columns_come_as_they_are_named_and_the_filters_column_only_if_named(census: Path) -> None:
    found = read(fetch_obs(census, "out.feather", columns=["nnz", "cell_type"], value_filter=LUNG).path)
    assert found.column_names == ["nnz", "cell_type"]
    expected = plain_read(census, LUNG).select(["nnz", "cell_type"])
    assert decoded(found).equals(decoded(expected))
    assert read(fetch_obs(census, "b.feather", columns="sex, nnz").path).column_names == ["sex", "nnz"]


def test_a_filter_and_a_tissue_hold_both(census: Path) -> None:
    found = read(fetch_obs(census, "out.feather", tissue="lung", value_filter="nnz < 300 or nnz > 8900").path)
    expected = plain_read(census, f"(nnz < 300 or nnz > 8900) and {LUNG}")
    assert 0 < expected.num_rows < plain_read(census, "nnz < 300 or nnz > 8900").num_rows
    assert decoded(found).equals(decoded(expected))


@pytest.mark.parametrize("ending", ["feather", "parquet", "csv"])
def test_no_row_at_all_is_a_valid_file(census: Path, ending: str) -> None:
    fetched = fetch_obs(census, f"out.{ending}", value_filter="nnz < 0")
    found = read(fetched.path)
    assert (fetched.rows, found.num_rows) == (0, 0)
    assert found.column_names == plain_read(census, "nnz < 0").column_names


def test_var_and_any_place_inside_a_store(census: Path) -> None:
    assert read(fetch_obs(census, "var.feather", axis="var").path).num_rows == 400
    ids = read(fetch_obs(census, "ids.feather", axis="var", columns=["soma_joinid"]).path)
    assert ids.column("soma_joinid").to_pylist() == list(range(400))
    experiment = census / "census_data" / "homo_sapiens"
    whole = fetch_obs(census, "a.feather", tissue="ureter")
    for number, place in enumerate((experiment, experiment / "obs", f"file://{experiment}")):
        fetched = fetch_obs(place, f"{number}.feather", tissue="ureter")
        assert decoded(read(fetched.path)).equals(decoded(read(whole.path)))


# --- other tables -------------------------------------------------------------------------------------------


def numbered(ids: list[int]) -> pa.Table:
    return pa.table({"soma_joinid": pa.array(ids, pa.int64()), "x": pa.array([one * 10 for one in ids], pa.int64())})


def test_rows_are_in_order_though_the_fragments_lie_across_each_other(tmp_path: Path) -> None:
    odd, even = list(range(1, 9_000, 2)), list(range(0, 9_000, 2))
    frame = frame_of(tmp_path / "obs", numbered(odd), numbered(even))
    for chunk_size in (None, 1_234):
        found = read(fetch_obs(frame, "out.feather", chunk_size=chunk_size, overwrite=True).path)
        assert found.column("soma_joinid").to_pylist() == list(range(9_000))
        assert found.column("x").to_pylist() == [one * 10 for one in range(9_000)]


def test_a_table_that_is_not_indexed_by_joinid(tmp_path: Path) -> None:
    ids = [(7 * one) % 5_000 for one in range(5_000)]
    table = numbered(ids).append_column("cell", pa.array([f"c{one:05d}" for one in range(5_000)], pa.large_string()))
    frame = frame_of(tmp_path / "obs", table, index=["cell"], domain=[None])
    found = read(fetch_obs(frame, "out.feather", chunk_size=100, value_filter="x >= 100").path)
    assert found.column("soma_joinid").to_pylist() == list(range(10, 5_000))
    assert found.column("cell").to_pylist() == [f"c{ids.index(one):05d}" for one in range(10, 5_000)]


def test_nulls_orders_and_types_stay(tmp_path: Path) -> None:
    rows = 3_000
    sizes = ["small", "middle", "large"]
    codes = pa.array([None if one % 5 == 0 else one % 3 for one in range(rows)], pa.int8())
    table = pa.table(
        {
            "soma_joinid": pa.array(range(rows), pa.int64()),
            "size": pa.DictionaryArray.from_arrays(codes, pa.array(sizes, pa.large_string()), ordered=True),
            "label": pa.DictionaryArray.from_arrays(
                pa.array([None if one % 7 == 0 else 2 for one in range(rows)], pa.int32()),
                pa.array(["a", "b", "c"], pa.large_string()),
            ),
            "maybe": pa.array([None if one % 3 else one / 7 for one in range(rows)], pa.float32()),
            "text": pa.array([None if one % 11 == 0 else "é," * (one % 4) for one in range(rows)], pa.large_string()),
            "flag": pa.array([None if one % 13 == 0 else one % 2 == 0 for one in range(rows)], pa.bool_()),
            "when": pa.array(range(rows), pa.timestamp("ms")),
            "tiny": pa.array([one % 100 for one in range(rows)], pa.uint8()),
        }
    )
    frame = frame_of(tmp_path / "obs", table)
    feather = read(fetch_obs(frame, "out.feather").path)
    assert decoded(feather).equals(decoded(table))
    assert feather.schema.field("size").type == table.schema.field("size").type
    large = read(fetch_obs(frame, "large.feather", value_filter="size == 'large'").path)
    assert set(large.column("size").to_pylist()) == {"large"}
    assert labels(large, "size") == sizes  # an order has no gaps
    assert labels(feather, "label") == ["c"]
    parquet = read(fetch_obs(frame, "out.parquet").path)
    assert decoded(parquet).equals(decoded(table))
    assert parquet.schema.field("size").type.ordered
    text = Path(fetch_obs(frame, "out.csv").path).read_text(encoding="utf-8").splitlines()
    assert text[1] == "0,,,0,,,1970-01-01 00:00:00.000,0"
    assert text[2] == '1,"middle","c",,"é,",false,1970-01-01 00:00:00.001,1'


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"tissue": "lugn"}, ArgumentError, "Did you mean 'lung'?"),
        ({"tissue": "lung' or nnz > 0 or sex == 'x"}, ArgumentError, "which obs of .* does not have"),
        ({"columns": ["cel_type"]}, ArgumentError, "columns names 'cel_type'.* Did you mean 'cell_type'"),
        ({"columns": ["nnz", "nnz"]}, ArgumentError, "there twice"),
        ({"value_filter": "tisue == 'lung'"}, ArgumentError, "value_filter names 'tisue'.* Did you mean 'tissue'"),
        ({"value_filter": "nnz >"}, ArgumentError, "no expression"),
        ({"value_filter": "nnz == 'many'"}, ArgumentError, "SOMA refuses: Cannot cast `many`"),
        ({"value_filter": "open('x') == 1"}, ArgumentError, "SOMA refuses"),
        ({"value_filter": "nnz.real == 1"}, ArgumentError, "SOMA refuses"),
        ({"axis": "obj"}, ArgumentError, "Did you mean 'obs'"),
        ({"axis": "var", "tissue": "lung"}, ArgumentError, "no cells"),
        ({"axis": "var", "measurement": "rna"}, LayoutError, "no measurement 'rna'. Did you mean 'RNA'"),
        ({"organism": "homo_sapien"}, LayoutError, "Did you mean 'homo_sapiens'"),
        ({"dest_datatype": "xlsx"}, ArgumentError, "dest_datatype is 'xlsx'"),
        ({"memory_budget": "lots"}, ArgumentError, "memory_budget is 'lots'"),
        ({"buffer_bytes": "-1"}, ArgumentError, "buffer_bytes is '-1'"),
        ({"chunk_size": 0}, ArgumentError, "chunk_size is 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    census: Path, tmp_path: Path, arguments: dict, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        fetch_obs(census, "out.feather", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_place_without_a_store(census: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="there is nothing"):
        fetch_obs(tmp_path / "nothing", "out.feather")
    with pytest.raises(SourceNotFoundError, match="is no SOMA store"):
        fetch_obs(Path(__file__).parent, "out.feather")
    with pytest.raises(ArgumentError, match="ending tells no format"):
        fetch_obs(census, "out")
    with pytest.raises(ArgumentError, match="holds a user or a password") as told:
        fetch_obs("s3://user:secret@bucket/census", "out.feather")
    assert "secret" not in str(told.value)
