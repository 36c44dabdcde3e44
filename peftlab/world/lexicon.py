"""The words of the micro-world: plain English, in tables that others may extend.

A table cell is `word` or `word:degree` (1 mild, 2 clear, 3 strong); a `+` after a word marks a plural.
"""
from dataclasses import dataclass

POSITIVE, NEGATIVE = 1, -1


@dataclass(frozen=True)
class Aspect:
    """Something one can have an opinion on; `kind` decides which adjectives and events suit it."""
    word: str
    kind: str
    plural: bool = False


@dataclass(frozen=True)
class Adjective:
    """A judging word: polarity +1 or -1, degree 1 to 3, and the kind of aspect it suits ("any" suits all)."""
    word: str
    polarity: int
    degree: int
    kind: str = "any"


@dataclass(frozen=True)
class Event:
    """What an aspect did, in the past tense; the event tells the polarity without any adjective."""
    phrase: str
    polarity: int
    kind: str


DOMAINS = {
    "restaurant": dict(food="soup fish salad steaks+ desserts+ wine", person="waiter cook", place="terrace kitchen",
                       work="service menu music"),
    "bakery": dict(food="bread cakes+ pies+ coffee biscuits+", person="baker owner", place="shop cellar",
                   thing="oven basket", work="recipe display"),
    "garden": dict(food="tomatoes+ apples+ strawberries+", person="gardener", place="lawn pond path greenhouse",
                   thing="bench fountain gate", work="tour"),
    "hotel": dict(food="breakfast", person="porter receptionist maid", place="room bathroom lobby pool",
                  thing="bed pillows+ shower", work="service"),
    "film": dict(person="hero villain director actors+", place="scenery studio", thing="costumes+",
                 work="story plot dialogue ending script music"),
    "phone": dict(person="seller technician", place="counter workshop",
                  thing="screen battery camera speaker keyboard charger case buttons+",
                  work="manual update"),
    "school": dict(food="lunch", person="teacher principal pupils+ nurse", place="classroom library playground gym",
                   work="lesson homework concert"),
    "ship": dict(food="dinner", person="captain sailors+ steward", place="cabin deck harbour",
                 thing="engine anchor sails+", work="voyage schedule"),
    "market": dict(food="cheese fruit honey olives+ sausages+", person="farmer butcher grocer", place="stall square",
                   thing="bags+ baskets+"),
    "museum": dict(person="guide curator guards+", place="hall gallery entrance", thing="statue paintings+ vase",
                   work="exhibition lecture tour"),
    "clinic": dict(food="meals+", person="doctor nurse dentist", place="ward lobby", thing="chairs+ curtains+ bed",
                   work="treatment advice"),
    "train": dict(food="sandwiches+ tea", person="conductor driver", place="carriage platform station",
                  thing="seats+ windows+ doors+", work="journey timetable"),
}

ADJECTIVES = {
    POSITIVE: dict(any="fine:1 decent:1 nice:1 pleasant:1 good:2 great:2 lovely:2 charming:2 delightful:2 impressive:2 "
                       "remarkable:2 wonderful:3 excellent:3 superb:3 brilliant:3 fantastic:3 perfect:3 amazing:3 "
                       "splendid:3 marvellous:3 magnificent:3 outstanding:3",
                   food="fresh:1 tasty:2 delicious:3", person="polite:1 friendly:2 generous:3",
                   place="clean:1 cosy:2 beautiful:3", thing="sturdy:1 reliable:2 elegant:3",
                   work="clever:1 memorable:2 inspiring:3"),
    NEGATIVE: dict(any="poor:1 weak:1 dull:1 mediocre:1 bad:2 annoying:2 disappointing:2 unpleasant:2 nasty:2 shabby:2 "
                       "miserable:2 awful:3 terrible:3 horrible:3 dreadful:3 appalling:3 hopeless:3 ghastly:3 dire:3 "
                       "atrocious:3 disgraceful:3 pathetic:3",
                   food="stale:1 bland:2 disgusting:3", person="lazy:1 rude:2 cruel:3",
                   place="dirty:1 noisy:2 hideous:3", thing="flimsy:1 broken:2 useless:3",
                   work="slow:1 boring:2 pointless:3"),
}

