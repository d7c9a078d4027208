"""`whisperd transcribe`: files in, text out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from whisperd.cli.documents import FORMATS, TIMED_FORMATS, Folder, Printer, Sink
from whisperd.cli.failures import EXIT_FAILED, EXIT_LOST, complain, told
from whisperd.cli.inputs import Input, expand, shown

_FILE_TYPE = click.Path(path_type=Path)


def _temperatures(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | list[float] | None:
    """A number, or numbers with commas between them."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter("a number, or several with commas, such as 0,0.2,0.4") from error
    return numbers[0] if len(numbers) == 1 else numbers


@click.command("transcribe")
@click.argument("inputs", nargs=-1, metavar="[FILE|DIR|-]...", type=click.Path())
@click.option("--files-from", metavar="FILE", help="Read more names from FILE, one a line; - is standard input.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    default="txt",
    show_default=True,
    help="jsonl: one object a line; json: one object, an array for several files.",
)
@click.option("--output-dir", type=_FILE_TYPE, help="Write NAME.FORMAT there instead of printing.")
@click.option("--language", help="en, de, …  [default: detected]")
@click.option("--task", type=click.Choice(["transcribe", "translate"]), help="translate: into English.")
@click.option("--timestamps", type=click.Choice(["none", "segment", "word"]), help="[default: segment]")
@click.option("--model", help="A name of `whisperd models list`, or a path.  [default: the daemon's]")
@click.option("--beam-size", type=click.IntRange(min=1), help="Candidates kept while decoding; 1 is fastest.")
@click.option("--temperature", callback=_temperatures, help="A number, or fallbacks such as 0,0.2,0.4.")
@click.option("--initial-prompt", help="Text that sets spelling and style.")
@click.option("--hotwords", help="Names and terms to expect.")
@click.option("--vad/--no-vad", default=None, help="Cut silence also out of short audio / look for no speech.")
@click.option("--priority", type=click.Choice(["interactive", "normal", "bulk"]), help="[default: normal]")
@click.option("--encoder-context", type=click.Choice(["auto", "full"]), help="full: slower, as openai/whisper.")
@click.option("--socket", type=_FILE_TYPE, envvar="WHISPERD_SOCKET", help="The daemon to use.")
@click.option("--jobs", type=click.IntRange(1, 64), default=16, show_default=True, help="Files under way at once.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def command(
    inputs: Sequence[str],
    files_from: str | None,
    format_name: str,
    output_dir: Path | None,
    model: str | None,
    socket: Path | None,
    jobs: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Print what is said in audio and video files.

    Uses the running daemon, else starts one for this command alone. Folders are searched through for media
    files; - is audio on standard input. Results come in the order of the arguments. A file that fails is named
    on stderr, the others are done all the same, and the exit code is 1.

    \b
    whisperd transcribe interview.flac
    whisperd transcribe talks/ --format srt --output-dir subtitles
    ffmpeg -i film.mkv -f wav - | whisperd transcribe - --language en
    find . -name '*.opus' | whisperd transcribe --files-from - --format jsonl
    """
    if format_name in TIMED_FORMATS and options["timestamps"] == "none":
        raise click.UsageError(f"--format {format_name} needs times, which --timestamps none leaves out")
    wanted = {name: value for name, value in options.items() if value is not None}
    with told(), contextlib.ExitStack() as cleanup:
        found = expand(inputs, files_from, cleanup)
        sink = Folder(output_dir, format_name, found) if output_dir else Printer(format_name, len(found))
        sys.exit(_transcribe(found, wanted, model, socket, jobs, quiet, sink))


def _transcribe(
    inputs: Sequence[Input],
    options: dict[str, Any],
    model: str | None,
    socket: Path | None,
    jobs: int,
    quiet: bool,
    sink: Sink,
) -> int:
    """The exit code."""
    from whisperd.cli.bar import bar_for
    from whisperd.cli.batch import in_order
    from whisperd.client import Client, ConnectionLost, Transcript

    failed = done = 0
    try:
        with Client(socket, model=model) as client, bar_for(inputs, quiet) as bar:
            if bar.shows_progress:
                options["progress"] = True
            for input, outcome in in_order(client, inputs, options, jobs, bar):
                done += 1
                with bar.hidden():
                    if isinstance(outcome, Transcript):
                        failed += not _write(sink, input, outcome)
                    else:
                        failed += 1
                        complain(f"{shown(input.name)}: {_reason(input, outcome)}")
    except ConnectionLost as error:
        complain(f"{error}; {len(inputs) - done} of {len(inputs)} files are not done")
        return EXIT_LOST
    finally:
        sink.close()
    return EXIT_FAILED if failed else 0


def _reason(input: Input, error: Exception) -> str:
    """The error's kind and message, without the name that the line begins with anyway."""
    from whisperd.client import RequestFailed

    if not isinstance(error, RequestFailed):
        return f"timeout: {error}"
    return f"{error.kind}: {error.message.removeprefix(f'{Path(input.name).absolute()}: ')}"


def _write(sink: Sink, input: Input, transcript: Any) -> bool:
    try:
        sink.write(input, transcript)
    except BrokenPipeError:
        raise  # nobody reads any more, which is no failure of this input
    except OSError as error:
        complain(f"{shown(input.name)}: cannot write: {error}")
        return False
    for warning in transcript.warnings:
        complain(f"{shown(input.name)}: warning: {warning}")
    return True
