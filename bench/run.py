"""One run of the comparison: its plan, its results so far, its failures, and what it tells the user meanwhile.

A side that fails costs its own figures only. What failed, and why, is part of the results, and the run ends with 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import measured
from measured import Figures
from peer import Wyoming
from plan import Plan
from sides import Flavour, InProcess, Setup, Side, Whisperd
from speech_set import Clip


def make(name: str, setup: Setup, warm: Clip) -> Side:
    """A side by its name, not yet started."""
    if name == Whisperd.name:
        return Whisperd(setup, warm)
    if name == Wyoming.name:
        return Wyoming(setup, warm)
    return InProcess(name, setup, warm)


@dataclass
class Run:
    """`cases` by name: a title, for each side its repetitions and their medians, and the ratios between sides."""

    setup: Setup
    plan: Plan
    flavours: Mapping[str, Flavour]
    warm: Clip
    cases: dict[str, Figures] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.0f} s] {text}", file=sys.stderr, flush=True)

    def case(self, name: str, title: str) -> Figures:
        return self.cases.setdefault(name, {"title": title, "sides": {}, "ratios": {}})

    def add(self, name: str, title: str, side: str, figures: Figures) -> None:
        """One repetition of a side."""
        sides = self.case(name, title)["sides"]
        sides.setdefault(side, {"repeats": []})["repeats"].append(figures)
        for reason in dict.fromkeys(figures.get("failed", ())):
            self.failed(name, side, f"{figures['failed'].count(reason)} requests: {reason}")

    def failed(self, where: str, side: str, reason: str) -> None:
        self.failures.append({"where": where, "side": side, "reason": reason})
        self.say(f"FAILED {where}, {side}: {reason}")

    def with_side(self, where: str, name: str, work: Callable[[Any], None]) -> None:
        """Starts a side afresh, does the work with it, and ends it; whatever goes wrong is taken down."""
        try:
            with make(name, self.setup, self.warm) as side:
                work(side)
        except Exception as error:  # the other sides go on
            self.failed(where, name, f"{type(error).__name__}: {error}")

    def in_turns(self, where: str, names: Sequence[str], work: Callable[[Side, int], None]) -> None:
        """Every repetition runs every side once; who begins changes from one to the next."""
        for number in range(self.plan.repeats):
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                self.say(f"{where}, repetition {number + 1} of {self.plan.repeats}: {name}")
                self.with_side(where, name, lambda side, number=number: work(side, number))

    def finish(self, name: str, ratios: Mapping[str, tuple[str, str, str]]) -> None:
        """Medians of a case's sides, and ratios: label → (figure, side above, side below)."""
        case = self.cases.get(name)
        if case is None:
            return
        for side in case["sides"].values():
            side["median"] = measured.median(side["repeats"])
        for label, (figure, above, below) in ratios.items():
            pairs = zip(*(self._values(case, side, figure) for side in (above, below)), strict=False)
            found = measured.spread([one / two for one, two in pairs if one and two])
            if found:
                case["ratios"][label] = found

    @staticmethod
    def _values(case: Figures, side: str, figure: str) -> list[float]:
        return [repeat.get(figure) for repeat in case["sides"].get(side, {"repeats": []})["repeats"]]
