"""Functions that users call refuse arguments that they do not know, with the nearest that they do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect_cytotable.tasks.core.errors import UnknownArgumentError, nearest

P = ParamSpec("P")
R = TypeVar("R")

_CYTOTABLE_ONLY = {
    "parsl_config": "Runs are set up with task_runner= here ('sequential', 'concurrent', 'process', 'dask').",
    "dest_backend": "Only Parquet files are written; an Iceberg warehouse can read them.",
    **{
        name: f"Give it in storage_options={{{name!r}: ...}} here."
        for name in ("no_sign_request", "endpoint_url", "local_cache_dir", "profile_name", "project")
    },
}


def named_arguments(model: Callable[..., object] | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a misspelt argument an error that names the nearest one.

    Args:
        model: The function whose arguments are known, where it is not the decorated one.

    Raises:
        UnknownArgumentError: An argument has a name that the function does not know.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(model or function).parameters

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in parameters:
                    hint = _CYTOTABLE_ONLY.get(name) or nearest(name, parameters)
                    raise UnknownArgumentError(f"{function.__name__}() has no argument {name!r}. {hint}")
            return function(*args, **kwargs)

        return checked

    return decorate
