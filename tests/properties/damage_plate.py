"""Small plates whose every value tells where it belongs, written in every format that can be read.

A plate is written to memory: files by their relative path, so that damage is a function from files to files.
"""

from __future__ import annotations

import csv
import gzip
import io
import pickle
import sqlite3
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from numpy.lib import format as npy

Value = int | float | str | None
Files = dict[str, bytes | None]
"""Content by relative path, with slashes; None is a folder in place of a file."""

COMPARTMENTS = ("Image", "Nuclei", "Cells", "Cytoplasm")
LARGEST_IMAGE = 6
DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Table:
    """Column names without their compartment, and rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Site:
    """What shares one image table: how many objects each image has."""

    number: int
    name: str
    images: tuple[int, ...]

    @property
    def tables(self) -> dict[str, Table]:
        """Image, Nuclei, Cells and Cytoplasm; the fifth cell of an image has no nucleus."""
        keys = [(image, one) for image, count in enumerate(self.images, start=1) for one in range(1, count + 1)]
        return {
            "Image": Table(
                ("ImageNumber", "Metadata_Plate", "Metadata_Well", "Count_Cells", "FileName_DNA", "Intensity_Mean"),
                tuple(
                    (
                        image,
                        f"P{self.number}",
                        f"A{image:02d}",
                        count,
                        f"{self.number}, {image}.tif",
                        self._value(0, image, 0),
                    )
                    for image, count in enumerate(self.images, start=1)
                ),
            ),
            "Nuclei": Table(
                ("ImageNumber", "ObjectNumber", "AreaShape_Area", "Neighbors_Count"),
                tuple((image, one, self._value(1, image, one), one % 3) for image, one in keys if one % 5),
            ),
            "Cells": Table(
                ("ImageNumber", "ObjectNumber", "Parent_Nuclei", "AreaShape_Area", "Metadata_Label"),
                tuple((image, one, one, self._value(2, image, one), f"c{self.number}-{one}") for image, one in keys),
            ),
            "Cytoplasm": Table(
                ("ImageNumber", "ObjectNumber", "Parent_Cells", "Parent_Nuclei", "AreaShape_Area", "Texture_Entropy"),
                tuple(
                    (image, one, one, one, self._value(3, image, one), -self._value(4, image, one) * 1e-7)
                    for image, one in keys
                ),
            ),
        }

    def _value(self, table: int, image: int, one: int) -> float:
        return (self.number * 10_000 + table * 1000 + image * 100 + one) / 7


@dataclass(frozen=True)
class Layout:
    """How a plate is written.

    Attributes:
        kind: "folders", "prefixed", "combined", "in carta", "export", "cytominer", "parquet", "duckdb" or "npz".
        ending: Of the files' names.
    """

    kind: str
    ending: str = ".csv"
    delimiter: str = ","
    newline: str = "\n"
    quoting: int = csv.QUOTE_MINIMAL
    index: bool = True


NAMES = st.sampled_from(
    ["s1", "s2", "s3", "a b", 'quote\'s "x"', "é漢🔬", "per%20cent%", "new\nline", "[1]*?", "#x;--", "back\\slash", "~"]
)
"""Names of sites; all of them different from each other in a plate."""


@st.composite
def sites(draw: st.DrawFn, most: int = 2) -> tuple[Site, ...]:
    """A plate of one site or more; image numbers repeat among them."""
    names = draw(st.lists(NAMES, min_size=1, max_size=most, unique=True))
    images = st.lists(st.integers(0, LARGEST_IMAGE), min_size=1, max_size=2).map(tuple)
    return tuple(Site(number, name, draw(images)) for number, name in enumerate(names, start=1))


CSV_LAYOUTS = st.one_of(
    st.just(Layout("folders")),
    st.builds(
        Layout,
        st.sampled_from(["folders", "prefixed", "combined"]),
        st.sampled_from([".csv", ".CSV", ".tsv", ".csv.gz", ".csv.zst"]),
        st.sampled_from(DELIMITERS),
        st.sampled_from(["\n", "\r\n"]),
        st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    ),
)


def written(plate: tuple[Site, ...], layout: Layout) -> Files:
    """The plate's files."""
    return dict(_WRITERS[layout.kind](plate, layout))


