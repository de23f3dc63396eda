"""What a user sets: names, sizes, memory, the home of the store."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ramet import config
from ramet.config import check_memory, check_name, parse_size
from ramet.errors import ConfigError
from ramet.model import MIB

ALPHANUMERIC = string.ascii_letters + string.digits
good_names = st.builds(
    lambda first, middle, last: first + "".join(middle) + last,
    st.sampled_from(ALPHANUMERIC),
    st.lists(st.sampled_from([*ALPHANUMERIC, "_", "-", ".a"]), max_size=30),
    st.sampled_from(["", *ALPHANUMERIC]),
).map(lambda name: name.rstrip("_-"))
ODD = st.text(st.sampled_from("a/.-_ \n\0\x1b\x85\u202e\u00e9\ud800~$*"), max_size=70)


def refused(name: str) -> ConfigError | None:
    try:
        check_name(name)
    except ConfigError as err:
        return err
    return None


@given(good_names)
def test_good_names_pass_as_they_are(name: str) -> None:
    assert check_name(name) == name


@given(st.one_of(st.text(max_size=80), ODD))
@example("a\n")
@example("\U00011375" * 40)  # each is written with ten
@example("\nweb")
@example("..")
@example("a..b")
@example("a/b")
@example("-rf")
@example("web-")
@example(".hidden")
@example("\u0661")  # a digit, but not one of ours
@example("a" * 63)
@example("a" * 64)
def test_nothing_passes_that_a_path_a_shell_or_a_terminal_could_take_otherwise(name: str) -> None:
    """H46."""
    refusal = refused(name)
    if refusal is not None:
        assert refusal.message.isprintable(), "the refusal itself must be safe to print"
        assert len(refusal.message) < 200
        assert "63" in str(refusal.hint)
        return
    assert 1 <= len(name) <= 63
    assert set(name) <= set(ALPHANUMERIC + "._-")
    assert ".." not in name
    assert name[0] in ALPHANUMERIC
    assert name[-1] in ALPHANUMERIC


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("a\nb", "instance", r"'a\nb' cannot be the name of an instance."),
        ("", "snapshot", "'' cannot be the name of a snapshot."),
        ("caf\u00e9", "image", "'caf\u00e9' cannot be the name of an image."),
        ("x" * 100, "instance", f"'{'x' * 40}'… (100 characters) cannot be the name of an instance."),
    ],
)
def test_a_refused_name_is_shown_once_escaped(name: str, what: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name, what=what)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256M", 256 * MIB),
        ("256m", 256 * MIB),
        ("256MB", 256 * MIB),
        ("256MiB", 256 * MIB),
        ("  2G ", 2048 * MIB),
        ("4k", 4096),
        ("1T", MIB * MIB),
        ("512", 512 * MIB),
        ("0", 0),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text, what="--memory") == expected


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1M", "1.5G", "1e3", "256X", "1 G", "0x10", "12B", "12iB", "256\u212a", "\u0662M", "9" * 5000, "1M\n2"],
)
def test_what_is_no_size(text: str) -> None:
    """``12B`` would be read as 12 MiB, the Kelvin sign as K, and int() takes any script's digits but not 5,000 of them."""
    with pytest.raises(ConfigError, match="is not a size for --memory"):
        parse_size(text, what="--memory")


@given(st.integers(0, 10**15 - 1), st.sampled_from(["", "K", "M", "G", "T"]))
def test_sizes_are_exact(number: int, unit: str) -> None:
    factor = 1024 ** " KMGT".index(unit or "M")
    assert parse_size(f"{number}{unit}", what="it") == number * factor


def test_memory_has_a_floor_and_the_host_is_its_ceiling() -> None:
    assert check_memory(config.MEMORY_MIN_MIB, host_mib=4096) == config.MEMORY_MIN_MIB
    assert check_memory(4096, host_mib=4096) == 4096
    for too_little in (config.MEMORY_MIN_MIB - 1, 0, -1):
        with pytest.raises(ConfigError, match="cannot boot"):
            check_memory(too_little, host_mib=4096)
    with pytest.raises(ConfigError, match="more than this host has"):
        check_memory(4097, host_mib=4096)
    with pytest.raises(ConfigError, match="more than this host has"):
        check_memory(config.MEMORY_MAX_MIB + 1, host_mib=2 * config.MEMORY_MAX_MIB)


def test_the_host_s_memory_is_what_the_kernel_says() -> None:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert config.host_memory_mib() == int(line.split()[1]) // 1024


def test_the_home_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_HOME", "/srv/ramet")
    assert config.default_home() == Path("/srv/ramet")


@pytest.mark.parametrize("value", ["relative", "./x", "~/x", "/with\nnewline"])
def test_a_home_that_could_be_another_one_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RAMET_HOME", value)
    with pytest.raises(ConfigError, match="RAMET_HOME"):
        config.default_home()


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_home_and_cache(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("RAMET_HOME", raising=False)
    else:
        monkeypatch.setenv("RAMET_HOME", value)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert config.default_home() == Path("/var/lib/ramet")
    assert config.cache_dir() == Path("/var/cache/ramet")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/user/state")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/user/cache")
    assert config.default_home() == Path("/home/user/state/ramet")
    assert config.cache_dir() == Path("/home/user/cache/ramet")
