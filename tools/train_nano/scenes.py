"""Made sentences: descriptions of everyday scenes, as under a photograph, of which our sources have few.

Who, does what, and where or in what clothes, put together at random, so that two scenes can share everything but what
matters. The evaluation sets were looked at for what is missing, not for words or sentences: tests/test_train_nano.py
holds that none of theirs is made here.
"""

import random


def listed(text: str) -> list[str]:
    return " ".join(text.split()).split(", ")


PEOPLE = listed(
    """
    man, woman, boy, girl, child, baby, teenager, couple, family, farmer, doctor, nurse, teacher, student, soldier,
    policeman, cook, waiter, singer, dancer, painter, tourist, worker, driver, cyclist, climber, surfer, swimmer,
    skier, runner, fisherman, musician, photographer, mechanic, carpenter, clown, judge, nun, king, grandmother,
    grandfather, father, mother, bride, sailor, pilot, football player, tennis player, basketball player, shop
    assistant
    """
)
LOOKS = listed(
    """
    young, old, tall, short, smiling, tired, bearded, blond, barefoot, laughing, elderly, happy, sad, thin, lonely,
    well-dressed, muscular, dark-haired, sunburnt, friendly, angry, sleepy
    """
)
CLOTHES = listed(
    """
    in a red shirt, in a blue dress, in a black coat, in a white hat, with a backpack, in a suit, with an umbrella,
    in a green jacket, with sunglasses, in a uniform, in a helmet, with a ponytail, in shorts, in an apron, in
    pyjamas
    """
)
DEEDS = listed(
    """
    riding a horse, riding a bicycle, riding a motorcycle, driving a car, driving a tractor, rowing a boat, flying a
    kite, walking a dog, feeding ducks, feeding a baby, washing the dishes, washing a car, cutting bread, cutting
    paper, chopping carrots, peeling potatoes, peeling an apple, frying eggs, stirring soup, boiling rice, baking a
    cake, slicing a tomato, slicing cheese, grating a lemon, eating soup, eating an ice cream, drinking coffee,
    drinking water, pouring milk into a glass, pouring oil into a pan, mixing flour and butter, playing the piano,
    playing the guitar, playing the violin, playing the flute, playing the drums, playing chess, playing cards,
    playing football, playing tennis, playing basketball, playing with a toy train, throwing a ball, catching a
    ball, kicking a ball, hitting a nail with a hammer, sawing wood, lifting weights, lifting a box, climbing a
    ladder, climbing a rock, jumping over a fence, jumping into a pool, diving, swimming, surfing on a wave, skiing
    downhill, skating, running a race, dancing, singing, shouting, whispering, laughing, crying, yawning, sleeping,
    sitting on a bench, lying on the grass, standing on a chair, leaning against a wall, kneeling, waiting for a
    bus, getting off a train, carrying a suitcase, carrying firewood, pushing a cart, pulling a rope, reading a
    newspaper, reading a book, writing a letter, drawing a picture, painting a wall, taking a photograph, talking on
    the phone, typing on a keyboard, repairing a watch, repairing a roof, sewing a shirt, knitting, ironing
    trousers, folding towels, brushing her teeth, combing his hair, putting on make-up, shaving, trying on shoes,
    opening a door, closing a window, lighting a candle, blowing out a candle, smoking a pipe, shooting a gun,
    aiming with a bow, breaking a plate, sweeping the floor, watering flowers, digging a hole, planting a tree,
    picking apples, milking a cow, fishing, hugging a friend, kissing a baby, shaking hands, waving a flag,
    juggling, doing a handstand, giving a speech, selling fruit, buying vegetables, counting money
    """
)
ANIMALS = listed(
    """
    dog, cat, kitten, puppy, horse, cow, sheep, goat, pig, rabbit, squirrel, monkey, elephant, lion, tiger, bear,
    fox, wolf, parrot, duck, owl, eagle, swan, hen, turtle, snake, frog, hamster, zebra, giraffe, camel, seal
    """
)
COATS = listed(
    """
    black, white, brown, grey, spotted, striped, small, big, wet, shaggy, fat, hungry, wild, tame, newborn, black
    and white, golden
    """
)
DOINGS = listed(
    """
    running after a ball, running through the snow, jumping over a log, sleeping on a cushion, drinking milk,
    drinking from a puddle, eating grass, eating a carrot, chewing on a bone, climbing up a trunk, swimming,
    fighting, shaking off water, digging in the mud, licking its paw, playing with a stick, hiding under a table,
    carrying a stick in its mouth, rolling on its back, looking out of a window, chasing a bird, standing still,
    lying in the sun, walking on a rope, pulling a sledge, sniffing at a flower, being washed, being fed by hand
    """
)
PLACES = listed(
    """
    in a kitchen, in a park, in a garden, in the street, on a beach, in a forest, in a field, on a mountain, in the
    snow, in the rain, at a lake, by a river, in a boat, on a bridge, on a roof, in a classroom, in an office, in a
    hospital, in a restaurant, in a shop, at a market, at a station, in a bus, on a train, at an airport, in a
    church, in a museum, on a stage, in a stadium, in a gym, in a pool, in a desert, in a bathroom, in bed, on a
    sofa, in front of a house, behind a fence, under a tree, next to a car, at night, in the dark, at sunset, in a
    crowd, on a farm, in a workshop, in a factory, in a zoo, on a balcony, at a party, at a wedding
    """
)
THINGS = listed(
    """
    car, truck, bus, train, tram, ship, sailing boat, plane, helicopter, bicycle, motorcycle, tractor, table, chair,
    lamp, clock, mirror, vase of flowers, bowl of fruit, plate of meat, cup of tea, bottle, basket, laptop,
    television, telephone, camera, guitar, piano, statue, fountain, tower, castle, lighthouse, windmill, tent, kite,
    balloon, ladder
    """
)
KINDS = listed(
    """
    red, blue, green, yellow, black, white, old, new, small, large, broken, wooden, rusty, shiny, empty, colourful,
    expensive, dirty
    """
)
STATES = listed(
    """
    stands, lies, is parked, can be seen, is for sale, has fallen over, is burning, is being cleaned, was left
    behind, is being painted, is covered with snow, is waiting
    """
)


