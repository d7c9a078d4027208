"""A finished job as the row that the store keeps of it: figures, never its text."""

from __future__ import annotations

import os

from whisperd.assemble import job_timing
from whisperd.jobs import Job
from whisperd.store.writer import RequestRow


def request_row(job: Job, outcome: str, bytes_out: int, now: float, ts: float) -> RequestRow:
    """`now` is the loop's time, `ts` the wall clock's, in seconds since the epoch."""
    timing = job_timing(job, now)
    peer = job.client.peer
    return RequestRow(
        ts=ts,
        job=job.id,
        client=peer.name,
        uid=os.getuid() if peer.uid is None else peer.uid,
        method=job.method,
        model=job.work.model,
        language=job.language,
        outcome=outcome,
        duration_s=job.duration_s,
        speech_s=job.speech_s,
        windows=len(job.windows),
        rtf=timing["total_ms"] / 1000 / job.duration_s if job.duration_s else None,
        bytes_in=job.bytes_in,
        bytes_out=bytes_out,
        **timing,
    )
