"""Tensors to bytes and back; and that nothing unsound in an untrusted file passes."""

from __future__ import annotations

import json
import mmap
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.wire.tensorfile import Limits, check, pack, read, read_untrusted

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_round_trip_of_every_type():
    dtypes = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
    arrays = {f"t{i}": np.arange(6).reshape(2, 3).astype(dtype) for i, dtype in enumerate(dtypes)}
    arrays |= {"half": np.array([0x3F80, 0xC000], np.uint16), "empty": np.zeros((0, 3), np.float32)}
    arrays |= {"scalar": np.array(2.5), "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    arrays |= {"big-endian": np.array([1, 2], ">i4")}
    data = pack(arrays, {"step": "7", "name": "ü"}, bf16=["half"])
    file = read(data)
    assert file.metadata == {"step": "7", "name": "ü"}
    assert file.bf16_names() == {"half"}
    back = file.arrays()
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    assert read_untrusted(data) == file.header
    assert pack(back, file.metadata, file.bf16_names()) == data


def test_the_library_reads_what_we_write_and_we_what_it_writes():
    arrays = {"b": np.ones((2, 2), np.float32), "a": np.arange(3), "c": np.array([True])}
    for name, array in safetensors.numpy.load(pack(arrays)).items():
        np.testing.assert_array_equal(array, arrays[name])
    data = safetensors.numpy.save(arrays, {"k": "v"})
    assert read(data).metadata == {"k": "v"}
    np.testing.assert_array_equal(read(data).arrays()["a"], arrays["a"])


def test_bfloat16_is_that_of_torch():
    tensor = torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)
    data = safetensors.torch.save({"x": tensor})
    file = read(data)
    assert file.arrays()["x"].tolist() == tensor.view(torch.uint16).tolist()
    assert torch.equal(safetensors.torch.load(pack(file.arrays(), bf16=["x"]))["x"], tensor)


def test_reads_a_mapped_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(pack({"x": np.arange(4)}))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert read_untrusted(mapped).specs[0].shape == (4,)
        assert read(mapped).arrays()["x"].tolist() == [0, 1, 2, 3]


def test_what_has_no_type_is_our_bug():
    for array, names in [(np.ones(2, np.complex64), ()), (np.ones(2, np.uint16), ()), (np.ones(2), ("x",))]:
        with pytest.raises(LocalError):
            pack({"x": array}, bf16=names)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        (100).to_bytes(8, "little") + b"{}",
        (1 << 63).to_bytes(8, "little") + b"{}",
        file_of(b"[]"),
        file_of(b' {"a":1}'),
        file_of(b"{" * 50_000),
        file_of(b'{"a":' + b"[" * 200_000),
        file_of(b'{"\xff":1}'),
        file_of(b'{"a":NaN}'),
        file_of(b'{"a":{},"a":{}}'),
        file_of({"a": 1}),
        file_of({"a": {**F32, "more": 1}}, b"x" * 8),
        file_of({"a": {**F32, "dtype": "F8_E4M3"}}, b"x" * 8),
        file_of({"a": {**F32, "dtype": ["F32"]}}, b"x" * 8),
        file_of({"a": {**F32, "shape": [True, 2]}}, b"x" * 8),
        file_of({"a": {**F32, "shape": [-2]}}, b"x" * 8),
        file_of({"a": {**F32, "shape": [2.0]}}, b"x" * 8),
        file_of({"a": {**F32, "shape": [1] * 9}}, b"x" * 8),
        file_of({"a": {**F32, "shape": [1 << 32, 1 << 32]}}, b"x" * 8),
        file_of({"a": {**F32, "shape": [0, 1 << 33, 1 << 33], "data_offsets": [0, 0]}}),
        file_of({"a": {**F32, "data_offsets": [8, 0]}}, b"x" * 8),
        file_of({"a": {**F32, "data_offsets": [0, 8, 8]}}, b"x" * 8),
        file_of({"a": F32}, b"x" * 7),
        file_of({"a": F32}, b"x" * 9),
        file_of({"a": F32, "b": F32}, b"x" * 8),
        file_of({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"x" * 12),
        file_of({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, b"x" * 20),
        file_of(b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}", b"x" * 16),
        file_of(b'{"__metadata__":{},"__metadata__":{}}'),
        file_of(b'{"a":' + json.dumps(F32).encode() + b",}", b"x" * 8),
        file_of(b'{"a":' + json.dumps(F32).encode(), b"x" * 8),
        file_of(b'{"a":' + json.dumps(F32).encode() + b"}}", b"x" * 8),
        file_of(b'{"a" ' + json.dumps(F32).encode() + b"}", b"x" * 8),
        file_of(b"{1:" + json.dumps(F32).encode() + b"}", b"x" * 8),
        file_of(b"{,}"),
        file_of(b"{"),
        file_of(b'{"a\xff":' + json.dumps(F32).encode() + b"}", b"x" * 8),
        file_of({"a": {**F32, "shape": [2] + [1] * 2000}}, b"x" * 8),
        file_of({"": F32}, b"x" * 8),
        file_of({"n" * 300: F32}, b"x" * 8),
        file_of({"__metadata__": {"a": 1}}),
        file_of({"__metadata__": []}),
        file_of({"__metadata__": {"a": "x" * (1 << 20)}}),
    ],
)
def test_refuses(data):
    with pytest.raises(RemoteError) as caught:
        check(data)
    assert caught.value.reason == "tensor-file"


