"""A language model's score of an answer as the reward: direct RLAIF.

  R = sum_k p("k") k / sum_k p("k"),  k = 1 ... 10, scaled to [-1, 1]

Lee et al. 2023, arXiv:2309.00267, section 2.2.2: no reward model is trained on
labels of the policy that was. As a verifier, "ai_judge", it judges wherever one
does: training, evaluation, scoring, comparing.

  reward/component/out_of_form: the judge's reply was no score, or its labels
    had too little probability: scores 0, the middle. Up is bad.
  reward/component/too_long: the question did not fit into its context: 0. Up
    is bad: those answers are not judged.
  reward/component/failed: an endpoint did not answer: 0. Any is bad.
  reward/component/empty: an answer without text: -1, and it is not asked. Up
    is bad.
  reward/component/mass: the probability of the ten labels together. Falling is
    bad: the judge means to say something else.
  reward/component/judge_tokens: that an answer's question and reply cost.

Left out: several principles, orders, reasons (pipelines/ai_feedback.py has
them); a judge that learns while the policy does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax.data import transcripts
from rlhf_jax.models import model_sources, pretrained, roles
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.rewards.ai.endpoint import Endpoint, Remote
from rlhf_jax.rewards.ai.judging import Judge, Judging
from rlhf_jax.rewards.ai.local import Local
from rlhf_jax.rewards.ai.questions import RUBRIC
from rlhf_jax.rewards.ai.reply_cache import Cache
from rlhf_jax.rewards.ai.voices import FAILURES, Voice
from rlhf_jax.schema import FieldError, UserError

EMPTY, MASS, TOKENS = "empty", "mass", "judge_tokens"
LOGGED = (*FAILURES, EMPTY, MASS, TOKENS)


@dataclasses.dataclass(frozen=True)
class Config:
  """Who gives scores from 1 to 10, and for what."""

  source: str = ""  # model that judges, as model.source; "" for an endpoint
  endpoint: Endpoint = Endpoint()  # or an endpoint: {"url": ..., "model": ...}
  rubric: str = RUBRIC  # what is good, in words
  template: str = ""  # see rewards/ai/judging.py
  least_mass: float = 0.01  # of the probability that all ten scores have
  # together: below it the judge has not answered
  batch_size: int = 16  # questions that a model here reads at a time
  cache: str = ""  # file of replies; "": none is kept

  def __post_init__(self) -> None:
    if isinstance(self.endpoint, dict):
      object.__setattr__(self, "endpoint", _endpoint(self.endpoint))
    if bool(self.source) == bool(self.endpoint.url):
      raise FieldError(
        f"ai_judge: source={self.source!r}, endpoint.url="
        f"{self.endpoint.url!r}: one of them judges. Set source to a model "
        "(asset:NAME, a folder), or endpoint={'url': ..., 'model': ...}."
      )
    if self.source:
      model_sources.check_source(self.source, "ai_judge")
    else:
      self.endpoint.key()
      check_unread(self, "ai_judge.")
    self.judging()

  def judging(self) -> Judging:
    """Returns how it judges."""
    names = ("rubric", "template", "least_mass", "batch_size", "cache")
    return Judging(**{name: getattr(self, name) for name in names})


def check_unread(settings: Any, name: str) -> None:
  """Raises FieldError for what only a local judge reads.

  Args:
    settings: with batch_size.
    name: of them, for the message, with a point.
  """
  usual = Judging.__dataclass_fields__["batch_size"].default
  if settings.batch_size != usual:
    raise FieldError(
      f"{name}batch_size={settings.batch_size} with an endpoint: nothing reads "
      f"it. Leave it at {usual}, and set endpoint.parallel."
    )


def _endpoint(values: dict[str, Any]) -> Endpoint:
  known = [field.name for field in dataclasses.fields(Endpoint)]
  for name in values:
    if name not in known:
      raise FieldError(
        f"ai_judge: endpoint has no {name!r}. It has {', '.join(known)}."
      )
  return Endpoint(**values)


def voice_of(
  name: str,
  base: Base,
  role: roles.Role,
  variables: Any,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  origin: str = "",
  chat: bool | None = None,
) -> Local:
  """Returns a policy on a base model as a voice.

  Args:
    name: for people.
    base: whose tokenizer.
    role, variables: of the policy, merged.
    mesh: where it is.
    batch_size: questions together.
    origin: fingerprint of the run that it comes from, "" for the base itself.
    chat: see Local.
  """
  identity = {**base.identity, "run": origin}
  return Local(
    name, role, variables, base.tokenizer, mesh, identity, batch_size, chat
  )


@functools.lru_cache(maxsize=4)
def judge_of(config: Config, mesh: mesh_lib.Config) -> Judge:
  """Returns the judge of a config; a second call returns the same.

  Args:
    config: who judges.
    mesh: where a local one lives.

  Raises:
    UserError: a model for several processes.
  """
  cache = Cache(config.cache if config.cache else None)
  return Judge(_voice(config, mesh), config.judging(), cache)


def _voice(config: Config, mesh: mesh_lib.Config) -> Voice:
  if config.endpoint.url:
    return Remote(config.endpoint)
  if jax.process_count() > 1:
    raise UserError(
      f"ai_judge.source={config.source!r}: each process judges its own "
      "answers, and a model of theirs is on all devices. Serve it, and set "
      "ai_judge.endpoint; or run one process."
    )
  devices = mesh_lib.make_mesh(mesh)
  base = pretrained.load_base(Model(source=config.source), devices)
  role = roles.Role(model=base.config)
  return voice_of(
    base.source, base, role, {"params": base.params}, devices, config.batch_size
  )


def _mesh_of_run() -> mesh_lib.Config:
  """Returns the mesh that the run is on, all devices outside of one."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return mesh_lib.Config()
  return mesh_lib.Config(**dict(mesh.shape), devices=mesh.size)


