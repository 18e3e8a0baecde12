"""Build a corpus of plain English sentences from what a machine with Python has anyway, without a download.

    python scripts/build_sentences.py --out runs/sentences

Sources: the docstrings and comments of the standard library, the language reference that pydoc carries, the
descriptions of the installed packages and, where there are any, of Debian's; with --package-sources the docstrings and
comments of the installed packages too (many times the sentences; a minute with torch and transformers). Code, tables,
lists and addresses are left out. OUT/train.txt and OUT/validation.txt hold one sentence a line, OUT/sources.json how
many came from where.

A sentence's place depends on nothing but the sentence: the SHA-256 of what it says in lower case sorts it and decides
whether it is held out, so what is validation here is validation on every machine. The texts belong to their authors;
the corpus is for use on the machine that built it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import json
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

# ---------------------------------------------------------------- texts: where the words come from


def docstrings(source: str) -> Iterator[str]:
    """Every docstring of a Python source, none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold escapes and comparisons that newer Pythons warn of
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def comments(source: str) -> Iterator[str]:
    """Every block of comment lines of a Python source."""
    for block in re.findall(r"(?:^[ \t]*#.*\n)+", source, re.MULTILINE):
        yield re.sub(r"^[ \t]*#+ ?", "", block, flags=re.MULTILINE)


def python_texts(
    root: Path, leave_out: tuple[str, ...] = ("site-packages", "dist-packages", "test", "tests")
) -> Iterator[str]:
    """The docstrings and comments of all Python sources under `root`, folders named in `leave_out` excepted."""
    for file in sorted(root.rglob("*.py")):
        if not set(leave_out).intersection(file.relative_to(root).parts[:-1]):
            source = file.read_text(encoding="utf-8", errors="replace")
            yield from docstrings(source)
            yield from comments(source)


def package_texts() -> Iterator[str]:
    """The long descriptions (READMEs, as a rule) of the installed packages."""
    for distribution in importlib.metadata.distributions():
        _, _, description = (distribution.read_text("METADATA") or "").partition("\n\n")
        yield description


def debian_texts(root: Path = Path("/var/lib")) -> Iterator[str]:
    """The long descriptions of Debian packages, of the installed ones and, where apt has the plain list, of all."""
    for file in (root / "dpkg" / "status", *sorted(root.glob("apt/lists/*_Translation-en"))):
        if file.is_file():
            records = file.read_text(encoding="utf-8", errors="replace")
            for lines in re.findall(r"^Description(?:-en)?: .*\n((?: .*\n)*)", records, re.MULTILINE):
                yield re.sub(r"^ (?:\.$)?", "", lines, flags=re.MULTILINE)  # " ." is an empty line


# ---------------------------------------------------------------- sentences: what is prose in a text

MARKUP = (
    (re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL), "\n"),  # a fenced block of code
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # [text](address)
    (re.compile(r"(\*\*?)(?=\w)([^*\n]+)(?<=\w)\1"), r"\2"),  # *emphasis*
    (re.compile(r"[‘’]"), "'"),
    (re.compile(r"[“”]"), '"'),
)
LIST_ITEM = re.compile(r"^(\s*)([-*+•]|\d+[.)])(\s+)")
SENTENCE_END = re.compile(
    r"""(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\b[A-Z]\.)(?<!\betc\.)(?<!\bvs\.)\s+(?=["'(]?[A-Z])"""
)
WORD = re.compile(r"""["'(]*(?:[A-Za-z]+(?:['-][A-Za-z]+)*|\d+(?:[.,]\d+)*|e\.g\.|i\.e\.)(?:'|"|[.,;:!?)]){0,3}""")
FUNCTION_WORD = re.compile(
    r"\b(?:a|an|and|are|as|at|be|by|for|from|if|in|is|it|of|on|or|that|the|this|to|was|which|with)\b", re.IGNORECASE
)


