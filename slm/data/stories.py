"""The built-in corpus: children's stories told by a small grammar, so that training needs no download.

Every story has one shape. An opening says who the hero is, and a plot then runs through six short steps, in two
paragraphs:

    opening, wish, trouble, attempt / help, rescue, ending

A plot is a block of text in which a blank line parts the steps and each line within a step is one way to tell it. The
lines are `str.format` templates: `{hero}` and `{friend}` name the two characters, `{a_friend}` introduces the friend
("her cousin Ben", "a wise owl named Ivy"), `{he}` and `{his}` are the hero's pronouns, and every other slot is a word
drawn once per story from the lists below. A slot spelled `{a_...}` puts the article before the word. A wish begins with
`{hero}`, since "One sunny day, " may come before it.

Three rules keep the stories sound; a new plot must follow them too:

* A pronoun means the hero, and stands only where the hero was the last character named. The friend goes by name.
* A thing keeps one slot from its first mention to its last, and its list holds only what makes sense in that plot.
* A name never opens a line or a quotation, so that GPT-2's tokenizer always meets it as one token, such as " Mia".

The frames are few and full of names, which a small model learns soon; the rare words sit in the slots.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def _words(text: str) -> tuple[str, ...]:
    """The comma-separated entries of `text`, each a word or a phrase."""
    return tuple(" ".join(entry.split()) for entry in text.split(","))


# Characters ----------------------------------------------------------------------------------------------------------

GIRL, BOY = "girl", "boy"
CHILD, ANIMAL = "child", "animal"

PRONOUNS = {
    GIRL: {"he": "she", "his": "her"},
    BOY: {"he": "he", "his": "his"},
}

# Each of these names, with a space before it, is a single GPT-2 token.
NAMES = {
    (CHILD, GIRL): _words("""Lily, Mia, Anna, Lucy, Emma, Sara, Amy, Nora, Zoe, Kate, Molly, Jane, Maya, Sophie, Alice,
        Clara, Julia, Nina, Emily, Hannah"""),
    (CHILD, BOY): _words("""Tom, Ben, Max, Sam, Jack, Leo, Tim, Dan, Adam, Noah, Luke, Peter, Henry, Oliver, Jake, Theo,
        Eric, Simon, Charlie, Billy"""),
    (ANIMAL, GIRL): _words("Bella, Ruby, Penny, Coco, Hazel, Ivy, Luna, Stella, Ginger, Misty, Honey, Pearl"),
    (ANIMAL, BOY): _words("Rusty, Buster, Oscar, Felix, Bruno, Chip, Hugo, Otto, Gus, Finn, Pip, Teddy"),
}

# No birds: a hero who can fly needs no help with most of the troubles below.
HERO_ANIMALS = _words("""fox, rabbit, bear, mouse, hedgehog, turtle, otter, badger, beaver, mole, goat, lamb,
    kitten, puppy, piglet, hamster, hare, pony, deer, calf, donkey, lizard, raccoon, squirrel""")


class Part(NamedTuple):
    """What a friend can be to the hero: introduced as "her cousin Ben" or "her mom", and then called "Ben" or "Mom"."""

    gender: str
    introduced_as: str
    called: str


PARTS = {
    "playmate": (
        Part(GIRL, "{his} friend {name}", "{name}"),
        Part(BOY, "{his} friend {name}", "{name}"),
        Part(GIRL, "{his} cousin {name}", "{name}"),
        Part(BOY, "{his} cousin {name}", "{name}"),
    ),
    "creature": (
        Part(GIRL, "{a_warm} {creature} named {name}", "{name}"),
        Part(BOY, "{a_warm} {creature} named {name}", "{name}"),
    ),
    "family": (
        Part(GIRL, "{his} mom", "Mom"),
        Part(BOY, "{his} dad", "Dad"),
        Part(GIRL, "{his} grandma", "Grandma"),
        Part(BOY, "{his} grandpa", "Grandpa"),
    ),
    "neighbor": (
        Part(GIRL, "{his} aunt Susan", "Aunt Susan"),
        Part(BOY, "{his} uncle George", "Uncle George"),
        Part(GIRL, "{his} teacher Miss Wendy", "Miss Wendy"),
        Part(BOY, "{his} neighbor Farmer Joe", "Farmer Joe"),
    ),
}

# Words for every plot ------------------------------------------------------------------------------------------------

WEEKDAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
WEATHER = _words("""sunny, bright, warm, fine, clear, lovely, beautiful, cool, pleasant, mild, fresh, golden, calm,
    cloudy, hot, glorious, quiet, lazy, busy, spring, summer, autumn, perfect, splendid""")


def _times(kinds: Sequence[str], spans: str) -> tuple[str, ...]:
    return tuple(f"One {kind} {span}" for kind in kinds for span in _words(spans))


TIMES = {
    "day": (
        *("One day",) * 20,
        *_times(WEATHER, "day, morning, afternoon"),
        *_times(WEEKDAYS, "morning, afternoon"),
    ),
    "windy day": _times(_words("windy, breezy, gusty, blustery, fresh, cool, autumn"), "day, morning, afternoon"),
    "night": _times(_words("dark, quiet, cold, clear, still, warm, starry, chilly, cool, calm, silent"), "night"),
}

SHARED = {
    "trait": _words("""kind, brave, shy, clever, happy, curious, cheerful, gentle, funny, friendly, polite, lively,
        smart, thoughtful, patient, careful, playful, merry, bold, eager, helpful, loving, sweet, silly, sleepy, dreamy,
        caring, charming, creative, daring, determined, energetic, faithful, giggly, graceful, hopeful, humble, jolly,
        joyful, lucky, modest, noisy, peaceful, quick, restless, sensible, serious, sincere, spirited, talkative,
        tender, timid, witty, chatty, bouncy, adventurous, bubbly, gifted, nimble, loyal, neat, stubborn, messy,
        nervous, cautious, imaginative, inventive, mischievous, courteous, trusting, dainty, sturdy, bashful, gleeful,
        earnest, perky"""),
    "place_look": _words("""quiet, small, tiny, pretty, old, big, lovely, beautiful, pleasant, wonderful, faraway,
        little, great, magical, secret, strange, ancient, colorful, hidden, lonely, calm, bright, nice, remote, distant,
        enchanted, quaint, splendid, marvelous, silent, huge, mysterious, fine, gorgeous"""),
    "warm": _words("""kind, wise, friendly, gentle, clever, helpful, cheerful, old, young, smiling, polite, patient,
        thoughtful, sweet, calm, merry, careful, loyal, sleepy, caring, brave, quiet, good"""),
    "creature": _words("""owl, robin, squirrel, crow, duck, frog, swan, goose, stork, heron, deer, sparrow, raven,
        pigeon, parrot, dove, beetle, snail, toad, hedgehog, turtle, cat, dog, horse, sheep, moose, elk, llama, wolf,
        bat, lark, finch, magpie, falcon, eagle, pelican"""),
    "softly": _words("""softly, kindly, gently, warmly, quietly, cheerfully, calmly, happily, sweetly, brightly, gladly,
        patiently, tenderly, politely, eagerly"""),
    "sad": _words("""sad, upset, worried, unhappy, gloomy, glum, sorrowful, disappointed, discouraged, troubled,
        frustrated, miserable, tearful, heartbroken"""),
    "glad": _words("""happy, glad, proud, cheerful, joyful, delighted, pleased, thankful, grateful, merry, content,
        thrilled, overjoyed, excited"""),
}

# Where a hero lives, and what a hero loves.
SETTINGS = {
    CHILD: {
        "home": _words("""village, town, city, valley, kingdom, country, cottage, house, farmhouse, cabin, castle, land,
            apartment, bungalow, mansion, hamlet, palace, lighthouse, windmill, port"""),
        "landmark": _words("""lake, river, forest, hill, castle, bridge, mill, beach, bay, harbor, lighthouse, market,
            park, meadow, mountain, orchard, pond, school, station, stream, tower, waterfall, windmill, well, bakery,
            canal, church, cliff, farm, field, fountain, garden, library, museum, palace, playground, square, stable,
            temple, theater, vineyard, wharf, creek, airport, circus, factory, volcano, desert, jungle, zoo"""),
        "like": _words("""frogs, maps, trains, puzzles, songs, horses, stories, birds, bicycles, planets, riddles,
            dinosaurs, airplanes, robots, kittens, trucks, poems, ships, jokes, dolls, magnets, elephants, tractors,
            paintings, insects, monkeys, penguins, tigers, whales, dolphins, rockets, castles, parades, fireworks,
            snowflakes, rainbows, volcanoes, spiders, turtles, giraffes, parrots, zebras, koalas, pandas, camels, lions,
            sharks, crabs, lizards, snails, owls, eagles, swans, roses, islands, caves, crayons, stickers, clocks,
            costumes, picnics, ladders, tunnels, engines, helicopters, submarines, telescopes"""),
        "food": _words("""pancakes, muffins, noodles, waffles, strawberries, cookies, pretzels, dumplings, cupcakes,
            biscuits, sandwiches, popcorn, pizza, spaghetti, chocolate, ice cream, cheese, toast, pudding, yogurt, jam,
            pickles, raisins, doughnuts, lemonade, cocoa, milkshakes, crackers, meatballs, macaroni, omelets, burgers,
            sausages, pumpkin soup, apple juice, rice, watermelon, blueberry pie, mashed potatoes, corn, fried eggs,
            oatmeal, lollipops, caramel, toffee, gingerbread, marshmallows, tomato salad, hot tea, coconut milk,
            bananas, peanuts"""),
    },
    ANIMAL: {
        "home": _words("""forest, meadow, valley, field, garden, park, grove, orchard, glen, thicket, wood, vineyard,
            pasture, canyon, jungle, hollow"""),
        "landmark": _words("""lake, river, pond, hill, stream, farm, mountain, waterfall, cave, cliff, creek, barn,
            brook, bay, swamp, road, village, bridge, mill, rock, spring, marsh, trail, beach"""),
        "like": _words("""puddles, flowers, butterflies, songs, stars, games, sunsets, clouds, bees, ferns, leaves,
            pebbles, dandelions, bubbles, sunbeams, secrets, feathers, races, riddles, naps, surprises, echoes, shadows,
            mud baths, breezes, fireflies, tall trees, long walks, raindrops, hills"""),
        "food": _words("""berries, honey, clover, mushrooms, walnuts, acorns, seeds, carrots, turnips, apples, corn,
            pears, roots, sweet grass, blackberries, chestnuts, radishes, cabbage, lettuce, melons, almonds, hazelnuts,
            plums, fresh water, warm milk"""),
    },
}

# Words for several plots ---------------------------------------------------------------------------------------------

COLORS = _words("""red, blue, green, yellow, purple, orange, pink, white, black, brown, gray, golden, silver, scarlet,
    violet, turquoise, crimson, teal, ivory, bronze, copper, lavender, maroon, navy, olive""")
LOOKS = _words("""shiny, pretty, lovely, tiny, old, new, fancy, plain, fine, special, beautiful, strange, curious, neat,
    rare, delicate, colorful, sparkling, polished, gorgeous, unusual, elegant, dusty, handsome""")
NUMBERS = _words("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve")
WATERS = _words("pond, stream, lake, river, creek, brook, canal, bay, lagoon")
PLACES_TO_HIDE = _words("""under the sofa, behind the curtain, under the bed, behind the door, under the rug, behind the
    stove, under a cushion, behind the piano, under a pile of coats, behind the bathtub, under a blanket, behind the
    flowerpot, under the stairs, behind the couch, under the carpet, behind a stack of newspapers""")

A_NOT_AN = ("unicorn", "ukulele")  # take "a", though they begin with a vowel letter

# Openings: one that leaves the time open has it told by the wish ("One sunny day, Mia ...") ---------------------------

OPENINGS = (
    "Once upon a time, there was {a_trait} little {kind} named {hero}.",
    "Once upon a time, there was a little {kind} named {hero} who loved {like}.",
    "Once upon a time, {a_trait} {kind} named {hero} lived near {a_place_look} {landmark}.",
    "Once upon a time, in {a_place_look} {home}, there lived {a_trait} {kind} named {hero}.",
    "There was once {a_trait} little {kind} named {hero} who loved {like} and {food}.",
    "In {a_place_look} {home}, there lived {a_trait} {kind} named {hero}.",
    "{when}, {a_trait} little {kind} named {hero} looked up at the sky.",
    "{when}, {a_trait} {kind} named {hero} was thinking about {food}.",
)

# Plots ---------------------------------------------------------------------------------------------------------------


class Plot(NamedTuple):
    """Who may play the hero and the friend, when the story happens, the words for its slots, and how to tell it."""

    heroes: tuple[str, ...]
    friends: tuple[str, ...]
    time: str
    slots: dict[str, tuple[str, ...]]
    steps: tuple[tuple[str, ...], ...]


def _plot(text: str, heroes: str, friends: str, time: str = "day", **slots: tuple[str, ...]) -> Plot:
    steps = tuple(tuple(map(str.strip, step.splitlines())) for step in text.strip().split("\n\n"))
    return Plot(_words(heroes), _words(friends), time, slots, steps)


PLOTS = {
    "kite": _plot(
        """
        {hero} took {his} {color} kite up the hill.
        {hero} wanted to fly {a_color} kite.
        {hero} made {a_color} kite with a long tail.

        The wind blew the kite into {a_tree} tree.
        Soon the kite got stuck in {a_tree} tree.
        But the kite flew into {a_tree} tree.

        {hero} jumped, but the kite was too high.
        {hero} shook the tree, but nothing came down.
        {hero} threw a stick, but {he} missed.

        Then {a_friend} came by. "I will get {a_pole}," said {friend}.
        "Do not be {sad}. I have {a_pole}," said {a_friend}.
        So {hero} asked {a_friend} for help. "We need {a_pole}," said {friend}.

        {friend} pushed the kite down with the {pole}.
        With the {pole}, {friend} brought the kite down.
        {friend} used the {pole}, and the kite fell into the grass.

        {hero} and {friend} flew the kite together.
        {hero} learned that it is good to ask for help.
        {hero} laughed, and the kite danced in the sky.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        time="windy day",
        color=COLORS,
        tree=_words("""oak, maple, pine, apple, cherry, willow, pear, elm, birch, cedar, chestnut, walnut, plum, olive,
            palm, fig, fir, beech, poplar, lemon, peach"""),
        pole=_words("rake, broom, pole, long stick, fishing rod, mop, long branch, hoe, paddle, bamboo pole"),
    ),
    "boat": _plot(
        """
        {hero} took {a_material} boat to the {water}.
        {hero} put a small {material} boat on the {water}.
        {hero} went to the {water} to sail {a_material} boat.

        Soon the boat was too far from the shore.
        Then the wind blew the boat away.
        But a big wave carried the boat away.

        {hero} reached out, but {he} almost fell into the {water}.
        {hero} blew and blew, but the boat only went farther.
        {hero} called the boat, but boats have no ears.

        Then {a_friend} saw the boat. "I will get {a_net}," said {friend}.
        "Do not be {sad}. I have {a_net}," said {a_friend}.
        Soon {a_friend} came with {a_net}. "Let me help," said {friend} {softly}.

        {friend} used the {net} to bring the boat back to land.
        With the {net}, {friend} pulled the boat closer and closer.
        Slowly, {friend} moved the boat with the {net}.

        {hero} never lost the boat again.
        {hero} tied a string to the boat after that.
        {hero} hugged {friend}, and the little boat was safe.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        material=_words("paper, wooden, cork, plastic, tin, cardboard, bamboo, rubber, metal, toy"),
        water=WATERS,
        net=_words("net, fishing net, long branch, stick, oar, paddle, hook, rake, cane, broom"),
    ),
    "cake": _plot(
        """
        {hero} wanted to bake {a_flavor} {cake}.
        {hero} planned to make {a_flavor} {cake} for dinner.
        {hero} put on an apron to make {a_flavor} {cake}.

        But there was no {staple} in the kitchen.
        But {hero} opened the cupboard and found no {staple}.
        Oh no, all the {staple} was gone!

        {hero} looked on every shelf, but {he} found only {extra}.
        {hero} tried to use {extra}, but that did not work.
        {hero} did it without the {staple}, but it tasted bad.

        So {hero} went to see {a_friend}. "I have {staple}," said {friend} {softly}.
        Then {hero} asked {a_friend}. "Take some of my {staple}," said {friend}.
        "I can give you some {staple}," said {a_friend} {softly}.

        They mixed and stirred, and soon the {flavor} {cake} was done.
        Together they baked the {flavor} {cake}, and it smelled wonderful.
        {hero} and {friend} made the {cake}, and it was just right.

        {hero} gave {friend} the biggest piece.
        {hero} was {glad} and ate some {cake}.
        {hero} learned that cooking is more fun with a friend.
        """,
        heroes="child",
        friends="neighbor",
        cake=_words("cake, pie, tart, loaf, pudding, pastry"),
        flavor=_words("""lemon, cherry, carrot, honey, apple, banana, pumpkin, chocolate, vanilla, cinnamon, ginger,
            peach, coconut, almond, pear, plum, nut, cheese, raisin, orange, blueberry, rhubarb, caramel, mango,
            pineapple, raspberry, cranberry, maple, walnut, apricot"""),
        staple=_words("flour, sugar, butter, milk, cream, salt, yeast, oil, syrup"),
        extra=_words("""rice, beans, onions, garlic, mustard, pepper, vinegar, noodles, pickles, tea, coffee, tuna,
            lentils, ketchup, crackers, soup, cereal, spinach, peas"""),
    ),
    "seed": _plot(
        """
        {hero} planted {a_flower} seed in {a_color} {pot}.
        {hero} wanted to grow {a_flower} in {a_color} {pot}.
        {hero} put {a_flower} seed into {a_color} {pot}.

        {hero} looked every day, but there was only dirt.
        For many days nothing grew, and {hero} felt {sad}.
        But the seed did not grow.

        {hero} sang to the seed, but nothing came up.
        {hero} gave the seed more water, but it did not help.
        {hero} told the seed to hurry up.

        At last {hero} asked {a_friend}. "Seeds need time," said {friend} {softly}.
        Then {a_friend} came. "Put the {pot} in the sun," said {friend}.
        "A seed needs sun, water, and time," said {a_friend} {softly}.

        {hero} waited, and one morning there was a small green leaf.
        So {hero} put the {pot} in the sun, and the {flower} opened.
        {hero} waited for {number} days, and the {flower} opened.

        {hero} learned to be patient.
        "It was worth the wait," said {hero}.
        {hero} was {glad} and showed the {flower} to {friend}.
        """,
        heroes="child, animal",
        friends="playmate, family, neighbor",
        color=COLORS,
        number=NUMBERS,
        pot=_words("pot, tub, bucket, box, jar, cup, can, barrel"),
        flower=_words("""sunflower, daisy, poppy, tulip, pansy, marigold, violet, lily, rose, iris, orchid, bluebell,
            daffodil, lavender, buttercup, carnation, aster, snapdragon"""),
    ),
    "baby": _plot(
        """
        {hero} heard a soft cry near the {water}.
        {hero} was playing by the {water} and heard a little voice.
        {hero} went to the {water} and heard a strange sound.

        A baby {baby} was sitting alone under a bush.
        There was a lost baby {baby} in the grass.
        It was a baby {baby} without its mother.

        {hero} wrapped it in {a_cloth}, but it still cried.
        {hero} gave it water, but it did not drink.
        {hero} sang to it, but it shook with fear.

        Then {a_friend} came. "Its mother must be near the {nest}," said {friend} {softly}.
        So {hero} called {a_friend}. "I saw its mother near the {nest}," said {friend}.
        "Let us look near the {nest}," said {a_friend} {softly}.

        They went to the {nest}, and there was its mother.
        {hero} took it to the {nest}, and its mother came running.
        At the {nest} was the mother {baby}!

        {hero} waved to the baby {baby} and felt {glad}.
        {hero} smiled all the way home with {friend}.
        {hero} learned that small acts can help a lot.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        water=WATERS,
        baby=_words("""deer, rabbit, duck, goose, fox, squirrel, hedgehog, goat, sheep, swan, raccoon, badger, otter,
            beaver, skunk, possum, porcupine, wolf, moose, weasel"""),
        cloth=_words("scarf, blanket, towel, sweater, coat, shawl, jacket, cloth, vest, handkerchief, shirt"),
        nest=_words("""barn, hill, fence, well, oak tree, haystack, hedge, gate, bridge, old mill, shed, corn field, big
            rock, fallen tree"""),
    ),
    "noise": _plot(
        """
        {hero} went to bed with a soft {plush}.
        {hero} lay in bed and held a {plush}.
        {hero} could not sleep and held a {plush} tight.

        Suddenly there was a {noise} near the {window}.
        Then {hero} heard a {noise} near the {window}.
        A strange {noise} came from the {window}.

        {hero} hid, but the {noise} came again.
        {hero} was still, but the {noise} did not stop.
        {hero} closed {his} eyes and was afraid.

        At last {hero} called {a_friend}. "Let us look together," said {friend} {softly}.
        "I will turn on the light," said {a_friend} {softly}.
        Soon {a_friend} came with a lamp. "Take my hand, {hero}," said {friend} {softly}.

        It was only {cause}!
        They looked, and the {noise} was only {cause}.
        {friend} pointed and laughed, for it was just {cause}.

        {hero} was not afraid of the dark anymore.
        {hero} laughed too and soon fell asleep.
        {hero} learned that things look less scary in the light.
        """,
        heroes="child",
        friends="family",
        time="night",
        plush=_words("teddy bear, toy rabbit, doll, toy lion, toy monkey, toy whale, toy camel, toy elephant, toy owl"),
        noise=_words("noise, sound, creak, tap, rattle, scratch, squeak, rustle, knock, click, bump, thump"),
        window=_words("window, door, closet, wall, stairs, desk, curtain, fireplace, chimney, radiator"),
        cause=_words("""the wind, a loose board, a branch in the wind, a hungry cat, a tiny mouse, the old heater, a
            lost pigeon, a big beetle, a broken hinge, a sleepy owl, a lazy raccoon"""),
    ),
    "skill": _plot(
        """
        {hero} wanted to learn to {skill}.
        {hero} had never learned to {skill}.
        {hero} dreamed that {he} could {skill}.

        It looked easy, but it was very hard.
        But {hero} did not know how to start.
        But everyone said that {hero} was too small.

        {hero} tried {number} times, but it did not work.
        {hero} tried all day and only got tired.
        {hero} tried alone, but {he} soon felt {sad}.

        Then {hero} asked {a_friend}. "I will teach you to {skill}," said {friend}.
        Soon {a_friend} sat down with {hero}. "Try again slowly," said {friend} {softly}.
        "Do not give up. I will show you," said {a_friend} {softly}.

        After {number} days, {hero} could {skill}!
        {hero} watched {friend} and tried again, and this time it worked!
        Step by step, {hero} learned how to {skill}.

        {hero} was {glad} and thanked {friend}.
        {hero} learned never to give up.
        {hero} knew that every hard thing gets easier with time.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        number=NUMBERS,
        skill=_words("""juggle, whistle, skate, swim, dance, ride a bike, jump rope, tie a bow, knit, paddle a canoe,
            row a boat, climb a rope, do a cartwheel, play chess, fold a paper bird, draw a horse, sew, sing, bowl,
            type, weave a basket, braid hair, walk on stilts, ride a pony, ride a scooter, blow huge bubbles, spell long
            words, do magic tricks, speak French, play tennis, play golf, catch a ball, dive, cook an egg, wrestle, ski,
            surf, yodel, carve a spoon"""),
    ),
    "share": _plot(
        """
        {hero} had {a_basket} full of {fruits}.
        {hero} filled {a_basket} with sweet {fruits}.
        {hero} went out with {a_basket} of {fruits}.

        Then {a_friend} came along and looked hungry.
        Soon {a_friend} sat down with nothing to eat.
        Then {hero} met {a_friend}, who had no lunch.

        {hero} wanted all the {fruits} and hid the {basket}.
        {hero} looked away and kept the {fruits}.
        {hero} turned around and held the {basket} tight.

        "My lunch fell into the mud," said {friend}. So {hero} felt bad.
        But {friend} looked so {sad} that {hero} could not eat anymore.
        "I am so hungry," said {friend} in {a_sad} voice.

        So {hero} opened the {basket}, and they ate together.
        So {hero} gave half of the {fruits} to {friend}.
        "Please take some of my {fruits}," said {hero}.

        {hero} learned that food tastes better when you share it.
        {friend} gave {hero} a hug, and {hero} was {glad}.
        {hero} and {friend} shared everything from that day on.
        """,
        heroes="child, animal",
        friends="playmate",
        basket=_words("basket, bag, bowl, box, bucket, sack, pail, crate, jar"),
        fruits=_words("""apples, pears, plums, berries, cherries, grapes, peaches, figs, nuts, oranges, strawberries,
            raspberries, blueberries, apricots, melons, dates, bananas, walnuts, carrots, tomatoes, almonds"""),
    ),
    "vase": _plot(
        """
        {hero} was playing with a ball in the {room}.
        {hero} danced and jumped around in the {room}.
        {hero} ran through the {room} like a wild horse.

        With a crash, {a_color} {vase} fell down.
        {hero} bumped into {a_color} {vase}, and it broke.
        Then {a_color} {vase} hit the floor and broke.

        {hero} hid the pieces {spot}.
        {hero} was scared and hid it {spot}.
        {hero} put the pieces {spot}.

        Soon {a_friend} came in. "Where is the {vase}?" asked {friend}.
        Then {a_friend} looked around. "What happened?" asked {friend} {softly}.
        "What was that noise?" asked {a_friend}.

        "I broke the {vase}. I am sorry," said {hero}.
        {hero} felt {sad} but told {friend} the truth.
        "It was me," said {hero}. {friend} gave {hero} a hug.

        They fixed the {vase}, and {hero} felt {glad}.
        {hero} learned that the truth is always best.
        {hero} was more careful in the {room} after that.
        """,
        heroes="child",
        friends="family",
        color=COLORS,
        room=_words("kitchen, hall, living room, dining room, bedroom, parlor, study"),
        spot=PLACES_TO_HIDE,
        vase=_words("vase, cup, plate, bowl, lamp, mug, teapot, jug, jar, dish, clock, glass, statue, pitcher, saucer"),
    ),
    "race": _plot(
        """
        {hero} ran a race with {a_friend} to the {goal}.
        {hero} wanted to race {a_friend} to the {goal}.
        {hero} and {a_friend} had a race to the {goal}.

        But {friend} tripped over {a_stone} and fell.
        Halfway there, {friend} did not see {a_stone} and fell.
        Then {friend} fell over {a_stone}.

        {hero} could see the {goal} and ran on.
        {hero} wanted to win and did not stop.
        {hero} was almost at the {goal} and ran even faster.

        "Ouch, my leg!" cried {friend}. So {hero} stopped and turned around.
        Then {hero} looked back. "Please help me," said {friend} in {a_sad} voice.
        But {friend} did not get up. "It hurts," said {friend}.

        {hero} ran back and helped {friend} to stand up.
        {hero} went back to {friend}, and they walked to the {goal}.
        {hero} came back, and they went on side by side.

        Nobody won the race, but both of them were {glad}.
        {hero} learned that a friend is better than a prize.
        "We both win!" said {hero} to {friend}.
        """,
        heroes="child, animal",
        friends="playmate",
        goal=_words("""gate, fence, bridge, barn, well, mill, oak tree, swing, pond, fountain, bench, hill, haystack,
            mailbox, statue, shed, hedge, sandbox, pump, scarecrow, tower, flagpole"""),
        stone=_words(
            "stone, root, log, branch, rock, stump, bucket, hose, rope, brick, shoe, rake, pumpkin, box, stick"
        ),
    ),
    "gift": _plot(
        """
        {hero} wanted to buy a gift for {a_friend}.
        {hero} went to buy a gift for {a_friend}.
        {hero} needed a gift for {a_friend}.

        The shop had {a_look} {gift}, but it cost {number} coins.
        In the shop, {a_look} {gift} cost too much.
        {hero} saw {a_look} {gift}, but it cost too much.

        {hero} had only one coin.
        {hero} had no money, only {a_button}.
        {hero} asked the {seller} for a lower price.

        Then the {seller} smiled. "You can make a gift," said the {seller} {softly}.
        Then {hero} had an idea. "I can make a gift!" said {hero}.
        At home, {hero} sat down to think. "I can make something!" said {hero}.

        {hero} worked all evening and made {a_craft} for {friend}.
        So {hero} made {a_craft}, and {friend} loved it.
        {hero} made {a_craft} and gave it to {friend}.

        "This is the best gift of all," said {friend}.
        {hero} learned that the best gifts need no money.
        {friend} hugged {hero}, and {hero} was {glad}.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        look=LOOKS,
        number=NUMBERS,
        gift=_words("""watch, necklace, guitar, hat, book, umbrella, teapot, clock, lamp, music box, bracelet, scarf,
            camera, globe, lantern, puzzle, radio, telescope, wallet, belt, purse, pillow"""),
        button=_words("button, feather, pebble, ticket, stamp, string, pencil, leaf, thread, crumb, cork, pin"),
        seller=_words(
            "clerk, seller, shopkeeper, merchant, owner, tailor, carpenter, toymaker, artist, potter, cashier"
        ),
        craft=_words("""paper crown, clay bowl, woolen hat, birthday card, paper lantern, wooden boat, clay cup, bead
            necklace, paper flower, painted stone, picture book, photo album, paper star, cardboard castle, wooden
            spoon, cloth puppet, leather bookmark, flower wreath, paper fan, sock puppet, wooden whistle"""),
    ),
    "tower": _plot(
        """
        {hero} wanted to build {a_tower} out of {blocks}.
        {hero} began to build {a_tower} with {blocks}.
        {hero} gathered many {blocks} to build {a_tower}.

        But the {tower} shook and fell down.
        Boom! The {tower} fell down with a crash.
        It was almost done, but then it fell.

        {hero} built it again, but it fell again.
        {hero} tried {number} times, but it fell every time.
        {hero} tried to go faster, but the {blocks} slipped.

        Then {a_friend} came. "Make it wide," said {friend} {softly}.
        "Put the big {blocks} first," said {a_friend} {softly}.
        So {hero} asked {a_friend}. "Let us build together," said {friend} {softly}.

        They worked side by side, and this time the {tower} stood.
        {hero} began again, and the {tower} did not fall.
        {friend} held the {blocks}, and the {tower} grew.

        {hero} learned that good work takes time.
        "We did it!" said {hero} to {friend}.
        {hero} looked at the {tower} and was {glad}.
        """,
        heroes="child, animal",
        friends="playmate, family",
        number=NUMBERS,
        tower=_words("""tower, castle, fort, house, bridge, wall, palace, tunnel, hut, cabin, lighthouse, barn, temple,
            pyramid, gate, den, arch"""),
        blocks=_words("stones, sticks, blocks, boxes, bricks, logs, planks, branches, rocks, boards, tiles"),
    ),
    "map": _plot(
        """
        {hero} found an old map {nook}.
        {hero} looked {nook} and found a map.
        {hero} saw a treasure map {nook}.

        The map led to {a_dark} {cave}.
        On the map was {a_dark} {cave}.
        The map said to look inside {a_dark} {cave}.

        {hero} was afraid to go in alone.
        {hero} went in, but {he} soon ran out again.
        {hero} took one step inside the {cave} and came back.

        So {hero} told {a_friend}. "Let us go together," said {friend} {softly}.
        Then {hero} met {a_friend}. "I will come with you," said {friend} {softly}.
        "I will look for treasure with you," said {a_friend}.

        Inside the {cave}, they found {a_chest} full of {treasure}.
        They looked and found {a_chest} of {treasure}.
        Deep in the {cave} was {a_chest} full of {treasure}.

        {hero} and {friend} shared the {treasure} and were {glad}.
        {hero} learned that two friends are braver than one.
        "The best treasure is a friend," said {hero}.
        """,
        heroes="child, animal",
        friends="playmate",
        nook=_words("""under a flat stone, inside a hollow log, under an old bridge, behind a wall, in an old bottle,
            near a fence, under some leaves, behind a waterfall, in a broken basket, under an old rug"""),
        dark=_words("dark, deep, narrow, damp, cold, silent, gloomy, spooky, dusty, hidden, empty, creepy, crooked"),
        cave=_words("cave, tunnel, tower, castle, cellar, barn, mine, hut, mill, cabin, shed, temple"),
        chest=_words("chest, box, jar, trunk, tin, sack, basket, bag, pot, barrel, suitcase, crate, bottle, kettle"),
        treasure=_words("""coins, marbles, jewels, pearls, buttons, medals, beads, crystals, diamonds, rubies,
            shells, stamps, toys, whistles, bells, ribbons, rings, feathers, gems, keys, emeralds, candies,
            chocolates, fossils"""),
    ),
    "ring": _plot(
        """
        {hero} found {a_look} {ring} on the {path}.
        {hero} saw {a_look} {ring} on the {path}.
        {hero} came upon {a_look} {ring} on the {path}.

        {hero} wanted to keep the {ring}.
        Nobody was there, so {hero} took it.
        "This is mine now," said {hero}.

        {hero} hid the {ring}, but it did not feel right.
        {hero} went on, but {his} steps were slow.
        {hero} looked at it, but {he} felt {sad}.

        Then {hero} met {a_friend}. "I lost my {ring}," said {friend}.
        Soon {a_friend} came along. "Did you see my {ring}?" asked {friend}.
        "My {ring} is gone," said {a_friend} in {a_sad} voice.

        {hero} gave the {ring} back to {friend} at once.
        "Here it is," said {hero}, and {friend} jumped for joy.
        So {hero} told the truth and gave the {ring} to {friend}.

        {hero} learned that it feels good to be honest.
        {friend} was {glad} and gave {hero} {a_reward}.
        {hero} was {glad} all the way home.
        """,
        heroes="child, animal",
        friends="playmate, neighbor",
        look=LOOKS,
        path=_words("path, road, street, bridge, grass, sand, trail, hill, beach, lane"),
        ring=_words("""ring, watch, key, scarf, whistle, bracelet, necklace, medal, purse, glove, hat, coin, button,
            brush, comb, notebook, lantern, compass, umbrella, bell, ribbon, badge, mirror, flute, bag, spoon, pearl,
            basket, cap"""),
        reward=_words("""apple, cookie, flower, hug, pear, kiss, plum, cupcake, walnut, ribbon, balloon, muffin, peach,
            sandwich, orange, rose, bun, pretzel, cherry"""),
    ),
    "show": _plot(
        """
        {hero} was going to play the {violin} at the {fair}.
        {hero} was asked to play the {violin} at the {fair}.
        {hero} wanted to play the {violin} at the {fair}.

        So many people came that {hero} began to shake.
        {hero} saw the big crowd and felt very {nervous}.
        But {hero} saw the crowd and wanted to hide.

        {hero} took a deep breath, but {his} knees still shook.
        {hero} tried to begin, but {he} forgot the song.
        {hero} played one note, but it sounded wrong.

        Then {a_friend} came close. "Look only at me," said {friend} {softly}.
        "I will stay with you," said {a_friend} {softly}.
        Then {a_friend} waved. "You can do it!" called {friend}.

        So {hero} looked at {friend} and played, and everyone clapped.
        {hero} smiled at {friend} and played the whole song.
        {hero} began again, and the {violin} sounded {sweet} and clear.

        {hero} learned that it is all right to be afraid.
        {hero} was {glad} and bowed to the crowd.
        "That was wonderful!" said {friend}.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        violin=_words("""violin, drum, flute, piano, guitar, trumpet, harp, cello, banjo, horn, tuba, clarinet,
            accordion, harmonica, xylophone, organ, tambourine, ukulele, trombone, fiddle, keyboard, saxophone"""),
        fair=_words("""fair, festival, school show, party, wedding, parade, concert, town hall, picnic, carnival, talent
            show, feast, market, fairground, contest, school play"""),
        nervous=_words("nervous, afraid, shy, scared, small, anxious, dizzy, weak, frightened, uneasy"),
        sweet=_words("sweet, warm, bright, lovely, soft, rich, pure, strong, loud, full"),
    ),
    "costume": _plot(
        """
        {hero} wanted to be {a_pirate} at the costume party.
        {hero} was going to a party as {a_pirate}.
        {hero} wanted to go to the party as {a_pirate}.

        But {hero} had no costume to wear.
        But the costume in the shop cost too much.
        But the old costume was too small for {hero}.

        {hero} put on {a_sheet}, but it looked like {a_cabbage}.
        {hero} tried on {a_sheet}, but it fell off.
        {hero} wore {a_sheet} but looked like {a_cabbage}.

        Then {a_friend} came in. "I have paint and paper," said {friend} {softly}.
        So {hero} went to {a_friend}. "Let us make it together," said {friend}.
        "I know how to help you," said {a_friend} {softly}.

        They cut and glued until {hero} looked just like {a_pirate}.
        {friend} helped with the paint, and soon {hero} was {a_pirate}.
        At last {hero} looked like a real {pirate}.

        At the party, everyone clapped for {hero}.
        "You are the best {pirate} I know," said {friend}.
        {hero} was {glad} and danced all evening.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        pirate=_words("""pirate, knight, astronaut, dragon, wizard, lion, tiger, robot, clown, ghost, bee, butterfly,
            ladybug, owl, shark, dinosaur, monster, explorer, chef, doctor, detective, unicorn, mermaid, fairy, giant,
            elf, peacock, parrot, panda, zebra, spider, scarecrow, superhero, sailor, captain, magician, acrobat,
            octopus, penguin, crab, lobster, cactus, pumpkin, snowman, leopard, cricket, grasshopper, alligator"""),
        sheet=_words("sheet, blanket, curtain, coat, towel, shirt, tablecloth, rug, bag, pillowcase, quilt"),
        cabbage=_words(
            "cabbage, potato, sausage, mushroom, tent, pillow, turnip, mop, pancake, cloud, haystack, onion"
        ),
    ),
    "picture": _plot(
        """
        {hero} was painting a picture of {a_subject}.
        {hero} sat down to paint {a_subject}.
        {hero} painted {a_subject} for the wall.

        Then {color} paint fell on the {subject}.
        But there was {a_color} spot on the {subject}.
        Then {hero} made a big {color} spot by mistake.

        {hero} wiped the spot, but it grew.
        {hero} put water on the spot, but it grew.
        {hero} wanted to throw the picture away and felt {sad}.

        Then {a_friend} looked at it. "I see {a_blot}," said {friend} {softly}.
        "That spot can be {a_blot}," said {a_friend} {softly}.
        Just then, {a_friend} came in. "What a nice {blot}!" said {friend}.

        So {hero} turned the {color} spot into {a_blot}.
        {hero} laughed and painted until the spot was {a_blot}.
        With a few lines, {hero} made the spot into {a_blot}.

        The picture was even better, and {hero} was {glad}.
        {hero} learned that a mistake can be a good start.
        {friend} put the picture on the wall.
        """,
        heroes="child",
        friends="playmate, family, neighbor",
        color=COLORS,
        subject=_words("""lighthouse, windmill, horse, ship, castle, train, bridge, barn, garden, city, mountain,
            forest, beach, rocket, volcano, waterfall, farm, giraffe, elephant, king, queen, dragon, church, bicycle,
            tractor, truck, rainbow, sunset, jungle, snowman, island, whale, street, harbor, meadow, village"""),
        blot=_words("""cloud, balloon, butterfly, flower, fish, bird, hat, mushroom, umbrella, apple, bug, leaf, moon,
            snail, kite, cat, cherry, star, egg, heart, jellyfish, beetle, pumpkin"""),
    ),
    "moon": _plot(
        """
        {hero} saw the big round moon and wanted to hold it.
        {hero} looked at the moon and wanted to touch it.
        {hero} wanted to catch the moon and take it home.

        But the moon was far too high in the sky.
        But it was so far away.
        But nobody could reach the moon.

        {hero} climbed on {a_wall}, but it did not help.
        {hero} jumped from {a_wall} and fell.
        {hero} ran and ran, but {he} only got tired.

        Then {a_friend} filled {a_bucket} with water. "Look in here," said {friend}.
        "Look into my {bucket} of water," said {a_friend} {softly}.
        Soon {a_friend} brought {a_bucket} of water. "Look down," said {friend} {softly}.

        There was the moon, right inside the {bucket}!
        {hero} looked into the water, and the moon looked back.
        {hero} saw the moon shine in the {bucket}.

        "Good night, moon," whispered {hero}.
        {hero} was {glad} and gave {friend} a hug.
        {hero} learned that big things fit in small places.
        """,
        heroes="child, animal",
        friends="playmate, family, creature",
        time="night",
        wall=_words("wall, rock, hill, fence, stump, log, barrel, box, bench, haystack, stone, cart"),
        bucket=_words("bucket, bowl, pot, tub, basin, pail, barrel, pan, kettle, jug"),
    ),
    "shells": _plot(
        """
        {hero} put {look} {shells} into {a_bag}.
        {hero} filled {a_bag} with {look} {shells}.
        {hero} had {a_bag} full of {shells}.

        But the {bag} had a hole in it.
        But the {bag} broke, and they fell out.
        Then the {bag} tipped over.

        {hero} tried to hold all the {shells}.
        {hero} could not carry them all.
        {hero} saw the {shells} on the ground and felt {sad}.

        Soon {a_friend} came by. "I have {a_tub}," said {friend} {softly}.
        "Let us use my {tub}," said {a_friend} {softly}.
        Then {a_friend} came with {a_tub}. "Let me help," said {friend} {softly}.

        They put all the {shells} into the {tub}.
        {hero} and {friend} worked until the {tub} was full.
        They put {shells} into the {tub}, one by one.

        {hero} gave {friend} the prettiest ones.
        {hero} learned that work is light when a friend helps.
        "Thank you, {friend}," said {hero}.
        """,
        heroes="child, animal",
        friends="playmate, family",
        look=_words("pretty, lovely, fine, tiny, big, perfect, beautiful, colorful, small, special, nice, clean"),
        shells=_words("""shells, pebbles, acorns, leaves, feathers, pinecones, chestnuts, flowers, stones, seeds,
            petals, twigs, berries, walnuts, mushrooms, ferns, crystals, nuts, roses, herbs, grapes, daisies,
            tulips"""),
        bag=_words("bag, basket, sack, box, crate, bucket, pail, paper bag, cardboard box"),
        tub=_words("tub, wagon, cart, barrel, suitcase, wheelbarrow, pot, chest, tray, backpack"),
    ),
    "way home": _plot(
        """
        {hero} followed {a_color} {butterfly} into the woods.
        {hero} saw {a_color} {butterfly} and ran after it.
        {hero} chased {a_color} {butterfly}.

        Soon {hero} did not know the way home.
        The {butterfly} flew away, and {hero} was lost.
        Then the {butterfly} was gone, and so was the path.

        {hero} looked around, but all the trees looked the same.
        {hero} called for help, but nobody came.
        {hero} sat down and felt {sad}.

        Then {hero} met {a_friend}. "I will take you home," said {friend} {softly}.
        "Do not be {sad}. I know the way," said {a_friend}.
        At last {a_friend} came along. "I know the way," said {friend} {softly}.

        They went past the {rock}, and {hero} was home.
        {hero} followed {friend} past the {rock} all the way home.
        They passed the {rock}, and then {hero} knew the way.

        {hero} thanked {friend} and never went so far alone again.
        {hero} was {glad} and hugged {friend}.
        {hero} learned to stay on the path.
        """,
        heroes="child, animal",
        friends="creature",
        color=COLORS,
        butterfly=_words("butterfly, moth, dragonfly, bee, beetle, bird, grasshopper, bumblebee, ladybug, firefly"),
        rock=_words("""rock, old mill, waterfall, well, big oak, fallen tree, windmill, hollow log, tall pine, broken
            fence, stone tower, mossy stump, anthill, beehive, pond"""),
    ),
    "market": _plot(
        """
        {hero} went to the market for {a_friend}.
        {hero} went shopping for {a_friend}.
        {hero} went to the market to help {a_friend}.

        {hero} needed {herb} and {vegetables}, but {he} lost the list.
        {hero} wrote {vegetables} and {staple} on a list but lost it.
        But the list of food fell into a puddle.

        {hero} tried to remember but thought only of {sweets}.
        {hero} looked for the list, but it was gone.
        {hero} could think only of {sweets}.

        Then the {seller} asked, "What will {friend} cook today?"
        "What does {friend} want to cook?" asked the {seller}.
        "What is for dinner today?" asked the {seller} {softly}.

        "It is {soup}!" said {hero}. Then {he} knew what to buy.
        "It is {soup}!" said {hero} and bought {vegetables} and {herb}.
        "We will have {soup}," said {hero}, and it was easy.

        {friend} cooked the {soup}, and {hero} ate two bowls.
        {friend} made the best {soup} ever, and {hero} was {glad}.
        {hero} learned to stay calm and think.
        """,
        heroes="child",
        friends="family",
        herb=_words(
            "salt, pepper, parsley, garlic, basil, thyme, mint, butter, oil, vinegar, rosemary, saffron, ginger"
        ),
        vegetables=_words("""carrots, onions, potatoes, peas, beans, tomatoes, leeks, turnips, peppers, beets, cabbages,
            mushrooms, parsnips, eggplants"""),
        staple=_words("bread, rice, eggs, fish, chicken, cheese, milk, cream, flour, noodles, ham, barley, beef"),
        sweets=_words("""candy, cake, cherries, chocolate, cookies, ice cream, honey, grapes, melons, lollipops,
            peaches, jelly, doughnuts, bubblegum, fudge, marshmallows, toffee, licorice, peppermints"""),
        seller=_words("baker, butcher, farmer, grocer, fisherman, merchant, clerk, cook, gardener, miller, shopkeeper"),
        soup=_words("""vegetable soup, bean soup, onion soup, potato soup, chicken soup, fish soup, noodle soup, winter
            stew, lentil stew, beef stew, fish stew, cabbage soup, tomato soup"""),
    ),
    "toy": _plot(
        """
        {hero} wanted to play with {a_color} {toy}.
        {hero} looked for {his} {color} {toy}.
        {hero} came home to play with {a_color} {toy}.

        But the {toy} was gone!
        But the {toy} was not in the toy box.
        But {hero} could not find the {toy}.

        {hero} looked in the {nook} and in the {corner}.
        {hero} looked in the {corner}, but it was not there.
        {hero} searched the {nook} and found only {a_sock}.

        Then {hero} told {a_friend}. "I will help you look," said {friend} {softly}.
        "Where did you play with it?" asked {a_friend} {softly}.
        So {hero} asked {a_friend}. "Let us look together," said {friend} {softly}.

        They looked again, and {friend} found it {spot}.
        {hero} looked again, and the {toy} was {spot}!
        At last {hero} saw the {toy} {spot}.

        {hero} hugged {friend} and played all day.
        {hero} always put {his} toys away after that.
        {hero} was {glad} to have the {toy} back.
        """,
        heroes="child",
        friends="playmate, family",
        color=COLORS,
        toy=_words("""ball, doll, robot, drum, puppet, top, truck, train, car, boat, airplane, teddy bear, whistle,
            puzzle, horn, toy horse, dinosaur, rocket, tractor, balloon, marble, cube, kite"""),
        nook=_words("closet, drawer, cupboard, wardrobe, desk, bookcase, cabinet, basket"),
        corner=_words("kitchen, hall, bathroom, cellar, attic, garage, garden, bedroom, basement, yard"),
        sock=_words("sock, spoon, shoe, pencil, slipper, mitten, crayon, coin, cookie, button, comb, glove, feather"),
        spot=PLACES_TO_HIDE,
    ),
}

