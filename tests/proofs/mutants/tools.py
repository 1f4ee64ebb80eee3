"""Faults in optimizers, sharding and logs."""

from tests.proofs.mutations import of

FAULTS = (
  *of(
    "optimizer",
    "optimizer.py",
    "optimizer::three_steps_by_hand"
    " optimizer::decaying_schedules"
    " optimizer::constant_schedule_with_warm_up"
    " optimizer::the_warm_up_scales_with_the_run",
    (
      "schedule: the warm-up of a short run is not cut",
      "min(_warmup_steps(config, updates), most)",
      "_warmup_steps(config, updates)",
    ),
    (
      "schedule: no warm-up",
      "optax.join_schedules([warmup, after], [warmup_steps])",
      "optax.join_schedules([warmup, after], [0])",
    ),
    (
      "schedule: the warm-up is not part of the total",
      "decay_steps = config.total_steps - warmup_steps",
      "decay_steps = config.total_steps",
    ),
    (
      "clip: after Adam",
      "chain.insert(0, clip_by_global_norm(config.clip_norm))",
      "chain.insert(1, clip_by_global_norm(config.clip_norm))",
    ),
    (
      "decay: of norms that a scan stacked",
      "return leaf.ndim > 1 and name not in _NEVER_DECAYED",
      "return leaf.ndim > 1 or name in ()",
    ),
    (
      "decay: after the learning rate",
      "chain.insert(1, decay)",
      "chain.append(decay)",
    ),
    (
      "tf: the first moment is not corrected",
      "jnp.sqrt(1 - beta2**count) / (1 - beta1**count)",
      "jnp.sqrt(1 - beta2**count)",
    ),
    (
      "cosine: down to 0",
      "decay_steps, alpha=final)",
      "decay_steps, alpha=0.0)",
    ),
  ),
  *of(
    "sharding",
    "parallel/rules.py",
    "rules::every_path_has_the_spec_written_by_hand"
    " rules::dimensions_that_do_not_divide"
    " rules::gathered_weights_have_the_value_and_the_gradient_of_split_ones",
    (
      "rules: rows are columns",
      '(f"{ROW}/kernel(/values)?", ("tensor", "fsdp"))',
      '(f"{ROW}/kernel(/values)?", ("fsdp", "tensor"))',
    ),
    (
      "rules: LoRA factors of keys are whole",
      '("attention/[kv]_proj/lora_b", (None, "tensor?"))',
      '("attention/[kv]_proj/lora_b", (None, None))',
    ),
    (
      "rules: the cache's heads are whole",
      '(BATCH_AXES, "tensor?", None, None)',
      "(BATCH_AXES, None, None, None)",
    ),
    (
      "rules: aligned at the left",
      "return (None,) * (len(shape) - len(axes)) + axes",
      "return axes + (None,) * (len(shape) - len(axes))",
    ),
    (
      "rules: everything may be whole",
      "if not mark:",
      "if mark is None:",
    ),
    (
      "gather: gradients stay whole",
      "return (constrain(gradient, summed),)",
      "return (gradient,) if summed else (gradient,)",
    ),
  ),
  *of(
    "sharding",
    "parallel/mesh.py",
    "mesh::shard_batch_splits_rows_and_keeps_values"
    " mesh::the_first_so_many_devices",
    (
      "mesh: batches are split over one axis",
      'BATCH_AXES = ("data", "fsdp")',
      'BATCH_AXES = ("data",)',
    ),
    (
      "mesh: all devices, whatever was asked",
      "devices[: config.devices] if config.devices else devices",
      "devices",
    ),
  ),
  *of(
    "metrics",
    "metrics.py",
    "metrics::trap_23_resumed_run_has_each_step_once"
    " metrics::torn_line_is_cut_before_appending"
    " metrics::timer_accumulates_even_through_errors",
    (
      "metrics: the step resumed from is dropped",
      'r["phase"] != phase or r["step"] <= step',
      'r["phase"] != phase or r["step"] < step',
    ),
    (
      "metrics: other phases are dropped",
      'r["phase"] != phase or r["step"] <= step',
      'r["step"] <= step',
    ),
    (
      "metrics: a torn line stays",
      "file.truncate(len(whole))",
      "file.truncate(len(content))",
    ),
    (
      "timer: seconds of all steps",
      "    self._seconds.clear()\n",
      "    self._seconds.copy()\n",
    ),
  ),
  *of(
    "metrics",
    "terminal.py",
    "terminal::progress_line_on_a_terminal"
    " terminal::the_pace_leaves_compilation_out"
    " terminal::what_rounds_to_zero_has_no_sign",
    (
      "progress: the time of all steps is left",
      "pace * (self._total - n)",
      "pace * self._total",
    ),
    (
      "progress: one slow step moves the pace",
      "statistics.median(paces)",
      "statistics.mean(paces)",
    ),
    (
      "terminal: -0.00 is printed",
      "round(value, decimals) + 0.0",
      "round(value, decimals)",
    ),
  ),
  *of(
    "memory",
    "moments.py",
    "moments::what_is_above_0_never_becomes_0"
    " moments::codes_are_the_nearest_of_their_block"
    " moments::it_ends_where_adamw_ends",
    (
      "moments: small second moments vanish",
      "codes = jnp.where(unit > 0, jnp.maximum(codes, 1), 0)",
      "codes = jnp.where(unit > 0, codes, 0)",
    ),
    (
      "moments: the root comes back as the moment",
      "return found if is_signed else jnp.square(found)",
      "return found",
    ),
    (
      "moments: codes are rounded down",
      "middles = jnp.asarray((table[1:] + table[:-1]) / 2)",
      "middles = jnp.asarray(table[1:])",
    ),
  ),
  *of(
    "memory",
    "rounding.py",
    "rounding::either_neighbour_by_chance_and_the_mean_is_right"
    " rounding::tiny_updates_move_weights_where_the_nearest_does_not",
    (
      "rounding: always towards 0",
      "cut = (bits + noise)",
      "cut = (bits + 0 * noise)",
    ),
    (
      "rounding: the same chance in every update",
      "jax.random.fold_in(jax.random.key(SEED), state.count)",
      "jax.random.fold_in(jax.random.key(SEED), 0)",
    ),
  ),
  *of(
    "memory",
    "programs/offload.py",
    "offload::a_tree_of_which_others_read_all_is_refused"
    " plan_memory::what_is_away_is_counted_where_it_is_read",
    (
      "offload: what others read leaves too",
      "own = {id(x): x for x in _movable(tree) if id(x) not in kept}",
      "own = {id(x): x for x in _movable(tree)}",
    ),
    (
      "plan: a prefetched copy takes no room",
      "    with_frozen |= set(rollout)\n",
      "",
    ),
  ),
)
