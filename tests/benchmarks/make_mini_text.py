"""Make what `mini-text` began from: a small BERT with random weights, and a tokenizer of the generated corpus's words.

python tests/benchmarks/make_mini_text.py FOLDER
parp finetune recipes/mini/pretrain-text.yaml --set model=random:FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import transformers

from parp_cli.data.sentences import words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main(folder: Path) -> None:
    """Write the folder, as transformers does."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    letters = [f"##{chr(code)}" for code in (*range(48, 58), *range(97, 123))]
    tokens = list(dict.fromkeys([*SPECIAL, *characters, *letters, *words()]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    assert len(tokenizer) == len(tokens)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
    )
    transformers.BertModel(config).save_pretrained(folder)
    print(json.dumps({"tokens": len(tokens)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
