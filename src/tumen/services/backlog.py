"""`Backlog`: how much waits, of each node and in all."""

from __future__ import annotations

__all__ = ["Backlog"]


class Backlog:
    """Counts and bytes of what waits.

    Below its bounds one more of any legal size is admitted: so at most one message more than
    `bytes_max` waits for a node, and than `bytes_all_max` for all.
    """

    def __init__(self, count_max: int, bytes_max: int, bytes_all_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes_all_max = bytes_all_max
        self._of: dict[str, tuple[int, int]] = {}
        self.bytes_all = 0

    def count(self, node: str) -> int:
        """How many wait for a node."""
        return self._of.get(node, (0, 0))[0]

    def admits(self, node: str) -> bool:
        """Whether one more of that node may wait."""
        count, size = self._of.get(node, (0, 0))
        return (
            count < self._count_max
            and size < self._bytes_max
            and self.bytes_all < self._bytes_all_max
        )

    def add(self, node: str, size: int) -> None:
        """One more waits, of so many bytes."""
        count, before = self._of.get(node, (0, 0))
        self._of[node] = count + 1, before + size
        self.bytes_all += size

    def remove(self, node: str, size: int) -> None:
        """One of that size does not wait any more."""
        count, before = self._of[node]
        self.bytes_all -= size
        if count == 1:
            del self._of[node]
        else:
            self._of[node] = count - 1, before - size
