"""Texts from TSV, CSV, JSON Lines and GLUE's files."""

from pathlib import Path

import pytest

from parp_cli.config.classification import TextData
from parp_cli.data.glue import GLUE
from parp_cli.data.texts import Text, columns_of, read_lines, read_texts, split_file
from parp_cli.errors import DataError


def write(folder: Path, name: str, content: str) -> TextData:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    return TextData(root=str(folder))


def read(data: TextData, split: str = "train") -> tuple[list[Text], list[str]]:
    path = split_file(data, split)
    return read_texts(path, columns_of(data, path))


SAME = [Text(id="7", text='a "fine" film', label="1"), Text(id="9", text="no, bad", label="0")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.tsv", 'idx\ttext\tlabel\tother\n7\ta "fine" film\t1\tx\n\n9\tno, bad\t0\ty\n'),
        ("train.csv", 'label,id,text\n1,7,"a ""fine"" film"\n0,9,"no, bad"\n'),
        (
            "train.jsonl",
            '{"id": 7, "text": "a \\"fine\\" film", "label": 1}\n{"id": "9", "text": "no, bad", "label": "0"}\n',
        ),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, content: str) -> None:
    assert read(write(tmp_path, name, content)) == (SAME, [])


def test_pairs_and_line_numbers(tmp_path: Path) -> None:
    data = write(tmp_path, "train.tsv", "text\ttext_b\tlabel\na\tb\tyes\n\tc\tno\nd\t\tno\ne\tf\t\nonly\n")
    texts, problems = read(data)
    assert texts == [Text(id="2", text="a", text_b="b", label="yes")]
    assert problems == [
        "train.tsv, line 3: no text",
        "train.tsv, line 4: no text_b",
        "train.tsv, line 5: no label",
        "train.tsv, line 6: 1 columns, but the header row has 3",
    ]


def test_a_quoted_cell_may_have_line_ends(tmp_path: Path) -> None:
    texts, _ = read(write(tmp_path, "train.csv", 'text,label\n"two\nlines",x\n'))
    assert texts[0].text == "two\nlines"


def test_other_columns(tmp_path: Path) -> None:
    data = write(tmp_path, "train.tsv", "review\tstars\ngood\t5\n")
    with pytest.raises(DataError, match="has no column text or label") as raised:
        read(data)
    assert raised.value.details == ("columns: review, stars",)
    assert read(TextData(root=data.root, text="review", label="stars"))[0] == [Text(id="2", text="good", label="5")]


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no data"):
        split_file(TextData(glue="rte"), "train")
    data = write(tmp_path, "train.tsv", "text\tlabel\n")
    with pytest.raises(DataError, match="no split dev") as raised:
        split_file(data, "dev")
    assert raised.value.details[1] == "found: train.tsv"
    with pytest.raises(DataError, match="no split train") as raised:
        split_file(TextData(root=str(tmp_path / "no"), glue="rte"), "train")
    assert raised.value.details[-1] == "task rte of GLUE is in a folder RTE, which is not there"
    with pytest.raises(DataError, match="holds no text"):
        read(data)
    write(tmp_path, "train.jsonl", "{}\n")
    with pytest.raises(DataError, match="several files"):
        split_file(data, "train")
    assert split_file(data, "train.jsonl").name == "train.jsonl"
    (tmp_path / "bytes.tsv").write_bytes(b"text\tlabel\n\xff\t1\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read(data, "bytes")
    texts, problems = read(write(tmp_path, "j.jsonl", '{"text": "a", "label": "b"}\n[1]\n{"text": "c"}\nx\n'), "j")
    assert [text.text for text in texts] == ["a"]
    assert [problem.partition(": ")[2] for problem in problems] == ["not a JSON object", "no label", "not JSON"]


# The first lines of the files as GLUE publishes them, shortened.
PUBLISHED = {
    "cola": "gj04\t1\t\tOur friends won't buy it.\ngj04\t0\t*\tBooks was sent.\n",
    "sst2": "sentence\tlabel\nhide new secretions \t0\ngood \t1\n",
    "mrpc": 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tHe said "x\n\tShe said\n',
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tg\tf\t2012\t1\tn\tn\tA plane.\tAn air plane.\t5.000\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tWhy?\t0\n",
    "mnli": "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n0\tg\tA.\tB.\tneutral\tneutral\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\tWhen?\tThen.\tentailment\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n",
}
EXPECTED = {
    "cola": ("Our friends won't buy it.", None, "1"),
    "sst2": ("hide new secretions", None, "0"),
    "mrpc": ("He said", "She said", "1"),
    "stsb": ("A plane.", "An air plane.", "5.000"),
    "qqp": ("How?", "Why?", "0"),
    "mnli": ("A.", "B.", "neutral"),
    "qnli": ("When?", "Then.", "entailment"),
    "rte": ("A.", "B.", "not_entailment"),
    "wnli": ("A.", "B.", "1"),
}


@pytest.mark.parametrize("task", GLUE)
def test_the_files_of_glue(task: str, tmp_path: Path) -> None:
    content = PUBLISHED[task].replace('"x\n', "")
    folder = tmp_path / GLUE[task].folder
    write(folder, "train.tsv", content)
    name = (GLUE[task].splits or {}).get("dev", "dev")
    write(folder, f"{name}.tsv", content)
    for root in (tmp_path, folder):  # all tasks, or this one
        data = TextData(root=str(root), glue=task)  # type: ignore[arg-type]
        for split in ("train", "dev"):
            texts, problems = read(data, split)
            assert (texts[0].text, texts[0].text_b, texts[0].label) == EXPECTED[task]
            assert problems == []


def test_a_text_per_line(tmp_path: Path) -> None:
    write(tmp_path, "x.txt", "one\n\n two \n")
    assert read_lines(tmp_path / "x.txt") == [Text(id="1", text="one"), Text(id="3", text="two")]
