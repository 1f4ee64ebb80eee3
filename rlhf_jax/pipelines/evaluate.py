"""Before against after: two policies on held-out prompts, judged alike.

Both policies answer the same prompts. The proxy is the reward model that was
optimised, the gold one never trained the policy; both are in units of the
reference policy (mean 0, deviation 1 of its samples here). Comparisons are
paired by prompt.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, generate, metrics
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import batches
from rlhf_jax.evaluation import diversity, lexicon, win_rate
from rlhf_jax.models import roles
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import build, inputs, judge, reward, stages
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  check_sections,
  section,
)
from rlhf_jax.types import FINISH_EOS, PromptBatch, Samples

SECTIONS = frozenset(
  "pipeline seed model policy init_from reward gold prompts generate packing "
  "count batch_size mesh lexicon".split()
)
RESULT_FILE = "evaluation.json"
TEXTS_FILE = "texts.jsonl"


@dataclasses.dataclass(frozen=True)
class Answers:
  """What one policy said to every prompt.

  scores: scorer name -> [n], in units of that reward model's own reference.
  kl: [n] nats, sum over the response of log policy - log reference.
  """

  prompts: list[str]
  texts: list[str]
  scores: dict[str, np.ndarray]
  kl: np.ndarray
  lengths: np.ndarray
  ended: np.ndarray


def answer(
  params: Any,
  weights: judge.Weights,
  judge_samples: Any,
  prompt_batches: list,
  key: jax.Array,
  *,
  name: str,
  base: build.Base,
  mesh: jax.sharding.Mesh,
  settings: generate.Config,
  packed: packing.Config,
) -> Answers:
  """Samples and judges the answers of one policy to batches of prompts."""
  prompts: list[str] = []
  texts: list[str] = []
  columns: dict[str, list] = {}
  total = sum(len(batch.tokens) for batch in prompt_batches)
  with metrics.Progress(f"evaluate {name}", total) as progress:
    for batch in prompt_batches:
      samples: Samples = generate.generate(
        params,
        mesh_lib.spread_batch(mesh, batch),
        key,
        model=base.config,
        config=settings,
        eos_ids=(base.tokenizer.eos_id,),
        pad_id=base.tokenizer.pad_id,
      )
      on_host = distributed.fetch(samples)
      layout = packing.plan(on_host, packed) if packed.row_tokens else None
      rollout, scores = judge_samples(weights, {}, samples, layout)
      found = build.sample_texts(base.tokenizer, on_host)
      prompts += [prompt for prompt, _ in found]
      texts += [text for _, text in found]
      kl = jnp.sum(
        rollout.behaviour_logprobs - rollout.reference_logprobs, axis=1
      )
      rows = {f"score/{k}": v for k, v in scores.items()} | {
        "kl": kl,
        "length": jnp.sum(samples.response_mask, axis=1),
        "ended": samples.finish_reason == FINISH_EOS,
      }
      for column, values in distributed.fetch(rows).items():
        columns.setdefault(column, []).append(values)
      progress.update(len(texts))
  joined = {name: np.concatenate(parts) for name, parts in columns.items()}
  return Answers(
    prompts=prompts,
    texts=texts,
    scores={
      name.removeprefix("score/"): values
      for name, values in joined.items()
      if name.startswith("score/")
    },
    kl=joined["kl"],
    lengths=joined["length"],
    ended=joined["ended"],
  )


def summarise(
  before: Answers, after: Answers, use_lexicon: bool
) -> dict[str, float]:
  """Returns the numbers of the report, by their names in summary.json.

  proxy_*, gold_*: normalised by mean and (population) deviation of `before`.
  *_standard_error: of the paired difference after - before.
  """
  facts: dict[str, float] = {"evaluation_prompts": len(before.texts)}
  for shown, name in (("proxy", "reward"), ("gold", "gold")):
    if name not in before.scores:
      continue
    mean, std = np.mean(before.scores[name]), np.std(before.scores[name])
    old = (before.scores[name] - mean) / std
    new = (after.scores[name] - mean) / std
    change = win_rate.paired_difference(new, old)
    rate = win_rate.win_rate(new, old)
    facts |= {
      f"{shown}_before": float(np.mean(old)),
      f"{shown}_after": float(np.mean(new)),
      f"{shown}_standard_error": change.standard_error,
      f"{shown}_win_rate": rate.value,
      f"{shown}_win_rate_standard_error": rate.standard_error,
    }
  if use_lexicon:
    old = lexicon.vader_scores(full_texts(before))
    new = lexicon.vader_scores(full_texts(after))
    facts |= {
      "vader_before": float(np.mean(old)),
      "vader_after": float(np.mean(new)),
      "vader_standard_error": win_rate.paired_difference(
        new, old
      ).standard_error,
    }
  kl = win_rate.mean_with_error(after.kl)
  facts |= {"kl_nats": kl.value, "kl_standard_error": kl.standard_error}
  for name, answers in (("before", before), ("after", after)):
    facts |= {
      f"distinct_2_{name}": diversity.distinct_n(answers.texts, 2),
      f"self_bleu_{name}": diversity.self_bleu(answers.texts[:64]),
      f"duplicate_share_{name}": diversity.duplicate_share(answers.texts),
      f"length_{name}": float(np.mean(answers.lengths)),
      f"eos_share_{name}": float(np.mean(answers.ended)),
    }
  return facts


def read_result(folder: Path) -> dict[str, float]:
  """Returns the numbers of a finished evaluation."""
  return json.loads((folder / RESULT_FILE).read_text())


def full_texts(answers: Answers) -> list[str]:
  """Returns prompt and response as one text each."""
  return [
    prompt + text
    for prompt, text in zip(answers.prompts, answers.texts, strict=True)
  ]


def load_policies(
  config: Any, base: build.Base, mesh: jax.sharding.Mesh
) -> dict[str, stages.Stage]:
  """Returns the policy "before" training and "after" it.

  Args:
    config: of the pipeline.
    base: the model underneath.
    mesh: where they live.

  Raises:
    ConfigError, CheckpointError: a stage is missing, or of another model.
  """
  trained = stages.load_stage(config.policy, "policy", base, mesh, "/policy")
  start = config.init_from
  if not start and trained.info["init_from"]:
    start = str(Path(config.policy) / trained.info["init_from"])
  if start:
    reference = stages.load_stage(start, "sft", base, mesh)
  else:
    role = dataclasses.replace(trained.role, trainable="full")
    reference = stages.Stage(role, {"params": base.params}, {})
  return {"before": reference, "after": trained}


def load_judge(
  config: Any,
  base: build.Base,
  mesh: jax.sharding.Mesh,
  policies: dict[str, stages.Stage],
  settings: generate.Config,
  packed: packing.Config,
) -> tuple[judge.Plan, judge.Weights]:
  """Returns what scores samples: reward model, gold model, reference.

  Args:
    config: of the pipeline.
    base: the model underneath.
    mesh: where they live.
    policies: from `load_policies`.
    settings: of sampling.
    packed: of the rows that are scored.
  """
  scorers = {"reward": reward.load(config.reward, base, mesh)[:2]}
  if config.gold:
    scorers["gold"] = reward.load(config.gold, base, mesh)[:2]
  plan = judge.make_plan(
    base,
    policies["after"],
    policies["before"],
    None,
    scorers,
    settings.temperature,
    packed.targets if packed.row_tokens else settings.max_new_tokens,
  )
  return plan, judge.Weights(
    base=base.params if plan.shared else {},
    reference=policies["before"].variables,
    scorers={name: weights for name, (_, weights) in scorers.items()},
  )


def load_prompts(
  config: Any, base: build.Base, settings: generate.Config
) -> list[PromptBatch]:
  """Returns `count` held-out prompts in batches.

  Raises:
    ConfigError: fewer prompts than wanted, or a count that is no multiple.
  """
  count, size = config.count, config.batch_size
  if count % size or count < 2:
    raise ConfigError(
      f"config.count={count}: must be a multiple (>= 2) of "
      f"config.batch_size={size}."
    )
  data = section(Data, config.prompts, "prompts")
  ids, _ = inputs.prompts(
    data, base.tokenizer, data.max_length - settings.max_new_tokens
  )
  if len(ids) < count:
    raise ConfigError(
      f"config.count={count}: only {len(ids)} prompts in {data.source}. "
      "Lower count, or give more prompts; a prompt is not used twice."
    )
  width = max(len(row) for row in ids[:count])
  return [
    batches.collate_prompts(
      ids[i : i + size], base.tokenizer.pad_id, width, index=range(i, i + size)
    )
    for i in range(0, count, size)
  ]


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Evaluates a finished policy; returns the numbers of evaluation.json."""
  check_sections(config, SECTIONS, "")
  settings = section(generate.Config, config.generate, "generate")
  packed = section(packing.Config, config.packing, "packing")
  mesh = build.make_mesh(config)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  path = workdir / RESULT_FILE
  if path.is_file():
    return read_result(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  policies = load_policies(config, base, mesh)
  plan, weights = load_judge(config, base, mesh, policies, settings, packed)
  prompt_batches = load_prompts(config, base, settings)
  judge_samples = judge.make_judge(plan)
  answers = {}
  for number, (name, stage) in enumerate(policies.items()):
    params = roles.sampling_params(
      stage.role, *roles.split(stage.role, stage.variables)
    )
    answers[name] = answer(
      params,
      weights,
      judge_samples,
      prompt_batches,
      jax.random.fold_in(jax.random.key(config.seed), number),
      name=name,
      base=base,
      mesh=mesh,
      settings=settings,
      packed=packed,
    )
  before, after = answers["before"], answers["after"]
  facts = summarise(before, after, config.lexicon)
  if distributed.is_first():
    _write_texts(workdir / TEXTS_FILE, before, after)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(temporary, path)
  distributed.barrier(RESULT_FILE)
  return facts


def _write_texts(path: Path, before: Answers, after: Answers) -> None:
  """Writes every prompt with both answers and their raw scores."""
  lines = []
  for i, prompt in enumerate(before.prompts):
    row = {
      "prompt": prompt,
      "before": before.texts[i],
      "after": after.texts[i],
      "kl": float(after.kl[i]),
    }
    for shown, name in (("proxy", "reward"), ("gold", "gold")):
      if name in before.scores:
        row[f"{shown}_before"] = float(before.scores[name][i])
        row[f"{shown}_after"] = float(after.scores[name][i])
    lines.append(json.dumps(row, ensure_ascii=False))
  path.write_text("\n".join(lines) + "\n")
