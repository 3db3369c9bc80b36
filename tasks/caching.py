"""Which chunk task's result may stand for another's: the one with the same chunk key."""

from __future__ import annotations

from asyncio import to_thread
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.filesystems import WritableFileSystem

from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.store import RemoteStore, Store
from prefect_cytotable.tasks.core.work import PlanPlace


@dataclass(frozen=True)
class ChunkJob:
    """What a chunk task gets: where its plan lies, how to reach it, which chunk it is, and that chunk's key and name.

    The key is a hash over the program's version, the sources' fingerprints, the slice and the options.
    """

    place: PlanPlace
    number: int
    key: str
    name: str


class ObjectStorage(WritableFileSystem):
    """Keeps the results of chunk tasks in object storage, where the parts lie."""

    _block_type_name = "prefect-cytotable object storage"

    folder: str
    storage: tuple[tuple[str, str], ...] = ()

    async def read_path(self, path: str) -> bytes:
        """The bytes of a result."""
        try:
            return await to_thread(Places(self.storage).read, self._url(path))
        except FileNotFoundError as error:
            raise ValueError(f"{path}: there is no such result") from error  # what Prefect takes for a miss

    async def write_path(self, path: str, content: bytes) -> None:
        """Keep the bytes of a result."""
        await to_thread(Places(self.storage).write, self._url(path), content)

    def _url(self, path: str) -> str:
        return f"{self.folder}/{path.rpartition('/')[2]}"


def result_storage(store: Store) -> Path | ObjectStorage:
    """Where Prefect keeps the results of chunk tasks: beside the parts."""
    if isinstance(store, RemoteStore):
        return ObjectStorage(folder=f"{store.folder}/results", storage=store.places.storage)
    return Path(store.folder) / "results"


@dataclass
class ByChunkKey(CachePolicy):
    """The key of the chunk, and nothing of the run: a later run finds what an earlier one has done."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key under which a chunk's record is kept."""
        job: ChunkJob = inputs["job"]
        return job.key
