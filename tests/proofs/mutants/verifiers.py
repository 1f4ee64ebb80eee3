"""Faults in verifiers, each of them."""

from tests.proofs.mutations import of

REWARDS = "rewards"

FAULTS = (
  *of(
    "verifiers",
    f"{REWARDS}/text_matches.py",
    "verifiers verifier_limits",
    (
      "exact: one right answer of many",
      "len(found) == 1 and found <= accepted",
      "bool(found & accepted)",
    ),
    (
      "exact: case the other way",
      "if not config.is_case_sensitive:",
      "if config.is_case_sensitive:",
    ),
    (
      "pattern: a reference is a pattern",
      "re.escape(reference)",
      "reference",
    ),
    (
      "pattern: the longest text scores nothing",
      "if len(text) <= config.max_characters:",
      "if len(text) < config.max_characters:",
    ),
    (
      "tags: text around the sections",
      'found = re.fullmatch(r"\\s*" + form, text, re.DOTALL)',
      "found = re.search(form, text, re.DOTALL)",
    ),
  ),
  *of(
    "verifiers",
    f"{REWARDS}/math_answers.py",
    "verifiers verifier_limits",
    (
      "number: two answers are tolerated",
      'config.several == "refuse" and max(len(values), len(names)) > 1',
      'config.several == "refuse" and max(len(values), len(names)) > 2',
    ),
    (
      "number: whole numbers have a tolerance",
      "if answer.value.denominator == reference.value.denominator == 1:",
      "if answer.value.denominator == 0:",
    ),
    (
      "number: per cent the other way",
      'if unit == "%" and percent == "divide":',
      'if unit == "%" and percent != "divide":',
    ),
    (
      "number: a sign after the currency is lost",
      'return -value if "-" in (found["sign"], found["inner"]) else value',
      'return -value if found["sign"] == "-" else value',
    ),
    (
      "tags: a tag may come twice",
      "text.count(opening) != 1 or text.count(closing) != 1",
      "text.count(opening) < 1 or text.count(closing) < 1",
    ),
  ),
  *of(
    "verifiers",
    f"{REWARDS}/constraints.py",
    "verifiers_constraints verifier_limits",
    (
      "constraints: the upper bound is out of bounds",
      "at_most is None or count <= at_most",
      "at_most is None or count < at_most",
    ),
    (
      "constraints: one is enough",
      'all(met) if config.credit == "all"',
      'any(met) if config.credit == "all"',
    ),
    (
      "constraints: an empty answer meets them",
      "return satisfied and count_words(visible(text)) > 0",
      "return satisfied",
    ),
    (
      "constraints: one forbidden word is allowed",
      "return not any([count_occurrences(text, word) for word in",
      "return not all([count_occurrences(text, word) for word in",
    ),
  ),
  *of(
    "verifiers",
    f"{REWARDS}/sandbox/parts.py",
    "verifiers_code code_values",
    (
      "code: the first block",
      "sources[-1] if sources",
      "sources[0] if sources",
    ),
  ),
  *of(
    "verifiers",
    f"{REWARDS}/code_tests.py",
    "verifiers_code",
    (
      "code: one test is enough",
      "is_complete = passed == total",
      "is_complete = passed > 0",
    ),
    (
      "code: a program may fail",
      "is_right = outcome.code == 0 and _printed",
      "is_right = _printed",
    ),
    (
      "code: the share of all answers",
      "result.passed / result.total for result",
      "float(result.passed > 0) for result",
    ),
  ),
  *of(
    "verifiers",
    f"{REWARDS}/verifiers.py",
    "verifiers verifier_rows",
    (
      "sum: the gate never shuts",
      "logged[names[config.gate]] > 0",
      "logged[names[config.gate]] >= 0",
    ),
    (
      "sum: no weights",
      "np.float32(part.weight) * scores",
      "scores",
    ),
    (
      "sum: full marks with negative weights",
      "if part.weight > 0.0 and best is not None:",
      "if best is not None:",
    ),
  ),
  *of(
    "verifiers",
    "rewards/texts.py",
    "verifier_rows",
    (
      "judge: references of other prompts",
      "np.repeat(numbers, len(texts) // len(numbers))",
      "np.tile(numbers, len(texts) // len(numbers))",
    ),
    (
      "judge: full marks are not enough",
      "parts.full_marks - ROUNDING",
      "parts.full_marks + ROUNDING",
    ),
  ),
)
