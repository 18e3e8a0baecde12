"""scripts/build_sentences.py: exactly which sentences come out of which texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.build_sentences import (
    build,
    comments,
    debian_texts,
    docstrings,
    is_prose,
    normalized,
    paragraphs,
    python_texts,
    sentences,
)

MODULE = '''
"""Read and write tables of numbers.

The first line of a file names its columns. Every other line holds
one row, and an empty line ends the table (see e.g. the one of B. Fox in the text).

    >>> read("table.txt")
    [[1, 2], [3, 4]]
"""

# A reader must not trust the sizes that a file claims to have.

# table = read(file)
def read(path):
    """Return the rows of the table in the file at ``path``.

    - Numbers are read in the notation of the C language.
    - An item that runs over two lines is still one sentence, and its
      second line belongs to it.
    """
'''


def test_prose_of_a_python_source_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tables.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_tables.py").write_text('"""This is the docstring of a test and stays out of it."""')
    found = [sentence for text in python_texts(tmp_path) for sentence in sentences(text)]
    assert found == [
        "Read and write tables of numbers.",
        "The first line of a file names its columns.",
        "Every other line holds one row, and an empty line ends the table (see e.g. the one of B. Fox in the text).",
        "Numbers are read in the notation of the C language.",
        "An item that runs over two lines is still one sentence, and its second line belongs to it.",
        "A reader must not trust the sizes that a file claims to have.",
    ]


def test_docstrings_and_comments_are_told_apart() -> None:
    assert list(docstrings(MODULE))[1].startswith("Return the rows")
    assert list(comments(MODULE)) == [
        "A reader must not trust the sizes that a file claims to have.\n",
        "table = read(file)\n",
    ]
    assert list(docstrings("def (:")) == []


def test_paragraphs_end_at_blank_lines_rules_items_and_other_indentation() -> None:
    text = """
        Title
        =====
        First line
        second line
            indented
        - item that
          goes on
        - next item
        1. numbered

        Last with *emphasis*, **more** and a [link](https://example.org).
        ```
        code = 1
        ```
        """
    assert list(paragraphs(text)) == [
        "Title",
        "First line second line",
        "indented",
        "item that goes on",
        "next item",
        "numbered",
        "Last with emphasis, more and a link.",
    ]


@pytest.mark.parametrize(
    ("sentence", "prose"),
    [
        ("The quick brown fox jumps over the lazy dog.", True),
        ('"What is it?" he asked, and it was the end of that!', True),
        ("There are 3,000 of them in the well-known list, it's said.", True),
        ("The fox jumps over it.", False),  # five words
        ("The fox " + "and the fox " * 13 + "jumps.", False),  # 42 words
        ("the quick brown fox jumps over the lazy dog.", False),
        ("The quick brown fox jumps over the lazy dog", False),
        ("The quick brown fox jumps over the lazy dog...", False),
        ("The value of max_length is the length of it.", False),
        ("The result of read(x) is the list of rows.", False),
        ("See https://example.org for the list of the rows.", False),
        ("The files are in the folder usr/share of it.", False),
        ("Fox jumps, dog sleeps, bird sings, the fish swims.", False),  # one function word
        ("THE QUICK BROWN FOX JUMPS OVER THE DOG OF IT.", False),
        ("The 12 and 34 and 56 and 78 and 90 of 12.", False),
        ("Der schnelle braune Fuchs springt über den faulen Hund.", False),
    ],
)
def test_what_counts_as_prose(sentence: str, prose: bool) -> None:
    assert is_prose(sentence) is prose


def test_debian_descriptions(tmp_path: Path) -> None:
    (tmp_path / "dpkg").mkdir()
    (tmp_path / "dpkg" / "status").write_text(
        dedent("""\
            Package: fox
            Maintainer: Someone who is in the list of the maintainers.
            Description: program that jumps over the lazy dog
             This program jumps over the lazy dog of
             the neighbour.
             .
             It is of use where a dog is in the way.
            Homepage: https://example.org

            Package: dog
            Description: lazy
        """)
    )
    (tmp_path / "apt" / "lists").mkdir(parents=True)
    (tmp_path / "apt" / "lists" / "deb_i18n_Translation-en").write_text(
        "Package: bird\nDescription-en: bird\n A bird is on the roof of the house.\n"
    )
    assert list(debian_texts(tmp_path)) == [
        "This program jumps over the lazy dog of\nthe neighbour.\n\nIt is of use where a dog is in the way.\n",
        "",
        "A bird is on the roof of the house.\n",
    ]
    assert list(debian_texts(tmp_path / "nowhere")) == []


def text_of(count: int) -> list[str]:
    """`count` different sentences, a text each."""
    words = ["fox", "dog", "bird", "fish", "horse", "cow", "cat", "mouse", "hen", "pig"]
    return [
        f"The {words[n % 10]} and the {words[n // 10 % 10]} are in the house of the {words[n // 100 % 10]}."
        for n in range(count)
    ]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_and_repetition_of_the_texts_do_not_matter(shuffler: random.Random) -> None:
    texts = text_of(200)
    shuffled = texts + texts[:50]
    shuffler.shuffle(shuffled)
    assert build({"all": shuffled}, 0.05) == build({"all": texts}, 0.05)


def test_no_sentence_is_in_both_files_and_the_share_is_kept() -> None:
    corpus = build({"texts": text_of(1000), "same, louder": [text.replace(".", "!") for text in text_of(1000)]}, 0.2)
    train, validation = ({normalized(line) for line in lines} for lines in (corpus.train, corpus.validation))
    assert len(train) + len(validation) == 1000 == len(corpus.train) + len(corpus.validation)
    assert not train & validation
    assert 150 < len(validation) < 250
    assert corpus.sources == {"texts": 1000, "same, louder": 0}


def test_equal_sentences_are_those_with_the_same_words_and_any_number() -> None:
    assert normalized("It's 12.5 of the Fox, isn't it?") == "its 00 of the fox isnt it"
    assert normalized("Its 7 of the fox!") != normalized("Its of the fox!")
    corpus = build(
        {"a": ["The fox is 7 years old or so it is said.", "The fox is 12 years old or so it is said!"]}, 0.0
    )
    assert corpus.train == ["The fox is 12 years old or so it is said!"]


def test_files_hold_one_sentence_a_line(tmp_path: Path) -> None:
    corpus = build({"a": text_of(3), "b": text_of(5)}, 0.5)
    corpus.write(tmp_path / "sentences")
    lines = {
        name: (tmp_path / "sentences" / f"{name}.txt").read_text().splitlines() for name in ("train", "validation")
    }
    assert lines == {"train": corpus.train, "validation": corpus.validation}
    assert sorted(lines["train"] + lines["validation"]) == sorted(text_of(5))
    assert json.loads((tmp_path / "sentences" / "sources.json").read_text()) == {
        "train": len(corpus.train),
        "validation": len(corpus.validation),
        "sources": {"a": 3, "b": 2},
    }
