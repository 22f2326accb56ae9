"""Device profiles: the files that come along are readable and honest, errors say file, key and next step."""

from __future__ import annotations

import configparser
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.config import Coding
from p2ptrain.errors import UserError
from p2ptrain.planning.devices import profiles as shipped
from p2ptrain.planning.devices.blocks import BlockTimes
from p2ptrain.planning.devices.profile_times import MeasuredBlocks, with_block_times
from p2ptrain.planning.devices.profiles import LIMITS, DeviceProfile, Figure, find_profile, parse_profile, read_profile
from p2ptrain.planning.pipeline.task import peer_from_profile

PEERS = Path(__file__).parents[4] / "peers"
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


def test_profiles_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; in a wheel they are data files, which setup.cfg names."""
    monkeypatch.chdir(tmp_path)
    assert find_profile("raspberry-pi-4") == PEERS / "raspberry-pi-4.toml"
    with pytest.raises(UserError, match="raspberry-pi-4, raspberry-pi-5"):
        find_profile("toaster")
    settings = configparser.ConfigParser()
    settings.read(PEERS.parent / "setup.cfg")
    assert settings["options.data_files"]["share/p2ptrain/peers"] == "peers/*.toml"
    place = tmp_path / "share" / "p2ptrain" / "peers"
    place.mkdir(parents=True)
    (place / "mine.toml").write_text((PEERS / "old-laptop.toml").read_text())
    monkeypatch.setattr(shipped.sysconfig, "get_path", lambda *_: str(tmp_path))
    assert find_profile("mine") == place / "mine.toml"


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


SMALL_TIMES = BlockTimes((1,), ((0.25, 1e-7),), ((3.0, 0.0),), 2.5e-10)
CODED: dict[Coding, tuple[float, float]] = {"none": (1e-10, 2.5e-10), "int8": (0.0, 1.0)}
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
    block_times=st.sampled_from(
        [(), (MeasuredBlocks("m", "c", 'a "b"', SMALL_TIMES),), (MeasuredBlocks("m", "c", "d", SMALL_TIMES, CODED),)]
    ),
)


TIMES = """\
[[block_times]]
model = "vgg11"
chain = "abc"
source = "probe"
batch_sizes = [2, 8]
forward_s = [
  [0.1, 0.2],
  [0.3, 0.4],
]
backward_s = [[0.1, 0], [0.3, 1]]
update_s_per_byte = 1e-10
coding_s_per_byte = { none = [2e-10, 3e-10], int8 = [4e-10, 5e-10] }
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[0.1, 0.2]", "[0.1, nan]", r"forward_s of vgg11: block 1 at batch size 2 takes nan"),
        ("[0.1, 0.2]", "[0, 0]", r"forward_s of vgg11: no block takes any time at batch size 2"),
        ("[0.3, 1]", "[0.3, -1]", r"backward_s of vgg11: block 1 at batch size 8 takes -1"),
        ("[0.3, 1]", '[0.3, "a"]', r"takes 'a'; it must be seconds"),
        ("[0.3, 1]", "[0.3, true]", r"takes True"),
        ("[0.3, 1]", "[0.3]", r"rows of 1 and 2 times"),
        ("[[0.1, 0], [0.3, 1]]", "[[0.1, 0]]", r"backward_s of vgg11: not a row of times for each of 2 batch sizes"),
        ("[[0.1, 0], [0.3, 1]]", "7", r"not a row of times"),
        ("1e-10", "-1e-10", r"update_s_per_byte of vgg11: -1e-10; it must be seconds"),
        ("1e-10", "nan", r"update_s_per_byte of vgg11: nan"),
        ("1e-10", "true", r"update_s_per_byte of vgg11: True"),
        ("none =", "zip =", r"coding_s_per_byte of vgg11: not a table of none, fp16, int8"),
        ("{ none = [2e-10, 3e-10], int8 = [4e-10, 5e-10] }", "3", r"not a table of none, fp16, int8"),
        (
            "[2e-10, 3e-10]",
            "[2e-10]",
            r"coding_s_per_byte\.none of vgg11: \[2e-10\]; it must be seconds of",
        ),
        ("[4e-10, 5e-10]", "[nan, 1]", r"coding_s_per_byte\.int8 of vgg11: \[nan, 1\]; it must be seconds"),
        ("[2, 8]", "[8, 2]", r"batch_sizes of vgg11: \[8, 2\]; they must rise from 1"),
        ("[2, 8]", "[0, 2]", r"must rise from 1"),
        ("[2, 8]", "[]", r"must rise from 1"),
        ('model = "vgg11"\n', "", r"block_times\.model: missing"),
        ('chain = "abc"', "chain = 3", r"block_times\.chain: missing"),
        ("source", "sauce", r"block_times\.sauce: unknown key"),
        ("[[block_times]]", "[block_times]", r"write \[\[block_times\]\] before each"),
    ],
)
def test_times_of_blocks_that_are_none_are_errors_with_a_next_step(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "mine.toml"
    assert TIMES.count(old) == 1
    path.write_text(GOOD + TIMES.replace(old, new))
    with pytest.raises(UserError, match=said) as caught:
        read_profile(path)
    assert str(caught.value).startswith(str(path)) and any(word in str(caught.value) for word in ("remove", "again"))


def test_the_same_blocks_twice_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + TIMES + TIMES)
    with pytest.raises(UserError, match=r"the same blocks of vgg11 twice; remove one"):
        read_profile(path)


def test_new_times_take_the_place_of_older_ones_and_leave_the_rest(tmp_path: Path) -> None:
    other = TIMES.replace('"abc"', '"def"').replace("vgg11", "lenet")
    text = "# mine\n" + GOOD + TIMES + "\n" + other
    before = parse_profile(text, tmp_path)
    new = MeasuredBlocks("vgg11", "abc", "again", BlockTimes((4,), ((1.0, 2.0),), ((3.0, 4.5),)))
    after = with_block_times(text, new, ("abc", "def"))
    assert after.startswith("# mine\n" + GOOD) and "[0.1, 0.2]" in after
    assert parse_profile(after, tmp_path) == dataclasses.replace(before, block_times=(before.block_times[1], new))
    third = dataclasses.replace(new, chain="ghi")
    more = parse_profile(with_block_times(text, third, ("abc", "def")), tmp_path)
    assert more == dataclasses.replace(before, block_times=(*before.block_times, third))


@given(profile=profiles)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, profile: DeviceProfile) -> None:
    path = tmp_path_factory.getbasetemp() / "profile.toml"
    path.write_bytes(profile.to_toml().encode())
    assert read_profile(path) == profile


def test_what_coding_takes_is_that_of_the_job(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + TIMES)
    profile = read_profile(path)
    for activations, gradients, expected in (
        ("none", "none", (2e-10, 3e-10)),
        ("int8", "none", (4e-10, 3e-10)),
        ("fp16", "int8", (0.0, 5e-10)),
    ):
        times = peer_from_profile(profile, "mine", "abc", (activations, gradients)).times  # type: ignore[arg-type]
        assert times is not None
        assert (times.activation_s_per_byte, times.gradient_s_per_byte) == expected
        assert times.forward_s == ((0.1, 0.2), (0.3, 0.4)) and times.update_s_per_byte == 1e-10
