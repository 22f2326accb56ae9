"""Which files of a tree are samples of which class and split.

Invariant: a file is either a sample, a side file (hidden, text) that is counted, or an error that names it: nothing is
skipped in silence, and what could be a sample by its suffix is no side file.

    [wrapper/] [train/ | val/ | test/] <class>/<file>        (or training/, valid/, validation/, dev/, testing/)
    [wrapper/] <class>/<file>, validation_list.txt, testing_list.txt, _background_noise_/    (speech commands)
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath

from p2ptrain.errors import DataError
from p2ptrain.learning.data import images
from p2ptrain.learning.data.source import SPLITS, Kind, Split
from p2ptrain.learning.data.trees.lists import LISTS, NOISE_FOLDER, read_lists
from p2ptrain.learning.data.trees.tree import Tree, is_hidden, is_litter

ByClass = dict[str, list[str]]
"""Files, by the name of their class."""

_SIDE_SUFFIXES = frozenset(
    {".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".html", ".yaml", ".yml", ".toml", ".ini", ".db", ".rst", ".pdf"}
)
_SIDE_NAMES = frozenset({"README", "LICENSE", "LICENCE", "NOTICE", "COPYING", "MAKEFILE"})
_SUFFIXES: dict[Kind, frozenset[str]] = {"image": images.SUFFIXES, "audio": frozenset({".wav", ".wave"})}
_OTHERS: dict[Kind, tuple[Kind, str]] = {
    "image": ("audio", "recordings are given as audio:"),
    "audio": ("image", "pictures are given as images:"),
}
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
_LAYOUT = "expected CLASS/FILE, with optional train/, val/ and test/ folders above"
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_LONG: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}

Entry = tuple[tuple[str, ...], str]
"""The parts of a name, of which a folder's last is "", and the name to read by."""


def class_folders(tree: Tree, kind: Kind) -> tuple[dict[Split, ByClass], list[str]]:
    """Files by split and class, and what is said of the rest. Raises ``DataError`` for what does not fit the layout."""
    times = Counter(tree.names())
    paths, side, left = _sorted_out(tree, kind, times)
    unread = list(tree.notes())
    if repeated := [name for name, n in times.items() if n > 1 and not name.endswith("/")]:
        unread.append(f"more than once in the zip, of which the last is read: {_some(repeated, 'repeated file')}")
    above = ""
    while _is_wrapped(paths):
        above += f"{paths[0][0][0]}/"
        paths = [(parts[1:], name) for parts, name in paths if len(parts) > 2 or parts[-1]]
    # A folder train/ with files in it is a class (of vehicles, say).
    has_splits = any(len(parts) > 2 and _split_of(parts[0]) == "train" for parts, _ in paths)
    if has_splits:
        _check_one_folder_each(tree, {parts[0] for parts, _ in paths if len(parts) > 1})
    lists = {} if has_splits else {each: above + each for each in LISTS if above + each in side}
    listed = read_lists(tree, lists, {"/".join(parts) for parts, _ in paths} if lists else ())
    side = [name for name in side if name not in lists.values()]
    left += [f"not read: {_some(side, 'side file')}"] if side else []
    by_split: dict[Split, ByClass] = {split: {} for split in SPLITS}
    for parts, name in paths:
        where = f"{tree.path}: {name}"
        split: Split = "train"
        if has_splits and len(parts) > 1:
            if (found := _split_of(parts[0])) is None:
                raise DataError(
                    f"{where}: found beside train/; only train/, val/ and test/ are read: rename or move {parts[0]}/"
                )
            split, parts = found, parts[1:]
        if len(parts) > 2 and parts[-1]:
            if not has_splits and _split_of(parts[0]):
                raise DataError(
                    f"{where}: there is no train/ beside {parts[0]}/; to read {parts[0]}/ alone, name that folder "
                    "itself, with its class folders"
                )
            raise DataError(f"{where}: nested too deep; {_LAYOUT}")
        if not parts[-1]:
            if len(parts) == 2:
                by_split[split].setdefault(_class_name(parts[0]), [])
            continue
        _check_sample(parts[-1], kind, where)
        if len(parts) == 1:
            raise DataError(f"{where}: not in a class folder; {_LAYOUT}")
        split = split if has_splits else listed.split("/".join(parts))
        by_split[split].setdefault(_class_name(parts[0]), []).append(name)
    if not has_splits and (odd := sorted(name for name in by_split["train"] if _split_of(name))):
        unread.append(f"{', '.join(odd)}: read as a class, as there is no train/ with class folders in it")
    for split, folders in by_split.items():
        for class_name, files in folders.items():
            if not files:
                where = f"{split}/{class_name}" if has_splits else class_name
                raise DataError(
                    f"{tree.path}: {where}: class folder without {kind} files; "
                    f"add {_suffixes(kind)} files or remove the folder"
                )
    if not by_split["train"]:
        raise DataError(f"{tree.path}: no class folders with {kind} files to train on; {_LAYOUT}")
    return by_split, [*left, *listed.notes, *unread]


