"""The commands on texts."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from tests.models.text import config_of, make_tokenizer, save_model, transformers
from tests.tasks.classification.world import Films, films, lines

__all__ = ["films"]


def write_recipe(films: Films, *more: str) -> Path:
    text = [
        "task: classification",
        f"model: {films.model}",
        f"data: {{root: {films.data}}}",
        "pruning: {interval: 3}",
        "training: {updates: 12, batch_size: 4, max_length: 16, learning_rate: 5e-3, validate_every: 6}",
    ]
    path = films.data / "recipe.yaml"
    path.write_text("\n".join([*text, *more]))
    return path


@pytest.fixture
def trained(parp: Any, films: Films) -> Films:
    answer = parp("finetune", write_recipe(films))
    assert answer.code == 0, answer.err
    assert "accuracy" in answer.out
    return films


def test_from_a_mask_to_predictions(parp: Any, films: Films, tmp_path: Path) -> None:
    masked = parp("mask", "--model", films.model, "--sparsity", "0.5")
    assert masked.code == 0, masked.err
    tuned = parp("finetune", write_recipe(films), "--json")
    assert tuned.code == 0, tuned.err
    assert json.loads(tuned.out)["plan"]["outputs"] == 2
    judged = parp("eval", "--json")
    assert judged.code == 0, judged.err
    system = json.loads(judged.out)["systems"][0]
    assert system["texts"] == len(lines())
    assert sum(map(sum, system["confusion"])) == len(lines())
    assert system["metrics"]["accuracy"]["low"] <= system["metrics"]["accuracy"]["value"]
    rows = [json.loads(line) for line in Path("parp-run/eval-dev.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"id", "split", "reference", "hypothesis", "probability"}
    right = sum(row["reference"] == row["hypothesis"] for row in rows)
    assert right / len(rows) == pytest.approx(system["metrics"]["accuracy"]["value"])
    (tmp_path / "new.txt").write_text("this is a very good film\nthe bad film\n")
    predicted = parp("predict", "new.txt")
    assert predicted.code == 0, predicted.err
    assert [row.split("\t")[0] for row in predicted.out.splitlines()] == ["id", "1", "2"]
    table = parp("predict", films.data / "dev.tsv", "--format", "jsonl")
    assert [json.loads(line)["label"] for line in table.out.splitlines()] == [row["hypothesis"] for row in rows]
    for command in (
        ["inspect"],
        ["reprune", "--sparsity", "0.7"],
        ["compare", "parp-run/mask.safetensors", "parp-run/finetune.safetensors"],
    ):
        answer = parp(*command)
        assert answer.code == 0, answer.err


def test_systems_side_by_side(parp: Any, trained: Films) -> None:
    assert parp("mask", "--model", trained.model, "--sparsity", "0.9", "--run", "other").code == 0
    answer = parp("eval", "parp-run/finetune.safetensors", "--mask", "other/mask.safetensors", "--json")
    assert answer.code == 0, answer.err
    whole, masked = json.loads(answer.out)["systems"]
    assert masked["sparsity"] > 0.85 > whole["sparsity"]
    assert masked["comparisons"][0]["other"] == whole["name"]
    again = parp(
        "eval",
        "parp-run/finetune-last.safetensors",
        *("--against", "parp-run/eval-dev.jsonl", "--out", "last.jsonl", "--html", "last.html"),
    )
    assert again.code == 0, again.err
    assert "last against eval-dev" in again.out
    page = Path("last.html").read_text()
    assert "last against eval-dev" in page
    accuracy = json.loads(Path("last.json").read_text())["metrics"]["accuracy"]["value"]
    assert f"{accuracy:.1%}" in page


@pytest.mark.parametrize("head", [False, True])
def test_an_export_has_the_logits_of_transformers(head: bool, parp: Any, trained: Films, tmp_path: Path) -> None:
    from parp_cli.models.recognizer import rebuild
    from parp_cli.storage import checkpoint

    source = Path("parp-run/finetune.safetensors")
    if not head:
        assert parp("mask", "--model", trained.model, "--run", "masked").code == 0
        source = Path("masked/mask.safetensors")
    answer = parp("export", source, "--to", "hf", "--out", "exported")
    assert answer.code == 0, answer.err
    reader = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    theirs, tokenizer = (
        reader.from_pretrained("exported").eval(),
        transformers.AutoTokenizer.from_pretrained("exported"),
    )
    inputs = dict(tokenizer(["a good film", "this is not a very bad film"], padding=True, return_tensors="pt"))
    content = checkpoint.read(source)
    network = rebuild(content, torch.device("cpu"), source="")[1]
    with torch.no_grad():
        found = theirs(**inputs)
        torch.testing.assert_close(
            network(inputs), found.logits if head else found.last_hidden_state, rtol=0, atol=1e-5
        )
    state = theirs.state_dict()
    for name, mask in content.masks.items():
        assert not state[name if head else name.removeprefix("bert.")][~mask].any()
    if head:
        assert theirs.config.id2label == {0: "bad", 1: "good"}
        assert parp("mask", "--model", "exported", "--run", "again").code == 0  # with its head
        assert checkpoint.read_metadata(Path("again/mask.safetensors")).task["names"] == ["bad", "good"]  # type: ignore[index]


def test_a_sweep(parp: Any, films: Films) -> None:
    recipe = write_recipe(films)
    sweep = films.data / "sweep.yaml"
    sweep.write_text(f"recipe: {recipe}\ngrid:\n  pruning.method: [dense, parp]\n  pruning.sparsity: [0.5]\n")
    answer = parp("sweep", sweep, "--run", "sweep", "--workers", "1")
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in Path("sweep/sweep.jsonl").read_text().splitlines()]
    assert [(row["method"], row["metric"], row["wer"]) for row in rows] == [
        ("dense", "accuracy", None),
        ("parp", "accuracy", None),
    ]
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert "accuracy, dev" in answer.out


def test_keys_of_the_task(parp: Any) -> None:
    answer = parp("finetune", "--keys", "--set", "task=classification")
    assert answer.code == 0
    assert "data.glue" in answer.out
    assert "training.max_length" in answer.out
    assert "batch_seconds" not in answer.out


def test_what_goes_with_other_heads(parp: Any, trained: Films, tmp_path: Path) -> None:
    checkpoint = "parp-run/finetune.safetensors"
    speech = parp("transcribe", "a.wav", "-c", checkpoint)
    assert speech.code in (3, 4)
    options = parp("eval", checkpoint, "--lm", "x", "--trn", "y")
    assert (options.code, "--trn, --lm is for speech" in options.err) == (2, True)
    assert parp("export", checkpoint, "--to", "torchaudio").code == 4
    headless = parp("mask", "--model", trained.model, "--run", "body")
    assert headless.code == 0
    missing = parp("eval", "--run", "body")
    assert (missing.code, "has no output head" in missing.err) == (4, True)
    no_head = parp("predict", "x.txt", "--run", "body")
    assert (no_head.code, "has no output head" in no_head.err) == (4, True)
    mask = parp("mask", "--from", checkpoint, "--apply", "mini", "--run", "no")
    assert (mask.code, "another model" in mask.err) == (4, True)
    labels = tmp_path / "other"
    labels.mkdir()
    (labels / "dev.tsv").write_text("text\tlabel\na film\tfine\n")
    judged = parp("eval", checkpoint, "--set", f"data.root={labels}")
    assert (judged.code, "label 'fine' is none of bad, good" in judged.err) == (3, True)
    assert parp("eval", checkpoint, "--split", "nowhere").code == 3
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert parp("predict", empty, "-c", checkpoint).code == 3


def test_lines_that_cannot_be_judged_are_left_out(parp: Any, trained: Films) -> None:
    path = trained.data / "dev.tsv"
    path.write_text(path.read_text() + "\tgood\n")
    answer = parp("eval", "--json")
    assert answer.code == 3
    assert json.loads(answer.out)["left_out"] == [f"dev.tsv, line {len(lines()) + 2}: no text"]
    assert parp("eval", "--set", "data.unusable=skip").code == 0


GOOD = "".join(f"{text}\t{label}\n" for text, label in lines())
WRONG: dict[str, tuple[list[str], dict[str, str], int, list[str]]] = {
    "labels that training has not": (
        ["finetune"],
        {"dev": "text\tlabel\na film\tfine\n"},
        3,
        ["no usable text in dev", "label 'fine' is none of bad, good (1 texts)", "hint: name other files or columns"],
    ),
    "labels that are no numbers": (
        ["finetune", "--set", "data.target=number"],
        {},
        3,
        ["label 'good' is no number (9 texts)", "data.target"],
    ),
    "a missing column": (
        ["finetune"],
        {"train": "review\tstars\na film\tgood\n"},
        3,
        ["train.tsv has no column text or label", "columns: review, stars", "hint: name its columns with data.text"],
    ),
    "empty texts": (
        ["finetune"],
        {"train": f"text\tlabel\n{GOOD}\tgood\n  \tbad\n"},
        3,
        ["2 problems with the texts", "train.tsv, line 20: no text", "hint: mend the files, or leave these lines out"],
    ),
    "more tokens than positions": (
        ["finetune", "--set", "training.max_length=64"],
        {},
        2,
        ["longer than the 24 positions of bert-2x16", "hint: --set training.max_length=24"],
    ),
    "a language that the tokenizer does not know": (
        ["finetune"],
        {"train": "text\tlabel\nein guter Film war es nicht\tgood\nsehr schlecht hier\tbad\n"},
        3,
        ["8 of 13 tokens are unknown to the tokenizer", "hint: it is of another language"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_the_remedy_and_nothing_is_written(name: str, parp: Any, films: Films) -> None:
    (command, *settings), files, code, words = WRONG[name]
    for split, content in files.items():
        (films.data / f"{split}.tsv").write_text(content)
    answer = parp(command, write_recipe(films), *settings)
    assert answer.code == code, answer.err
    assert [each for each in words if each not in answer.err] == []
    assert not Path("parp-run/finetune.safetensors").exists()


def test_tokenizers_that_do_not_fit(parp: Any, films: Films) -> None:
    recipe, file = write_recipe(films), films.model / "tokenizer.json"
    tokenizer = transformers.AutoTokenizer.from_pretrained(films.model)
    tokenizer.add_tokens([f"new{index}" for index in range(9)])
    tokenizer.save_pretrained(films.model)
    larger = parp("finetune", recipe)
    assert (larger.code, "does not fit its model" in larger.err, "hint: copy" in larger.err) == (4, True, True)
    file.write_text("{broken")
    broken = parp("finetune", recipe)
    assert (broken.code, "cannot be read" in broken.err, "hint: copy" in broken.err) == (4, True, True)
    file.unlink()
    missing = parp("finetune", recipe)
    assert (missing.code, "has no tokenizer" in missing.err, "hint: copy" in missing.err) == (4, True, True)


def test_what_cannot_be_predicted(parp: Any, trained: Films) -> None:
    Path("a.tsv").write_text("review\na good film\n")
    answer = parp("predict", "a.tsv")
    assert (answer.code, "a.tsv has no column text" in answer.err, "data.text" in answer.err) == (3, True, True)
    named = parp("predict", "a.tsv", "--set", "data.text=review")
    assert (named.code, len(named.out.splitlines())) == (0, 2)
    Path("a.jsonl").write_text('{"review": "a good film"}\n')
    answer = parp("predict", "a.jsonl")
    assert (answer.code, "hint: name its columns" in answer.err) == (3, True)
    Path("long.txt").write_text("a good film " * 30 + "\n")
    cut = parp("predict", "long.txt")
    assert (cut.code, "1 of 1 texts are longer than 16 tokens: cut there" in cut.err) == (0, True)
    (trained.data / "dev.tsv").write_text(f"text\tlabel\n{GOOD}{'a film ' * 30}\tgood\n")
    judged = parp("eval")
    assert (judged.code, "dev: 1 of 19 texts are longer than 16 tokens: cut there" in judged.out) == (0, True)


def test_masks_and_other_heads(parp: Any, trained: Films, tmp_path: Path) -> None:
    """A mask is of the body, whatever the head is for; one of another model is named as that, and encoders without a
    head of texts do not classify."""
    recipe = write_recipe(trained)
    data = tmp_path / "three"
    data.mkdir()
    for split in ("train", "dev"):
        (data / f"{split}.tsv").write_text(f"text\tlabel\n{GOOD}a film\tso-so\nthe film\tso-so\n")
    initial = ("--set", "pruning.initial=./parp-run/finetune.safetensors", "--set", "pruning.method=fixed")
    carried = parp("finetune", recipe, "--run", "three", "--set", f"data.root={data}", *initial)
    assert carried.code == 0, carried.err
    assert "9 bad, 9 good, 2 so-so" in carried.err
    found = parp("compare", "parp-run/finetune.safetensors", "three/finetune.safetensors", "--json")
    assert found.code == 0, found.err
    assert {kind["iou"] for kind in json.loads(found.out)["pairs"][0]["by_kind"].values()} == {1.0}
    under = parp("eval", "parp-run/finetune.safetensors", "--mask", "three/finetune.safetensors")
    assert under.code == 0, under.err
    other = save_model(tmp_path / "xlnet", "xlnet")
    assert parp("mask", "--model", other, "--run", "xlnet-run").code == 0
    answer = parp("finetune", recipe, "--run", "no", "--set", "pruning.initial=./xlnet-run/mask.safetensors")
    assert (answer.code, "mask does not fit" in answer.err, "another model" in answer.err) == (4, True, True)
    pages = ("--set", "task=masked-lm", "--set", "data.train=train", "--set", "data.valid=dev")
    lm = parp("finetune", recipe, "--run", "lm", *pages, "--set", "pruning.method=dense")
    assert lm.code == 0, lm.err
    for command in (("predict", "x.txt"), ("eval",)):
        answer = parp(*command, "--run", "lm")
        assert (answer.code, "has no output head" in answer.err) == (4, True)


def test_a_head_for_tokens_is_told(parp: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_of("bert", num_labels=3)
    transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "ner")
    make_tokenizer().save_pretrained(tmp_path / "ner")
    answer = parp("mask", "--model", "ner")
    assert answer.code == 0, answer.err
    assert "ner (BertForTokenClassification) is left out" in answer.err
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "lm")
    make_tokenizer().save_pretrained(tmp_path / "lm")
    assert "left out" not in parp("mask", "--model", "lm", "--run", "lm-run").err


@pytest.mark.parametrize(("family", "head"), [("bert", True), ("xlnet", True), ("roberta", False)])
def test_an_onnx_file_has_all_that_predicting_takes(family: str, head: bool, parp: Any, tmp_path: Path) -> None:
    onnxruntime, tokenizers = pytest.importorskip("onnxruntime"), pytest.importorskip("tokenizers")
    model = save_model(tmp_path / "model", family, labels=["bad", "good"] if head else None)
    assert parp("mask", "--model", model).code == 0
    answer = parp("export", "--to", "onnx", "--out", "model.onnx", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["zeros"] > 0
    opened = onnxruntime.InferenceSession("model.onnx")
    about = opened.get_modelmeta().custom_metadata_map
    tokenizer = tokenizers.Tokenizer.from_str(about["tokenizer"])
    found = tokenizer.encode("this is a very good film")
    inputs = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
    feed = {one.name: numpy.array([inputs[one.name]]) for one in opened.get_inputs()}
    (logits,) = opened.run(None, feed)
    if not head:
        assert logits.shape == (1, len(found.ids), 16)
        assert "labels" not in about
        return
    Path("new.txt").write_text("this is a very good film\n")
    predicted = parp("predict", "new.txt", "--format", "jsonl")
    assert json.loads(predicted.out)["label"] == json.loads(about["labels"])[int(logits[0].argmax())]


@pytest.fixture
def small(parp: Any, films: Films) -> Films:
    """A run whose heads and units are half pruned, and its checkpoint without them."""
    recipe = write_recipe(films)
    tuned = parp("finetune", recipe, "--set", "pruning.pattern=structures")
    assert tuned.code == 0, tuned.err
    shrunk = parp("shrink", "--json")
    assert shrunk.code == 0, shrunk.err
    said = json.loads(shrunk.out)
    assert said["check"]["largest_difference"] < 1e-5
    assert said["check"]["texts"] == len(lines())
    assert said["after"]["heads"] + said["after"]["units"] < said["before"]["heads"] + said["before"]["units"]
    assert said["after"]["parameters"] < said["before"]["parameters"]
    assert Path("parp-run/small.safetensors").stat().st_size == said["after"]["bytes"]
    return films


def test_every_stage_takes_a_small_classifier(parp: Any, small: Films) -> None:
    path = "parp-run/small.safetensors"
    answers = []
    for checkpoint in ("parp-run/finetune.safetensors", path):
        assert parp("eval", checkpoint, "--out", "judged.jsonl").code == 0
        answers.append([json.loads(line) for line in Path("judged.jsonl").read_text().splitlines()])
    for ours, theirs in zip(*answers, strict=True):
        assert ours["hypothesis"] == theirs["hypothesis"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    recipe = small.data / "recipe.yaml"
    pages = ["--set", "task=masked-lm", "--set", "data.train=train", "--set", "data.valid=dev"]
    for command in (
        ["predict", small.data / "dev.tsv", "-c", path],
        ["inspect", path],
        ["mask", "--model", path, "--sparsity", "0.3", "--run", "again"],
        ["mask", "--model", path, "--pattern", "units", "--run", "units"],
        ["compare", "again/mask.safetensors", "units/mask.safetensors"],
        ["finetune", recipe, "--run", "further", "--set", f"model=./{path}"],
        ["reprune", "--run", "further", "--sparsity", "0.7"],
        ["finetune", recipe, "--run", "taught", "--set", f"model=./{path}", "--set", "distil.teacher=./" + path],
        ["finetune", recipe, "--run", "lm", "--set", f"model=./{path}", *pages],
        ["export", path, "--to", "onnx", "--out", "small.onnx"],
        ["export", "further/finetune.safetensors", "--to", "packed", "--out", "packed.safetensors"],
        ["predict", small.data / "dev.tsv", "-c", "packed.safetensors"],
    ):
        answer = parp(*command)
        assert answer.code == 0, (command, answer.err)
    refused = parp("export", path, "--to", "hf")
    assert (refused.code, "other projects' models cannot have" in refused.err) == (4, True)
    whole = parp("mask", "--from", "again/mask.safetensors", "--apply", small.model, "--run", "no")
    assert (whole.code, "another model" in whole.err) == (4, True)
    nothing = parp("shrink", "--checkpoint", path)
    assert nothing.code != 0


def test_what_the_mask_has_not_emptied_stays(parp: Any, trained: Films) -> None:
    answer = parp("shrink")
    assert (answer.code, "spread over all of them" in answer.err) == (4, True)
    assert not Path("parp-run/small.safetensors").exists()


def test_packed_files_and_masks_go_round(parp: Any, trained: Films) -> None:
    """What is read again classifies the same, and the mask is the mask."""
    whole = "parp-run/finetune.safetensors"
    packed = parp("export", whole, "--to", "packed", "--json")
    assert packed.code == 0, packed.err
    said = json.loads(packed.out)
    assert said["check"]["largest_difference"] < 1e-6
    assert said["size"] < Path(whole).stat().st_size
    for values in ("float16", "int8"):
        answer = parp("export", whole, "--to", "packed", "--values", values, "--out", f"{values}.safetensors", "--json")
        assert answer.code == 0, answer.err
        assert 0 <= json.loads(answer.out)["check"]["predictions_changed"] <= len(lines())
    assert parp("export", whole, "--to", "mask", "--out", "mask.safetensors").code == 0
    compared = parp("compare", whole, said["path"], "mask.safetensors", "--json")
    assert compared.code == 0, compared.err
    for pair in json.loads(compared.out)["pairs"]:
        assert pair["overall"]["iou"] == 1
    made = [parp("predict", trained.data / "dev.tsv", "-c", each).out for each in (whole, said["path"])]
    assert made[0] == made[1]
    carried = parp("mask", "--from", "mask.safetensors", "--apply", trained.model, "--run", "carried")
    assert carried.code == 0, carried.err


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_integers_in_onnx(family: str, parp: Any, tmp_path: Path) -> None:
    """A file of 8-bit integers runs, is smaller, and is compared on texts."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = save_model(tmp_path / "model", family, labels=["bad", "good"])
    assert parp("mask", "--model", model).code == 0
    said = []
    for option in ([], ["--int8"]):
        answer = parp("export", "--to", "onnx", "--out", f"model{len(said)}.onnx", "--json", *option)
        assert answer.code == 0, answer.err
        said.append(json.loads(answer.out))
    assert said[0]["check"]["largest_difference"] < 1e-5 <= said[1]["check"]["largest_difference"]
    assert said[0]["integer_products"] is None
    assert said[1]["integer_products"] > 0
    assert 0 <= said[1]["check"]["predictions_changed"] <= said[1]["check"]["texts"]
    logits = []
    for number in range(2):
        opened = onnxruntime.InferenceSession(f"model{number}.onnx")
        feed = {one.name: numpy.array([[2, 5, 7, 3]]) for one in opened.get_inputs()}
        feed["attention_mask"][:] = 1
        feed |= {name: numpy.zeros((1, 4), dtype=numpy.int64) for name in feed if name == "token_type_ids"}
        logits.append(opened.run(None, feed)[0])
    assert 0 < abs(logits[0] - logits[1]).max() < 1


