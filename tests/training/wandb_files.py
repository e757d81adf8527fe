"""Reads what an offline W&B run left on disk: records of protocol buffers in the log format of LevelDB."""

import json
import struct
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2


_BLOCK, _HEADER = 32 * 1024, 7  # a block of the log; checksum (4), length (2), kind (1) before every part
_WHOLE, _LAST = 1, 4


def read_records(path: Path) -> list:
    """All records of a `.wandb` file."""
    data, at, parts, records = path.read_bytes(), _HEADER, [], []
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0 or at + _HEADER + length > len(data):  # not yet written
            break
        parts.append(data[at + _HEADER : at + _HEADER + length])
        at += _HEADER + length
        if kind in (_WHOLE, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records


def _entry(items) -> dict:
    entry: dict = {}
    for item in items:
        *folders, name = item.nested_key or [item.key]
        place = entry
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = json.loads(item.value_json)
    return entry


def read_history(folder: Path) -> list[dict]:
    """Every logged entry of the one offline run under `folder`, in order."""
    (path,) = folder.rglob("run-*.wandb")
    deadline = time.monotonic() + 30
    # W&B's service writes on for a moment after `finish`; the record of the run's exit is its last
    while not any(r.WhichOneof("record_type") == "exit" for r in read_records(path)):
        assert time.monotonic() < deadline, "W&B never wrote the end of the run"
        time.sleep(0.1)
    return [_entry(r.history.item) for r in read_records(path) if r.WhichOneof("record_type") == "history"]
