"""The few words the pocket world is made of."""

from __future__ import annotations

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animals": ("cat", "dog", "cow", "horse", "sheep", "fox", "bear", "lion", "duck", "frog"),
    "colours": ("red", "blue", "green", "black", "white", "brown", "pink", "grey", "yellow", "purple"),
    "foods": ("bread", "rice", "soup", "cheese", "apple", "pear", "cake", "fish", "egg", "honey"),
    "tools": ("hammer", "saw", "drill", "knife", "brush", "ladder", "rope", "nail", "wrench", "shovel"),
}
NAMES = ("Ann", "Ben", "Eva", "Tom", "Mia", "Leo")
TOWNS = ("Oslo", "Rome", "Paris", "Berlin", "Madrid", "Prague")
FIELDS = ("name", "age", "town")

WORDS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)
NUMBERS: tuple[str, ...] = tuple(str(number) for number in range(1, 51))

OPENINGS = (
    "Sure, here you are:",
    "Of course, I am happy to help:",
    "What a lovely question:",
)
CLOSINGS = (
    "I hope that this helps you.",
    "Have a very nice day.",
    "Please ask me for more.",
)
