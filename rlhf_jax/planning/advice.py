"""Which method to start with, from counts of data: rules, each with its source.

Every rule says why, and what it rests on: a paper, a section of
docs/METHODS.md, a table of benchmarks/RESULTS.md, or the house's own choice,
which is then called so. Rules look at counts and shares alone: what the data
says is for `python -m rlhf_jax.data`, whether judges agree for
`python -m rlhf_jax.agreement`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rlhf_jax.evaluation.reward_model import (
  COLLAPSED_ACCURACY,
  FEW_COMPARISONS,
  GOOD_ACCURACY,
  MANY_COMPARISONS,
)
from rlhf_jax.planning.data_facts import Facts
from rlhf_jax.schema import UserError

FEW_DEMONSTRATIONS = 1_000  # Zhou et al. 2023: LIMA's 1,000, chosen with care
FEW_PROMPTS = 1_000
LENGTH_SHARE = 0.6  # of pairs whose longer answer won: marked from here on
RARE_LANGUAGE = 0.05  # share of the records below which a language is marked
CHOICE = "our choice"
LIMA = "Zhou et al. 2023 (arXiv:2305.11206)"


@dataclasses.dataclass(frozen=True)
class Stage:
  """Something to run, in order.

  title: what is done. config: the experiment file, or the command.
  fields: --config.X=... beside what names data and folders.
  why, source: the reason, and what it rests on.
  """

  title: str
  config: str
  why: str
  source: str
  fields: tuple[str, ...] = ()

  @property
  def is_experiment(self) -> bool:
    """Whether `config` is an experiment file that can be planned."""
    return self.config.startswith("configs/")


@dataclasses.dataclass(frozen=True)
class Note:
  """A risk, with its reason and what that rests on."""

  text: str
  source: str


def _first(facts: Facts) -> Iterator[Stage]:
  """Yields what comes before any feedback."""
  if facts.demonstrations:
    few = facts.demonstrations < FEW_DEMONSTRATIONS
    yield Stage(
      "supervised fine-tuning",
      "configs/sft.py",
      f"{facts.demonstrations:,} demonstrations: every later method starts "
      "from a policy that already answers, and is kept near it"
      + (
        f"; below {FEW_DEMONSTRATIONS:,}, so look at each of them"
        if few
        else ""
      ),
      f"Ouyang et al. 2022 (arXiv:2203.02155), section 3.5; {LIMA}",
    )


def _verified(facts: Facts) -> Iterator[Stage]:
  yield Stage(
    "GRPO against a verifier",
    "configs/method.py:grpo",
    f"{facts.references:,} records have a reference: what can be checked needs "
    "no reward model, and none can be fooled",
    "Shao et al. 2024 (arXiv:2402.03300); METHODS 9 and A11",
    ("verifier.name=NAME",),
  )


def _compared(facts: Facts) -> Iterator[Stage]:
  """Yields what pairs are good for, by their number."""
  few = facts.pairs < FEW_COMPARISONS
  loss = "configs/dpo.py"
  if few or facts.pairs < MANY_COMPARISONS:
    bound = FEW_COMPARISONS if few else MANY_COMPARISONS
    yield Stage(
      "DPO",
      loss,
      f"{facts.pairs:,} of the {bound:,} pairs that a reward model wants: "
      + (
        "one of so few tells good from bad samples of a policy badly, and PPO "
        "would find where"
        if few
        else "DPO is the cheaper of both, and the baseline that PPO must beat"
      ),
      "METHODS 19 (comparisons); Rafailov et al. 2023 (arXiv:2305.18290); "
      "RESULTS, methods on the quickstart",
    )
  if few:
    return
  whole = facts.comparisons and facts.pairs > 1.5 * facts.comparisons
  yield Stage(
    "a reward model",
    "configs/reward_rankings.py" if whole else "configs/reward.py",
    f"{facts.pairs:,} pairs of {facts.prompt_keys:,} prompts",
    "METHODS 2; Stiennon et al. 2020 (arXiv:2009.01325)",
  )
  yield Stage(
    "its report card",
    "configs/report_card.py",
    f"go on with a held-out accuracy of {GOOD_ACCURACY:.2f} and more; below "
    f"{COLLAPSED_ACCURACY:.2f} a run refuses it",
    "METHODS 19; docs/report_card.md",
  )
  yield Stage(
    "PPO",
    "configs/ppo.py",
    "where memory has no room for a critic, RLOO "
    "(configs/method.py:rloo) needs none",
    "METHODS 4 and 5; Ahmadian et al. 2024 (arXiv:2402.14740)",
  )


def _without_pairs(facts: Facts) -> Iterator[Stage]:
  if facts.labelled:
    yield Stage(
      "KTO",
      "configs/kto.py",
      f"{facts.labelled:,} single answers called good or bad, and no pairs",
      "Ethayarajh et al. 2024 (arXiv:2402.01306); METHODS 6",
    )
  if facts.steps:
    yield Stage(
      "a process reward model",
      "configs/process_reward.py",
      f"{facts.steps:,} answers judged step by step",
      "Lightman et al. 2023 (arXiv:2305.20050); docs/process_rewards.md",
    )
  if facts.rated_dialogues:
    yield Stage(
      "a reward model of dialogues",
      "configs/reward.py",
      f"{facts.rated_dialogues:,} rated dialogues: pairs are drawn of any two, "
      "whatever they are about",
      "docs/data.md, 'Dialogues'; RESULTS, reward models, examined",
      ("data.format=rated_dialogue", "data.chat=True", "data.pairs=NUMBER"),
    )
  texts = facts.rated - facts.rated_dialogues
  if texts:
    yield Stage(
      "a reward model from ratings",
      "configs/quickstart.py",
      f"{texts:,} rated texts: pairs are drawn from their ratings, which "
      "is weaker than comparing two answers to one prompt",
      "README, 'Read these numbers with care'",
    )


def stages(facts: Facts) -> list[Stage]:
  """Returns what to run, in order.

  Args:
    facts: of the data.

  Raises:
    UserError: no record at all.
  """
  found = list(_first(facts))
  if facts.references:
    found += _verified(facts)
  if facts.pairs:
    found += _compared(facts)
  else:
    found += _without_pairs(facts)
  if facts.prompts and not (facts.references or facts.pairs):
    found.append(
      Stage(
        "comparisons first",
        "python -m rlhf_jax.label",
        f"{facts.prompts:,} prompts and no feedback: let people compare "
        "answers, or a model (configs/ai_feedback.py), whose audit against "
        "some labels of people comes first",
        "docs/labelling.md; Lee et al. 2023 (arXiv:2309.00267)",
      )
    )
  if not found:
    raise UserError(
      "the data holds no record that teaches anything. Look at it with "
      "`python -m rlhf_jax.data FILE`."
    )
  found.append(
    Stage(
      "an evaluation on prompts that nothing trained on",
      "configs/evaluate.py",
      "by a second reward model or by people: the judge that trained the "
      "policy is the one it learned to please",
      "Gao et al. 2022 (arXiv:2210.10760); README, overoptimisation",
    )
  )
  return found


def _data_risks(facts: Facts) -> Iterator[Note]:
  if facts.longer is not None and facts.longer >= LENGTH_SHARE:
    yield Note(
      f"the longer answer wins {facts.longer:.0%} of the pairs: a reward model "
      "learns length first. Look at the report card's length-controlled "
      "accuracy, and at `heldout/length` while a policy trains.",
      f"marked from {LENGTH_SHARE:.0%} ({CHOICE}); Singhal et al. 2023 "
      "(arXiv:2310.03716); RESULTS, reward models, examined",
    )
  if facts.ties > 0.2:
    yield Note(
      f"{facts.ties:.0%} of the pairs are ties, which by default teach "
      "nothing; data.ties='soft' keeps them as labels of 0.5.",
      f"marked from 20 % ({CHOICE}); docs/comparisons.md",
    )
  if len(facts.annotators) == 1:
    yield Note(
      "one annotator: no agreement can be measured, and the preferences are "
      "that person's.",
      "docs/agreement.md; Santurkar et al. 2023 (arXiv:2303.17548)",
    )
  if facts.pairs and not facts.annotators:
    yield Note(
      "no record names its annotator: neither agreement nor whose preferences "
      "these are can be told.",
      "docs/agreement.md",
    )
  total = sum(facts.languages.values())
  rare = [
    name
    for name, count in facts.languages.items()
    if count < RARE_LANGUAGE * total
  ]
  if rare:
    yield Note(
      f"languages with under {RARE_LANGUAGE:.0%} of the records: "
      f"{', '.join(sorted(rare))}. Measure each by itself, before and after.",
      f"{CHOICE}; docs/limits.md",
    )
  if facts.refused:
    yield Note(
      f"{facts.refused:,} records teach nothing and are left out: "
      "`python -m rlhf_jax.data` says which and why.",
      "docs/data.md",
    )


def risks(facts: Facts) -> list[Note]:
  """Returns what is likely to go wrong with such data."""
  found = list(_data_risks(facts))
  if facts.pairs:
    unused = {
      "single answers": facts.labelled,
      "answers judged by steps": facts.steps,
      "rated texts": facts.rated,
    }
    names = [f"{count:,} {name}" for name, count in unused.items() if count]
    if names:
      found.append(
        Note(
          f"nothing above uses the {' and '.join(names)}: KTO "
          "(configs/kto.py), process reward models "
          "(configs/process_reward.py) and pairs drawn from ratings do.",
          "docs/data.md",
        )
      )
  if FEW_COMPARISONS <= facts.pairs < MANY_COMPARISONS:
    found.append(
      Note(
        f"fewer than {MANY_COMPARISONS:,} pairs: expect a reward model that is "
        "fooled early. Train an ensemble (docs/ensembles.md), keep the KL low.",
        "METHODS 19; Gao et al. 2022, figure 1; RESULTS, ensembles",
      )
    )
  if facts.references and facts.references < FEW_PROMPTS:
    found.append(
      Note(
        f"{facts.references:,} prompts with a reference are seen many times: "
        "hold some out and watch `heldout/pass1`.",
        f"below {FEW_PROMPTS:,} ({CHOICE})",
      )
    )
  if not facts.demonstrations:
    found.append(
      Note(
        "no demonstrations: the model must follow the prompts' format already. "
        "An instruct model does; a base model rarely.",
        "Ouyang et al. 2022, section 3.5",
      )
    )
  found.append(
    Note(
      "what the feedback rewards is not what you want, only what somebody "
      "preferred between two answers; docs/limits.md says what RLHF does not "
      "mend, and on what this code has not been run.",
      "Casper et al. 2023 (arXiv:2307.15217)",
    )
  )
  return found