# Telling a story -----------------------------------------------------------------------------------------------------


class Cast(NamedTuple):
    """The two characters of a story; `hero` and `friend` are the names the text uses."""

    hero: str
    hero_gender: str
    friend: str
    friend_gender: str


def story(seed: int, index: int) -> str:
    """Story number `index` of the corpus that `seed` names: the same text each time, on every version of Python."""
    text, _ = _tell(seed, index)
    return text


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """The first `count` stories of the corpus that `seed` names, each told when it is asked for."""
    return (story(seed, index) for index in range(count))


def _tell(seed: int, index: int) -> tuple[str, Cast]:
    """The text of a story, and who is in it."""
    # A digest, because integers with bits in common seed related generators: those of 257 and 2**40 + 257 are the same.
    rng = random.Random(int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=16).digest(), "big"))
    plot = _pick(rng, tuple(PLOTS.values()))
    being = _pick(rng, plot.heroes)
    slots = SHARED | SETTINGS[being] | plot.slots
    words = {slot: _pick(rng, options) for slot, options in slots.items()}
    words |= {f"a_{slot}": _with_article(word) for slot, word in words.items()}
    words["when"] = _pick(rng, TIMES[plot.time])
    cast = _add_characters(rng, plot, being, words)

    opening = _pick(rng, OPENINGS)
    wish, trouble, attempt, help_, rescue, ending = (_pick(rng, step) for step in plot.steps)
    if "{when}" not in opening:
        wish = "{when}, " + wish
    text = f"{opening} {wish} {trouble} {attempt}\n{help_} {rescue} {ending}"
    return text.format_map(words), cast


def _add_characters(rng: random.Random, plot: Plot, being: str, words: dict[str, str]) -> Cast:
    """Choose the hero and the friend, and add what the templates call them to `words`."""
    gender = _pick(rng, (GIRL, BOY))
    hero = _pick(rng, NAMES[being, gender])
    words |= PRONOUNS[gender]
    words["hero"] = hero
    words["kind"] = gender if being == CHILD else _pick(rng, HERO_ANIMALS)

    role = _pick(rng, plot.friends)
    if being == ANIMAL and role != "family":
        role = "creature"
    part = _pick(rng, PARTS[role])
    names = NAMES[ANIMAL if role == "creature" else CHILD, part.gender]
    words["name"] = _pick(rng, [name for name in names if name != hero])
    words["friend"] = part.called.format_map(words)
    words["a_friend"] = part.introduced_as.format_map(words)
    return Cast(hero, gender, words["friend"], part.gender)


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    # `Random.random` is the one method whose sequence Python promises never to change.
    return options[int(rng.random() * len(options))]


@cache
def _with_article(word: str) -> str:
    vowel = word[0] in "aeiou" and not word.startswith(A_NOT_AN)
    return f"{'an' if vowel else 'a'} {word}"
