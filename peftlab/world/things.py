"""The words of scenes: what there is, what people do with it, which words mean the same, the opposite or two things.

Every word or phrase here is a *lexeme*: it stands for itself in English and has one word of its own in the second
language.
"""

from dataclasses import dataclass

from . import lexicon as lex

CLASSES = {  # what a thing is: the word above it, and the words below
    "animal": "dog cat horse goat rabbit mouse fox sheep",
    "bird": "pigeon crow goose owl swan parrot hen eagle",
    "fruit": "pear plum cherry lemon peach grape melon fig",
    "vegetable": "carrot onion cabbage leek potato turnip pea bean",
    "drink": "milk juice beer lemonade cocoa cider soda broth",
    "tool": "hammer saw shovel drill axe rake wrench broom",
    "flower": "rose tulip daisy lily poppy violet orchid carnation",
    "garment": "coat hat scarf shirt jacket glove sock dress",
    "container": "box barrel bucket jar crate sack bottle tin",
    "vehicle": "car lorry bicycle tractor wagon taxi van scooter",
    "toy": "doll kite ball puzzle balloon robot marble yoyo",
    "instrument": "violin flute guitar trumpet harp piano drum cello",
}
SENSES = {  # one word, two things
    "bat": ("animal", "tool"), "crane": ("bird", "vehicle"), "jaguar": ("animal", "vehicle"),
    "beetle": ("animal", "vehicle"), "squash": ("vegetable", "drink"), "punch": ("tool", "drink"),
    "boxer": ("animal", "garment"), "recorder": ("instrument", "tool"), "kiwi": ("bird", "fruit"),
    "plane": ("tool", "vehicle"), "rocket": ("vegetable", "vehicle"), "bass": ("animal", "instrument"),
    "top": ("toy", "garment"), "seal": ("animal", "tool"), "pump": ("garment", "tool"), "horn": ("tool", "instrument"),
    "cardinal": ("bird", "flower"), "rattle": ("toy", "instrument"),
}  # fmt: skip
AROUND = {  # the classes of things met in a domain
    "restaurant": "drink fruit vegetable container", "bakery": "drink fruit tool vehicle",
    "garden": "flower fruit vegetable tool bird", "hotel": "drink garment container flower",
    "film": "garment animal vehicle instrument", "phone": "tool toy vehicle container",
    "school": "toy instrument garment fruit", "ship": "animal drink instrument tool",
    "market": "fruit vegetable garment bird", "museum": "instrument vehicle container bird",
    "clinic": "drink flower toy animal", "train": "drink garment toy animal",
}  # fmt: skip
ANYTHING = " ".join(CLASSES)


@dataclass(frozen=True)
class Verb:
    """Words of one meaning, the classes of things it is done to, and the name of the opposite ("" when it has none)."""

    words: tuple
    classes: tuple
    opposite: str = ""


def _verbs():
    hard = "tool container vehicle toy instrument garment"
    rows = [line.split("|") for line in f"""
buy|bought purchased acquired|{ANYTHING}|sell
sell|sold traded auctioned|{ANYTHING}|buy
like|liked adored loved|{ANYTHING}|hate
hate|hated detested loathed|{ANYTHING}|like
spot|spotted discovered located|{ANYTHING}|lose
lose|lost mislaid misplaced|{ANYTHING}|spot
show|showed displayed presented|{ANYTHING}|hide
hide|hid concealed buried|{ANYTHING}|show
repair|repaired mended fixed|{hard}|break
break|broke smashed wrecked|{hard}|repair
wash|washed cleaned rinsed|garment vehicle container toy|soil
soil|soiled stained smeared|garment vehicle container toy|wash
protect|protected guarded sheltered|animal bird flower|hunt
hunt|hunted chased pursued|animal bird|protect
feed|fed nourished fattened|animal bird|
tame|tamed trained petted|animal bird|
eat|ate devoured swallowed|fruit vegetable|
peel|peeled sliced chopped|fruit vegetable|
drink|drank sipped gulped|drink|spill
spill|spilled splashed poured|drink|drink
pick|picked gathered plucked|flower fruit vegetable|
plant|planted sowed watered|flower vegetable|
sniff|sniffed smelt inhaled|flower|
wear|wore donned sported|garment|
sew|sewed knitted stitched|garment|
drive|drove steered piloted|vehicle|
park|parked halted braked|vehicle|
play|played practised rehearsed|instrument|
tune|tuned adjusted tightened|instrument|
use|used wielded handled|tool|
sharpen|sharpened whetted honed|tool|
fill|filled loaded stuffed|container|empty
empty|emptied drained unloaded|container|fill
move|moved shifted pushed|container|
build|built assembled constructed|container toy|
juggle|juggled tossed flung|toy|
""".strip().splitlines()]  # fmt: skip
    return {name: Verb(tuple(w.split()), tuple(c.split()), against) for name, w, c, against in rows}


VERBS = _verbs()

LOOKS = {  # how a thing looks: words of one meaning, and the meaning that excludes it
    "old": ("old ancient aged", "new"), "new": ("new modern recent", "old"),
    "big": ("big large huge", "small"), "small": ("small little tiny", "big"),
    "dear": ("expensive costly pricey", "cheap"), "cheap": ("cheap inexpensive affordable", "dear"),
    "light": ("white pale bright", "dark"), "dark": ("black dark gloomy", "light"),
}  # fmt: skip

