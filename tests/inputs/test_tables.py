import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.tables import choose_columns, file_format, read_table, require_columns
from sapp_cli.recipe.data_section import ColumnsSection


def table_of(path, text, format_name=None):
    path.write_text(text)
    return read_table([path], format_name or file_format(None, [path], "data.files.train"))


@pytest.fixture
def pairs(tmp_path):
    return table_of(tmp_path / "pairs.csv", "sentence1,sentence2,label\na b,c,yes\nd,e,no\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "text,label\nhello,1\nworld,0\n"),
        ("x.tsv", "text\tlabel\nhello\t1\nworld\t0\n"),
        ("x.jsonl", '{"text": "hello", "label": 1}\n{"text": "world", "label": 0}\n'),
        ("x.json", '[{"text": "hello", "label": 1}, {"text": "world", "label": 0}]'),
        ("[1].csv", "text,label\nhello,1\nworld,0\n"),
    ],
)
def test_formats_by_their_endings(tmp_path, name, text):
    table = table_of(tmp_path / name, text)
    assert table.data[:] == {"text": ["hello", "world"], "label": [1, 0]}


def test_parquet_and_plain_text(tmp_path):
    with datasets_quiet():
        Dataset.from_dict({"text": ["hello"], "label": [1]}).to_parquet(tmp_path / "x.parquet")
    assert read_table([tmp_path / "x.parquet"], "parquet").data[0] == {"text": "hello", "label": 1}
    assert table_of(tmp_path / "x.txt", "one\ntwo\n").data["text"][:] == ["one", "two"]


def test_files_are_one_table(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}.csv").write_text(f"text\npart {number}\n")
    table = read_table([tmp_path / "2.csv", tmp_path / "1.csv"], "csv")
    assert table.data["text"][:] == ["part 2", "part 1"]
    assert table.origin == f"{tmp_path}/2.csv and 1 more"


def test_formats_nobody_can_tell(tmp_path):
    for name in ("x.csv", "x.json", "x"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UsageError) as error:
        file_format(None, [tmp_path / "x"], "data.files.train")
    assert str(error.value) == (f"data.files.train: {tmp_path}/x has no ending that tells its format; set data.format")
    assert file_format("csv", [tmp_path / "x"], "data.files.train") == "csv"
    with pytest.raises(UsageError) as error:
        file_format(None, [tmp_path / "x.json", tmp_path / "x.csv"], "data.files.train")
    assert str(error.value) == "data.files.train: mixes formats (csv, json); use one"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.csv", 'a,b\n1,2\n"3', "Error tokenizing data. C error: EOF inside string starting at row 2"),
        ("x.jsonl", "{", "JSON parse error"),
        ("x.parquet", "PAR2", "Parquet file size is 4 bytes"),
    ],
)
def test_damaged_files(tmp_path, capfd, name, text, reason):
    with pytest.raises(DataError) as error:
        table_of(tmp_path / name, text)
    assert str(error.value).startswith(f"{tmp_path / name} cannot be read as ")
    assert reason in str(error.value)
    assert capfd.readouterr() == ("", "")  # the library's own log says nothing beside it


def test_empty_files_and_folders(tmp_path):
    with pytest.raises(DataError) as error:
        table_of(tmp_path / "x.jsonl", "")
    assert str(error.value) == f"{tmp_path}/x.jsonl is empty"
    for name, text in (("x.csv", "text,label\n"), ("y.jsonl", "\n")):
        with pytest.raises(DataError) as error:
            table_of(tmp_path / name, text)
        assert str(error.value) == f"{tmp_path / name} has no rows"
    with pytest.raises(DataError) as error:
        read_table([tmp_path], "csv")
    assert str(error.value) == f"{tmp_path} is a folder; for csv files in it write {tmp_path}/*.csv"


