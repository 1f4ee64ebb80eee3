"""lm-eval reads our policies: an adapter, and its tasks as outcomes of ours.

    model = harness.model(role, params, frozen, base, mesh)
    lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])

loglikelihood, loglikelihood_rolling and generate_until of lm-eval (Gao et al.,
EleutherAI), by the programs of likelihoods.py and the sampler of training. Its
core needs neither torch nor transformers; extra [eval].
Tasks come from its own list, which fetches data, or from YAML files of a
folder, which may stand on local files alone.

Left out: several processes (a pod evaluates on one host, or with the tasks of
evaluation/tasks); sampled answers, as lm-eval itself is greedy.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import jax

from rlhf_jax.data import chat as chat_templates
from rlhf_jax.evaluation.tasks.items import GENERATE, Item, Outcome
from rlhf_jax.models import roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import likelihoods, task_suites
from rlhf_jax.programs.likelihoods import Pair
from rlhf_jax.programs.task_runs import Runner, cut
from rlhf_jax.schema import UserError
from rlhf_jax.types import PyTree

FLOOR = "0.4.13"  # of setup.py; its core needs no torch
NEW_TOKENS = 256  # of an answer, where a task says nothing
_SAMPLED = ("temperature", "do_sample", "top_p", "top_k")
_SHARES = ("acc", "exact_match", "pass@1", "em", "score")  # of a sample, best


def package(name: str = "lm_eval") -> Any:
  """Returns the module lm_eval, or one inside it.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f"tasks of lm-eval need the package lm-eval >= {FLOOR} ({error}). "
      "Install it with pip install 'rlhf_jax[eval]'."
    ) from error


