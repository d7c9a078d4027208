"""Where a model runs: what "auto" and 0 come to on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs and how: lanes are batches side by side, each with so many threads."""

    device: str  # auto | cpu | cuda
    compute_type: str  # auto, or one of CTranslate2's
    lanes: int  # 0: as many as suit
    threads: int

    def settled(self, device: str) -> Placement:
        """With this device in place of "auto", and what suits it in place of the rest.

        On a CPU one thread for each of several batches gives more throughput than several threads for one; a GPU
        is filled by a single batch.
        """
        cores = len(os.sched_getaffinity(0))
        lanes = self.lanes or (1 if device == "cuda" else cores)
        compute_type = self.compute_type
        if compute_type == "auto":
            compute_type = "float16" if device == "cuda" else "int8"
        return Placement(device, compute_type, lanes, self.threads or max(1, cores // lanes))
