"""What scores are normalised on where nobody names samples."""

from rlhf_jax.programs import reward_facts


def test_some_of_many_rows_are_drawn_and_all_of_few(capsys):
  rows = list(range(5000))
  found = reward_facts.some_of(rows, seed=3)
  assert len(set(found)) == len(found) == reward_facts.REFERENCES
  assert found == sorted(found) == reward_facts.some_of(rows, seed=3)
  assert found != reward_facts.some_of(rows, seed=4)
  assert f"{len(found)} of 5000 training rows" in capsys.readouterr().out
  assert reward_facts.some_of(rows[:7], seed=3) == rows[:7]
