from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import ArgumentError, BadSourceError, DiskSpaceError
from prefect_cytotable.tasks.core.redact import redact

SECRET = "s3cr3t/Value+1%3D"


@pytest.mark.parametrize(
    "text",
    [
        "https://lab:hunter2@example.org/plate.sqlite",
        "postgresql+asyncpg://prefect:hunter2@db:5432/prefect",
        "s3://hunter2@bucket/plate",
        "abfss://container:hunter2@account.dfs.core.windows.net/x",
        "https://a.blob.core.windows.net/c/x.csv?sv=2024-01-01&se=2026&sig=hunter2&sp=r",
        "https://b.s3.amazonaws.com/x?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=hunter2",
        "https://b.s3.amazonaws.com/x?X-Amz-Security-Token=hunter2",
        "https://b.s3.amazonaws.com/x?AWSAccessKeyId=AKIA&Signature=hunter2&Expires=1",
        "https://storage.googleapis.com/b/x?X-Goog-Signature=hunter2&GoogleAccessId=me",
        "DefaultEndpointsProtocol=https;AccountName=lab;AccountKey=hunter2==;EndpointSuffix=core.windows.net",
        "SharedAccessSignature=hunter2",
        "aws_secret_access_key = hunter2",
        "failed: password='hunter2 with spaces', host=h",
        "https://example.org/a?access_token=hunter2#x",
        "MY_API_KEY=hunter2",
        "see <https://example.org/x?token=hunter2>",
    ],
)
def test_no_secret_is_left_and_the_rest_is(text: str) -> None:
    shown = redact(text)
    assert "hunter2" not in shown
    assert "AKIA" not in shown or "AccessKeyId" not in text
    assert "***" in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/plate/Cells.csv",
        "/data/plate=BR001/well=A01/Cells.csv, table Cells",
        "abfss://container@account.dfs.core.windows.net/plate",
        "me@example.org wrote to s3://bucket/a",
        "Cells_Texture_Sigma=2",
        "rows: 5 in, 4 out, 1 dropped",
        "https://example.org/a?sv=2024&page=2",
        "http://127.0.0.1:4200/runs/of@somebody",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(), st.text())
def test_any_text_is_taken_and_twice_is_once(before: str, after: str) -> None:
    shown = redact(f"{before}https://u:{'p' * 9}@h/x?sig={'q' * 9}&{after}")
    assert "p" * 9 not in shown.replace(after, "").replace(before, "")
    assert "q" * 9 not in shown.replace(after, "").replace(before, "")
    assert redact(shown) == shown


def test_errors_tell_no_secret_even_after_a_journey() -> None:
    url = f"https://u:{SECRET}@h/x?sig={SECRET}"
    for error in (ArgumentError(url), DiskSpaceError(url), BadSourceError(url, "bad", "Repair it.")):
        for one in (error, pickle.loads(pickle.dumps(error))):
            assert SECRET not in str(one)
            assert SECRET not in repr(one)
            assert "https://***@h/x" in str(one)
