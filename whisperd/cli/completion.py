"""`whisperd completion`: what a shell needs to complete our commands, options and method names."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    whisperd completion bash >> ~/.bashrc
    whisperd completion zsh > ~/.zfunc/_whisperd
    whisperd completion fish > ~/.config/fish/completions/whisperd.fish
    """
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(ctx.find_root().command, {}, "whisperd", "_WHISPERD_COMPLETE").source())
