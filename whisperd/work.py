"""Validated params into `Work`: the one place where a default of the contract meets the engine's options.

Pure: what is in the params is known to be right, and what is left out has its default in `DecodeOptions` or here.
"""

from __future__ import annotations

from collections.abc import Callable

from whisperd.jobs import Work
from whisperd.messages import TAIL_S, DecodeOptions, RowOptions
from whisperd.protocol import Request


def work_of(request: Request, default_model: Callable[[], str]) -> Work:
    """What a validated request for speech asks for. `default_model` may raise WhisperdError."""
    params = request.params
    detect = request.method == "detect_language"
    defaults = DecodeOptions()
    timestamps = params.get("timestamps") or "segment"
    temperature = params.get("temperature")
    temperatures = defaults.temperatures if temperature is None else (
        tuple(float(t) for t in temperature) if isinstance(temperature, list) else (float(temperature),)
    )
    thresholds = {
        name: params[name]
        for name in ("no_speech_threshold", "log_prob_threshold", "compression_ratio_threshold")
        if name in params
    }
    suppress = params.get("suppress_tokens")
    options = DecodeOptions(
        timestamps=timestamps != "none",
        beam_size=params.get("beam_size") or defaults.beam_size,
        temperatures=temperatures,
        initial_prompt=params.get("initial_prompt") or None,
        hotwords=params.get("hotwords") or None,
        suppress_tokens=defaults.suppress_tokens if suppress is None else tuple(suppress),
        tail_s=None if detect or params.get("encoder_context") == "full" else TAIL_S,
        **thresholds,
    )
    return Work(
        model=params.get("model") or default_model(),
        options=options,
        row=RowOptions(
            language=params.get("language"),
            task="detect" if detect else params.get("task") or "transcribe",
            words=timestamps == "word",
        ),
        audio=dict(params["audio"]),
        priority=params.get("priority") or "normal",
        deadline_ms=params.get("deadline_ms"),
        vad=params.get("vad", "auto"),
        render=tuple(params.get("render") or ()),
        progress=bool(params.get("progress")),
    )
