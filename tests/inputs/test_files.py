import pytest

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.files import find_files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts").mkdir()
    for name in ("train.csv", "dev.csv", "parts/2.csv", "parts/1.csv", "parts/[1].csv"):
        (tmp_path / name).write_text("x")
    return tmp_path


def test_a_pattern_gives_its_files_sorted(folder):
    found = find_files([str(folder / "train.csv"), str(folder / "par*" / "[12].csv")], "data.files.train")
    assert [str(path.relative_to(folder)) for path in found] == ["train.csv", "parts/1.csv", "parts/2.csv"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    assert find_files(str(folder / "parts/[1].csv"), "data.files.train") == [folder / "parts/[1].csv"]


def test_nothing_named():
    with pytest.raises(UsageError) as error:
        find_files(None, "data.files.train")
    assert str(error.value) == ("data.files.train: missing; name the file with the rows, a list of files or a pattern")


def test_all_that_is_missing_is_said_at_once(folder):
    wanted = [folder / "trian.csv", folder / "dev.csv", folder / "nowhere" / "x.csv", folder / "*.json"]
    with pytest.raises(DataError) as error:
        find_files([str(path) for path in wanted], "data.files.train")
    assert str(error.value).splitlines() == [
        f"data.files.train: no file {folder}/trian.csv; nearest: 'train.csv'",
        f"data.files.train: no file {folder}/nowhere/x.csv: there is no folder {folder}/nowhere",
        f"data.files.train: no file matches {folder}/*.json",
    ]