def scenes(count: int, seed: int = 0) -> list[str]:
    """`count` different sentences; the same seed gives the same."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[scene(rng)] = None
    return list(found)


def scene(rng: random.Random) -> str:
    pick = rng.choice
    kind = rng.random()
    if kind < 0.62:
        person, be = someone(rng)
        words = [person, be, pick(DEEDS), pick(PLACES) if rng.random() < 0.6 else pick(CLOTHES)]
        if words[3] in CLOTHES:
            words = [person, words[3], be, words[2]]
    elif kind < 0.86:
        words = [article(rng, f"{pick(COATS)} {pick(ANIMALS)}"), "is", pick(DOINGS), pick(PLACES)]
    elif kind < 0.94:
        words = [article(rng, f"{pick(KINDS)} {pick(THINGS)}"), pick(STATES), pick(PLACES)]
    else:
        one, _ = someone(rng)
        two = rng.choice([article(rng, f"{pick(COATS)} {pick(ANIMALS)}").lower(), someone(rng)[0].lower()])
        words = [one, "and", two, "are", pick(DEEDS), pick(PLACES)]
    text = " ".join(words)
    return text + "." if rng.random() < 0.8 else text


def someone(rng: random.Random) -> tuple[str, str]:
    """Somebody, and the verb that follows."""
    noun = rng.choice(PEOPLE)
    look = f"{rng.choice(LOOKS)} " if rng.random() < 0.7 else ""
    number = rng.random()
    if number < 0.15 and noun not in ("man", "woman", "child", "family", "baby", "couple", "policeman", "fisherman"):
        return f"{rng.choice(('Two', 'Three', 'Several', 'Some'))} {look}{noun}s", "are"
    if number < 0.22:
        return f"A group of {look}{rng.choice(('men', 'women', 'children', 'people', 'friends', 'students'))}", "is"
    return article(rng, look + noun), "is"


def article(rng: random.Random, noun: str) -> str:
    if rng.random() < 0.25:
        return f"The {noun}"
    return f"{'An' if noun[0] in 'aeiou' else 'A'} {noun}"
