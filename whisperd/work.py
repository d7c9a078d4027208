"""Validated params into `Work`: the one place where a default of the contract meets the engine's options.

Pure: what is in the params is known to be right, and what is left out has its default in `DecodeOptions` or here.
What only a loaded model can say of it is asked here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from whisperd.errors import WhisperdError
from whisperd.jobs import Work
from whisperd.messages import DecodeOptions, RowOptions
from whisperd.protocol import Request
from whisperd.tails import tail_of

if TYPE_CHECKING:
    from whisperd.inference.process import ModelTraits


def work_of(request: Request, default_model: Callable[[], str], tail_s: float) -> Work:
    """What a validated request for speech asks for. `default_model` may raise WhisperdError; `tail_s` is a setting."""
    params = request.params
    model = params.get("model") or default_model()
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
        beam_size=params.get("beam_size"),
        temperatures=temperatures,
        initial_prompt=params.get("initial_prompt") or None,
        hotwords=params.get("hotwords") or None,
        suppress_tokens=defaults.suppress_tokens if suppress is None else tuple(suppress),
        tail_s=None if detect or params.get("encoder_context") == "full" else tail_of(model, tail_s),
        **thresholds,
    )
    return Work(
        model=model,
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


def check_language(work: Work, traits: ModelTraits | None) -> None:
    """Raises unsupported_language or invalid_params where the model cannot do what was asked."""
    language = work.row.language
    if traits is None:
        return
    if work.row.task == "translate" and not traits.multilingual:
        raise WhisperdError(
            "invalid_params", f"the model {work.model!r} is for English only and cannot translate", pointer="/task"
        )
    if language and language not in traits.languages:
        known = "English only" if not traits.multilingual else f"{len(traits.languages)} languages"
        raise WhisperdError(
            "unsupported_language",
            f"the model {work.model!r} is for {known}, not {language!r}; leave language out to have it detected",
            language=language,
        )