def packed(name: str, data: bytes) -> bytes:
    """Text as the ending of a file's name has it compressed."""
    if name.endswith(".gz"):
        return gzip.compress(data, 1, mtime=0)
    return pa.compress(data, "zstd", asbytes=True) if name.endswith(".zst") else data


def unpacked(name: str, data: bytes) -> bytes:
    """The text of a file; what cannot be unpacked is an EOFError, OSError, zlib.error or ArrowInvalid."""
    if name.endswith(".gz"):
        return gzip.decompress(data)
    if not name.endswith(".zst"):
        return data
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return bytes(stream.read())


def _text(rows: list[tuple[Value, ...]], layout: Layout) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=layout.delimiter, lineterminator=layout.newline, quoting=layout.quoting)
    writer.writerows(rows)
    return out.getvalue().encode()


def _folders(plate: tuple[Site, ...], layout: Layout) -> Iterator[tuple[str, bytes]]:
    for site in plate:
        for label, table in site.tables.items():
            prefix = f"{site.name}_" if layout.kind == "prefixed" else f"{site.name}/"
            name = f"{prefix}{label}{layout.ending}"
            yield name, packed(name, _text([table.header, *table.rows], layout))


def _combined(plate: tuple[Site, ...], layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Image.csv, and the compartments side by side in object.csv: a shorter one leaves its fields empty."""
    for site in plate:
        tables = site.tables
        groups, names = ["Image"], ["ImageNumber"]
        for label in COMPARTMENTS[1:]:
            own = ["Number_Object_Number", *tables[label].header[2:]]
            groups += [label] * len(own)
            names += own
        body: list[tuple[Value, ...]] = []
        for image in range(1, len(site.images) + 1):
            columns = [[row[1:] for row in tables[label].rows if row[0] == image] for label in COMPARTMENTS[1:]]
            widths = [len(tables[label].header) - 1 for label in COMPARTMENTS[1:]]
            for at in range(max(map(len, columns), default=0)):
                fields: list[Value] = [image]
                for column, width in zip(columns, widths, strict=True):
                    fields += column[at] if at < len(column) else [""] * width
                body.append(tuple(fields))
        images = f"{site.name}/Image{layout.ending}"
        yield images, packed(images, _text([tables["Image"].header, *tables["Image"].rows], layout))
        name = f"{site.name}/object{layout.ending}"
        yield name, packed(name, _text([tuple(groups), tuple(names), *body], layout))


def _in_carta(plate: tuple[Site, ...], layout: Layout) -> Iterator[tuple[str, bytes]]:
    for site in plate:
        cells = site.tables["Cells"]
        header = ("OBJECT ID", "WELL LABEL", "Row", "Column", "Nuclei Area wv1", "Cells Intensity")
        rows = [(one[1], f"A{one[0]:02d}", one[0], 2, one[3], float(f"{one[3]:.3f}")) for one in cells.rows]
        name = f"{site.name}{layout.ending}"
        yield name, packed(name, _text([header, *rows], layout))


def database_table(label: str, table: Table) -> tuple[str, ...]:
    """Column names as ExportToDatabase writes them."""
    names = {"ImageNumber": "ImageNumber", "ObjectNumber": f"{label}_Number_Object_Number"}
    return tuple(names.get(one, f"{label}_{one}") for one in table.header)


def declared(rows: tuple[tuple[Value, ...], ...], position: int) -> str:
    """A column's type in SQL."""
    value = next((row[position] for row in rows), 0.0)
    return {int: "INTEGER", str: "TEXT"}.get(type(value), "DOUBLE")


def _export(plate: tuple[Site, ...], layout: Layout) -> Iterator[tuple[str, bytes]]:
    """A SQLite file for each site, as ExportToDatabase writes it."""
    for site in plate:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("PRAGMA page_size = 1024")
            for label, table in site.tables.items():
                names = database_table(label, table)
                key = names[:1] if label == "Image" else names[:2]
                _create(connection, f"Per_{label}", names, table, key if layout.index else ())
                _insert(connection, f"Per_{label}", table.rows)
            connection.commit()
            yield f"{site.name}{layout.ending}", connection.serialize()


def _cytominer(plate: tuple[Site, ...], layout: Layout) -> Iterator[tuple[str, bytes]]:
    """One SQLite file for all sites, told apart by their TableNumber."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("PRAGMA page_size = 1024")
        for label in COMPARTMENTS:
            for site in plate:
                table = site.tables[label]
                rows = tuple((1000 + site.number, *row) for row in table.rows)
                names = ("TableNumber", *_cytominer_names(label, table))
                if site is plate[0]:
                    _create(connection, label, names, Table(names, rows), ())
                    if layout.index:
                        connection.execute(f'CREATE INDEX "of_{label}" ON "{label}" (TableNumber, ImageNumber)')
                _insert(connection, label, rows)
        connection.commit()
        yield f"plate{layout.ending}", connection.serialize()


def _cytominer_names(label: str, table: Table) -> tuple[str, ...]:
    keys = ("ImageNumber", "ObjectNumber")
    return tuple(one if one in keys else f"{label}_{one}" for one in table.header)


def _create(
    connection: sqlite3.Connection, name: str, names: tuple[str, ...], table: Table, key: tuple[str, ...]
) -> None:
    columns = [f'"{one}" {declared(table.rows, at)}' for at, one in enumerate(names)]
    columns += ["PRIMARY KEY ({})".format(", ".join(f'"{one}"' for one in key))] if key else []
    connection.execute(f'CREATE TABLE "{name}" ({", ".join(columns)})')


def _insert(connection: sqlite3.Connection, name: str, rows: tuple[tuple[Value, ...], ...]) -> None:
    if rows:
        connection.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(rows[0]))})', rows)


def arrow_table(table: Table) -> pa.Table:
    """The table with the types of its values."""
    types = {int: pa.int64(), str: pa.string(), float: pa.float64()}
    columns = list(zip(*table.rows, strict=True)) if table.rows else [()] * len(table.header)
    arrays = [pa.array(one, types[type(one[0])] if one else pa.float64()) for one in columns]
    return pa.table(arrays, names=list(table.header))


def _parquet(plate: tuple[Site, ...], layout: Layout) -> Iterator[tuple[str, bytes]]:
    for site in plate:
        for label, table in site.tables.items():
            sink = pa.BufferOutputStream()
            pq.write_table(arrow_table(table), sink, row_group_size=4, compression="snappy")
            yield f"{site.name}/{label}{layout.ending}", sink.getvalue().to_pybytes()


def features_of(site: Site) -> np.ndarray:
    """Three features of each cell."""
    cells = sum(site.images)
    return (site.number * 1000 + np.arange(cells * 3, dtype=np.float32).reshape(cells, 3)) / np.float32(7)


def locations_of(site: Site) -> np.ndarray:
    """The place of each cell."""
    return np.arange(sum(site.images) * 2, dtype=np.float64).reshape(-1, 2) / 3 + site.number


def metadata_of(site: Site) -> dict[str, object]:
    """What DeepProfiler tells of a site."""
    labels = [f"l{number}" for number in range(sum(site.images))]
    return {"Metadata_Plate": f"P{site.number}", "Metadata_Site": site.number, "Metadata_Model": "net", "Label": labels}


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a member of an archive."""
    out = io.BytesIO()
    npy.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def pickled_member(pickled: bytes) -> bytes:
    """The bytes of a pickle as an array of one object."""
    out = io.BytesIO()
    npy.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": ()})
    return out.getvalue() + pickled


def metadata_member(metadata: object) -> bytes:
    """Metadata as an array of one object."""
    whole = np.empty((), object)
    whole[()] = metadata
    return pickled_member(pickle.dumps(whole, 4))


def archive(members: Mapping[str, bytes]) -> bytes:
    """An NPZ archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), content)
    return out.getvalue()


def _npz(plate: tuple[Site, ...], layout: Layout) -> Iterator[tuple[str, bytes]]:
    for site in plate:
        members = {
            "features": npy_bytes(features_of(site)),
            "locations": npy_bytes(locations_of(site)),
            "metadata": metadata_member(metadata_of(site)),
        }
        yield f"{site.name}{layout.ending}", archive(members)


_WRITERS = {
    "folders": _folders,
    "prefixed": _folders,
    "combined": _combined,
    "in carta": _in_carta,
    "export": _export,
    "cytominer": _cytominer,
    "parquet": _parquet,
    "npz": _npz,
}
