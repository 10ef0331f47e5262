"""What was made lately, up to a limit: each thing is made once, whoever asks for it at the same time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Lru(Generic[V]):
    """Values by key; those not asked for the longest go first. Safe from many threads.

    Args:
        limit: of the sizes' sum. The latest value stays, even where it is larger alone.
        size: of a value; by default every value counts 1.
    """

    def __init__(self, limit: int, size: Callable[[V], int] = lambda value: 1) -> None:
        self.limit = limit
        self._size = size
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    @property
    def total(self) -> int:
        """The sum of the sizes."""
        with self._lock:
            return sum(map(self._size, self._kept.values()))

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key, made where it is not there. Others who ask for it meanwhile wait for it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            turn = self._making.setdefault(key, Lock())
        with turn:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                value = make()
                with self._lock:
                    self._kept[key] = value
                    self._shrink()
                return value
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def _shrink(self) -> None:
        total = sum(map(self._size, self._kept.values()))
        while total > self.limit and len(self._kept) > 1:
            total -= self._size(self._kept.popitem(last=False)[1])
