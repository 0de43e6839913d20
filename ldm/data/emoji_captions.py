"""The words of the emoji data: articles, plurals, tags, mirrorable pictures and the ten background colours.

Caption grammar:

    {style} emoji of {phrase}[ next to {phrase}][, {tag}][, {colour} background]

A phrase is a label with the article that English wants: "a red apple", "an owl", "the sun", "cherries", "french fries".
Labels and tags are those of emojibase (Unicode CLDR).
"""

import re

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (222, 50, 48),
    "orange": (246, 140, 36),
    "yellow": (252, 218, 66),
    "green": (66, 168, 80),
    "blue": (52, 112, 222),
    "purple": (132, 72, 186),
    "pink": (246, 160, 200),
    "brown": (134, 88, 52),
    "grey": (150, 152, 156),
    "black": (24, 24, 28),
}
WHITE = (255, 255, 255)  # the ground of a caption that names none

STYLES = ("3d", "flat", "noto")

# Labels that are no noun phrase by themselves, or whose head is not the last word.
_PHRASES = {
    "locked": "a closed padlock",
    "unlocked": "an open padlock",
    "locked with pen": "a padlock with a pen",
    "locked with key": "a padlock with a key",
    "sun": "the sun",
    "sun with face": "the sun with a face",
    "sun behind cloud": "the sun behind a cloud",
    "sun behind small cloud": "the sun behind a small cloud",
    "sun behind large cloud": "the sun behind a large cloud",
    "sun behind rain cloud": "the sun behind a rain cloud",
    "milky way": "the milky way",
    "Statue of Liberty": "the Statue of Liberty",
    "map of Japan": "a map of Japan",
    "Tokyo tower": "the Tokyo tower",
    "star-struck": "a star-struck face",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "exploding head": "an exploding head",
    "head shaking horizontally": "a head shaking horizontally",
    "head shaking vertically": "a head shaking vertically",
    "high voltage": "a high voltage sign",
    "cooking": "an egg cooking in a pan",
    "globe showing Europe-Africa": "a globe showing Europe and Africa",
    "globe showing Americas": "a globe showing the Americas",
    "globe showing Asia-Australia": "a globe showing Asia and Australia",
    "glass of milk": "a glass of milk",
    "roll of paper": "a roll of paper",
    "loudly crying face": "a loudly crying face",
    "hammer and pick": "a hammer and a pick",
    "hammer and wrench": "a hammer and a wrench",
    "fork and knife": "a fork and a knife",
    "fork and knife with plate": "a fork and a knife with a plate",
    "bow and arrow": "a bow and arrow",
    "nut and bolt": "a nut and bolt",
    "flag in hole": "a flag in a hole",
    "on": "on",
}

# Substances, games and the like: no article.
_UNCOUNTABLE = frozenset(
    "bacon badminton bamboo baseball basketball bowling bread broccoli butter camping construction coral curry cutlery "
    "dango dna field-hockey fire flatbread foggy fog fondue garlic ice lacrosse lotion mail mate oden paper popcorn rain "
    "rice rock sake salt sand snow softball spaghetti sushi tennis thread volleyball wood yarn salad green leafy "
    "ginger-root hockey pong toast".split()
)
# Balls of a game are things, whatever the game is called.
_COUNTABLE_LABELS = {
    "baseball": "a baseball",
    "softball": "a softball",
    "basketball": "a basketball",
    "volleyball": "a volleyball",
    "tennis": "a tennis racket and ball",
    "american football": "an american football",
    "rugby football": "a rugby ball",
    "ice hockey": "an ice hockey stick and puck",
    "field hockey": "a field hockey stick and ball",
    "rock": "a rock",
    "fire": "a fire",
    "bread": "a loaf of bread",
    "beach with umbrella": "a beach with an umbrella",
    "raised hand": "a raised hand",
    "moon viewing ceremony": "a moon viewing ceremony",
}
# Words ending in s that are one thing.
_SINGULAR_S = frozenset(
    "bus minibus trolleybus oncoming-bus cactus lotus octopus compass glass dress cross hibiscus walrus lens canvas "
    "platypus virus tennis class mattress abacus citrus funeral-urns iris hippopotamus rhinoceros chess press".split()
)
# Plurals without an s.
_PLURAL_WORDS = frozenset("dice maracas people men women children teeth feet mice geese".split())
_PREPOSITIONS = frozenset("with of on in behind showing for at over under from and without".split())
_ARTICLES = ("a ", "an ", "the ")
_AN_DESPITE_SPELLING = ("hour", "heir", "honest", "x-ray", "mri", "sos", "led ")
_A_DESPITE_SPELLING = ("uni", "uti", "use", "usa", "eu", "ewe", "one", "once", "ufo", "ukulele", "u-")


def article(words: str) -> str:
    """Return "a" or "an" for the words that follow, by sound."""
    text = words.lower()
    if text.startswith(_AN_DESPITE_SPELLING):
        return "an"
    if text.startswith(_A_DESPITE_SPELLING) and not text.startswith(("unin", "unim")):
        return "a"
    if re.match(r"(8|11|18)(\D|$)", text):
        return "an"
    return "an" if text[:1] in "aeiou" else "a"


def is_plural(label: str) -> bool:
    """Whether the label names several things: "cherries", "shopping bags", "roses in a vase"."""
    head = _head(label).lower()
    if head in _PLURAL_WORDS:
        return True
    return head.endswith("s") and not head.endswith("ss") and head not in _SINGULAR_S and len(head) > 3


