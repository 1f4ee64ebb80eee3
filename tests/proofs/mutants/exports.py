"""Faults in what leaves for other programs."""

from tests.proofs.mutations import of

FAULTS = (
  *of(
    "export",
    "exports/weights.py",
    "exported_weights",
    (
      "export: JAX keeps a copy of each weight on the host",
      "fresh = _copy(fresh)",
      "pass",
      "exported_weights::a_host_holds_one_weight_at_a_time",
    ),
    (
      "export: factors are not merged",
      "own = factors.get(path, {})",
      "own = {}",
      "exported_weights::all_meshes_and_stacks_write_the_same_files",
    ),
  ),
  *of(
    "export",
    "exports/classifier.py",
    "classifier_folder",
    (
      "export: a reward model keeps the gain of its last norm",
      'return kept | {"final_norm": {"scale": scale}}',
      "return kept",
    ),
    (
      "export: padding that ends a row which is read to its end",
      "if i not in ends and i != tokenizer.bos_id:",
      "if i != tokenizer.bos_id:",
      "classifier_folder::padding_is_no_token_that_ends_a_row_which_is_read_to"
      "_its_end",
    ),
    (
      "export: a running mean becomes a linear layer",
      'if head.pooling != "last":',
      'if head.pooling not in ("last", "mean_last"):',
      "classifier_folder::heads_that_transformers_has_not_are_refused_by_name",
    ),
  ),
  *of(
    "export",
    "exports/folders.py",
    "exported_weights",
    (
      "export: a folder has its name before it is whole",
      "partial = folder.with_name(folder.name + PARTIAL)",
      "partial = folder",
      "exported_weights::a_killed_export_leaves_nothing_that_looks_whole",
    ),
    (
      "export: an adapter for other weights",
      "if not any(np.array_equal(x, theirs) for x in rounded):",
      "if False:",
      "exported_weights::an_adapter_is_for_the_weights_below_it_and_no_others",
    ),
  ),
  *of(
    "export",
    "exports/facts.py",
    "export_run",
    (
      "card: numbers of another step",
      'if row["step"] == step), {})',
      "if True), {})",
      "export_run::any_kept_step_leaves_without_numbers_of_another",
    ),
  ),
  *of(
    "export",
    "pipelines/export_run.py",
    "export_run",
    (
      "card: an evaluation of another run",
      'return origins.get("policy") == stages.stage_fingerprint(run)',
      "return True",
      "export_run::any_kept_step_leaves_without_numbers_of_another",
    ),
  ),
  *of(
    "export",
    "models/peft.py",
    "peft_folder",
    (
      "adapter: alpha is of one map's rank in a fused matrix",
      "{name: _whole(scale * r) for name, r in patterns.items()}",
      "{name: _whole(scale * rank) for name, r in patterns.items()}",
    ),
  ),
  *of(
    "export",
    "models/safetensors_writer.py",
    "safetensors_writer",
    (
      "files: a number that float16 cannot hold becomes infinite",
      "if np.isfinite(rounded.astype(np.float32)).all():",
      "if True:",
      "safetensors_writer::what_a_dtype_cannot_hold_is_refused",
    ),
    (
      "files: one tensor more than fits",
      "if not files or size + more > most_bytes:",
      "if not files or size > most_bytes:",
    ),
  ),
  *of(
    "export",
    "models/gguf_names.py",
    "gguf_families gguf",
    (
      "gguf: pairs of a head are not put apart",
      "order = order.swapaxes(1, 2).reshape(count)",
      "order = order.reshape(count)",
      "gguf_families::a_file_is_what_the_converter_of_llama_cpp_writes",
    ),
    (
      "gguf: rows of a fused tensor go by our order alone",
      "found = order if found is None else found[order]",
      "found = order",
      "gguf_families::queries_keys_and_values_in_one_tensor",
    ),
  ),
  *of(
    "export",
    "models/gguf_keys.py",
    "gguf_families",
    (
      "gguf: a window that llama.cpp does not read is written and forgotten",
      "config, max_length=longest, window=None, local_layers=()",
      "config, window=None, local_layers=()",
      "gguf_families::what_is_written_is_read_again",
    ),
    (
      "gguf: nothing compares what a file means with the model",
      "for field, theirs in differing(config, again).items():",
      "for field, theirs in {}.items():",
      "gguf_families::what_llama_cpp_would_compute_otherwise_is_refused",
    ),
  ),
  *of(
    "export",
    "models/gguf_writer.py",
    "gguf_families",
    (
      "gguf: gains of Gemma without their 1",
      'if path.endswith("/scale") and shift:',
      "if False:",
      "gguf_families::a_file_is_what_the_converter_of_llama_cpp_writes",
    ),
  ),
  *of(
    "export",
    "models/gguf_metadata.py",
    "gguf",
    (
      "gguf: keys that nobody reads are passed over",
      "unread = sorted(set(self.values) - self._seen)",
      "unread = []",
      "gguf::errors_name_what_is_wrong",
    ),
  ),
)
