"""Imports TileDB-SOMA without the packages that it imports for AnnData, of which reading a data frame needs nothing.

They are most of what its import takes: 1.1 of 1.4 s, and 110 of 200 MiB (measured). While it is imported, a module that
waits stands for each of them, and what TileDB-SOMA binds of them, for annotations mostly, is a name that waits. Both
become the real thing where they are used afterwards: a name that is called, subclassed or asked for its instances, and
any attribute of a module. Nothing that waits is left in `sys.modules` then: who imports pandas gets pandas.

Only for a process of our own, and for versions of TileDB-SOMA that were tried.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.metadata
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Union

LIBRARY = "tiledbsoma"

DEFERRED = ("anndata", "pandas", "scipy", "shapely")
"""The packages that wait."""

TRIED = ("2.2", "2.3")
"""Versions of TileDB-SOMA that were imported so, and read; others are imported as they are."""

_wanted = False


def defer() -> None:
    """From now on this process, which is to be one of our own, imports TileDB-SOMA without what it does not need."""
    global _wanted
    _wanted = True


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """For the time of the block, in which TileDB-SOMA is imported, let packages wait where `defer` was called."""
    if not _wanted or LIBRARY in sys.modules or not _tried():
        yield
        return
    finder = _Finder([name for name in DEFERRED if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.release()


def _tried() -> bool:
    try:
        version = importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        return False
    return version.startswith(tuple(f"{one}." for one in TRIED))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that wait, for some packages and all below them."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = frozenset(packages)

    @property
    def waiting(self) -> bool:
        """Whether anything is to wait still."""
        return bool(self._packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module that waits; None for whatever does not."""
        waits = fullname.partition(".")[0] in self._packages
        return ModuleSpec(fullname, self, is_package=True) if waits else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module."""
        return _WaitingModule(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it has no code."""

    def release(self) -> None:
        """Nothing waits from now on: the next import of a package is the real one."""
        self._packages = frozenset()
        for name, module in list(sys.modules.items()):
            if isinstance(module, _WaitingModule):
                del sys.modules[name]


class _WaitingModule(ModuleType):
    """Stands for a module in the namespaces of those who imported it."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # asked by the import system, about the module itself
            raise AttributeError(f"module {self.__name__!r} waits, and has no {name!r}")
        one = _Waiting(f"{self.__name__}.{name}", self._finder)
        return one if self._finder.waiting else one.real()


class _Waiting:
    """Stands for something in a module."""

    def __init__(self, path: str, finder: _Finder) -> None:
        self._path, self._finder = path, finder

    def real(self) -> Any:
        """What it stands for. Whoever uses something needs all of them, while they are imported too."""
        self._finder.release()
        return pkgutil.resolve_name(self._path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{self._path} waits, and has no {name!r}")
        return _Waiting(f"{self._path}.{name}", self._finder) if self._finder.waiting else getattr(self.real(), name)

    def __getitem__(self, item: object) -> _Waiting:  # of a generic type, in an annotation
        return self

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - the operator is what is defined here

    __ror__ = __or__

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.real()(*arguments, **named)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.real(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.real())

    def __subclasscheck__(self, class_: type) -> bool:
        return issubclass(class_, self.real())
