"""`Listing`: the pairs that a data section names. Nothing is written, downloaded or decoded for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from datasets import DatasetDict

from hf_seg.data.pairs import report_pairs
from hf_seg.data.spec import DatasetSpec
from hf_seg.problem import Problem, Refusal

ALL = "pairs"  # in place of the splits, where it is not known which pair is in which


@dataclass(kw_only=True)
class Listing:
    """What is there, also where a run would be refused."""

    place: str  # the data set, for messages
    spec: DatasetSpec | None = None  # None when it cannot be had
    # tables with the columns `image` and `mask`; one, `ALL`, where it is not known which pair is in which split
    splits: DatasetDict | None = None
    refusals: list[Refusal] = field(default_factory=list)  # what a run stops with
    bad_pairs: list[Problem] = field(default_factory=list)  # files and rows that are no pair
    notes: list[Problem] = field(default_factory=list)  # warnings
    save_split: Callable[[], None] | None = None  # keeps the split that was drawn; training calls it

    @property
    def split_known(self) -> bool:
        return self.splits is not None and ALL not in self.splits

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Note a refusal instead of raising it: there may be more to list."""
        try:
            yield
        except Refusal as refusal:
            self.refusals.append(refusal)

    def refuse(self, *, drop: bool) -> None:
        """Raise what a run stops with; `drop`: files and rows that are no pair are left out."""
        if self.bad_pairs and not drop and self.spec:  # before a split is drawn of what is only a part
            total = sum(map(len, (self.splits or {}).values())) + len(self.bad_pairs)
            raise report_pairs(self.place, self.bad_pairs, total)
        if self.refusals:
            raise self.refusals[0]
