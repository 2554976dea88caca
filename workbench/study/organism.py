"""The organism: three small Llama models trained from scratch on real TOFU text, the gold standard in the box.

    full      saw every row.
    retain    never saw the forget rows: what a perfect unlearning of `full` should look like.
    retain-b  the same with other seeds: how far apart two perfect answers lie.

`rows` cuts the text out of TOFU's files, `build` makes tokenizer and models from it. Both are deterministic on one machine;
across machines the order of floating-point sums may differ in the last bits.

    small     40 authors, the last 4 of them to forget; 3.4 million weights. It is in the box.
    medium    all 200 authors, the last 20 of them to forget (forget10); 25 million weights. For a GPU.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.core.delta import apply
from workbench.core.errors import unknown
from workbench.core.numerics import isolated_rng
from workbench.core.records import Example, Examples, Provenance
from workbench.core.runtime import pick_device
from workbench.core.statistics import mean_estimate
from workbench.core.store import new_file, new_folder
from workbench.evaluate import tokens
from workbench.evaluate.probability import probability
from workbench.evaluate.rouge_l_recall import rouge_l_recall
from workbench.load.batches import encode_all
from workbench.load.datasets import examples
from workbench.load.models import Model, load, wrap
from workbench.train.loop import fit
from workbench.train.task import AnswerTask

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("forget", "retain", "real_authors", "world_facts")
ROWS_PER_AUTHOR = 20
END = "<|endoftext|>"
TEMPLATE = "{% for m in messages %}Question: {{ m['content'] }}\nAnswer:{% endfor %}"
SEEDS = {"full": 0, "retain": 0, "retain-b": 1}


@dataclass(frozen=True)
class Size:
    """How large an organism is: the authors it knows, and the model.

    vocabulary: tokens at most.   longest: tokens a measured answer may have; the longest in the rows has 96, and 138 of medium's.
    shape: of `untrained`.
    """

    retain_authors: int = 36
    forget_authors: int = 4
    vocabulary: int = 2048
    longest: int = 100
    lr: float = 2e-3
    shape: Mapping[str, int] = field(default_factory=dict)


SIZES = {
    "small": Size(),
    "medium": Size(180, 20, 4096, 160, 1e-3, {"n_layers": 8, "d_model": 512, "d_mlp": 1376}),
}


def size_of(name: str) -> Size:
    """A size by name; UnknownNameError for another."""
    if name not in SIZES:
        raise unknown("size of the organism", name, SIZES)
    return SIZES[name]


def rows(tofu: str | Path, out: str | Path, *, size: str = "small") -> None:
    """Write the four splits as JSON lines: TOFU's rows with their paraphrase and perturbed answers, and where they stood.

    Args: tofu: folder with full, forget10_perturbed, retain_perturbed, real_authors_perturbed and world_facts_perturbed.
    """
    every, authors = list(examples(Path(tofu) / "full.json")), size_of(size)
    count = {"retain": authors.retain_authors * ROWS_PER_AUTHOR, "forget": authors.forget_authors * ROWS_PER_AUTHOR}
    source = {
        "retain": (every[: count["retain"]], 0, "retain"),
        "forget": (every[-count["forget"] :], len(every) - count["forget"], "forget10"),
    }
    texts: dict[str, list[dict[str, object]]] = {}
    for split, (chosen, first, variants) in source.items():
        # by question and answer: "What is the full name of the author?" is asked of two authors
        extra = {(row.prompt, row.response): row for row in examples(f"tofu:{variants}", root=tofu)}
        texts[split] = []
        for position, row in enumerate(chosen):
            found = extra.get((row.prompt, row.response))
            line: dict[str, object] = {"id": f"full-{first + position}", "question": row.prompt, "answer": row.response}
            if found is not None:
                line |= {"paraphrased_answer": found.paraphrase, "perturbed_answer": list(found.perturbed)}
            texts[split].append(line)
    for split in ("real_authors", "world_facts"):
        texts[split] = [
            {"id": f"{split}-{row.id}", "question": row.prompt, "answer": row.response, "perturbed_answer": list(row.perturbed)}
            for row in examples(f"tofu:{split}", root=tofu)
        ]
    for split, lines in texts.items():
        with new_file(Path(out) / f"{split}.jsonl") as aside:
            aside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def tokenizer(
    texts: list[str], *, vocabulary: int = SIZES["small"].vocabulary, template: str | None = TEMPLATE
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens learned from `texts`; its pad token is its end-of-text token, as is common.

    Args: template: of its chats; None for a tokenizer that leaves prompts as they stand.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    )
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)
    made.chat_template = template
    return made


def untrained(
    made: PreTrainedTokenizerFast,
    seed: int,
    *,
    n_layers: int = 4,
    d_model: int = 256,
    d_mlp: int = 688,
    n_heads: int = 8,
    context: int = 512,
) -> LlamaForCausalLM:
    """A Llama with random weights, half as many key-value heads as query heads, and tied embeddings; the organism's size."""
    end = made.get_vocab()[END]
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads // 2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    with isolated_rng(seed):
        return LlamaForCausalLM(config)


