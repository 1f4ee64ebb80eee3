"""Faults in verifiers, each of them."""

from tests.proofs.mutations import of

REWARDS = "rewards"

FAULTS = (
  *of(
    "verifiers",
    f"{REWARDS}/text_matches.py",
    "verifiers::exact_is_not_contains"
    " verifiers::a_reference_never_becomes_a_pattern"
    " verifier_limits::a_text_may_be_as_long_as_it_may_be"
    " verifiers::tags_once_in_order_and_nothing_else",
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
    "verifiers::answer_spam_earns_nothing"
    " verifiers::tolerance_is_for_decimals_only"
    " verifiers::numbers_are_read"
    " verifier_limits::a_sign_counts_on_either_side_of_a_currency"
    " verifier_limits::a_tag_comes_once",
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
  ),
  *of(
    "verifiers",
    f"{REWARDS}/marked.py",
    "verifier_limits::a_tag_comes_once",
    (
      "tags: a tag may come twice",
      "text.count(opening) != 1 or text.count(closing) != 1",
      "text.count(opening) < 1 or text.count(closing) < 1",
    ),
  ),
  *of(
    "verifiers",
    f"{REWARDS}/constraints.py",
    "verifiers_constraints::each_kind"
    " verifiers_constraints::credit_is_all_or_the_share"
    " verifiers_constraints::an_empty_answer_meets_nothing"
    " verifier_limits::one_forbidden_word_of_several_is_one_too_many",
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
    f"{REWARDS}/sandbox/sources.py",
    "verifiers_code code_values",
    (
      "code: the first block",
      "_with_others(wanted[-1], others)",
      "_with_others(wanted[0], others)",
    ),
  ),
  *of(
    "verifiers",
    f"{REWARDS}/code_tests.py",
    "verifiers_code::hacked_answers_fail"
    " verifiers_code::programs_are_judged_by_what_they_print"
    " verifiers_code::right_answers_pass",
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
    "verifiers::sum_is_weighted_and_gated"
    " verifiers::full_marks_are_those_of_the_parts",
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
    "texts::all_of_a_sample_reaches_the_verifier"
    " texts::an_answer_is_right_at_full_marks",
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
