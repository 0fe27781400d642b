"""The generated code is fresh, and the .proto files keep our rules."""

from __future__ import annotations

import re

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from controller import placement_pb2
from protos import generate

UNITS = (
    "_s",
    "_watts",
    "_per_s",
    "_usd_per_hour",
    "_usd_per_kilowatt_hour",
    "_usd_per_thousand_requests",
    "_ratio",
    "_units",
)
"""``_units``: of the unit that the message says in ``unit``."""


def test_the_generated_code_is_what_the_proto_files_give() -> None:
    assert generate.stale(generate.generate()) == []


def test_a_changed_file_is_found_stale() -> None:
    wanted = dict(generate.generate())
    wanted["placement_pb2.py"] += "# one more line\n"
    assert generate.stale(wanted) == ["placement_pb2.py"]


def test_every_message_field_and_call_has_a_comment() -> None:
    bare = []
    for path in sorted(generate.ROOT.rglob("*.proto")):
        lines = path.read_text().splitlines()
        bare += [f"{path.name}:{i + 1}: {line.strip()}" for i, line in enumerate(lines) if _lacks_comment(lines, i)]
    assert bare == []


def _lacks_comment(lines: list[str], i: int) -> bool:
    is_declared = re.match(r"\s*(message|enum|rpc|service|oneof)\s|.*=\s*\d+;", lines[i])
    return bool(is_declared) and not lines[i - 1].strip().startswith("//")


def test_every_fractional_field_says_its_unit() -> None:
    messages = placement_pb2.DESCRIPTOR.message_types_by_name.values()
    numbers = [f for message in messages for f in _fields(message) if f.type == FieldDescriptor.TYPE_DOUBLE]
    assert numbers
    assert [f.full_name for f in numbers if not f.name.endswith(UNITS)] == []


def _fields(message: Descriptor) -> list[FieldDescriptor]:
    return [*message.fields, *(field for nested in message.nested_types for field in _fields(nested))]


def test_the_messages_live_in_our_package_for_pickle_and_for_types() -> None:
    assert placement_pb2.Plan.__module__ == "controller.placement_pb2"
