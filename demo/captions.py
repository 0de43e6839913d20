"""The words of the emoji data: articles, plurals, tags, mirrorable images and the ten background colours.

Caption grammar:

    {style} emoji of {phrase}[ next to {phrase}][, {tag}][, {colour} background]

A phrase is a label with the article that English wants: "a red apple", "an owl", "the sun", "cherries".
Labels and tags are those of emojibase (Unicode CLDR); everyday names ("car" for "automobile") are below.
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
    "hourglass done": "an hourglass",
    "hourglass not done": "an hourglass with running sand",
    "meat on bone": "meat on a bone",
    "soap": "a bar of soap",
    "dizzy": "dizzy stars",
    "dashing away": "a puff of wind",
    "kaaba": "the Kaaba",
    "mount fuji": "mount Fuji",
    "leafy green": "a leafy green",
    "ginger root": "a ginger root",
}

# Substances, games and the like: no article.
_UNCOUNTABLE = frozenset(
    "bacon badminton bamboo bowling bread broccoli butter camping construction coral curry dango dna "
    "flatbread foggy fog fondue garlic ice lacrosse mail mate oden paper popcorn rain rice sake salt sand "
    "snow spaghetti sushi thread wood yarn salad pong food liquid custard luggage money".split()
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
}
# Words ending in s that are one thing.
_SINGULAR_S = frozenset(
    "bus minibus trolleybus cactus lotus octopus compass glass dress cross hibiscus walrus lens canvas "
    "platypus virus tennis class mattress abacus citrus iris hippopotamus rhinoceros chess press".split()
)
# Plurals without an s.
_PLURAL_WORDS = frozenset("dice maracas people men women children teeth feet mice geese".split())
_PREPOSITIONS = frozenset("with of on in behind showing for at over under from and without holding".split())
_ARTICLES = ("a ", "an ", "the ")
_AN_DESPITE_SPELLING = ("hour", "heir", "honest", "x-ray")
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
    "left right leftwards rightwards arrow clock o’clock watch stopwatch hourglass hand hands letter "
    "letters number calendar newspaper receipt banknote euro yen pound dollar book books notebook ledger "
    "memo card medal musical score trademark atm hospital bank hotel store station stop taxi ambulance "
    "police school joker mahjong playing die dvd disk keyboard piano abacus chart ballot label ticket "
    "tickets pager radio fax compass globe map japan clapper slot machine pool x-ray thermometer speaker "
    "speech waxing waning quarter crescent zzz hundred points money violin guitar saxophone banjo "
    "telephone exclamation question japanese post bag credit convenience sos id identification new soon "
    "back end top up down mantelpiece timer alarm".split()
)
_FIXED_LABELS = frozenset({"fire engine", "e-mail", "thought balloon", "wheel"})
_MIRROR_ANYWAY = frozenset(
    {"shopping bags", "clutch bag", "top hat", "new moon", "new moon face", "upside-down face"}
    | {"smiling face with open hands", "face with open eyes and hand over mouth", "face with hand over mouth"}
)


def is_mirrorable(label: str) -> bool:
    """Whether the mirror image still shows what the label says."""
    if label in _MIRROR_ANYWAY:
        return True
    if label in _FIXED_LABELS or _clock_time(label) or re.search(r"\d", label):
        return False
    return not any(word in _FIXED_WORDS for word in re.split(r"[\s-]+", label.lower()))


# The tags that a caption may carry: plain words for a kind, a material or a place. The collection's others
# are slang, moods and associations, which say little about an image.
_TAGS = frozenset(
    "airplane alcohol animal arctic art ball bakery balls bank beach bear bee berry berries beverage "
    "bicycle bike bird birthday boat book box bread breakfast building bunny burger cab candy car cat "
    "celebration cheese chocolate christmas circus citrus city clothes clothing coffee computer cow "
    "desert dessert diamond dice dinner dinosaur dog doll donut drink earth egg electric electricity "
    "email emotion engine eyeglasses face farm fish fishing flame flower food football footwear forest "
    "fruit fungus furniture game garden gift grain halloween heart home hospital hotel house ice insect "
    "instrument jet jewel kitten king kitchen ladybug lamp lantern leaf letter library light lightning "
    "lock loaf mail maize mammal mammals marine marsupial meat medicine milk money monster moon mountain "
    "movie museum music noodle ocean office painting paper park party pasta pastry pet phone photo pirate "
    "planet plant plush puppy pumpkin railway rain reptile rice rodent royal salad sailing sand sausage "
    "school science sea seafood sewing shell ship shoe shoes shop sky sneaker snow soup space sport "
    "spring star steam storm street sugar summer sun sunny sunshine sweet sword tea telephone temple "
    "tennis thunder timer toadstool tool tortoise tower toy traffic train travel tree tropical truck ufo "
    "valentine vegetable vehicle video water weapon weather wedding wheel winter world yacht".split()
)


# What people call it, where the collection's label is another word.
_EVERYDAY_NAMES = {
    "airplane": "plane",
    "artist palette": "paint palette",
    "automobile": "car",
    "baby chick": "chick",
    "beer mug": "beer",
    "bicycle": "bike",
    "birthday cake": "cake",
    "bullseye": "target",
    "crescent moon": "moon",
    "doughnut": "donut",
    "droplet": "drop of water",
    "ear of corn": "corn cob",
    "evergreen tree": "fir tree",
    "fire engine": "fire truck",
    "flying saucer": "ufo",
    "french fries": "fries",
    "game die": "dice",
    "gem stone": "diamond",
    "globe showing Americas": "globe",
    "grinning face": "happy face",
    "hamburger": "burger",
    "high voltage": "lightning bolt",
    "honeybee": "bee",
    "hot beverage": "cup of coffee",
    "hourglass done": "hourglass",
    "jack-o-lantern": "pumpkin",
    "lady beetle": "ladybug",
    "laptop": "computer",
    "locked": "padlock",
    "locomotive": "steam train",
    "loudly crying face": "crying face",
    "motor scooter": "scooter",
    "potted plant": "plant",
    "red apple": "apple",
    "red heart": "heart",
    "ringed planet": "planet",
    "running shoe": "sneaker",
    "smiling face with halo": "angel",
    "smiling face with horns": "devil",
    "snow-capped mountain": "mountain",
    "soccer ball": "football",
    "spouting whale": "whale",
    "sun with face": "smiling sun",
    "T-Rex": "dinosaur",
    "telephone": "phone",
    "television": "tv",
    "wrapped gift": "gift",
}


def everyday_name(label: str, group: str) -> str | None:
    """Return the common name of an emoji that has another label, or None. The name has no article."""
    if group == "animals" and label.endswith(" face"):
        return label.removesuffix(" face")
    return _EVERYDAY_NAMES.get(label)


def caption_tags(label: str, tags: list[str]) -> list[str]:
    """Return the tags that add a plain word to the label: from the list, and no word of the label itself."""
    words = set(re.split(r"[\s-]+", label.lower()))
    known = words | {word + "s" for word in words} | {word.removesuffix("s") for word in words}
    return [tag for tag in tags if tag in _TAGS and tag not in known]


def caption(
    phrase: str, style: str, *, second: str | None = None, tag: str | None = None, colour: str | None = None
) -> str:
    """Join phrase, second phrase, tag and background colour into a caption."""
    text = f"{style} emoji of {phrase}"
    if second is not None:
        text += f" next to {second}"
    if tag is not None:
        text += f", {tag}"
    if colour is not None:
        text += f", {colour} background"
    return text
