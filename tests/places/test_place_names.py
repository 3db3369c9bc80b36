"""URLs and options: what is taken, what is refused, and that no refusal repeats a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.places import (
    check_options_fit,
    check_storage_options,
    check_url,
    is_remote,
    join,
    name_of,
    parent_of,
)

SECRET = "wJalrXUtnFEMIbPxRfiCY"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/plate", "s3://bucket/plate"),
        ("S3://bucket/a//b/", "s3://bucket/a//b"),
        ("gs://bucket", "gs://bucket"),
        ("az://container/", "az://container"),
        ("az://$web/index", "az://$web/index"),
        ("s3://bucket/is it?.csv", "s3://bucket/is it?.csv"),
        ("s3://bucket/user@lab/a:b", "s3://bucket/user@lab/a:b"),
        ("/data/plate", "/data/plate"),
        ("plate?x=1", "plate?x=1"),
        ("", ""),
    ],
)
def test_what_is_a_path(given: str, expected: str) -> None:
    assert check_url(given) == expected
    assert check_url(expected) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s4://bucket/x", "Choose one of: az, gs, s3."),
        ("gs3://bucket/x", "Did you mean 's3'?"),
        ("gcs://bucket/x", "Did you mean 'gs'?"),
        ("s3a://bucket/x", "Did you mean 's3'?"),
        ("abfss://container@account.dfs.core.windows.net/x", "Did you mean 'az'?"),
        ("ftp://host/x", "Choose one of: az, gs, s3."),
        ("file:///data/x", "give the path itself"),
        ("https://bucket.s3.amazonaws.com/x", "Write s3://bucket/path"),
        ("https://storage.googleapis.com/bucket/x", "Write gs://bucket/path"),
        (f"https://account.blob.core.windows.net/c/x?sig={SECRET}", "Write az://bucket/path"),
        (f"https://user:{SECRET}@example.org/x", "no place that is known"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3:/bucket/x", "Path"),
        (f"s3://key:{SECRET}@bucket/x", "credentials belong in the environment"),
        (f"s3://{SECRET}@bucket/x", "credentials belong in the environment"),
        ("s3://bucket:9000/x", "credentials belong in the environment"),
        (f"s3://bucket/x?X-Amz-Signature={SECRET}", "query string"),
        (f"s3://bucket?X-Amz-Signature={SECRET}", "query string"),
        (f"az://c/x?sv=2024-01-01&sig={SECRET}", "query string"),
        (f"gs://bucket/x?token={SECRET}", "query string"),
        ("s3://buck et/x", "cannot be the name of a bucket"),
        ("s3://-bucket/x", "cannot be the name of a bucket"),
        ("gs://$web/x", "cannot be the name of a bucket"),
    ],
)
def test_what_is_no_path(url: str, says: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(says)) as caught:
        check_url(url)
    assert SECRET not in str(caught.value)


def test_paths_are_put_together_and_taken_apart() -> None:
    assert is_remote("s3://b")
    assert not is_remote("s3:/b")
    assert not is_remote("/data/s3://b")
    assert join("s3://b/", "c") == "s3://b/c"
    assert join("az://b/c", "d", "e.csv") == "az://b/c/d/e.csv"
    assert join("/data", "c") == "/data/c"
    assert name_of(parent_of("gs://b/plate/a.csv")) == "plate"
    assert parent_of("plate") == "."
    assert parent_of("/plate") == "/"


def test_options_become_sorted_texts() -> None:
    given = {
        "region": "eu-west-1",
        "profile_name": "lab",
        "no_sign_request": "True",
        "anonymous": False,
        "endpoint_url": "http://127.0.0.1:9000/",
        "local_cache_dir": Path("cache"),
        "project": None,
    }
    assert check_storage_options(given) == (
        ("endpoint_url", "http://127.0.0.1:9000"),
        ("local_cache_dir", str(Path("cache").absolute())),
        ("no_sign_request", "true"),
        ("profile", "lab"),
        ("region", "eu-west-1"),
    )
    assert check_storage_options(None) == check_storage_options({}) == ()
    checked = check_storage_options(given)
    assert check_storage_options(dict(checked)) == checked


@pytest.mark.parametrize(
    "name",
    [
        *("aws_secret_access_key", "aws_access_key_id", "aws_session_token", "secret", "key", "token", "password"),
        *("aws_secret_acces_key", "connection_string", "credential", "credentials", "account_key", "sas_token"),
        *("shared_access_signature", "boto3_session", "storage_client", "blob_service_client", "api_key"),
    ],
)
def test_secrets_are_refused_by_name(name: str) -> None:
    with pytest.raises(
        ArgumentError, match=r"AWS_ACCESS_KEY_ID.*GOOGLE_APPLICATION_CREDENTIALS.*AZURE_STORAGE"
    ) as caught:
        check_storage_options({name: SECRET})
    assert name in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"account_url": f"https://a.blob.core.windows.net/?sv=2024-01-01&sig={SECRET}"},
        {"account_url": f"https://a.blob.core.windows.net?sig={SECRET}"},
        {"endpoint_url": f"https://user:{SECRET}@storage.example.org"},
        {"endpoint_url": f"https://storage.example.org/?password={SECRET}"},
        {"endpoint_url": f"AccountName=a;AccountKey={SECRET}"},
        {"application_credentials": f'{{"private_key": "{SECRET}"}}'},
        {"region": {"secret": SECRET}},
        {"region": f"eu\n{SECRET}"},
        {"anonymous": SECRET},
        {"project": f"x;AccountKey={SECRET}"},
        {"region": f"x?X-Amz-Signature={SECRET}"},
        {"addressing_style": SECRET},
        {"endpoint_url": SECRET},
        {"profile": SECRET, "profile_name": f"{SECRET}2"},
    ],
)
def test_no_refusal_repeats_a_value(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="storage_options") as caught:
        check_storage_options(options)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("endpoint", "endpoint_url"), ("anonymus", "anonymous"), ("cache_dir", "local_cache_dir"), ("regoin", "region")],
)
def test_a_misspelt_name_is_told(name: str, hint: str) -> None:
    with pytest.raises(ArgumentError, match=f"Did you mean '{hint}'"):
        check_storage_options({name: "x"})


def test_an_option_without_effect_is_refused() -> None:
    options = check_storage_options({"region": "eu-west-1", "anonymous": True})
    check_options_fit(options, ["s3://b/x", "gs://b/x", "/data"])
    with pytest.raises(ArgumentError, match=r"region, which is for s3://; this run uses gs://"):
        check_options_fit(options, ["gs://b/x", "/data"])
    with pytest.raises(ArgumentError, match="local paths alone"):
        check_options_fit(options, ["/data"])
    check_options_fit((), ["/data"])
    server = check_storage_options({"endpoint_url": "http://127.0.0.1:9000"})
    check_options_fit(server, ["s3://b/x", "s3://c/y"])
    with pytest.raises(ArgumentError, match=r"gs:// and s3://.*AWS_ENDPOINT_URL"):
        check_options_fit(server, ["s3://b/x", "gs://c/y"])
