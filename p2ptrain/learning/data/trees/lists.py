"""Splits that a data set's maker lists in files, as speech commands does (Warden 2018, arXiv 1804.03209).

    validation_list.txt   testing_list.txt   _background_noise_/   <word>/<speaker>_nohash_<n>.wav

The lists keep all recordings of a speaker on one side, so they are kept to as they are. The folder of noises is no
class.

Invariant: a file is in one split at most; what a list names and is not there is counted, not left out in silence.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from p2ptrain.errors import DataError
from p2ptrain.learning.data.source import Split
from p2ptrain.learning.data.trees.tree import Tree

LISTS: dict[str, Split] = {"validation_list.txt": "val", "testing_list.txt": "test"}
NOISE_FOLDER = "_background_noise_"


@dataclass(slots=True)
class ListedSplits:
    """Of files by CLASS/FILE; those that no list names are for training."""

    split_of: dict[str, Split] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def split(self, sample: str) -> Split:
        return self.split_of.get(unicodedata.normalize("NFC", sample), "train")


def read_lists(tree: Tree, files: Mapping[str, str], samples: Collection[str]) -> ListedSplits:
    """``files``: the lists that there are, by name, and how the tree names them; ``samples``: all CLASS/FILE.

    Raises ``DataError`` for a list that is none, or names what the other one names.
    """
    found, there = ListedSplits(), {unicodedata.normalize("NFC", sample) for sample in samples}
    for name in sorted(files):
        where, missing = f"{tree.path}: {files[name]}", 0
        try:
            lines = tree.read(files[name]).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: no list of files ({error}); expected a line CLASS/FILE for each") from None
        for line in lines:
            sample = unicodedata.normalize("NFC", line.strip().replace("\\", "/").removeprefix("./"))
            if not sample:
                continue
            if sample not in there:
                missing += 1
            elif found.split_of.setdefault(sample, LISTS[name]) != LISTS[name]:
                raise DataError(f"{where}: {sample} is in {' and '.join(sorted(files))}; leave it in one of them")
        if missing:
            found.notes.append(f"{name}: names {missing:,} files that are not here, of {len(lines):,}")
        if missing and not any(split == LISTS[name] for split in found.split_of.values()):
            raise DataError(f"{where}: none of its {len(lines):,} lines is a file here; expected CLASS/FILE in each")
    return found
