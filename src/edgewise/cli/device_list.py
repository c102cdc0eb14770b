"""From a supplier's CSV to a DeviceList."""

from __future__ import annotations

import csv
import io
from typing import Any, Final

import msgspec

from edgewise.model.documents import DeviceList
from edgewise.model.errors import BadUsage
from edgewise.model.names import is_name

MOST_ROWS: Final = 50_000
"""What one DeviceList can hold."""
_EK: Final = ("ek", "ek_sha256", "ekhash", "ek_hash")
_SERIAL: Final = ("serial", "serialnumber", "serial_number")


def read_rows(text: str, pattern: str = "") -> list[dict[str, Any]]:
    """Rows of a DeviceList. Raises BadUsage, naming the line.

    Columns: ``name``, one of ``ek`` (64 hex digits, with colons or without) and ``serial``,
    ``region``; every other column is a label. ``pattern`` makes the names that are missing.
    """
    sample = text[:4096]
    delimiter = ";" if sample.count(";") > sample.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        reader.fieldnames = [str(column or "").strip() for column in reader.fieldnames or ()]
        return _rows(reader, pattern)
    except csv.Error as error:
        raise BadUsage(f"line {reader.line_num}: {error}", hint="is it a CSV file?") from error


def _rows(reader: csv.DictReader[str], pattern: str) -> list[dict[str, Any]]:
    found = []
    for number, row in enumerate(reader, 1):
        if number > MOST_ROWS:
            raise BadUsage(f"more than {MOST_ROWS:,} rows", hint="split the file")
        cells = {k: (v or "").strip() for k, v in row.items() if k and isinstance(v, str | None)}
        if any(cells.values()):
            found.append(_row(cells, pattern, number, reader.line_num))
    if not found:
        raise BadUsage("the file has no rows", hint="its first line names the columns: name,ek")
    return found


def _row(cells: dict[str, str], pattern: str, number: int, line: int) -> dict[str, Any]:
    named = {column.lower().replace(" ", "_"): column for column in cells}
    used = set()

    def cell(*names: str) -> str:
        for name in names:
            if name in named:
                used.add(named[name])
                return cells[named[name]]
        return ""

    ek = cell(*_EK).lower().replace(":", "").removeprefix("sha256")
    serial, name, region = cell(*_SERIAL), cell("name", "node", "hostname"), cell("region")
    if bool(ek) == bool(serial):
        # With both the TPM is the stronger proof, and the number may be a label.
        if not ek:
            raise BadUsage(f"line {line}: neither ek nor serial", hint="the columns are called so")
        serial_label = {"serial": serial}
    else:
        serial_label = {}
    name = name or pattern.replace("{serial}", serial.lower()).replace("{row}", str(number))
    if not is_name(name):
        raise BadUsage(
            f"line {line}: {name!r} cannot be a node's name",
            hint="add a column name, or --pattern kiosk-{serial}",
        )
    labels = {c: v for c, v in cells.items() if c not in used and v} | serial_label
    row: dict[str, Any] = {"name": name, **({"ek": ek} if ek else {"serial": serial})}
    if region:
        row["region"] = region
    if labels:
        row["labels"] = labels
    return row


def device_list(
    name: str, rows: list[dict[str, Any]], region: str, labels: dict[str, str]
) -> dict[str, Any]:
    """The document, once it is one. Raises BadUsage."""
    defaults: dict[str, Any] = {"region": region} if region else {}
    if labels:
        defaults["labels"] = labels
    document = {
        "apiVersion": "edgewise.dev/v1",
        "kind": "DeviceList",
        "metadata": {"name": name},
        "spec": {**({"defaults": defaults} if defaults else {}), "devices": rows},
    }
    try:
        msgspec.convert(document, DeviceList)
    except msgspec.ValidationError as error:
        raise BadUsage(f"the rows make no DeviceList: {error}", hint="correct the file") from error
    return document
