import math
import pickle
import sys
from pathlib import Path

import pytest
import torch

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.decoding.kneser_ney import estimate, write_arpa
from parp_cli.decoding.lm import NGramScorer, TransformerScorer
from parp_cli.decoding.search import BeamSearch, Rescored
from parp_cli.errors import DataError, UsageError
from tests.decoding.arpa import read_arpa

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    with (tmp_path / "lm.arpa").open("w") as file:
        write_arpa(estimate(["A BB", "AB A BB", "A ab"], 3), file)
    return tmp_path / "lm.arpa"


def test_scores_are_the_sum_of_their_parts(language_model: Path) -> None:
    pytest.importorskip("kenlm")
    beam = BeamSearch(vocabulary=VOCABULARY, beam_size=40, nbest=40)
    logits = [torch.randn(7, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    arpa = read_arpa(language_model)
    rescored = Rescored(search=beam, scorer=NGramScorer(language_model), lm_weight=1.5, word_score=-0.3, nbest=5)
    moved = 0
    for before, after in zip(beam(logits), rescored(logits), strict=True):
        expected = {h.text: h.score + 1.5 * arpa.score(h.text) - 0.3 * len(h.text.split()) for h in before}
        best = sorted(expected, key=lambda text: -expected[text])[:5]
        assert [h.text for h in after] == best
        assert [h.score for h in after] == pytest.approx([expected[text] for text in best], abs=1e-4)
        moved += best[0] != before[0].text
    assert moved


def test_n_gram_models_of_lower_case_and_in_other_processes(language_model: Path) -> None:
    pytest.importorskip("kenlm")
    scorer, arpa = NGramScorer(language_model), read_arpa(language_model)
    lower = NGramScorer(language_model.with_name("lower.arpa"))
    with lower.path.open("w") as file:
        write_arpa(estimate(["a bb"], 2), file)
    assert lower(["A BB", "a bb"]) == pytest.approx([read_arpa(lower.path).score("a bb")] * 2, abs=1e-5)
    texts = ["A BB", "", "NEVER SEEN"]
    assert scorer(texts) == pytest.approx([arpa.score(text) for text in texts], abs=1e-5)
    assert pickle.loads(pickle.dumps(scorer))(texts) == scorer(texts)


def test_without_kenlm(language_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(UsageError, match="kenlm") as caught:
        NGramScorer(language_model)(["A"])
    assert "parp-cli[lm]" in str(caught.value.hint)


def test_a_broken_n_gram_model(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    (tmp_path / "lm.arpa").write_text("\\data\\\nngram 1=3\n\n\\1-grams:\nnonsense\n")
    with pytest.raises(DataError, match="cannot be loaded"):
        NGramScorer(tmp_path / "lm.arpa")(["A"])


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal Transformer of a few random weights, whose tokens are letters."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("gpt2")
    names = ["<end>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    letters = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: number for number, name in enumerate(names)}, merges=[])
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token="<end>", bos_token="<end>", clean_up_tokenization_spaces=False
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(names), n_embd=8, n_layer=1, n_head=1, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_transformer_scores_texts_token_by_token(transformer: Path) -> None:
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(transformer).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(transformer)
    scorer = TransformerScorer(str(transformer))
    texts = ["A BB", "", "HELLO THERE"]
    expected = []
    for text in texts:
        ids = [0, *tokenizer.encode(text.lower()), 0]
        assert len(ids) == len(text) + 2
        score = 0.0
        for end in range(1, len(ids)):
            with torch.no_grad():
                score += model(torch.tensor([ids[:end]])).logits[0, -1].log_softmax(-1)[ids[end]].item()
        expected.append(score / math.log(10))
    assert scorer(texts) == pytest.approx(expected, abs=1e-4)


def test_no_such_transformer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(DataError, match="cannot be loaded"):
        TransformerScorer(str(tmp_path / "none"))(["A"])
