"""Fifty texts that people might write: short and long, in many languages, prose, lists, code."""

SHORT = """\
What is the capital of France?
How do I reset my password?
Best pizza near the station
symptoms of a cold versus the flu
The cat sat on the mat.
It rained all day, so we stayed at home and played cards.
Berlin ist die Hauptstadt von Deutschland.
Wo finde ich den nächsten Bahnhof?
La bibliothèque ferme à dix-huit heures.
¿Cuánto cuesta el billete de tren?
今日はとても寒いです。
北京是中国的首都。
Привет, как дела?
هل يمكنك مساعدتي؟
मुझे यह किताब बहुत पसंद है।
서울의 날씨는 어때요?
Kahvaltıda ne yedin?
Ο ήλιος ανατέλλει στην ανατολή.
Jag har bott i Stockholm i tio år.
Wat is de snelste weg naar huis?
def add(a, b): return a + b
SELECT name, age FROM users WHERE age > 30 ORDER BY name;
https://example.com/path?query=1&lang=en
Invoice no. 4711, due 31.12.2026: 1,234.56 EUR
LOL that's sooo funny!!! 😂😂
To be, or not to be, that is the question.
2 + 2 = 4, and 3 * 7 = 21.
Chapter 12. The Long Way Home
I don't think we should sell the shares now; wait until March.
The mitochondrion is the powerhouse of the cell.
Water boils at 100 degrees Celsius at sea level.
A neural network learns by adjusting weights to reduce a loss.
Remove the lid, stir, and heat for two minutes.
Our flight was delayed by three hours because of fog in London.
She plays the violin, he plays chess.
Is there a doctor on board?
Stock markets fell sharply on Monday after weak retail figures.
The treaty was signed in 1648 and ended thirty years of war.
Mount Everest is 8,849 metres high.
""".splitlines()

PARAGRAPH = (
    "The harbour lay quiet in the early light. Two boats had come in during the night, and their crews were mending "
    "nets on the stones while gulls walked between them. Nobody spoke much. A woman with a basket counted the fish "
    "aloud, wrote the number on a slate, and went on to the next boat. When the bell rang, the market opened, and "
    "within an hour everything was sold: the herring to the smokehouse, the cod to the inn, and the crabs to a "
    "merchant from the city."
)

ENTITIES = [
    "rivers",
    "bicycles",
    "volcanoes",
    "bees",
    "railways",
    "violins",
    "glaciers",
    "apples",
    "satellites",
    "maps",
]


def sentences() -> list[str]:
    """The fifty: 39 short ones, one paragraph, and ten of two to eleven sentences about one thing each."""
    topics = [
        " ".join(
            f"{i + 1}. Some {thing} are {'old' if i % 2 else 'new'}, and {ENTITIES[(n + i) % 10]} are like {thing}."
            for i in range(n + 2)
        )
        for n, thing in enumerate(ENTITIES)
    ]
    return [*SHORT, PARAGRAPH, *topics]
