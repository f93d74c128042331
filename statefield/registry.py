"""Names to objects: one small registry class for routes, datasets, operators and golden systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from statefield.errors import ConfigError, UnknownName

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping that fills itself by decoration and refuses a name that is taken.

    >>> shapes: Registry[type] = Registry("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes["sqare"]
    Traceback (most recent call last):
    ...
    statefield.errors.UnknownName: unknown shape 'sqare': did you mean 'square'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files its object under `name`; `ConfigError` if the name is taken."""

        def file(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"the {self.kind} name {name!r} is taken by {self._entries[name]!r}: choose another.")
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName.among(self.kind, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
