"""A client's tag sets as a row needs them: the journal is asked for those that are not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..journal.reader import JournalReader


class KnownTags(Mapping[int, tuple[str, ...]]):
    """Tag sets by their ids, for one row that was read from the journal before.

    Args:
        reader: of the journal.
        client_id: whose they are.
    """

    def __init__(self, reader: JournalReader, client_id: int) -> None:
        self._reader = reader
        self._client_id = client_id
        self._known = reader.tag_sets(client_id)
        self._is_new = False

    def __getitem__(self, tag_set: int) -> tuple[str, ...]:
        """A tag set; those that a row names were journalled before it."""
        if tag_set not in self._known and not self._is_new:
            self._is_new = True
            self._reader.tag_sets(self._client_id, refresh=True)
        return self._known[tag_set]

    def __iter__(self) -> Iterator[int]:
        """Yield the ids of those that are known."""
        return iter(self._known)

    def __len__(self) -> int:
        """How many are known."""
        return len(self._known)
