"""A byte-fallback BPE of Gemma's layout and a thousand pieces, for small checkpoints: Gemma's own may not be shipped.

Normaliser, pre-tokeniser, post-processor, decoder and the ids of the special pieces are those of EmbeddingGemma's
tokenizer.json; the 256 bytes follow them, then the pieces, learnt from the sample below. What no piece covers becomes
bytes, so every text survives.
"""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
SPACE = "\u2581"
PIECES = 1000
OWN = len(SPECIAL) + 256  # pieces that are not learnt

SAMPLE = """\
task: search result | query: which planet is red
title: none | text: the cat saw a red house near old trees while seven birds sang about rain and light
task: sentence similarity | query: task: classification | query: task: clustering | query: task: code retrieval | query:
The quick brown fox jumps over the lazy dog. Mars is the red planet; Venus is hot, and Saturn has rings.
Words that stand together often mean something together, and a vector that is near another means something like it.
She sells seashells by the seashore, and he reads the news in the morning with a cup of coffee and some bread.
def main(argument): return [value for value in argument if value is not None]  # 0123456789
Der schnelle braune Fuchs springt über den faulen Hund. Die Größe der Straße ist schön, und die Bäume sind grün.
Le renard brun rapide saute par-dessus le chien paresseux. Les élèves déjeunent à l'école où ça sent le café.
El zorro marrón salta sobre el perro perezoso. La niña pequeña corrió mañana por la montaña, ¿verdad?
Быстрая коричневая лиса прыгает через ленивую собаку. Слова, которые часто стоят рядом, значат похожее.
Η γρήγορη καφέ αλεπού πηδά πάνω από το τεμπέλικο σκυλί. القطة تنام في البيت القديم. הכלב רץ בגן הגדול.
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। 猫が古い家の前で寝ています。小さい鳥は歌う。我喜欢在早上喝咖啡，也喜欢看书。
빠른 갈색 여우가 게으른 개를 뛰어넘는다. แมวนอนอยู่บนบ้านเก่า
"""


def small_tokenizer() -> Tokenizer:
    """The same each time: learning it is deterministic, and takes some milliseconds."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")  # pieces do not span words
    trainer = trainers.BpeTrainer(vocab_size=PIECES - OWN, show_progress=False)
    learner.train_from_iterator(SAMPLE.splitlines() * 2, trainer)
    return gemma_layout(learner)


def gemma_layout(learner: Tokenizer) -> Tokenizer:
    """Learnt pieces and merges as a tokenizer of Gemma's layout: special pieces, the 256 bytes, then the learnt."""
    learnt = sorted(learner.get_vocab().items(), key=lambda entry: entry[1])
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in learnt)]
    merges = learner_merges(learner)
    tokenizer = Tokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in SPECIAL])
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1",
        special_tokens=[("<bos>", SPECIAL.index("<bos>")), ("<eos>", SPECIAL.index("<eos>"))],
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def learner_merges(learner: Tokenizer) -> list[tuple[str, str]]:
    """The learnt merges, in their order; the package gives them in its JSON only."""
    return [(one, two) for one, two in json.loads(learner.to_str())["model"]["merges"]]
