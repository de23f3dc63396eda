"""The values: frozen, complete after a round trip through JSON, and strict about what they are read from."""

from __future__ import annotations

import inspect
from enum import Enum, StrEnum
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from ramet import model
from ramet.model import ExecResult, Image, InstanceRecord, Manifest, Value, VmmProcess

VALUES = [
    value
    for value in vars(model).values()
    if inspect.isclass(value) and issubclass(value, Value) and value is not Value
]
each_value = pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)


def example(hint: Any) -> Any:
    """Some value of a type: never the default, so that a field that is lost on the way shows."""
    if hint in (model.Id, str):
        return "0123456789ab"
    if hint in (model.Pid, int):
        return 4711
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return list(hint)[-1]
    if inspect.isclass(hint) and issubclass(hint, Value):
        return hint(**{name: example(inner) for name, inner in get_type_hints(hint, include_extras=True).items()})
    if hint in (float, bool, bytes):
        return {float: 0.5, bool: True, bytes: b"\0\xff"}[hint]
    if get_origin(hint) is tuple:
        return (example(get_args(hint)[0]),) * 2
    if get_origin(hint) is dict:
        return {"key": example(get_args(hint)[1])}
    options = [option for option in get_args(hint) if option is not type(None)]
    assert len(options) == 1, f"no example for {hint}"
    return example(options[0])


def read_or_refusal(kind: type[Value], fields: dict[str, object]) -> Value | str:
    try:
        return msgspec.json.decode(msgspec.json.encode(fields), type=kind)
    except msgspec.ValidationError as err:
        return str(err)


@each_value
def test_a_round_trip_through_json_loses_nothing(kind: type[Value]) -> None:
    value = example(kind)
    data = msgspec.json.encode(value)
    assert msgspec.json.decode(data, type=kind) == value
    assert set(msgspec.json.decode(data)) == set(kind.__struct_encode_fields__), (
        "defaults are written too: a reader sees all"
    )


@each_value
def test_an_unknown_field_is_refused(kind: type[Value]) -> None:
    fields = msgspec.to_builtins(example(kind)) | {"surprise": 1}
    with pytest.raises(msgspec.ValidationError, match="surprise"):
        msgspec.convert(fields, kind, strict=False)


@each_value
def test_values_are_frozen_keyword_only_and_documented(kind: type[Value]) -> None:
    value = example(kind)
    with pytest.raises(AttributeError, match="immutable"):
        setattr(value, kind.__struct_fields__[0], None)
    with pytest.raises(TypeError):
        kind("positional")
    assert kind.__doc__
    assert not hasattr(value, "__dict__")


@each_value
@pytest.mark.parametrize("wrong", [None, [], {}, -1.5, "\0"], ids=repr)
def test_a_field_of_another_type_is_refused_on_the_way_in(kind: type[Value], wrong: object) -> None:
    """What is read is either right or an error that names the field: nothing wrong gets further in."""
    good = msgspec.to_builtins(example(kind))
    for field in kind.__struct_encode_fields__:
        read = read_or_refusal(kind, good | {field: wrong})
        if isinstance(read, str):
            assert f"$.{field}" in read
        else:  # it fits: None an optional field, [] a tuple
            assert msgspec.json.decode(msgspec.json.encode(read))[field] == wrong


def test_a_record_names_the_copy_in_ram_as_other_versions_do() -> None:
    written = msgspec.to_builtins(example(InstanceRecord))
    assert written.keys() - set(InstanceRecord.__struct_fields__) == {"template"}
    assert msgspec.convert(written, InstanceRecord, strict=False).copy_in_ram == example(model.CopyInRam)


@pytest.mark.parametrize("kind", [InstanceRecord, Manifest, Image])
def test_what_is_on_disk_has_a_format_version(kind: type[Value]) -> None:
    assert kind.__struct_fields__[0] == "format_version"
    assert msgspec.json.decode(msgspec.json.encode(example(kind)))["format_version"] == 4711


def test_nothing_else_has_a_format_version() -> None:
    assert {kind for kind in VALUES if "format_version" in kind.__struct_fields__} == {InstanceRecord, Manifest, Image}


def test_enumerations_are_spelled_out_on_disk() -> None:
    for kind in vars(model).values():
        if inspect.isclass(kind) and issubclass(kind, StrEnum) and kind is not StrEnum:
            assert all(member.value == member.name.lower().replace("_", "-") for member in kind)


ID_FIELDS = [
    (InstanceRecord, "id"),
    (InstanceRecord, "snapshot"),
    (InstanceRecord, "mapped_snapshot"),
    (InstanceRecord, "diff_base"),
    (Manifest, "id"),
]


@pytest.mark.parametrize(("kind", "field"), ID_FIELDS, ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.parametrize(
    "text", ["", "..", "../../../../etc", "0123456789aB", "0123456789ab\n", "0123456789abc", "/etc"]
)
def test_an_id_that_becomes_a_path_is_one(kind: type[Value], field: str, text: str) -> None:
    """H46: `rm` of an instance deletes the directories that its record names."""
    fields = msgspec.to_builtins(example(kind)) | {field: text}
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        msgspec.json.decode(msgspec.json.encode(fields), type=kind)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40])
def test_a_pid_is_one(pid: int) -> None:
    """0 and -1 mean groups of processes to kill(2)."""
    fields = {"pid": pid, "start_time_ticks": 1, "boot_id": "b"}
    with pytest.raises(msgspec.ValidationError, match=r"\$\.pid"):
        msgspec.json.decode(msgspec.json.encode(fields), type=VmmProcess)


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (ExecResult(status=0, signal=None), 0),
        (ExecResult(status=7, signal=None), 7),
        (ExecResult(status=None, signal=9), 137),
        (ExecResult(status=None, signal=9, timed_out=True), 124),
        (ExecResult(status=None, signal=None, pid=4), 0),
    ],
)
def test_a_guest_command_s_exit_status_is_a_shell_s(result: ExecResult, status: int) -> None:
    assert result.exit_status == status