def noun_phrase(label: str) -> str:
    """Return the label as it stands in a caption, with the article that it wants."""
    for table in (_PHRASES, _COUNTABLE_LABELS):
        if label in table:
            return table[label]
    if label.startswith(_ARTICLES) or label.isupper() or _clock_time(label):
        return label
    if is_plural(label) or _head(label).lower() in _UNCOUNTABLE:
        return label
    return f"{article(label)} {label}"


def _head(label: str) -> str:
    """The noun that decides the number: the last word before the first preposition."""
    words = label.split()
    for position, word in enumerate(words):
        if position and word in _PREPOSITIONS:
            return words[position - 1]
    return words[-1]


def _clock_time(label: str) -> bool:
    return label.endswith(("o’clock", "o'clock", "-thirty"))


# Mirroring would spoil letters, digits, clock faces, music and whatever the label itself calls left or right.
_FIXED_WORDS = frozenset(
    "left right leftwards rightwards arrow clock o’clock watch stopwatch hourglass hand hands letter letters number "
    "calendar newspaper receipt banknote euro yen pound dollar book books notebook ledger memo card medal "
    "musical score trademark atm hospital bank hotel store station stop taxi ambulance police school joker mahjong "
    "playing die dvd disk keyboard piano abacus chart ballot label ticket tickets pager radio fax "
    "compass globe map japan clapper slot machine pool t-rex's x-ray thermometer speaker speech waxing waning quarter "
    "crescent zzz hundred points money violin guitar saxophone banjo telephone exclamation question japanese post "
    "bag credit convenience sos id identification new soon back end top up down mantelpiece timer alarm".split()
)
_FIXED_LABELS = frozenset({"fire engine", "pool 8 ball", "ZZZ", "e-mail", "thought balloon", "eye in speech bubble", "wheel"})
_MIRROR_ANYWAY = frozenset({"shopping bags", "clutch bag", "top hat", "new moon", "teddy bear", "hand with fingers splayed"})


def is_mirrorable(label: str) -> bool:
    """Whether the mirror image still shows what the label says."""
    if label in _MIRROR_ANYWAY:
        return True
    if label in _FIXED_LABELS or _clock_time(label) or re.search(r"\d", label):
        return False
    return not any(word in _FIXED_WORDS for word in re.split(r"[\s-]+", label.lower()))


# Slang, moods, brand-like and touchy words: poor description of a picture.
_STOPPED_TAGS = frozenset(
    "adorbs af americas amusement angry arty artsy athletic attraction bae bawling bday bestest bet bisque blessed bro "
    "cabbie cardiac carbs casual champs chilling chin claws cold collada consider contact convoluted cool cops copter "
    "cost cream creative crushed cut cutting danger dangerous dart date dead death deciduous direct down dressage "
    "dressed drumsticks eat elegant engagement enraged european evergreen evil excited expert extra fairy feels fly "
    "formal frankfurter funny future gang gay geek genderqueer glbt glbtq good goodnight grow growl growth habitat "
    "haha happy haunting health hehe high hilarious hit hmm hooray hot hrs hump hungry idea ily improvement innocent "
    "intelligent irish jack joy jump kick kisses knowledge laugh late lazy leo lesbian lgbt lgbtq lgbtqia lit litaf "
    "lmao lol lonely loudly love lucky mad maddening magic major medium meow nature negative no night "
    "note nurturing omg one ophiuchus order ostentatious outdoors over paid pan party partying paying peace peaceful "
    "personal phone pina pine pisces piña pop positive pot pouting present pretty pride prints private prize proud "
    "queer rad rage rawr rays relaxed repairs resort rich ride ringed ripe roar rofl roflcopter roflmao roll romance "
    "sad saturnine scary seat selfie serve settle sexy shade shape shedding shocked showing side silly simple sit slay "
    "sleep sleeping slow slug sly small smart smell sob soft sound sour split spots spouting sprout steaming strip strong "
    "stuck-out study super swag sweat t talk target tbt tear tears tease thinking time tired totally trans "
    "transgender treat trip twisted u ugly unhappy unlucky up upset victory waiting way whatever where wild win wise "
    "wondering wow xoxo yawn yolo young zap zoo zzz i’m big burn chop clever clock closed classic collection color colorful "
    "consider country croissant break daily day bed bull bar bearer beauty boom booze bowl building bulb cancer "
    "class cursed demon diet gifted hoop lady low note notes ok part password patrol paw predator "
    "print public queen shine shopping slice snap spin springtime surprise tea tool under unlock".split()
)


def caption_tags(label: str, tags: list[str]) -> list[str]:
    """Return the tags that add a plain word to the label: no slang, no word of the label itself."""
    words = set(re.split(r"[\s-]+", label.lower()))
    known = words | {word + "s" for word in words} | {word.removesuffix("s") for word in words}
    return [
        tag
        for tag in tags
        if re.fullmatch(r"[a-z]{3,14}", tag) and tag not in _STOPPED_TAGS and tag not in known
    ]


def caption(phrase: str, style: str, *, second: str | None = None, tag: str | None = None, colour: str | None = None) -> str:
    """Join phrase, second phrase, tag and background colour into a caption."""
    text = f"{style} emoji of {phrase}"
    if second is not None:
        text += f" next to {second}"
    if tag is not None:
        text += f", {tag}"
    if colour is not None:
        text += f", {colour} background"
    return text