def paragraphs(text: str) -> Iterator[str]:
    """Lines that belong together, joined; a blank line, a ruler, a list item or another indentation ends a paragraph."""
    text = textwrap.dedent(text).expandtabs()
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    lines: list[str] = []
    indentation = 0
    for line in [*text.splitlines(), ""]:
        item = LIST_ITEM.match(line)
        body = LIST_ITEM.sub(lambda match: " " * len(match[0]), line)
        indent = len(body) - len(body.lstrip())
        words = any(character.isalnum() for character in body)
        if lines and (item or indent != indentation or not words):
            yield " ".join(lines)
            lines = []
        if words:
            lines.append(body.strip())
            indentation = indent


def is_prose(sentence: str) -> bool:
    """True for a whole sentence of 6 to 40 plain words: no code, address, number table or shouting."""
    words = sentence.split()
    letters = [character for character in sentence if character.isalpha()]
    return (
        6 <= len(words) <= 40
        and sentence.lstrip("\"'(")[:1].isupper()
        and sentence[-1] in ".!?"
        and not sentence.endswith("..")
        and all(WORD.fullmatch(word) for word in words)
        and len(FUNCTION_WORD.findall(sentence)) >= 2
        and len(letters) >= 0.8 * sum(map(len, words))
        and sum(map(str.isupper, letters)) <= 0.25 * len(letters)
    )


def sentences(text: str) -> Iterator[str]:
    for paragraph in paragraphs(text):
        for sentence in SENTENCE_END.split(paragraph):
            if is_prose(sentence):
                yield " ".join(sentence.split())


# ---------------------------------------------------------------- corpus: which sentences, in which order and file


def normalized(sentence: str) -> str:
    """What two sentences share that say the same: lower-case letters and spaces, every number a 0."""
    return " ".join(re.sub(r"[^a-z0 ]", "", re.sub(r"\d+", "0", sentence.lower())).split())


@dataclass(frozen=True)
class Corpus:
    train: list[str]
    validation: list[str]
    sources: dict[str, int]  # sentences each source was the first to give

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in (("train", self.train), ("validation", self.validation)):
            (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        counts = {"train": len(self.train), "validation": len(self.validation), "sources": self.sources}
        (folder / "sources.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def build(texts: Mapping[str, Iterable[str]], validation_share: float) -> Corpus:
    """The corpus of {source: texts}; of sentences that are equal when normalized it takes the first in the alphabet."""
    by_hash: dict[str, str] = {}
    sources: dict[str, int] = {}
    for source, source_texts in texts.items():
        before = len(by_hash)
        for text in source_texts:
            for sentence in sentences(text):
                key = hashlib.sha256(normalized(sentence).encode()).hexdigest()
                by_hash[key] = min(sentence, by_hash.get(key, sentence))
        sources[source] = len(by_hash) - before
    train: list[str] = []
    validation: list[str] = []
    for key in sorted(by_hash):
        held_out = int(key[:8], 16) < validation_share * 16**8
        (validation if held_out else train).append(by_hash[key])
    return Corpus(train, validation, sources)


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sentences"), help="folder (default: %(default)s)")
    parser.add_argument("--validation-share", type=float, default=0.05, help="of the sentences (default: %(default)s)")
    parser.add_argument("--package-sources", action="store_true", help="read the installed packages' Python files too")
    arguments = parser.parse_args(command_line)

    texts: dict[str, Iterable[str]] = {
        "standard library": python_texts(Path(sysconfig.get_path("stdlib"))),
        "language reference": topics.values(),
        "package descriptions": package_texts(),
        "Debian package descriptions": debian_texts(),
    }
    if arguments.package_sources:
        texts["package sources"] = python_texts(Path(sysconfig.get_path("purelib")))
    corpus = build(texts, arguments.validation_share)
    corpus.write(arguments.out)
    for source, count in corpus.sources.items():
        print(f"{count:7,}  {source}")
    print(f"{len(corpus.train):7,}  sentences in {arguments.out / 'train.txt'}")
    print(f"{len(corpus.validation):7,}  sentences in {arguments.out / 'validation.txt'}")


if __name__ == "__main__":
    main()
