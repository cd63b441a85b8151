"""The words that keys and values of planted facts are made of, and the sentences that carry them."""

ADJECTIVES = (
    "quiet amber hollow silver ancient crimson gentle frozen narrow bitter golden distant bright broken clever dusty "
    "eager fierce grand humble ivory jolly keen lively mellow noble olive proud rapid scarlet tender upright velvet wild "
    "young zealous brave calm dark early fancy giant heavy inner joint kind late major native open plain royal sharp "
    "tall urban vivid warm"
).split()

NOUNS = (
    "river lantern castle falcon meadow harbor engine garden mirror needle ocean pepper quarry ribbon saddle timber "
    "valley window anchor basket candle desert eagle forest goblet hammer island jacket kettle ladder market nickel "
    "orchard palace rabbit school temple urchin violin wagon yarrow zephyr barrel copper dragon ember feather glacier "
    "hollow ivory jungle kitten lemon mountain nugget opal pillow"
).split()

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"

# The n-th question asks for the n-th fact; {k} is the key, {v} the value.
FACTS = (
    "The special magic number for {k} is {v}.",
    "The code of the {k} is {v}.",
    "Remember: {k} is {v}.",
    "The password for {k} is {v}.",
    "{k} was assigned {v}.",
    "The value of {k} equals {v}.",
)
QUESTIONS = (
    "What is the special magic number for {k}?",
    "What is the code of the {k}?",
    "What is {k}?",
    "What is the password for {k}?",
    "What was {k} assigned?",
    "What is the value of {k}?",
)
