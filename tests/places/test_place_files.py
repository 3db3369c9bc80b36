"""The local place: the same methods over plain files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_cytotable.tasks.core.errors import DestinationExistsError, SourceNotFoundError
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.places.files import whole

HERE = Places()


def names(root: Path) -> list[str]:
    return [os.path.relpath(entry.path, root) for entry in HERE.entries(str(root))]


def test_a_walk_finds_files_once_and_leaves_out_what_is_no_data(tmp_path: Path) -> None:
    for name in ("b/c.csv", "a.csv", "b/._c.csv", ".out.parquet.prefect-cytotable/parts/x.parquet", "b/.hidden.csv"):
        (tmp_path / "plate" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plate" / name).write_text(name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "d.csv").write_text("d")
    (tmp_path / "plate" / "linked").symlink_to(elsewhere)
    (tmp_path / "plate" / "again").symlink_to(elsewhere)
    (tmp_path / "plate" / "b" / "circle").symlink_to(tmp_path / "plate")
    (tmp_path / "plate" / "broken").symlink_to(tmp_path / "nothing")
    found = names(tmp_path / "plate")
    assert sorted(found) in (
        ["a.csv", "again/d.csv", "b/.hidden.csv", "b/c.csv"],
        ["a.csv", "b/.hidden.csv", "b/c.csv", "linked/d.csv"],
    )


def test_an_entry_tells_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("12345")
    os.utime(file, ns=(5, 1_700_000_000_123_456_789))
    (only,) = HERE.entries(str(tmp_path))
    assert (only.path, only.size, only.modified, only.mark) == (str(file), 5, 1_700_000_000_123_456_789, "")
    assert list(HERE.entries(str(file))) == [only]
    assert HERE.entry(str(file)) == only
    assert HERE.entry(str(tmp_path)) is None
    assert HERE.entry(str(tmp_path / "none")) is None
    assert HERE.entry(str(file / "below")) is None
    assert list(HERE.entries(str(tmp_path / "none"))) == []


def test_reading(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"0123456789")
    assert HERE.read(str(file)) == b"0123456789"
    assert HERE.read(str(file), 3, 5) == b"34"
    assert HERE.read(str(file), 8, 50) == b"89"
    assert HERE.read(str(file), 20) == HERE.read(str(file), 5, 5) == HERE.read(str(file), 5, 2) == b""
    assert HERE.read_many([(str(file), ""), (str(file), "")]) == [b"0123456789"] * 2
    with HERE.open(str(file)) as stream:
        assert stream.read() == b"0123456789"
    HERE.download(str(file), tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == b"0123456789"
    assert HERE.local(str(file), 10, "") == file
    HERE.forget([(str(file), "")])
    assert file.exists()


def test_what_is_not_there_is_told_so(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.csv")
    for act in (
        lambda: HERE.read(missing),
        lambda: HERE.open(missing).__enter__(),
        lambda: HERE.download(missing, tmp_path / "x"),
    ):
        with pytest.raises(SourceNotFoundError, match=r"none\.csv: there is no such file"):
            act()
    HERE.remove(missing)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_reader_is_not_taken_for_one_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(FileNotFoundError) as caught, HERE.open(str(tmp_path / "a")):
        raise FileNotFoundError("another file")
    assert str(caught.value) == "another file"


def test_writing_is_whole_and_replaces_only_what_it_may(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "out" / "a.parquet"
    source.write_text("new")
    entry = HERE.upload(source, str(target), overwrite=False)
    assert (entry.path, entry.size) == (str(target), 3)
    source.write_text("newer")
    with pytest.raises(DestinationExistsError, match="overwrite=True"):
        HERE.upload(source, str(target), overwrite=False)
    assert target.read_text() == "new"
    HERE.upload(source, str(target), overwrite=True)
    assert target.read_text() == "newer"
    assert HERE.write(str(tmp_path / "out" / "b.json"), b"{}").size == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet", "b.json"]
    HERE.remove(str(target))
    assert not target.exists()


def test_what_another_wrote_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(DestinationExistsError), whole(target, overwrite=False) as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_upload_replaces_nothing_that_came_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, copy = tmp_path / "new", tmp_path / "a", shutil.copyfile

    def slow(start: Path, end: Path) -> None:
        target.write_text("theirs")
        copy(start, end)

    source.write_text("ours")
    monkeypatch.setattr(shutil, "copyfile", slow)
    with pytest.raises(DestinationExistsError):
        HERE.upload(source, str(target), overwrite=False)
    assert target.read_text() == "theirs"
    HERE.upload(source, str(target), overwrite=True)
    assert target.read_text() == "ours"


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_no_client_library_is_imported_for_local_files(tmp_path: Path) -> None:
    code = (
        "import sys; from prefect_cytotable.tasks.core.places import Places, check_storage_options, check_url\n"
        "check_url('s3://b/k'); check_storage_options({'region': 'x'}); list(Places().entries(sys.argv[1]))\n"
        "heavy = ('boto3', 'cloudpathlib', 'google.cloud', 'azure', 'requests')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"