def test_usual_columns(pairs, tmp_path):
    assert choose_columns(pairs, ColumnsSection(), needs_label=True).names == ["sentence1", "sentence2", "label"]
    assert choose_columns(pairs, ColumnsSection(text="sentence2"), needs_label=False).names == ["sentence2"]
    plain = table_of(tmp_path / "x.csv", "sentence2,text,target,labels\na,b,1,2\n")
    assert choose_columns(plain, ColumnsSection(), needs_label=True).names == ["text", "labels"]


def test_columns_that_are_not_there(pairs, tmp_path):
    with pytest.raises(DataError) as error:
        choose_columns(pairs, ColumnsSection(text="sentence", label="lable"), needs_label=True)
    assert str(error.value).splitlines() == [
        f"data.columns.text: {pairs.origin} has no column 'sentence'; nearest: 'sentence2'",
        f"data.columns.label: {pairs.origin} has no column 'lable'; nearest: 'label'",
        "  its columns: sentence1, sentence2, label",
    ]
    other = table_of(tmp_path / "x.csv", "body,verdict\na,1\n")
    with pytest.raises(DataError) as error:
        choose_columns(other, ColumnsSection(), needs_label=True)
    assert str(error.value).splitlines() == [
        f"data.columns.text: {other.origin} has no column that is usually the text; name the right one",
        f"data.columns.label: {other.origin} has no column that is usually the label; name the right one",
        "  its columns: body, verdict",
    ]
    columns = choose_columns(pairs, ColumnsSection(), needs_label=True)
    with pytest.raises(DataError) as error:
        require_columns(other, columns)
    assert str(error.value).splitlines() == [
        f"{other.origin} has no column 'sentence1', which the training rows have",
        "  its columns: body, verdict",
    ]


def test_a_text_column_holds_text(pairs, tmp_path):
    numbers = table_of(tmp_path / "x.csv", "text\n1\n")
    with pytest.raises(DataError) as error:
        require_columns(numbers, choose_columns(numbers, ColumnsSection(), needs_label=False))
    assert str(error.value) == f"{numbers.origin}: column 'text' holds int64, not text"
    with pytest.raises(DataError) as error:
        require_columns(pairs, choose_columns(pairs, ColumnsSection(image="label"), needs_label=False))
    assert str(error.value) == f"{pairs.origin}: column 'label' holds large_string, not images"
    with pytest.raises(UsageError) as error:
        choose_columns(pairs, ColumnsSection(image="label", text="sentence1"), needs_label=False)
    assert str(error.value) == "data.columns: text and image are both set; a row is a text or an image"


def test_an_image_folder_has_a_class_a_subfolder(tmp_path):
    """Classes named train and test stay classes; hidden files and notes are no images."""
    for place in ("train/b.png", "train/a.PNG", "test/deep/c.png"):
        (tmp_path / "images" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "images" / place)
    (tmp_path / "images" / "train" / "notes.txt").write_text("x")
    table = read_table([tmp_path / "images"], file_format(None, [tmp_path / "images"], "data.files.train"))
    assert table.data["label"][:] == ["test", "train", "train"]
    assert [image["path"] for image in table.data["image"]] == [
        str(tmp_path / "images" / place) for place in ("test/deep/c.png", "train/a.PNG", "train/b.png")
    ]
    with pytest.raises(DataError) as error:
        read_table([tmp_path / "images" / "train"], "imagefolder")
    train = tmp_path / "images" / "train"
    assert (
        str(error.value) == f"{train}/a.PNG lies in no subfolder of {train}; an image folder has one subfolder a class"
    )


def test_equal_rows_have_equal_digests_whatever_else_is_in_the_table(tmp_path):
    one = table_of(tmp_path / "1.csv", "id,text,label\n1,hello,0\n2,world,1\n")
    two = table_of(tmp_path / "2.jsonl", '{"label": 1, "text": "world"}\n{"label": 0, "text": "hello"}\n')
    assert one.digests(["text", "label"]) == two.digests(["text", "label"])[::-1]


def datasets_quiet():
    from sapp_cli.inputs.offline import offline_datasets

    return offline_datasets()
