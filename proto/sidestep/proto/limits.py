"""The numbers that bound every message, record and name: checked by both sides."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1
"""Version of the wire and of the record layout. One byte on the wire."""

MAX_FRAME_BYTES: Final = 1 << 20
"""Largest frame on the wire, header included: what ZeroMQ's MAXMSGSIZE is set to."""

MAX_DATA_BYTES: Final = MAX_FRAME_BYTES - 4096
"""Largest slice of records in one frame; the rest is left for the message around it."""

MAX_SMALL_RECORD_BYTES: Final = 64 << 10
"""A record up to this size travels inside batches; a larger one travels in parts."""

MAX_RECORD_BYTES: Final = 64 << 20
"""Largest record. A daemon reassembles it in memory, so it is bounded."""

MAX_TAG_BYTES: Final = 1024
"""Largest tag, in UTF-8 bytes."""

MAX_TAGS_PER_RECORD: Final = 4096
"""Scalars in one record: 32 KiB. A larger `emit` is split into several records."""

MAX_TAG_SET_BYTES: Final = 256 << 10
"""Bytes of all tags of one tag set: its definition must fit into a frame."""

MAX_TAG_SETS: Final = 100_000
"""Distinct tuples of tags that one client may define (each costs memory on both sides)."""

MAX_NAME_BYTES: Final = 4096
"""Largest run name, path, host name or reason in a message, in UTF-8 bytes."""

MAX_SUFFIX_BYTES: Final = 100
"""Largest suffix of event files' names: with the rest, less than the 255 bytes of a file's name."""

MAX_CONFIG_BYTES: Final = 256 << 10
"""Largest encoded run specification (configuration, tags, W&B settings)."""

MAX_CONTAINER: Final = 8192
"""Elements of one MessagePack array or map (the decoder allocates what a header claims)."""

MAX_DEPTH: Final = 32
"""Nesting of a decoded MessagePack value."""

MAX_RANKS: Final = 1 << 17
"""Ranks of one job: who is missing in a reduction is remembered rank by rank."""

MAX_VIA: Final = 16
"""Daemons that one after another may pass a client on: a tree is not so deep."""

MAX_SEQ: Final = (1 << 63) - 1
"""Largest sequence number, step (in magnitude) and time: a signed 64-bit integer."""
