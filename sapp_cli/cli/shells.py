"""What bash, zsh and fish run to complete a line of sapp.

In place of typer's scripts, which set a blank after folders and `KEY=`, and know nothing to complete after `--flag=`.
All three ask in one way: the line up to the cursor in, a line for each candidate out, its explanation behind a tab.
Files and folders are the shell's own affair, wherever sapp has nothing to offer.
"""

from __future__ import annotations

import os
from typing import Any

ASK = "_SAPP_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS"

# bash takes a word apart at "=", so only what follows it is to be completed.
BASH = f"""
_sapp_completion() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" found start=""
    mapfile -t found < <({ASK}="$line" "$1" 2>/dev/null | cut -f 1 | grep .)
    line="${{line##* }}"
    [[ $line == *=* ]] && start="${{line%=*}}="
    found=("${{found[@]#"$start"}}")
    COMPREPLY=("${{found[@]// /\\\\ }}")
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *[=/] ]] && compopt -o nospace
    return 0
}}

complete -o default -F _sapp_completion sapp
"""

ZSH = f"""
#compdef sapp

_sapp_completion() {{
    local -a found open closed
    local line word meaning start=""
    found=("${{(@f)$({ASK}="${{(j: :)words[1,CURRENT]}}" $words[1] 2>/dev/null)}}")
    found=(${{found:#}})
    (( $#found )) || {{ _files; return }}
    [[ $words[CURRENT] == *=* ]] && start="${{words[CURRENT]%=*}}="
    compset -P '*='
    for line in $found; do
        word="${{line%%$'\\t'*}}"
        meaning="${{${{line#$word}}#$'\\t'}}"
        word="${{word#$start}}"
        line="${{word//:/\\\\:}}${{meaning:+:$meaning}}"
        [[ $word == *[=/] ]] && open+=("$line") || closed+=("$line")
    done
    _describe sapp closed -- open -S ''
}}

compdef _sapp_completion sapp
(( ${{+compstate}} )) && _sapp_completion "$@"  # read in by the first Tab
"""

FISH = f"""
function __sapp_completion
    set -l flag (string match --regex -- '^--[^=]+=' (commandline -ct))
    set -l found ({ASK}=(commandline -cp) sapp 2>/dev/null | string match --regex '.+')
    for line in $found
        echo "$flag$line"
    end
    test (count $found) -gt 0; or __fish_complete_path (commandline -ct)
end

complete --command sapp --no-files --arguments '(__sapp_completion)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def use_our_scripts() -> None:
    """Have `--install-completion` and `--show-completion` give these scripts, in versions of typer that let them be."""
    from typer import _completion_shared

    scripts: dict[str, Any] = getattr(_completion_shared, "_completion_scripts", {})
    scripts.update({name: script.replace("%", "%%") for name, script in SCRIPTS.items()})  # typer fills in, by %


def keep_candidates_whole() -> None:
    """While a shell asks: no line of the answer is broken, since each would be a candidate of its own."""
    if "_SAPP_COMPLETE" in os.environ:
        os.environ["COLUMNS"] = "10000"  # typer draws the explanations as wide as the terminal