def test_blanks_and_odd_names_are_read_as_json_reads_them():
    names = ["plain", 'q"uote', "back\\slash", "ü" * 200, "\N{SNOWMAN}", "a{b}[c],:", "\n"]
    entries = {name: {**F32, "data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate(names)}
    for ascii_only in (True, False):
        text = json.dumps({"__metadata__": {'}"': "{"}, **entries}, indent=3, ensure_ascii=ascii_only)
        header = check(file_of(f"{text}  \n".encode(), bytes(8 * len(names))))
        assert [spec.name for spec in header.specs] == names and header.metadata == {'}"': "{"}
    assert check(file_of(b"{ } ")).specs == () and check(file_of(b"{}")).metadata == {}


def test_a_model_of_thousands_of_tensors_is_read_with_all_that_an_optimizer_keeps():
    names = [f"blocks.{i}.attention.projection.weight" for i in range(2500)]
    kept = ["model.", "optim.step.", "optim.exp_avg.", "optim.exp_avg_sq."]
    data = pack({prefix + name: np.zeros(1, np.float32) for prefix in kept for name in names})
    assert int.from_bytes(data[:8], "little") > 1 << 20
    assert len(read_untrusted(data).specs) == 10_000


@pytest.mark.parametrize("entry", [b"[" + b"{}," * (1 << 20) + b"0]", b'{"' + b'":{},"' * (1 << 20) + b'":0}'])
def test_a_hostile_header_costs_little_more_than_its_bytes(entry):
    data = file_of(b'{"a":' + entry + b"}")
    tracemalloc.start()
    with pytest.raises(RemoteError):
        check(data)
    assert tracemalloc.get_traced_memory()[1] < len(data) + (1 << 18)
    tracemalloc.stop()


def test_limits():
    data = pack({f"t{i}": np.zeros(4) for i in range(10)}, {"a": "b"})
    check(data, Limits(tensors=10))
    for limits in [Limits(tensors=9), Limits(total_bytes=100), Limits(header_bytes=32), Limits(metadata_entries=0)]:
        with pytest.raises(RemoteError):
            check(data, limits)


@pytest.mark.parametrize(
    ("array", "names"),
    [
        (np.array([1.0, np.nan]), ()),
        (np.array([np.inf], np.float32), ()),
        (np.array([-np.inf], np.float16), ()),
        (np.array([0x7FC0], np.uint16), ("x",)),
    ],
)
def test_numbers_must_be_finite(array, names):
    data = pack({"x": array}, bf16=names)
    check(data)
    with pytest.raises(RemoteError, match="no number"):
        read_untrusted(data)


def test_truth_values_must_be_true_or_false():
    data = file_of({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2")
    with pytest.raises(RemoteError):
        read_untrusted(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_sound(data):
    good = bytearray(pack({"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 1), np.int8)}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))]) if data.draw(st.booleans()) else bytes(good)
    try:
        read_untrusted(cut)
    except RemoteError:
        return
    for array in read(cut).arrays().values():
        assert array.nbytes <= len(cut)
