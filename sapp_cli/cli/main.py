"""The program: its verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sapp_cli._version import __version__
from sapp_cli.cli import bench, check, compare, document, evaluate, export, plan, prune, recipes, report, tune
from sapp_cli.cli.help import keep_examples
from sapp_cli.cli.mistakes import say_plainly, whole_message
from sapp_cli.cli.shells import keep_candidates_whole, use_our_scripts
from sapp_cli.cli.streams import drop_stdout, prepare, stream_of
from sapp_cli.errors import Interrupted, ResourceError, SappError, UsageError
from sapp_cli.training.interruption import Terminated, end_at_once, forget_signals
from sapp_cli.training.parent import end_with_parent

PRUNE = "Prune, with a recipe"
JUDGE = "Look at any checkpoint"

app = typer.Typer(
    name="sapp",
    help="Give it a trained PyTorch checkpoint; get it back block-sparse, smaller and faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan", rich_help_panel=PRUNE)(plan.plan)
app.command("prune", rich_help_panel=PRUNE)(prune.prune)
app.command("tune", rich_help_panel=PRUNE)(tune.tune)
app.command("eval", rich_help_panel=PRUNE)(evaluate.evaluate)
app.command("compare", rich_help_panel=PRUNE)(compare.compare)
app.command("report", rich_help_panel=JUDGE)(report.report)
app.command("check", rich_help_panel=JUDGE)(check.check)
app.command("bench", rich_help_panel=JUDGE)(bench.bench)
app.command("export", rich_help_panel=JUDGE)(export.export)
app.add_typer(recipes.app, name="recipes", rich_help_panel=PRUNE)
keep_examples(app)
use_our_scripts()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sapp {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Prune trained PyTorch checkpoints in blocks, with SequentialAttention++ and its competitors."""


def _keep_the_compilers_cache_private() -> None:
    """A folder of the user's for the compiler of torch, which torch.optim imports.

    It would make one in the shared temporary folder, under a name that others can take before. Nothing changes if the user
    has chosen a folder, or has none to write to.
    """
    with suppress(OSError, RuntimeError):  # a user without a home, or one that others may not look into
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sapp" / "torchinductor"
        existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
        if os.access(existing, os.W_OK | os.X_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


def _outlive_the_terminal() -> None:
    """Where the terminal goes away (SIGHUP), end as by SIGTERM, which saves a run's state; `nohup` stays what it is."""
    number = getattr(signal, "SIGHUP", None)  # not on Windows
    if number is None or signal.getsignal(number) != signal.SIG_DFL:
        return
    of_terminal = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def hang_up(number: int, frame: object) -> None:
        for stream in of_terminal:  # what is written to a terminal that is gone fails, and with it whoever writes
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(number, hang_up)


def main() -> NoReturn:
    """Run the command line and exit with the code of docs/cli.md."""
    prepare()
    _keep_the_compilers_cache_private()
    document.begin()
    end_at_once()
    end_with_parent()
    _outlive_the_terminal()
    keep_candidates_whole()
    try:
        if sys.argv[1:] in ([], ["recipes"]):
            sys.argv.append("--help")
        if "" in sys.argv[1:]:
            raise UsageError("an argument is empty; if a variable of the shell stood there, it has no value")
        if sys.argv[1:2] == ["help"]:  # as git and others have it
            sys.argv[1:] = [*sys.argv[2:], "--help"]
        code = app(prog_name="sapp", standalone_mode=False)
        sys.stdout.flush()
        if code == 128 + signal.SIGINT:  # typer turns KeyboardInterrupt into this code, and says nothing
            code = _interrupted(signal.SIGINT)
    except SappError as error:
        code = _failed(error)
    except (KeyboardInterrupt, typer.Abort):
        code = _interrupted(signal.SIGINT)
    except Terminated:
        code = _interrupted(signal.SIGTERM)
    except BrokenPipeError:
        drop_stdout()
        code = 128 + signal.SIGPIPE
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = 128 + signal.SIGPIPE  # rich has seen it first
    except Exception as error:
        code = _out_of_memory(error) or _stdout_is_full(error) or _shown_by_typer(error)
        if code is None:
            code = _bug(error)
    sys.exit(code if isinstance(code, int) else 0)


def _bug(error: Exception) -> int:
    """The exit code of what nobody has thought of; all that is known of it on stderr."""
    _print_traceback()
    print("sapp: this is a bug of sapp; please report it with the lines above", file=sys.stderr)
    text = "this is a bug of sapp; please report it with the lines on stderr"
    document.print_error(1, text, [f"{type(error).__name__}: {error}"], sys.argv[1:])
    return 1


def _print_traceback() -> None:
    print(traceback.format_exc(), end="", file=sys.stderr)  # print_exc would colour it, behind the back of sys.stderr


def _out_of_memory(error: Exception) -> int | None:
    """The exit code where memory ran out in NumPy, or in torch's allocator of the CPU; None for anything else."""
    if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
        return None
    reason = str(error).strip().rpartition("can't allocate memory: ")[2]
    return _failed(
        ResourceError(f"out of memory{f': {reason}' if reason else ''}; this needs a machine with more of it")
    )


def _stdout_is_full(error: Exception) -> int | None:
    """The exit code where the disk behind stdout takes no more; files of ours say themselves where they cannot be written."""
    if not isinstance(error, OSError) or error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    drop_stdout()
    return _failed(ResourceError(f"stdout: {error.strerror}"))


def _shown_by_typer(error: Exception) -> int | None:
    """The exit code of a mistake on the command line, which it shows; None for anything else.

    Known by what it can do: typer carries a click of its own, whose classes have no public name.
    """
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if not callable(show) or not isinstance(code, int):
        return None
    say_plainly(error, sys.argv[1:])
    show()
    message = whole_message(error)
    document.print_error(code, message, [message], sys.argv[1:])
    return code


def _interrupted(number: int) -> int:
    forget_signals()
    _end_echo()
    text = "interrupted; nothing was written"
    print(f"sapp: {text}", file=sys.stderr)
    document.print_error(128 + number, text, [text], sys.argv[1:])
    return 128 + number


def _end_echo() -> None:
    """Begin a line anew where a terminal may have written ^C into it."""
    if sys.stderr.isatty():
        print(
            end="\n" if os.environ.get("TERM", "dumb") == "dumb" else "\r\x1b[K", file=stream_of("stderr"), flush=True
        )


def _failed(error: SappError) -> int:
    if os.environ.get("SAPP_DEBUG") == "1":
        _print_traceback()
    start = "error"
    if isinstance(error, Interrupted):
        start = "sapp"
        _end_echo()
    text = str(error).rstrip("\n")
    if not text:  # one of several processes, of which another tells
        return error.exit_code
    for line in text.split("\n"):
        print(line if line.startswith("  ") else f"{start}: {line}", file=sys.stderr)
    document.print_error(error.exit_code, text, _problems(error), sys.argv[1:])
    return error.exit_code


def _problems(error: SappError) -> list[str]:
    """Each problem of the error by itself: `recipe.yaml:3: key: text`, or `key: text` where only the key is known."""
    problems = getattr(error, "problems", ())
    texts = [problem if isinstance(problem, str) else ": ".join(problem) for problem in problems]
    return texts or [str(error).rstrip("\n")]
