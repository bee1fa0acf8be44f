"""Names from outside that something may trip over: mathtext, markup, length, line breaks, scripts."""

NAMES = (
    "$x$",
    "a_b^c$",
    "$\\frac{",
    "<b>",
    "x" * 300,
    "a\nb",
    "שלום עולם",
    "مرحبا",
    "猫と犬",
    "50 % & more",
    "_hidden",
    "",
)