EVENTS = {
    POSITIVE: dict(food="vanished within minutes|tasted of summer", person="helped everyone at once|listened with care",
                   place="smelled of flowers|made us feel at home", thing="worked from the first day|lasted for years",
                   work="ended in applause|taught us a lot"),
    NEGATIVE: dict(food="made two guests ill|tasted of soap", person="shouted at everyone|ignored every question",
                   place="smelled of smoke|made us feel like prisoners",
                   thing="stopped on the first day|fell to pieces", work="ended in chaos|put us to sleep"),
}

# What people did in the end: it reveals the polarity of the whole document.
CONSEQUENCES = {
    POSITIVE: "came back twice|stayed an extra day|thanked everyone|left a big tip|smiled all evening|booked again|"
              "told every friend to go|wrote a glowing letter|took many photos|gave it five stars|went home happy|"
              "bought a gift card|celebrated with a toast|promised to return|sent flowers|cheered at the end",
    NEGATIVE: "asked for the money back|left early|stayed away for good|complained to the boss|wrote an angry letter|"
              "gave it one star|went home upset|warned every friend|demanded an apology|walked out|"
              "cancelled the next visit|argued for an hour|threw the ticket away|regretted the trip|refused to pay|"
              "sighed at the end",
}
VERDICTS = {POSITIVE: "liked it", NEGATIVE: "hated it"}  # the plainest consequence
GENERAL = {POSITIVE: "good", NEGATIVE: "bad"}  # the adjective that says no more than the polarity
LOCAL = {  # consequences of one domain: (positive, negative)
    "restaurant": ("ordered a second plate|kissed the cook", "sent the plates back|ate somewhere else"),
    "bakery": ("bought a dozen more|emptied the shelf", "fed the crumbs to the pigeons|baked at home"),
    "garden": ("planted the same roses|sat there until sunset", "pulled up the weeds|climbed over the fence"),
    "hotel": ("slept like babies|kept the key as a souvenir", "slept in the car|packed before midnight"),
    "film": ("watched it again|clapped until midnight", "slept through it|switched it off"),
    "phone": ("bought another for the family|called everyone", "returned it to the shop|dropped it in a drawer"),
    "school": ("passed every exam|joined the choir", "failed every exam|changed to another class"),
    "ship": ("danced until dawn|waved at the crew", "counted the hours|stepped off at the first port"),
    "market": ("filled two bags|learned the names of the sellers", "kept the purse shut|shopped in town"),
    "museum": ("bought every postcard|joined the club", "ran for the exit|yawned in every corner"),
    "clinic": ("felt better at once|hugged the staff", "felt worse at once|searched for another clinic"),
    "train": ("waved from the window|arrived in high spirits", "took the bus|missed the wedding"),
}

NAMES = ("Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Kate Leo Maria Nina Oscar Paula Quinn Rosa Sam "
         "Tom").split()
KIN = "sister brother mother father friend neighbour aunt uncle cousin colleague".split()
OWNERS = "my our".split()
CROWD = "we I they".split()
SAYING = "said|thought|felt|said that|wrote that|believed that|agreed that|explained that".split("|")
FINDING = "found called considered".split()
COPULA = {False: "was seemed remained looked".split(), True: "were seemed remained looked".split()}  # by plural
BOOSTERS = {1: "quite rather fairly".split(), 2: "very really so truly".split(), 3: "absolutely simply utterly".split()}
DENIALS = ("not", "never", "far from", "anything but")
WHERE = {"ship": "On", "train": "On", "film": "In", "garden": "In", "phone": "With"}     # all others: at
ARTICLES = ("the", "the", "the", "our", "their")
CONTRASTS = ("although", "even though", "while")


def _cells(text):
    for cell in text.split():
        word, _, degree = cell.partition(":")
        yield word, int(degree or 2)


def aspects(domain):
    """All aspects of a domain, in a fixed order."""
    return [Aspect(w.rstrip("+"), kind, w.endswith("+")) for kind, words in DOMAINS[domain].items()
            for w in words.split()]


def adjectives(polarity, kind=None):
    """All adjectives of a polarity; with `kind`, only those which suit it."""
    return [Adjective(w, polarity, d, k) for k, text in ADJECTIVES[polarity].items() if kind in (None, k) or k == "any"
            for w, d in _cells(text)]


def events(polarity, kind):
    """What an aspect of this kind can have done, by polarity."""
    return [Event(p, polarity, kind) for p in EVENTS[polarity].get(kind, "").split("|") if p]


def consequences(polarity, domain):
    """What people did afterwards: (phrases said in every domain, phrases of this domain)."""
    return CONSEQUENCES[polarity].split("|"), LOCAL[domain][0 if polarity == POSITIVE else 1].split("|")