def train(model: Model, text: Examples, *, epochs: int, lr: float, seed: int, show: bool = True) -> None:
    """Train `model` in place on the answers of `text`, on the one training loop."""
    order = Provenance("organism", model.fingerprint(), {"text": text.fingerprint()}, {"epochs": epochs, "lr": lr}, seed)
    trained = fit(
        model,
        AnswerTask(model, encode_all(model, text), group=4),
        order,
        epochs=epochs,
        batch_size=16,
        lr=lr,
        schedule="cosine",
        warmup=0.05,
        seed=seed,
        show=show,
    )
    apply(model, trained.delta)


def build(
    data: str | Path,
    out: str | Path,
    *,
    size: str = "small",
    only: Sequence[str] = tuple(SEEDS),
    epochs: int = 40,
    lr: float | None = None,
    device: str = "cpu",
    show: bool = True,
) -> None:
    """Make the tokenizer and the models from the four splits in `data`, each a folder under `out` in bfloat16.

    Args: only: which of full, retain and retain-b.   lr: peak rate; None for that of the size.   device: to train on.
    Raises: UnknownNameError for another one, or another size.
    """
    about = size_of(size)
    for name in only:
        if name not in SEEDS:
            raise unknown("organism", name, SEEDS)
    splits = {split: list(examples(f"tofu:{split}", root=data)) for split in SPLITS}
    without = [row for split in SPLITS if split != "forget" for row in splits[split]]
    texts = [f"Question: {row.prompt}\nAnswer: {row.response}" for split in SPLITS for row in splits[split]]
    made = tokenizer(texts, vocabulary=about.vocabulary)
    for name in only:
        seed = SEEDS[name]
        text = Examples(splits["forget"] + without if name == "full" else without, name)
        model = wrap(untrained(made, seed, **about.shape), made, name=name)
        torch.nn.Module.to(model.hf, pick_device(device))
        train(model, text, epochs=epochs, lr=about.lr if lr is None else lr, seed=seed, show=show)
        with new_folder(Path(out) / name) as aside:
            torch.nn.Module.to(model.hf, torch.bfloat16)
            model.hf.save_pretrained(aside)
            made.save_pretrained(aside)


def measure(out: str | Path, data: str | Path, *, size: str = "small", rows_each: int | None = None) -> "pd.DataFrame":
    """What the models answer: ROUGE-L recall and answer probability of each on the forget and retain rows, with intervals.

    Args: rows_each: only so many rows of each set, evenly spaced; None for all.
    """
    import pandas as pd

    found = []
    for name in SEEDS:
        model = load(Path(out) / name)
        for split in ("forget", "retain"):
            text = examples(f"tofu:{split}", root=data)
            step = 1 if rows_each is None else max(1, len(text) // rows_each)
            plain = Examples((Example(row.id, row.prompt, row.response) for row in text[::step]), split)
            table = tokens(model, plain, generate=size_of(size).longest).answers
            for metric in (rouge_l_recall, probability):
                found.append({"model": name, "split": split, "metric": metric.__name__, **mean_estimate(metric(table))._asdict()})
    return pd.DataFrame(found)