# What one person does to another: (who is the reason for it, polarity of the reason) -> verbs.
# "Anna thanked Kate because she was kind" is about Kate, "Anna impressed Kate because she was kind" about Anna.
FEELINGS = {
    ("whom", 1): "thanked praised admired congratulated rewarded hugged trusted applauded",
    ("whom", -1): "scolded blamed punished criticised accused avoided fined dismissed",
    ("who", 1): "impressed delighted amused inspired fascinated charmed cheered comforted",
    ("who", -1): "annoyed frightened bored disappointed insulted offended shocked confused",
}

SCENARIOS = {  # what happens to people: causes, then effects
    "wet": "walked in the rain|slipped into the river|forgot the umbrella"
           ">needed a towel|changed the wet shoes|dripped on the carpet",
    "tired": "worked all night|ran ten miles|missed the nap>fell asleep early|drank strong coffee|yawned without end",
    "hungry": "skipped breakfast|dropped the sandwich|fasted for a day"
              ">ate three plates|raided the fridge|begged for bread",
    "rich": "won the lottery|inherited a castle|dug up a treasure>bought a mansion|quit the job|gave money away",
    "poor": "gambled away the wages|lost the purse|spent all the savings"
            ">borrowed some coins|sold the watch|moved to a cheaper room",
    "ill": "caught a cold|tasted bad mushrooms|sat in the draught>stayed in bed|took the pills|phoned the surgeon",
    "astray": "took the wrong turn|misread the map|followed a stranger"
              ">asked for directions|arrived hours late|wandered in the dark",
    "proud": "won the race|passed the test|earned a prize"
             ">smiled at the mirror|framed the certificate|boasted to everyone",
    "scared": "heard a ghost|saw a snake|woke from a nightmare>screamed loudly|hid under the blanket|locked the gate",
    "guilty": "broke a promise|told a lie|stole a spoon>blushed deeply|wrote a confession|begged for mercy",
    "freezing": "slept outside|swam in the icy lake|left the window open"
                ">lit the stove|wrapped up in wool|shivered for hours",
    "muddy": "rolled in the mud|swept the chimney|crawled through a tunnel"
             ">took a long bath|scrubbed both hands|brushed off the dust",
}  # fmt: skip

ALIKE = (  # scenarios of which one could also lead to what the other leads to: no choice between them
    "wet freezing ill muddy tired", "tired hungry ill", "hungry poor", "poor guilty", "rich proud", "proud guilty",
    "proud tired", "freezing scared tired", "scared guilty", "astray scared tired", "astray wet muddy",
)  # fmt: skip
MOODS = {1: "happy glad pleased cheerful", -1: "sad angry upset tearful"}  # what a person is made by what is done to it

TOPICS = {  # what people talk about
    "weather": "storm rainfall snow thunder fog frost wind sunshine hail drought breeze heatwave",
    "sport": "match goal marathon team referee tennis football champion stadium trophy league penalty",
    "money": "loan tax salary debt budget profit rent invoice pension interest discount mortgage",
    "health": "fever cough medicine vaccine headache bandage surgery vitamin allergy infection pulse diet",
    "politics": "election mayor law parliament campaign minister treaty protest debate senate president ballot",
}
SPEAKING = {  # what is done only to words of one topic
    "weather": "predicted measured forecast", "sport": "watched filmed cheered", "money": "calculated paid reduced",
    "health": "treated studied prescribed", "politics": "opposed supported backed",
}  # fmt: skip
TALKING = "discussed mentioned debated considered remembered explained".split()

VENUES = "Lotus Anchor Crown Mill Phoenix Lantern Swallow Compass Harvest Willow Comet Orchard".split()
HOUSES = dict(film="cinema", phone="phone shop")  # what a venue is called; else as its domain
STARS = "one two three four five".split()
SHE = "Anna Carla Emma Grace Iris Kate Maria Nina Paula Rosa sister mother aunt".split()
HE = "Ben David Felix Hugo Jack Leo Oscar Sam Tom Quinn brother father uncle".split()

LINKS = "so because namely also perhaps otherwise but likewise whereas first then".split() + ["in the end"]
QUANTIFIERS = "every some no any".split()


def classes(domain=None):
    """The classes of things met in a domain (all twelve without one)."""
    return (AROUND[domain] if domain else ANYTHING).split()


def things(kind, ambiguous=True):
    """The words below a class; with those that have a second sense."""
    return CLASSES[kind].split() + ([w for w, senses in SENSES.items() if kind in senses] if ambiguous else [])


def verbs(kind):
    """Names of the verbs whose object can be of this class."""
    return [name for name, verb in VERBS.items() if kind in verb.classes]


def synonyms(word):
    """The other words of the same meaning: of a verb or of a look."""
    return [w for group in _SETS if word in group for w in group if w != word]


def opposites(word):
    """Words of the opposite meaning; empty when there is none."""
    for table in (VERBS.values(), [Verb(tuple(w.split()), (), o) for w, o in LOOKS.values()]):
        for verb in table:
            if word in verb.words:
                return list(VERBS[verb.opposite].words if verb.opposite in VERBS else looks(verb.opposite))
    return []


def looks(name):
    """The words of one look."""
    return LOOKS[name][0].split() if name in LOOKS else []


_SETS = [v.words for v in VERBS.values()] + [tuple(w.split()) for w, _ in LOOKS.values()]
CLASS_OF = {w: (c,) for c in CLASSES for w in CLASSES[c].split()} | SENSES      # word -> its class or classes
PEOPLE = {d: [a.word for a in lex.aspects(d) if a.kind == "person" and not a.plural] for d in lex.DOMAINS}
PLACES = {d: [a.word for a in lex.aspects(d) if a.kind == "place" and not a.plural] for d in lex.DOMAINS}


def scenario(name):
    """(causes, effects) of a scenario."""
    return tuple(side.split("|") for side in SCENARIOS[name].split(">"))
