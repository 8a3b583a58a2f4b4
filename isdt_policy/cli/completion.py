"""`isdt completion`: a script for the user's shell, made from the verbs themselves, so that it cannot drift from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from typing import ClassVar, Literal

from isdt_policy.cli import GROUPS, VERBS, load
from isdt_policy.cli.command import values_of


@dataclasses.dataclass(frozen=True)
class Completion:
    """Print a script with which your shell completes verbs, keys and values of isdt.

    Run it again after an update of isdt.

    Examples:
        eval "$(isdt completion bash)"                                     bash; put this line into ~/.bashrc
        isdt completion zsh > "${fpath[1]}/_isdt"                          zsh, from its next start on
        isdt completion fish > ~/.config/fish/completions/isdt.fish        fish, at once

    Keys:
        shell: your shell: bash, zsh or fish.
    """

    shell: Literal["bash", "zsh", "fish"]

    positional: ClassVar = ("shell",)

    def run(self, command: str) -> int:
        print(script(self.shell))
        return 0


def script(shell: Literal["bash", "zsh", "fish"]) -> str:
    """The script of a shell."""
    words, values = _words(), _values()
    if shell == "fish":
        return _FISH.replace("@WORDS@", _switch(words)).replace("@VALUES@", _switch(values))
    text = _TABLES.replace("@WORDS@", _case(words)).replace("@VALUES@", _case(values))
    return {"bash": text + _BASH, "zsh": "#compdef isdt\n" + text + _ZSH}[shell]


def _words() -> dict[str, str]:
    """Verb (or "", or the first word of one) -> the words that may follow it; a key ends in "="."""
    first = dict.fromkeys(verb.split()[0] for verb in (*VERBS, *GROUPS))
    found = {"": " ".join(first)}
    for group in GROUPS:
        found[group] = " ".join(verb.split()[1] for verb in VERBS if verb.startswith(f"{group} "))
    for verb, options in _options().items():
        more = f"{found[verb]} " if verb in found else ""  # a verb by itself whose name also begins others
        unnamed = [value for option in getattr(load(verb), "positional", ()) for value in options.get(option) or ()]
        found[verb] = more + " ".join([*unnamed, *(f"{option}=" for option in options)])
    return found


def _values() -> dict[str, str]:
    """ "verb key" -> its values; "@" for a path."""
    return {
        f"{verb} {option}": "@" if values is None else " ".join(values)
        for verb, options in _options().items()
        for option, values in options.items()
        if values != ()
    }


def _options() -> dict[str, dict[str, tuple[str, ...] | None]]:
    """Verb -> key -> values, those of the configuration included; see `values_of`."""
    groups = _config_groups()
    found: dict[str, dict[str, tuple[str, ...] | None]] = {}
    for name in VERBS:
        verb = load(name)
        if not dataclasses.is_dataclass(verb) or not isinstance(verb, type):
            continue
        rest = getattr(verb, "rest", None)
        options = {f.name: values_of(verb, f.name) for f in dataclasses.fields(verb) if f.name != rest}
        for group, names in groups.items():
            if rest == "overrides" and group not in options and f"{group}s" not in options:
                options[group] = names
            elif f"{group}s" in options:
                options[f"{group}s"] = tuple(f"[{value}]" for value in names)
        found[name] = options
    return found


def _config_groups() -> dict[str, tuple[str, ...]]:
    """Folder of the configuration (experiment, objective, ...) -> the names in it."""
    return {
        group.name: tuple(sorted(f.name.removesuffix(".yaml") for f in group.iterdir() if f.name.endswith(".yaml")))
        for group in resources.files("isdt_policy.configs").iterdir()
        if group.is_dir() and not group.name.startswith("_")
    }


def _case(table: Mapping[str, str]) -> str:
    return "\n".join(f"    '{key}') echo '{text}' ;;" for key, text in table.items())


def _switch(table: Mapping[str, str]) -> str:
    return "\n".join(f"        case '{key}'\n            string split ' ' -- '{text}'" for key, text in table.items())


_TABLES = """# Made by isdt completion.
_isdt_words() {
  case "$1" in
@WORDS@
  esac
}
_isdt_values() {
  case "$1" in
@VALUES@
  esac
}
"""

_BASH = r"""_isdt() {
  local line="${COMP_LINE:0:COMP_POINT}" current="" verb="" word words values
  read -ra words <<< "$line"
  if [[ "$line" != *[[:space:]] ]]; then
    current="${words[${#words[@]}-1]}"
    unset "words[${#words[@]}-1]"
  fi
  verb="${words[1]}"
  [[ -n "${words[2]}" && -n "$(_isdt_words "${words[1]} ${words[2]}")" ]] && verb="${words[1]} ${words[2]}"
  COMPREPLY=()
  if [[ "$current" == *=* ]]; then
    # Where "=" breaks words, which is the default, only what follows it is replaced.
    local before=""
    [[ "$COMP_WORDBREAKS" == *=* ]] || before="${current%%=*}="
    values="$(_isdt_values "$verb ${current%%=*}")"
    if [[ "$values" == "@" ]]; then
      compopt -o filenames 2>/dev/null
      while IFS= read -r word; do COMPREPLY+=("$before$word"); done < <(compgen -f -- "${current#*=}")
    else
      while IFS= read -r word; do COMPREPLY+=("$before$word"); done < <(compgen -W "$values" -- "${current#*=}")
    fi
  else
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$(_isdt_words "$verb")" -- "$current")
    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace 2>/dev/null
  fi
  return 0
}
complete -o default -F _isdt isdt"""

_ZSH = r"""_isdt() {
  local verb="" values word
  local -a keys plain
  (( CURRENT > 2 )) && verb="${words[2]}"
  (( CURRENT > 3 )) && [[ -n "$(_isdt_words "${words[2]} ${words[3]}")" ]] && verb="${words[2]} ${words[3]}"
  if [[ "$PREFIX" == *=* ]]; then
    values="$(_isdt_values "$verb ${PREFIX%%=*}")"
    compset -P '*='
    if [[ "$values" == "@" ]]; then _files; else compadd -- ${=values}; fi
  else
    for word in ${=$(_isdt_words "$verb")}; do
      if [[ "$word" == *= ]]; then keys+=("$word"); else plain+=("$word"); fi
    done
    compadd -S '' -- $keys
    compadd -- $plain
    (( compstate[nmatches] )) || _files
  fi
}
if [[ "$funcstack[1]" == "_isdt" ]]; then _isdt "$@"; else compdef _isdt isdt; fi"""

_FISH = r"""# Made by isdt completion.
function __isdt_words
    switch "$argv[1]"
@WORDS@
    end
end
function __isdt_values
    switch "$argv[1]"
@VALUES@
    end
end
function __isdt
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l verb "$words[2]"
    if test (count $words) -gt 2; and test -n "$(__isdt_words "$words[2] $words[3]")"
        set verb "$words[2] $words[3]"
    end
    if string match -q '*=*' -- $current
        set -l parts (string split -m 1 '=' -- $current)
        set -l values (__isdt_values "$verb $parts[1]")
        if test "$values" = '@'
            set values (__fish_complete_path "$parts[2]" | string replace -r '\t.*' '')
        end
        for value in $values
            echo "$parts[1]=$value"
        end
    else
        __isdt_words "$verb"
    end
end
complete -c isdt -f -a '(__isdt)'"""
