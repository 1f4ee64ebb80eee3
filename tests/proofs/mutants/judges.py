"""Faults in judges of texts that are language models."""

from tests.proofs.mutations import of

FAULTS = (
  *of(
    "verifiers",
    "algorithms/judgements.py",
    "judgements::t22_a_planted_position_bias_is_gone"
    " judgements::votes_that_disagree_leave_a_half"
    " judgements::scores_are_means_over_the_labels",
    (
      "judge: the position stays in the label",
      "difference, total = first - swapped, first + swapped",
      "difference, total = first + swapped, first - swapped",
    ),
    (
      "judge: two votes that disagree are no tie",
      "np.where(np.isnan(difference), 0.0, 0.5 * difference)",
      "np.where(np.isnan(difference), 1.0, 0.5 * difference)",
    ),
    (
      "judge: scores of labels that are not normalised",
      "(weights @ values) / np.sum(weights, axis=-1)",
      "weights @ values",
    ),
  ),
  *of(
    "verifiers",
    "rewards/ai/judging.py",
    "ai_judging::what_is_out_of_form_is_counted_and_not_guessed"
    " ai_judging::nothing_is_asked_twice",
    (
      "judge: labels of little probability count",
      "mass >= self.settings.least_mass",
      "mass >= 0.0",
    ),
    (
      "judge: whoever answers, the reply is the same",
      "messages=x.messages,\n        prefix=x.prefix + x.space,",
      "messages=[],\n        prefix=x.prefix + x.space,",
    ),
  ),
  *of(
    "verifiers",
    "rewards/ai/spelling.py",
    "ai_local::ten_goes_on_from_one",
    (
      "judge: a score of 1 has that of 10 in it",
      "if path in nodes:",
      "if False and path in nodes:",
    ),
  ),
)