def test_a_mask_is_carried_from_task_to_task(parp: Any, films: Films, tmp_path: Path) -> None:
    """Found by training on one folder, kept or adjusted on another; the table has it beside the task's own."""
    recipe = write_recipe(films)
    other = tmp_path / "moods"
    other.mkdir()
    for split in ("train", "dev"):
        rows = "".join(f"{text}\t{'not' in text}\n" for text, _ in lines())
        (other / f"{split}.tsv").write_text(f"text\tlabel\n{rows}")
    folders = f"[{films.data}, {other}]"
    sweep = films.data / "sweep.yaml"
    sweep.write_text(
        f"recipe: {recipe}\nset: {{training.updates: 4, training.validate_every: 4}}\n"
        f"grid:\n  pruning.initial: [omp]\n  pruning.found_on: {folders}\n  data.root: {folders}\n"
        "  pruning.method: [fixed, parp]\n"
    )
    answer = parp("sweep", sweep, "--run", "sweep")
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in Path("sweep/sweep.jsonl").read_text().splitlines()]
    scores = {(row["method"], *row["found_on"], *row["languages"]): row["score"] for row in rows}
    assert len(scores) == 8
    masks = {key: Path("sweep") / row["checkpoint"] for key, row in zip(scores, rows, strict=True)}
    for source in ("data", "moods"):  # the mask of a task is the same wherever it is kept
        pair = [str(masks["fixed", source, target]) for target in ("data", "moods")]
        compared = parp("compare", *pair, "--json")
        assert json.loads(compared.out)["pairs"][0]["overall"]["iou"] == 1
    text = Path("sweep/sweep.md").read_text()
    assert "## Masks of one task for another" in text
    (header,) = [line for line in text.splitlines() if line.startswith("| accuracy, dev, fixed") and "mask of" in line]
    assert header.endswith("mask of | data | moods |")
    row = text.splitlines()[text.splitlines().index(header) + 2]
    _, name, own, carried, _ = (cell.strip() for cell in row.split("|"))
    assert (name, own) == ("data", f"{100 * scores['fixed', 'data', 'data']:.1f}%")
    change = 100 * (scores["fixed", "data", "moods"] - scores["fixed", "moods", "moods"])
    assert carried.startswith(f"{100 * scores['fixed', 'data', 'moods']:.1f}%, {change:+.1f}")
    assert "## Overlap of masks" in text


def test_tasks_that_masks_cannot_be_found_on(parp: Any, films: Films) -> None:
    recipe = write_recipe(films)
    for value, words in {
        "rte": "found_on: rte is no folder",
        "[./a, ./b]": "of one task, not of several",
    }.items():
        asked = ("--set", "pruning.initial=omp", "--set", f"pruning.found_on={value}")
        answer = parp("finetune", recipe, "--set", "pruning.method=fixed", *asked)
        assert (answer.code, words in answer.err) == (2, True), answer.err
    glue = ("--set", "data.glue=sst2", "--set", "pruning.initial=omp", "--set", "pruning.found_on=./a")
    answer = parp("finetune", recipe, "--set", "pruning.method=fixed", *glue)
    assert (answer.code, "is none of cola, sst2" in answer.err) == (2, True)
