"""The payloads of requests (drawn in agent/README.md), from arguments that people gave."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from ramet.errors import ConfigError
from ramet.guests import wire

SEED_BYTES = 64


def _string(text: str) -> bytes:
    try:
        return wire.string(text)
    except ValueError as err:
        raise ConfigError(f"{text[:60]!r} cannot be passed to the guest: {err}.") from err


def files_request(*words: str) -> bytes:
    """A put or a get: the agent's own program as a command, as ``exec_request``."""
    return exec_request(("ramet-agent", *words), {}, "", None, (0, 0), wire.FLAG_FILES)


def exec_request(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float | None,
    size: tuple[int, int],
    flags: int,
) -> bytes:
    """A command to run; ``size`` is that of its terminal, (rows, columns).

    Raises:
        ConfigError: for arguments that cannot be passed, or a time limit that is none.
    """
    if timeout_s is not None and not 0 < timeout_s < 4e6:
        raise ConfigError(f"{timeout_s:g} s is no time limit.", hint="Use a positive number of seconds.")
    try:
        request = (
            struct.pack("<IIHH", flags, max(1, int(timeout_s * 1000)) if timeout_s else 0, *size)
            + wire.string(cwd)
            + wire.strings(list(argv))
            + wire.strings([f"{key}={value}" for key, value in env.items()])
        )
    except (ValueError, struct.error) as err:
        raise ConfigError(f"The command cannot be passed to the guest: {err}.") from err
    if len(request) > wire.MESSAGE_MAX:
        raise ConfigError(f"The command has {len(request)} bytes; {wire.MESSAGE_MAX} can be passed.")
    return request


def quiesce_request(timeout_s: float) -> bytes:
    """How long the guest may take to freeze."""
    return struct.pack("<I", int(timeout_s * 1000))


def identity_request(*, generation: int, wall_clock_ns: int, seed: bytes, hostname: str, machine_id: str) -> bytes:
    """Who a guest is from now on; ``seed`` has ``SEED_BYTES``.

    Raises:
        ConfigError: for names that cannot be passed.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"the seed has {SEED_BYTES} bytes")
    return struct.pack("<QQ", generation, wall_clock_ns) + seed + _string(hostname) + _string(machine_id)
