"""The peer server: wyoming-faster-whisper on a Unix socket, asked by the `wyoming` package's own client."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sides import Answer, Flavour, Setup, SideFailed, at_once
from speech_set import Clip

_START_TIMEOUT_S = 120.0
_PCM_RATE, _PCM_BYTES = 16_000, 2
_CHUNK_BYTES = _PCM_RATE * _PCM_BYTES  # a second: few large chunks cost the peer less than the usual small ones


class WyomingAsker:
    """The `wyoming` package's own client. A connection serves one clip, as the server closes it behind the text."""

    def __init__(self, side: Wyoming) -> None:
        self._side = side

    def begin(self, clip: Clip, **_options: Any) -> Callable[[], str]:
        coroutine = self._side.transcribe(self._side.samples[clip.file])
        return asyncio.run_coroutine_threadsafe(coroutine, self._side.loop).result

    def close(self) -> None:
        """There is nothing open between clips."""


class Wyoming:
    """wyoming-faster-whisper on a Unix socket, with its own defaults but for the model's folder and compute type."""

    name = "wyoming"

    def __init__(self, setup: Setup, warm: Clip) -> None:
        self._setup = setup
        self._warm = warm
        self.samples: dict[str, bytes] = {}
        self.loop = asyncio.new_event_loop()

    def __enter__(self) -> Wyoming:
        missing = [name for name in ("wyoming_faster_whisper", "wyoming") if importlib.util.find_spec(name) is None]
        if missing:
            raise SideFailed(f"{missing[0]} is not installed: pip install -e '.[bench]'")
        self._folder = Path(tempfile.mkdtemp(prefix="wd-bench-peer-"))
        setup, uri = self._setup, f"unix://{self._folder}/w.sock"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wyoming_faster_whisper", "--uri", uri, "--model", str(setup.folder),
             "--data-dir", str(self._folder), "--device", setup.device, "--compute-type", setup.compute_type,
             "--local-files-only"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(self._folder / "log").open("wb"),
        )  # fmt: skip
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._wait_until_there()
            self.prepare([self._warm])
            self.connect().begin(self._warm)()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        shutil.rmtree(self._folder)

    def _wait_until_there(self) -> None:
        began = time.monotonic()
        while not (self._folder / "w.sock").exists():
            late = time.monotonic() - began > _START_TIMEOUT_S
            if late or self._process.poll() is not None:
                words = (self._folder / "log").read_text(errors="replace").splitlines()[-3:]
                raise SideFailed("wyoming-faster-whisper did not start: " + " | ".join(words))
            time.sleep(0.05)

    def pid(self) -> int:
        return self._process.pid

    def names(self) -> dict[int, str]:
        return {self.pid(): "wyoming-faster-whisper"}

    def counters(self) -> dict[str, Any]:
        return {}

    def prepare(self, clips: Sequence[Clip]) -> None:
        """Its protocol carries samples only, so files are decoded beforehand, outside of every figure."""
        for clip in clips:
            if clip.file not in self.samples:
                self.samples[clip.file] = _pcm(clip)

    def connect(self) -> WyomingAsker:
        return WyomingAsker(self)

    def burst(self, clips: Sequence[Clip], flavour: Flavour) -> tuple[list[Answer], float]:
        if flavour.library:
            raise SideFailed("wyoming-faster-whisper takes no such options with a request")
        self.prepare(clips)
        return at_once(self.connect(), clips, {})

    async def transcribe(self, samples: bytes) -> str:
        from wyoming.asr import Transcribe, Transcript
        from wyoming.audio import AudioChunk, AudioStart, AudioStop

        form = {"rate": _PCM_RATE, "width": _PCM_BYTES, "channels": 1}
        async with _patient_client(self._folder / "w.sock") as client:
            await client.write_event(Transcribe().event())
            await client.write_event(AudioStart(**form).event())
            for start in range(0, len(samples), _CHUNK_BYTES):
                chunk = AudioChunk(**form, audio=samples[start : start + _CHUNK_BYTES])
                await client.write_event(chunk.event())
            await client.write_event(AudioStop().event())
            while event := await client.read_event():
                if Transcript.is_type(event.type):
                    return Transcript.from_event(event).text
        raise ConnectionError("the server closed the connection without a text")


def _patient_client(path: Path) -> Any:
    """The peer's client, which waits for its turn to connect. asyncio's own connect does not: where the server has a
    hundred connections yet to accept, it takes one for established that is not."""
    from wyoming.client import AsyncUnixClient

    class Patient(AsyncUnixClient):  # type: ignore[misc]
        async def connect(self) -> None:
            sock = socket.socket(socket.AF_UNIX)
            await asyncio.to_thread(sock.connect, str(self.socket_path))
            self._reader, self._writer = await asyncio.open_unix_connection(sock=sock)

    return Patient(path)


def _pcm(clip: Clip) -> bytes:
    """16-bit mono samples at 16 kHz."""
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=_PCM_RATE)
    parts = []
    with av.open(str(clip.path), metadata_errors="ignore") as container:
        for frame in container.decode(audio=0):
            parts += [out.to_ndarray().tobytes() for out in resampler.resample(frame)]
        parts += [out.to_ndarray().tobytes() for out in resampler.resample(None)]
    return b"".join(parts)
