"""``rnnjax completion``: what a shell offers behind Tab, made of the commands themselves.

The scripts are text: nothing is started while one types, for the start of JAX takes a second.
"""

from __future__ import annotations

import importlib
import re
import shlex
from typing import Annotated, Any, NamedTuple

import typer

from rnnjax.cli.output import echo

__all__ = ["completion"]

_HEAD = {
    "bash": '# eval "$(rnnjax completion bash)", in ~/.bashrc',
    "zsh": "#compdef rnnjax\n# Into a file _rnnjax in a folder of $fpath.",
    "fish": "# Into ~/.config/fish/completions/rnnjax.fish.",
}


class _Option(NamedTuple):
    flags: tuple[str, ...]
    help: str
    takes: bool  # a value
    choices: tuple[str, ...]


def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell that the script is for.")],
) -> None:
    """Print a script that completes commands, options and their values in a shell.

    [bold]eval "$(rnnjax completion bash)"[/bold]
    [bold]rnnjax completion zsh > ~/.zfunc/_rnnjax[/bold]
    [bold]rnnjax completion fish > ~/.config/fish/completions/rnnjax.fish[/bold]
    """
    makers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in makers:
        raise ValueError(f"completion: must be for one of {', '.join(makers)}, got {shell!r}.")
    from rnnjax.cli import COMMANDS

    options = {name: _options(name, command.module) for name, command in COMMANDS.items()}
    summaries = {name: _first(command.summary) for name, command in COMMANDS.items()}
    echo(_HEAD[shell])
    for line in makers[shell](summaries, options):
        echo(line)


def _options(name: str, module: str) -> list[_Option]:
    """Those of a command, as its parser knows them."""
    app = typer.Typer(add_completion=False)
    app.command(name)(getattr(importlib.import_module(module), name))
    found = [_Option(("--help",), "Show what the command does", False, ())]
    known = _values()
    for param in typer.main.get_command(app).params:
        if param.param_type_name == "option":
            flags = tuple(flag for flag in (*param.opts, *param.secondary_opts) if flag.startswith("--"))
            plain: Any = param
            choices = known.get(flags[0], tuple(plain.metavar.split("|")) if "|" in (plain.metavar or "") else ())
            found.append(_Option(flags, _first(plain.help or ""), not plain.is_flag, choices))
    return found


def _values() -> dict[str, tuple[str, ...]]:
    from rnnjax.analysis.labels import LABELS
    from rnnjax.cells import CELLS

    return {
        "--cell": tuple(name for name in CELLS if name != "conv_lstm"),
        "--label": tuple(LABELS),
    }


def _first(text: str) -> str:
    """The first sentence of a help, without marks, which shells would have to be told of."""
    sentence = re.split(r"(?<=[.;:])\s", " ".join(text.split()))[0].rstrip(".;:")
    return re.sub(r"[\"`\\$\[\]]", "", sentence)


def _chosen(options: dict[str, list[_Option]]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Commands with those of their flags whose values are known, and the values."""
    each = [(name, option) for name, own in options.items() for option in own if option.choices]
    return [(name, flag, option.choices) for name, option in each for flag in option.flags]


def _bash(summaries: dict[str, str], options: dict[str, list[_Option]]) -> list[str]:
    values = [
        f'        "{name} {flag}") offered={shlex.quote(" ".join(choices))} ;;'
        for name, flag, choices in _chosen(options)
    ]
    flags = [f"        {name}) offered={shlex.quote(_all_flags(own))} ;;" for name, own in options.items()]
    return [
        "_rnnjax() {",
        '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command="" offered="" k',
        "    for ((k = 1; k < COMP_CWORD; k++)); do",
        "        if [[ ${COMP_WORDS[k]} != -* ]]; then command=${COMP_WORDS[k]}; break; fi",
        "    done",
        '    case "$command $before" in',
        *values,
        '        "completion completion") offered="bash zsh fish" ;;',
        "    esac",
        "    if [[ -z $offered && -z $command ]]; then",
        f"        offered={shlex.quote(' '.join([*summaries, '--version', '--help']))}",
        "    elif [[ -z $offered && $word == -* ]]; then case $command in",
        *flags,
        "    esac; fi",
        '    COMPREPLY=($(compgen -W "$offered" -- "$word"))',
        "}",
        "complete -o default -F _rnnjax rnnjax",
    ]


def _zsh(summaries: dict[str, str], options: dict[str, list[_Option]]) -> list[str]:
    values = [
        f'        "{name} {flag}") compadd -- {" ".join(map(shlex.quote, choices))}; return ;;'
        for name, flag, choices in _chosen(options)
    ]
    described = [
        f"        {name}) found=({' '.join(shlex.quote(f'{flag}:{one.help}') for one in own for flag in one.flags)}) ;;"
        for name, own in options.items()
    ]
    commands = " ".join(shlex.quote(f"{name}:{text}") for name, text in summaries.items())
    return [
        "_rnnjax() {",
        "    local -a found",
        "    if (( CURRENT == 2 )); then",
        "        if [[ ${words[2]} == -* ]]; then compadd -- --version --help; return; fi",
        f"        found=({commands})",
        "        _describe command found",
        "        return",
        "    fi",
        '    case "${words[2]} ${words[CURRENT-1]}" in',
        *values,
        '        "completion completion") compadd -- bash zsh fish; return ;;',
        "    esac",
        "    if [[ ${words[CURRENT]} != -* ]]; then _files; return; fi",
        "    case ${words[2]} in",
        *described,
        "    esac",
        "    _describe -o option found",
        "}",
        'if [[ ${funcstack[1]} == _rnnjax ]]; then _rnnjax "$@"; else compdef _rnnjax rnnjax; fi',
    ]


def _fish(summaries: dict[str, str], options: dict[str, list[_Option]]) -> list[str]:
    lines = [
        "complete -c rnnjax -n __fish_use_subcommand -l version -d 'Show the versions'",
        "complete -c rnnjax -n __fish_use_subcommand -l help -d 'Show the commands'",
        "complete -c rnnjax -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'",
    ]
    for name, text in summaries.items():
        lines.append(f"complete -c rnnjax -n __fish_use_subcommand -f -a {name} -d {shlex.quote(text)}")
        for option in options[name]:
            for flag in option.flags:
                line = f"complete -c rnnjax -n '__fish_seen_subcommand_from {name}' -l {flag.removeprefix('--')}"
                line += " -r" if option.takes else ""
                line += f" -f -a {shlex.quote(' '.join(option.choices))}" if option.choices else ""
                lines.append(f"{line} -d {shlex.quote(option.help)}")
    return lines


def _all_flags(options: list[_Option]) -> str:
    return " ".join(flag for option in options for flag in option.flags)