def _sorted_out(tree: Tree, kind: Kind, names: Collection[str]) -> tuple[list[Entry], list[str], list[str]]:
    """What may be samples and their folders, side files, and what is said of what is hidden."""
    paths: list[Entry] = []
    side: list[str] = []
    hidden: set[str] = set()
    """Files, and folders with a slash: of what lies in one, in a zip, only the folder."""
    for name in names:
        parts = tuple(part for part in name.replace("\\", "/").split("/") if part != ".")
        if ".." in parts or not parts or not parts[0]:
            raise DataError(f"{tree.path}: {name}: not a relative name; make the zip again")
        if any(is_litter(part) for part in parts):
            continue
        first = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
        if first is not None:
            hidden.add("/".join(parts[: first + 1]) + ("/" if first + 1 < len(parts) else ""))
        elif _is_side_file(parts[-1], kind) or (kind == "audio" and NOISE_FOLDER in parts[:-1]):
            side += [name] if parts[-1] else []
        else:
            paths.append((parts, name))
    folders = [name for name in hidden if name.endswith("/")]
    files = [name for name in hidden if not name.endswith("/")]
    left = [(files, "hidden file"), (folders, "hidden folder")]
    return paths, side, [f"not read: {_some(found, what)}" for found, what in left if found]


def _split_of(folder: str) -> Split | None:
    return _SPLIT_FOLDERS.get(folder.lower())


def _some(names: list[str], what: str) -> str:
    """``3 hidden files (a/.x, ...)``."""
    one = len(names) == 1
    return f"{len(names)} {what}{'' if one else 's'} ({min(names)}{'' if one else ', ...'})"


def _check_one_folder_each(tree: Tree, tops: set[str]) -> None:
    for split in SPLITS:
        found = sorted(top for top in tops if _split_of(top) == split)
        if len({top.lower() for top in found}) > 1:
            names = " and ".join(f"{top}/" for top in found)
            raise DataError(f"{tree.path}: {names} are both {_LONG[split]} data; put them into one folder {split}/")


def _is_wrapped(paths: list[Entry]) -> bool:
    """True if everything lies in one folder that is neither a class (files in it) nor train/."""
    tops = {parts[0] for parts, _ in paths}
    if len(tops) != 1 or _split_of(next(iter(tops))) in ("train", "test"):
        return False
    has_files = any(len(parts) <= 2 and parts[-1] for parts, _ in paths)
    return not has_files and any(len(parts) > 2 for parts, _ in paths)


def _check_sample(file: str, kind: Kind, where: str) -> None:
    suffix = PurePosixPath(file).suffix.lower()
    if suffix in _SUFFIXES[kind]:
        return
    other, as_other = _OTHERS[kind]
    if suffix in _SUFFIXES[other]:
        hint = as_other
    elif suffix in _ARCHIVES:
        hint = "unpack it"
    elif not suffix:
        hint = "give it its suffix, by which files are known"
    else:
        hint = f"convert it, e.g. {'ffmpeg -i FILE OUT.wav' if kind == 'audio' else 'magick FILE OUT.jpg'}"
    raise DataError(f"{where}: not {kind} data that can be read; expected {_suffixes(kind)}; {hint}")


def _suffixes(kind: Kind) -> str:
    return ", ".join(sorted(_SUFFIXES[kind]))


def _is_side_file(name: str, kind: Kind) -> bool:
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES[kind]:
        return False
    return suffix in _SIDE_SUFFIXES or (not suffix and path.stem.upper() in _SIDE_NAMES)


def _class_name(folder: str) -> str:
    return unicodedata.normalize("NFC", folder)  # macOS stores accents apart
