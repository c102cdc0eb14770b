"""Bounds on everything that travels, in bytes or counts, each with its reason."""

from __future__ import annotations

from typing import Final

TUF_METADATA: Final = 8 << 20
"""One TUF role file; 10,000 targets in one role are about 2 MiB."""
CHANNEL: Final = 1 << 20
"""A channel document: its bitmaps are 125 KB for 500,000 nodes."""
CONTENT_URLS: Final = 4
"""File servers that a channel names: more are more connections, not more bytes."""
CONTENT_URL: Final = 1000
"""Characters of one."""
RECORD: Final = 64 << 10
"""One node record with 64 labels and 200 sealed secrets."""
RELEASE: Final = 16 << 20
"""A release whose parts have a variant for each of 100,000 nodes."""
PART: Final = 4 << 20
"""One part: a config carries its files' text inline."""
TREE: Final = 64 << 20
"""A tree manifest; an OS image of 300,000 files is about 45 MiB."""
EVIDENCE: Final = 16 << 20
"""One SBOM or provenance statement; 20,000 packages are about 8 MiB of CycloneDX."""
OBJECT: Final = 8 << 30
"""One file's content."""
DELTA_LIST: Final = 1 << 20
"""One list of deltas: ``DELTAS`` of them have about 350 bytes each, beside ``DOCUMENTS``."""
DOCUMENTS: Final = 256 << 10
"""Texts in a list of deltas: 300 parts of apps; packed they are about a tenth of it."""
DELTAS: Final = 1024
"""Deltas and packs in one list: 100 apps on two platforms, from four versions and nothing."""
REFUSED: Final = 8
"""Deltas of which one receipt says why they were refused: a tree has few that lead to it."""
REFUSED_WHY: Final = 200
"""Characters of such a reason."""
DELTA_HEAD: Final = 16 << 20
"""A delta's table of parts, unpacked: 500,000 objects of about 30 bytes."""
DELTA_LEAD: Final = DELTA_HEAD + TREE + (256 << 10)
"""Head and manifest of a delta, packed at worst: a node holds them in memory."""
DELTA: Final = 16 << 30
"""A whole delta or pack."""
DELTA_PARTS: Final = 1 << 16
"""Parts of one delta: 16 times what ``DELTA`` takes when each of them is full."""
PART_OUTPUT: Final = 4 << 20
"""What one part of a delta yields; a node's memory is bounded by this, not by file sizes."""
PART_BASE: Final = 8 << 20
"""Old content that one part may refer to."""
PART_CONTROL: Final = 512 << 10
"""Numbers of a part that patches: 100,000 copies, one for each 40 bytes, are 40 MiB of a node."""
PART_STEPS: Final = 1 << 16
"""What moved in a program, for one piece: a part yields 64 bytes for each."""
PART_GROUPS: Final = 256
"""Groups of references in one piece: an ELF file has about 60 sections."""
PART_FIELDS: Final = 1 << 20
"""Words of all tables in one piece: as many as ``PART_OUTPUT`` has."""
SYNC_REQUEST: Final = 256 << 10
"""A node's report: 100 apps with a reason each, and 64 receipts."""
SYNC_REPLY: Final = 16 << 20
"""A wake-up with the TUF metadata that goes with it."""
RELAY_REPORT: Final = 8 << 20
"""A relay's batch of node reports."""
RELAY_NEWS: Final = 64 << 20
"""What a new relay is told at once: metadata, and a record for each of 50,000 nodes."""
RECEIPTS_KEPT: Final = 64
"""Receipts a node keeps while nobody can take them; the oldest go first."""
API_BODY: Final = 1 << 20
"""An operator's JSON request."""
ENTRIES: Final = 500_000
"""Files in one tree."""
PATH: Final = 4096
"""Characters in one path of a tree (Linux PATH_MAX)."""
NAME: Final = 255
"""Bytes in one segment of a path (Linux NAME_MAX)."""
XATTR_NAME: Final = 255
"""Bytes in the name of an extended attribute (Linux XATTR_NAME_MAX)."""
XATTR_VALUE: Final = 64 << 10
"""Bytes in its value (Linux XATTR_SIZE_MAX)."""
XATTR_LIST: Final = 64 << 10
"""Bytes in all names of one file's, each with its NUL (Linux XATTR_LIST_MAX)."""
OWNER: Final = 0xFFFFFFFE
"""The largest user or group ID; the one after it tells chown(2) to change nothing."""
DEVICE_MAJOR: Final = 0xFFF
"""Linux has 12 bits for a device's major number."""
DEVICE_MINOR: Final = 0xFFFFF
"""And 20 bits for its minor number."""
BUNDLES: Final = 4 << 20
"""Trust bundles: a thousand domains with 4 KB each."""
WORKLOAD_REQUEST: Final = 256 << 10
"""Certificate requests for ``WORKLOADS`` identities have about 40 KiB."""
WORKLOADS: Final = 64
"""Identities that a node asks for at once; it asks again for more."""
