"""Device profiles: the files that come along are readable and honest, errors say file, key and next step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.errors import UserError
from p2ptrain.planning.profiles import LIMITS, DeviceProfile, Figure, find_profile, read_profile

PEERS = Path(__file__).parents[2] / "peers"
GOOD = """\
name = "A board"
kind = "board"
accelerator = ""
[flops_per_s]
value = 8e9
basis = "estimated"
source = "data sheet"
[memory_bytes]
value = 2_000_000_000
basis = "measured"
source = "probe"
[link_bytes_per_s]
value = 5e6
basis = "estimated"
source = "Wi-Fi"
[cores]
value = 4
basis = "measured"
source = "probe"
"""


@pytest.mark.parametrize("path", sorted(PEERS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_profiles_that_come_along_are_readable_and_say_what_they_rest_on(path: Path) -> None:
    profile = read_profile(path)
    assert profile.flops_per_s_one_core is not None
    assert profile.flops_per_s_one_core.value <= profile.flops_per_s.value
    assert profile.cores.value >= 1
    for key in LIMITS:
        figure = getattr(profile, key)
        assert figure.source and figure.basis in ("measured", "estimated")
        if figure.basis == "measured":  # a measurement names what it was made with
            assert "torch" in figure.source
    assert path.stem in path.read_text().splitlines()[0]


def test_the_devices_that_we_promise_are_there() -> None:
    expected = {
        "raspberry-pi-4",
        "raspberry-pi-5",
        "jetson-nano",
        "jetson-orin-nano",
        "old-laptop",
        "recent-laptop",
        "desktop-gpu",
        "phone-board",
    }
    assert expected <= {path.stem for path in PEERS.glob("*.toml")}


def test_a_profile_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    assert read_profile(find_profile("raspberry-pi-4", PEERS)).kind == "board"
    assert find_profile(str(PEERS / "old-laptop.toml"), tmp_path) == PEERS / "old-laptop.toml"
    with pytest.raises(UserError, match=r"(?s)'toaster'.*raspberry-pi-5.*p2ptrain probe"):
        find_profile("toaster", PEERS)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value = 8e9", "value = 0", r"flops_per_s\.value: 0 is outside"),
        ("value = 8e9", "value = nan", r"flops_per_s\.value: nan is not a number"),
        ("value = 8e9", "value = true", r"flops_per_s\.value: True is not a number"),
        ("value = 8e9", 'value = "fast"', r"flops_per_s\.value: 'fast' is not a number"),
        ("value = 8e9", "valeu = 8e9", r"flops_per_s\.valeu: unknown key"),
        ("value = 8e9\n", "", r"flops_per_s\.value: None is not a number"),
        ('basis = "estimated"', 'basis = "guess"', r'flops_per_s\.basis: .*"measured" or "estimated"'),
        ('source = "data sheet"', 'source = " "', r"flops_per_s\.source: missing"),
        ('kind = "board"', 'kind = "toaster"', r"kind: 'toaster' is unknown; use one of board"),
        ('name = "A board"', 'name = ""', r"name: empty"),
        ('name = "A board"', "name = 3", r"name: expected a text"),
        ('accelerator = ""\n', "", r'accelerator: missing; write accelerator = "\.\.\."'),
        ("[cores]", "[corse]", r"corse: unknown key; known are"),
        ('[cores]\nvalue = 4\nbasis = "measured"\nsource = "probe"\n', "", r"\[cores\]: missing; add the table"),
        ('accelerator = ""', 'accelerator = ""\ndisk_bytes_per_s = 5', r"disk_bytes_per_s: expected a table"),
        ("[cores]", "[cores", r"not a readable TOML profile"),
    ],
)
def test_errors_name_the_file_the_key_and_what_to_do(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as caught:
        read_profile(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_none() -> None:
    with pytest.raises(UserError, match="p2ptrain probe"):
        read_profile(Path("/nowhere/at-all.toml"))
    with pytest.raises(UserError, match="not a readable TOML profile"):
        read_profile(PEERS)


figures = st.builds(
    Figure,
    value=st.floats(1 << 20, 4e11) | st.integers(1 << 20, 10**11).map(float),
    basis=st.sampled_from(["measured", "estimated"]),
    source=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
)
profiles = st.builds(
    DeviceProfile,
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    kind=st.sampled_from(["board", "phone", "laptop", "desktop", "server"]),
    accelerator=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    flops_per_s=figures,
    memory_bytes=figures,
    link_bytes_per_s=figures,
    cores=st.builds(Figure, st.floats(0.01, 4096), st.just("measured"), st.just("probe")),
    flops_per_s_one_core=st.none() | figures,
    disk_bytes_per_s=st.none() | figures,
)


@given(profile=profiles)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, profile: DeviceProfile) -> None:
    path = tmp_path_factory.getbasetemp() / "profile.toml"
    path.write_bytes(profile.to_toml().encode())
    assert read_profile(path) == profile