def model(
  role: roles.Role,
  params: PyTree,
  frozen: PyTree,
  base: Base,
  mesh: Any,
  *,
  rows: int = 8,
  max_length: int | None = None,
) -> Any:
  """Returns a policy as an lm_eval.api.model.TemplateLM.

  Args:
    role, params, frozen: of the policy, as stages.Stage.parts has them.
    base: the model underneath.
    mesh: where it is.
    rows: read, or prompts answered, together.
    max_length: tokens of a text and what stands before it; None for the
      model's context. A longer context loses its left, as lm-eval does it.

  Raises:
    UserError: lm-eval is not installed, or several processes run.
  """
  if jax.process_count() > 1:
    raise UserError(
      f"{jax.process_count()} processes: lm-eval runs in one. Evaluate on one "
      "host, or with tasks of this package."
    )
  parent = package("lm_eval.api.model").TemplateLM
  runner = Runner(role, frozen, base, mesh, rows)
  reader = likelihoods.Reader(role, frozen, base, mesh, rows, tells_top=True)
  most = base.config.max_length if max_length is None else max_length
  tokenizer = base.tokenizer

  class Policy(parent):
    """See `model`."""

    tokenizer_name = base.tokenizer.fingerprint[:16]

    @property
    def eot_token_id(self) -> int:
      return tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
      return task_suites.begin_id(tokenizer)

    def tok_encode(
      self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
      begins = add_special_tokens is not False
      first = getattr(tokenizer, "first_ids", ()) if begins else ()
      return [*first, *_ids(string, tokenizer)]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list:
      pairs = [
        Pair(before[-max(most - len(after), 1) :], after, context[:60])
        for (context, _), before, after in requests
      ]
      read = reader(params, pairs)
      return [(x.total, bool(x.is_top.all())) for x in read]

    def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
      found: list[float] = []
      for request in requests:
        (text,) = request.args
        pairs = likelihoods.windows(
          self.tok_encode(text, add_special_tokens=False),
          self.prefix_token_id,
          most - 1,
        )
        read = reader(params, pairs)
        found.append(sum(x.total for x in read))
      return found

    def generate_until(self, requests: Any, **_: Any) -> list[str]:
      found = [""] * len(requests)
      for how, places in _alike(requests).items():
        new, stops = how
        prompts = [
          self.tok_encode(requests[i].args[0])[-(most - new) :] for i in places
        ]
        prompts = [ids if ids else [self.prefix_token_id] for ids in prompts]
        answers = runner.generate(params, prompts, new, stops)
        for i, (text, _, _) in zip(places, answers, strict=True):
          found[i] = cut(text, stops)
      return found

    def apply_chat_template(
      self, chat_history: list[dict], add_generation_prompt: bool = True
    ) -> str:
      return chat_templates.render(
        chat_history,
        tokenizer,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
      ).text

  return Policy()


def _ids(text: str, tokenizer: Any) -> list[int]:
  """Returns the ids of a text in which special tokens are what they spell.

  lm-eval writes chat templates as text, so here, and nowhere else, a text that
  spells a special token yields it.
  """
  special = sorted(tokenizer.special_tokens, key=len, reverse=True)
  found: list[int] = []
  while text:
    places = [(text.find(x), -len(x), x) for x in special if x in text]
    if not places:
      return found + tokenizer.encode(text)
    start, _, token = min(places)
    found += tokenizer.encode(text[:start]) if start else []
    found.append(tokenizer.special_tokens[token])
    text = text[start + len(token) :]
  return found


def _alike(requests: Sequence[Any]) -> dict[tuple[int, tuple], list[int]]:
  """Returns (new tokens, stops) -> places of the requests that want them."""
  found: dict[tuple[int, tuple], list[int]] = {}
  for i, request in enumerate(requests):
    how = dict(request.args[1])
    stops = how.get("until") or ()
    stops = (stops,) if isinstance(stops, str) else tuple(stops)
    new = how.get("max_gen_toks", how.get("max_new_tokens", NEW_TOKENS))
    is_sampled = how.get("do_sample") or how.get("temperature", 0.0) > 0.0
    if is_sampled:
      said = {k: how[k] for k in _SAMPLED if k in how}
      raise UserError(
        f"a task of lm-eval wants sampled answers ({said}), and these are "
        "greedy. Take its greedy version, or override its generation_kwargs."
      )
    found.setdefault((int(new), tuple(filter(None, stops))), []).append(i)
  return found


def run(
  model_: Any,
  names: Sequence[str],
  *,
  shots: int = 0,
  limit: int = 0,
  chat: bool = False,
  folder: str = "",
) -> dict[str, list[Outcome]]:
  """Returns the outcomes of lm-eval's tasks, by the name of each.

  An item is a sample of lm-eval; its score is the task's accuracy or exact
  match, failing that its first number of that sample.

  Args:
    model_: of `model`.
    names: of tasks; of a group all of its tasks.
    shots: worked examples before each item; 0 for as many as the task says
      itself, which may be some (gsm8k: 5).
    limit: items of each task; 0 for all.
    chat: prompts go through the chat template.
    folder: of YAML files of further tasks; "" for lm-eval's own alone.

  Raises:
    UserError: lm-eval is not installed, or has no such task.
  """
  lm_eval = package()
  manager = _manager(names, folder)
  found = lm_eval.simple_evaluate(
    model=model_,
    tasks=list(names),
    num_fewshot=shots if shots else None,
    limit=limit if limit else None,
    log_samples=True,
    bootstrap_iters=0,
    apply_chat_template=chat,
    task_manager=manager,
  )
  return {
    name: [_outcome(name, sample) for sample in _once(samples)]
    for name, samples in found["samples"].items()
  }


def _manager(names: Sequence[str], folder: str) -> Any:
  """Returns lm-eval's list of tasks, in which all names are.

  Its own list is long to read, so a folder that has all of them is read alone.

  Raises:
    UserError: no such task.
  """
  make = package("lm_eval.tasks").TaskManager
  ways = [{"include_path": folder, "include_defaults": False}] if folder else []
  ways.append({"include_path": folder} if folder else {})
  for way in ways:
    manager = make(**way)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if not unknown:
      return manager
  raise UserError(
    f"lm-eval has no task {unknown[0]!r}. `lm-eval ls tasks` lists its own; "
    "YAML files of others stand in the folder that `harness` names."
  )


def _once(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns a sample of each document; of several filters, by the first."""
  way = samples[0].get("filter")
  return [sample for sample in samples if sample.get("filter") == way]


def _outcome(name: str, sample: dict[str, Any]) -> Outcome:
  """Returns a sample of lm-eval as an outcome whose score is its metric."""
  metric, value = _value(name, sample)
  item = Item(
    where=f"lm_eval:{name}:{sample['doc_id']}",
    kind=GENERATE,
    prompt=str(sample["arguments"])[:2000],
    answer=str(sample.get("target")),
    fields={"metric": metric},
  )
  said = sample.get("filtered_resps", [""])
  text = said[0] if said and isinstance(said[0], str) else ""
  return Outcome(item, text=text, score=value)


def _value(name: str, sample: dict[str, Any]) -> tuple[str, float]:
  """Returns the number of a sample that a task is known by.

  Raises:
    UserError: it has none that is an average over samples.
  """
  metrics = sample.get("metrics", [])
  for metric in (*(x for x in _SHARES if x in metrics), *metrics):
    value = sample.get(metric)
    if isinstance(value, (int, float)):
      return metric, float(value)
  raise UserError(
    f"lm-eval's task {name!r} has no number for a sample ({metrics}), only for "
    "the whole, and cannot be compared item by item. Run it with "
    "lm_eval.simple_evaluate and the model of rlhf_jax.programs.harness."
  )
