"""nano's tokenizer: a BPE of Gemma's layout, learnt from our texts in a hundred languages."""

from collections.abc import Iterator
from pathlib import Path

from small_tokenizer import OWN, SPACE, gemma_layout
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers


def learn_tokenizer(texts: Iterator[str], pieces: int, alphabet: int) -> Tokenizer:
    """Learn `pieces` pieces in all, of the `alphabet` most frequent characters; others become bytes.

    While learning, text is cut before each space and around digits and punctuation, so that no piece spans words; the
    finished tokenizer, like Gemma's, cuts nothing: its merges alone keep words apart.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SPACE, "merged_with_next"),
            pre_tokenizers.Split(Regex(rf"\d|\p{{P}}|(?!{SPACE})\p{{S}}|\n|\t"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=pieces - OWN, limit_alphabet=alphabet, initial_alphabet=["\n", "\t", SPACE], show_progress=True
    )
    learner.train_from_iterator(texts, trainer)
    if learner.get_vocab_size() != pieces - OWN:
        raise SystemExit(f"the texts hold {OWN + learner.get_vocab_size()} pieces, expected {pieces}: ask for fewer")
    return gemma_layout(learner)


def save(tokenizer: Tokenizer, path: Path) -> None:
    part = path.with_suffix(".part")
    tokenizer.save(str(part))
    part.rename(path)
