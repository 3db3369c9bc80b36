"""Where files lie: this machine, ``s3://``, ``gs://`` or ``az://``. Client libraries are imported when one is used."""

from prefect_cytotable.tasks.core.places.base import Entry
from prefect_cytotable.tasks.core.places.errors import (
    MissingExtraError,
    PlaceBusyError,
    PlaceDeniedError,
    PlaceError,
)
from prefect_cytotable.tasks.core.places.options import StorageOptions, check_options_fit, check_storage_options
from prefect_cytotable.tasks.core.places.places import Places
from prefect_cytotable.tasks.core.places.urls import check_url, is_remote, join, name_of, parent_of

__all__ = [
    "Entry",
    "MissingExtraError",
    "PlaceBusyError",
    "PlaceDeniedError",
    "PlaceError",
    "Places",
    "StorageOptions",
    "check_options_fit",
    "check_storage_options",
    "check_url",
    "is_remote",
    "join",
    "name_of",
    "parent_of",
]
