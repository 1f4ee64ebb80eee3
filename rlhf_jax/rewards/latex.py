r"""One spelling for an answer: what LaTeX and Unicode write in many ways.

  tidy   \dfrac12, \frac{1}2, ½ -> \frac{1}{2};  \textbf{B} -> \text{B};
         10{,}000, 1\,234 -> 10000, 1234;  \left(x\right) -> (x);  \pi -> π
  plain  the same without LaTeX: 1/2, B, 10000, (x), sqrt(2), 90 degrees

All verifiers that read an answer read it through here, so that two of them do
not differ in what is written there. Nothing is computed and no sign is dropped
that changes a value: 5² is 5^{2} and never 52, 1½ is 1\frac{1}{2}.

Left out: user macros, environments other than matrices, \over with a number of
its own beside it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_SMALL = {
  "^": dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True)),
  "_": dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True)),
}
_SIGNS = str.maketrans(
  {
    "\u2212": "-",  # minus
    "\u2010": "-",
    "\u2011": "-",
    "\u2044": "/",  # fraction slash
    "\u2215": "/",
    "\u00f7": "/",
    "\u22c5": "\u00b7",
    "\u2019": "'",
    "\u2018": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u3002": ".",
    "\u2236": ":",
    "\u2223": "|",
    "\u221b": "\\sqrt[3]",
    "\u221c": "\\sqrt[4]",
  }
)
_GREEK = (
  "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi "
  "omicron pi rho sigmaf sigma tau upsilon phi chi psi omega"
)
# LaTeX -> one character, which needs no braces and no space after it.
_NAMED = {
  **{n: chr(0x3B1 + i) for i, n in enumerate(_GREEK.split())},
  **{n.title(): chr(0x391 + i) for i, n in enumerate(_GREEK.split())},
  **{"varepsilon": "ε", "vartheta": "θ", "varphi": "φ", "varrho": "ρ"},
  **{"le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥"},
  **{"geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">"},
  **{"infty": "∞", "pm": "±", "mp": "∓", "times": "×", "cdot": "·"},
  **{"ast": "*", "div": "/", "in": "∈", "cup": "∪", "cap": "∩"},
  **{"setminus": "∖", "emptyset": "∅", "varnothing": "∅", "approx": "≈"},
  **{"lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "colon": ":"},
  **{"lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]"},
  **{"pounds": "£", "euro": "€", "yen": "¥", "textdollar": "$"},
  **{"texteuro": "€", "textsterling": "£", "degree": "^{\\circ}"},
  **{"lor": "\\text{or}", "vee": "\\text{or}", "angle": "∠"},
  **{"textdegree": "^{\\circ}", "wedge": "\\text{and}"},
}
_WORDS = re.compile(
  r"\\(?:text(?:rm|bf|it|sf|tt|normal|up|md)?|mathrm|[mh]box|emph)(?![a-zA-Z])"
)
_FONTS = re.compile(
  r"\\(?:math(?:bf|it|sf|tt|normal)|boldsymbol|bm|pmb|underline|ensuremath"
  r"|f?boxed|fbox|framebox|num|smash)(?![a-zA-Z])"
)
_SPACES = re.compile(
  r"\\(?:quad|qquad|enspace|thinspace|displaystyle|textstyle|scriptstyle|limits"
  r"|nolimits|rm|bf|it|nonumber|noindent|hfill|allowbreak"
  r"|tiny|small|normalsize|large|Large|LARGE|huge|Huge)"
  r"(?![a-zA-Z])|\\(?:hspace\*?|(?:text)?color)\{[^{}]*\}|(?<!\\)\\[ ,;:>]|~"
)
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?")
# A thin space, a comma in braces: LaTeX's ways to part thousands.
_PARTED = re.compile(
  r"(?<![\d.])(\d{1,3})((?:(?:\\[,;: ]|\{\s*[,'\s]\s*\}|\{\\,\}|~|,\\!|\\!"
  r"|\\text\{\s*,?\s*\})\d{3})+)(?!\d)"
)
_GROUPED = re.compile(
  r"(?<![\d.,'])\d{1,3}(?:([,' ])\d{3})(?:\1\d{3})*(?![\d,'])"
)
_PAIRS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))
_PAIRS += (("**", "**"), ("`", "`"), ('"', '"'))


def visible(text: str) -> str:
  """Returns NFKC text without invisible format characters (zero width...)."""
  return "".join(
    c
    for c in unicodedata.normalize("NFKC", text)
    if unicodedata.category(c) != "Cf"
  )


def characters(text: str) -> str:
  """Returns a text in characters that keep their meaning on their own.

  Full-width digits and signs become usual ones; small digits ^{...} or
  _{...}; ½ \\frac{1}{2}; a line over digits \\overline{...}.
  """
  for sign, small in _SMALL.items():
    text = re.sub(
      f"[{''.join(small)}]+",
      lambda m, s=sign, t=small: f"{s}{{{''.join(t[c] for c in m[0])}}}",
      text,
    )
  text = "".join(map(_unfolded, text)).translate(_SIGNS)
  text = re.sub(r"(?:\d[\u0305\u0304])+", _overlined, text)
  text = visible(text).translate(_SIGNS)
  # A dash before a number is a minus; between two it may be a range.
  return re.sub(r"(^|[\s(\[{,=$])[\u2013\u2014](?=[\d.\\$(])", r"\1-", text)


def _unfolded(character: str) -> str:
  decomposed = unicodedata.decomposition(character)
  if decomposed.startswith("<fraction>"):
    top, under = unicodedata.normalize("NFKC", character).split("\u2044")
    return f"\\frac{{{top}}}{{{under}}}"
  return character


def _overlined(found: re.Match) -> str:
  return "\\overline{" + re.sub(r"\D", "", found[0]) + "}"


def balanced(text: str, start: int) -> int | None:
  r"""Returns where the group ends that opens at text[start], "{" or "(".

  Escaped braces, \{ and \}, are signs and open nothing. None: it never ends.
  """
  opening = text[start]
  closing = {"{": "}", "(": ")", "[": "]"}[opening]
  depth, i = 0, start
  while i < len(text):
    if text[i] == "\\":
      i += 2
      continue
    depth += {opening: 1, closing: -1}.get(text[i], 0)
    i += 1
    if depth == 0:
      return i
  return None


def argument(text: str, start: int) -> tuple[str, int] | None:
  r"""Returns (content, end) of what a command at text[:start] takes.

  {...} without its braces, else one sign or command, as TeX reads it.
  """
  while start < len(text) and text[start].isspace():
    start += 1
  if start == len(text) or text[start] in "}$&":
    return None
  if text[start] == "{":
    end = balanced(text, start)
    return None if end is None else (text[start + 1 : end - 1], end)
  found = re.compile(r"\\(?:[a-zA-Z]+|.)|.", re.DOTALL).match(text, start)
  return found[0], found.end()


def _rewritten(
  text: str,
  command: re.Pattern,
  count: int,
  build: Callable[..., str],
) -> str:
  """Returns text with each command and its arguments built anew.

  Args:
    text: with commands that may stand in each other's arguments.
    command: what matches one, up to its arguments.
    count: of arguments.
    build: (match, *arguments) -> text.
  """
  parts, at = [], 0
  while (found := command.search(text, at)) is not None:
    parts.append(text[at : found.start()])
    contents, end = [], found.end()
    while len(contents) < count:
      taken = argument(text, end)
      if taken is None:  # unfinished: it stays as it is, and is no answer
        return "".join(parts) + text[found.start() :]
      content, end = taken
      contents.append(_rewritten(content, command, count, build).strip())
    parts.append(build(found, *contents))
    at = end
  return "".join(parts) + text[at:]


_FRACTION = re.compile(r"\\(?:[dtc]?frac|nicefrac|sfrac)(?![a-zA-Z])")
_ROOT = re.compile(r"\\sqrt(?![a-zA-Z])\s*(?:\[([^\[\]{}]*)\])?|√")
_BINOMIAL = re.compile(r"\\(?:[dt]?binom)(?![a-zA-Z])")
_CHOSEN = re.compile(r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}")
_WHOLLY_CHOSEN = re.compile(r"\A([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\Z")
_BOARD = re.compile(r"\\(?:mathbb|Bbb)(?![a-zA-Z])")
_ACCENT = re.compile(
  r"\\(vec|hat|bar|tilde|overline|overrightarrow)(?![a-zA-Z])(?!\s*\{)"
)
# Units of several commands: \text{N}\cdot\text{m}, \frac{\text{m}}{\text{s}}.
_UNIT = r"\\text\{([^{}]*)\}"
_PRODUCT_OF_UNITS = re.compile(rf"{_UNIT}\s*(\\cdot|·|/)\s*{_UNIT}")
_QUOTIENT_OF_UNITS = re.compile(
  rf"\\frac\{{\s*{_UNIT}\s*\}}\{{\s*{_UNIT}\s*(\^\{{?\d\}}?)?\s*\}}"
)
_REPEATED = re.compile(
  r"(?<=\.)(\d*)\\(?:overline|bar|dot|overbar)(?![a-zA-Z])"
)
_WHOLLY_OVER = re.compile(r"\A([^{}]*)\\over(?![a-zA-Z])([^{}]*)\Z")
_OVER = re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}")


def _with_braces(text: str) -> str:
  """Returns text with √12 and √(x) as √{12} and √{x}."""
  text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"√{\1}", text)
  while (found := re.search(r"√\s*\(", text)) is not None:
    end = balanced(text, found.end() - 1)
    if end is None:
      break
    inner = text[found.end() : end - 1]
    text = f"{text[: found.start()]}√{{{inner}}}{text[end:]}"
  return text


def _commands(text: str) -> str:
  """Returns text with fractions, roots, words and fonts in one spelling."""
  text = re.sub(r"\\mathrm\s*\{\s*([ei])\s*\}", r"\1", text)  # constants
  text = re.sub(r"\\operatorname\*?\s*\{\s*(\w+)\s*\}", r"\\\1 ", text)
  text = _rewritten(text, _WORDS, 1, lambda _, a: f"\\text{{{a}}}")
  text = _rewritten(text, _FONTS, 1, lambda _, a: a)
  text = _OVER.sub(r"\\frac{\1}{\2}", text)
  text = _WHOLLY_OVER.sub(r"\\frac{\1}{\2}", text)
  text = _CHOSEN.sub(r"\\binom{\1}{\2}", text)
  text = _WHOLLY_CHOSEN.sub(r"\\binom{\1}{\2}", text)
  text = _rewritten(text, _FRACTION, 2, lambda _, a, b: f"\\frac{{{a}}}{{{b}}}")
  text = _rewritten(
    text, _BINOMIAL, 2, lambda _, a, b: f"\\binom{{{a}}}{{{b}}}"
  )
  text = _rewritten(text, _BOARD, 1, lambda _, a: f"\\mathbb{{{a}}}")
  text = _rewritten(
    _with_braces(text),
    _ROOT,
    1,
    lambda m, a: f"\\sqrt[{m[1]}]{{{a}}}" if m[1] else f"\\sqrt{{{a}}}",
  )
  text = _rewritten(text, _REPEATED, 1, lambda m, a: f"{m[1]}\\overline{{{a}}}")
  text = _rewritten(text, _ACCENT, 1, lambda m, a: f"\\{m[1]}{{{a}}}")
  text = re.sub(r"\\mu\s*\\text\{\s*", r"\\text{μ", text)
  text = _QUOTIENT_OF_UNITS.sub(_united, text)
  return _PRODUCT_OF_UNITS.sub(_united, text)


def _united(found: re.Match) -> str:
  """Returns one \\text of the units of two, which / or · joins."""
  if found[0].startswith("\\frac"):
    one, sign, other, power = found[1], "/", found[2], found[3] or ""
  else:
    one, sign, other, power = found[1], found[2][-1:], found[3], ""
    sign = "/" if sign == "/" else "·"
  return f"\\text{{ {one.strip()}{sign}{other.strip()}}}{power}"


def unwrapped(text: str) -> str:
  """Returns text without what only surrounds it: $, boxes, stars, a full stop.

  Parentheses around one word or number go too: (B), (-5).
  """
  before = None
  while before != text:
    before = text = text.strip()
    if text.endswith("\\\\"):
      text = text[:-2]
    elif re.search(r"(?<![.\\])[.,;]$", text):
      text = text[:-1]
    for left, right in _PAIRS:
      inner = text[len(left) : -len(right)]
      is_around = text.startswith(left) and text.endswith(right)
      if is_around and len(text) > len(left + right) and right not in inner:
        text = inner
    box = _BOX.match(text)
    if box or (text.startswith("{") and balanced(text, 0) == len(text)):
      start = box.end() if box else 0
      taken = argument(text, start)
      if taken is not None and taken[1] == len(text):
        is_set = box is None and "," in taken[0]
        text = f"\\{{{taken[0]}\\}}" if is_set else taken[0]
    elif re.fullmatch(r"\(\s*(?:[+-]?[\d.]+|\w+)\s*\)", text):
      text = text[1:-1]
    else:
      worded = re.fullmatch(r"\\text\{\(?\s*([^{}()]*?)\s*\)?\}", text)
      if worded and f"\\text{{{worded[1]}}}" != text:
        text = f"\\text{{{worded[1]}}}"
  return text


_BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)(?![a-zA-Z])")
_NAMES = re.compile(
  r"\\(" + "|".join(sorted(_NAMED, key=len, reverse=True)) + r")(?![a-zA-Z])\s*"
)


def tidy(text: str) -> str:
  r"""Returns an answer in one LaTeX spelling; see the module's docstring.

  Args:
    text: an answer, in LaTeX or not.
  """
  text = unwrapped(characters(text))
  text = _SIZES.sub(" ", re.sub(r"\\(?:left|right)\s*\.", " ", text))
  text = _PARTED.sub(lambda m: m[1] + "".join(re.findall(r"\d{3}", m[2])), text)
  text = _SPACES.sub(
    " ", text.replace("\\!", "").replace("{,}", ",").replace("{:}", ":")
  )
  text = re.sub(r"(?<=[\w)])\*\*(?=[\w(-])", "^", _commands(text))
  text = re.sub(r"(?<!\\)&\s*(?==)", "", text)  # of aligned lines
  text = re.sub(r"\s!=|[<>=]=", _relation, text)
  text = re.sub(
    r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree(?![a-z])", r"^{\\circ}", text
  )
  text = _NAMES.sub(lambda m: _NAMED[m[1]], text)
  text = re.sub(r"\\([$%&#_])", r"\1", text)
  text = re.sub(r"([\^_])\s*(-?\d+)", r"\1{\2}", text)
  text = re.sub(r"_\s*([^\W\d_])(?![^\W\d_])", r"_{\1}", text)
  return re.sub(r"\s+", " ", unwrapped(text))


def _relation(found: re.Match) -> str:
  """Returns the sign of <=, >=, == or of != after a space; n!=6 is n! = 6."""
  return {"<=": "≤", ">=": "≥", "==": "="}.get(found[0], "≠")


def ungrouped(text: str) -> str:
  """Returns 12345.6 units for 12,345.6 units, 12 345.6 units, 12'345.6 units.

  Only where that is the one number of the text: (1,234) may be a pair.
  """
  found = _GROUPED.search(text)
  if found is None:
    return text
  around = text[: found.start()] + re.sub(r"^\.\d*", "", text[found.end() :])
  if re.search(r"[\d(\[{/]", around):
    return text
  digits = re.sub(r"\D", "", found[0])
  return text[: found.start()] + digits + text[found.end() :]


def plain(text: str) -> str:
  r"""Returns an answer without LaTeX: 1/2, (x+1)/2, sqrt(2), x^2, 90 degrees.

  Args:
    text: an answer, in LaTeX or not.
  """
  text = tidy(text)
  text = _rewritten(text, re.compile(r"\\text"), 1, lambda _, a: f" {a} ")
  text = _rewritten(text, re.compile(r"\\frac"), 2, _slashed)
  text = _rewritten(
    text,
    re.compile(r"\\sqrt(?:\[([^\[\]]*)\])?"),
    1,
    lambda m, a: f"root({m[1]},{a})" if m[1] else f"sqrt({a})",
  )
  text = text.replace("^{\\circ}", " degrees ")
  text = re.sub(r"([\^_])\{([^{}])\}|\^\{(-?\d+)\}", _lifted, text)
  text = re.sub(r"\s+", " ", unwrapped(text))
  return text.replace("\\{", "{").replace("\\}", "}")


def _lifted(found: re.Match) -> str:
  return f"^{found[3]}" if found[3] else f"{found[1]}{found[2]}"


def _slashed(found: re.Match, top: str, under: str) -> str:
  parts = [
    part if re.fullmatch(r"[\d.,]+|[^\W\d_]", part) else f"({part})"
    for part in (top, under)
  ]
  before = found.string[: found.start()].rstrip()
  gap = " " if before[-1:].isdigit() else ""
  return f"{gap}{parts[0]}/{parts[1]}"