def score(
  texts: Sequence[str],
  prompts: Sequence[str],
  config: Config,
  records: Sequence[dict[str, Any]] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns [N] float32 in [-1, 1], and what of them is counted.

  Args:
    texts: answers.
    prompts: as the policy read them.
    config: who judges.
    records: of the prompts; their field "prompt" or "messages" is shown, where
      there is one, in place of the text that the policy read.
  """
  scores = np.zeros(len(texts), np.float32)
  logged = {name: np.zeros(len(texts), np.float32) for name in LOGGED}
  rows = [i for i, text in enumerate(texts) if text.strip()]
  is_empty = np.ones(len(texts), bool)
  is_empty[rows] = False
  scores[is_empty], logged[EMPTY][is_empty] = -1.0, 1.0
  if rows:
    asked = [_asked(prompts[i], records[i] if records else {}) for i in rows]
    answers = [texts[i].strip() for i in rows]
    judge = judge_of(config, _mesh_of_run())
    marks = judge.scores(asked, answers, [config.rubric] * len(rows))
    judge.forget()
    for i, mark in zip(rows, marks, strict=True):
      logged[TOKENS][i] = mark.tokens
      if mark.failure:
        logged[mark.failure][i] = 1.0
      else:
        scores[i], logged[MASS][i] = mark.score, mark.mass
  return scores, logged


def _asked(prompt: str, record: dict[str, Any]) -> str:
  for name in ("prompt", "messages"):
    found = record.get(name)
    if isinstance(found, str) and found.strip():
      return found.strip()
    if isinstance(found, list) and found and _are_plain(found):
      ended = found[:-1] if found[-1]["role"] == "assistant" else found
      if ended:
        return transcripts.write(ended).removesuffix("\n\nAssistant:").strip()
  return prompt.strip()


def _are_plain(messages: Sequence[Any]) -> bool:
  return all(
    isinstance(m, dict) and set(m) == {"role", "content"} for m in messages
  )
