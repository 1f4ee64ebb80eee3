"""Tiny tokenizers, trained in a second, for tests that need a real one."""

import io
import json
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

CORPUS = [
  "Movie review: a moving and funny film with a warm heart.",
  "Movie review: the plot is thin, the jokes are old and it never ends.",
  "What is 12 + 345? It is 357, of course: 12 and 345 make 357.",
  "the cat sat on the mat and the dog sat on the log with the cat",
  "user assistant system Human Assistant Question Answer yes no",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_sentencepiece(path: Path, **changes) -> Path:
  """Trains a SentencePiece model that keeps newlines and double spaces.

  Args:
    path: of the *.model to write.
    **changes: trainer options; pad_id=3, say, to have a padding token.
  """
  model = io.BytesIO()
  options = {
    "vocab_size": 240,
    "model_type": "bpe",
    "byte_fallback": False,
    "hard_vocab_limit": False,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "user_defined_symbols": ["<|im_start|>", "<|im_end|>", "\n"],
    "required_chars": "".join(map(chr, range(33, 127))),
    "minloglevel": 2,
  }
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS * 20),
    model_writer=model,
    **(options | changes),
  )
  path.write_bytes(model.getvalue())
  return path


def _backend(special: list[str] = SPECIAL) -> tokenizers.Tokenizer:
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=340,
    special_tokens=special,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(CORPUS, trainer)
  return backend


def tiny_tokenizer_json(
  folder: Path, special: list[str] = SPECIAL, **config
) -> Path:
  """Writes a Hugging Face folder: byte-level BPE of 340 tokens.

  Args:
    folder: to write tokenizer.json and tokenizer_config.json into.
    special: special tokens, which come first; another number of them gives
      all tokens other ids.
    **config: entries of tokenizer_config.json; the end token is <|im_end|>
      and, by default, the padding token as well, as none is named.
  """
  folder.mkdir(parents=True, exist_ok=True)
  _backend(special).save(str(folder / "tokenizer.json"))
  entries = {"eos_token": "<|im_end|>", **config}
  (folder / "tokenizer_config.json").write_text(json.dumps(entries))
  return folder


LLAMA_TEMPLATE = (  # of Llama 2: the answer follows a space
  "{% for m in messages %}{% if m['role'] == 'user' %}"
  "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
  "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def tiny_llama(folder: Path, scheme: str = "prepend", **config) -> Path:
  """Writes a folder whose tokenizer marks word starts, as Llama 2's does.

  Its tokens are single characters, each also behind "▁", the start of a word;
  the post-processor puts <s> before a text.

  Args:
    folder: to write into.
    scheme: "prepend", a normaliser; or that of a Metaspace: "always", "first".
    **config: entries of tokenizer_config.json.
  """
  folder.mkdir(parents=True, exist_ok=True)
  special = ["<unk>", "<s>", "</s>"]
  letters = [*map(chr, range(33, 127))]
  tokens = [*special, *(f"<0x{b:02X}>" for b in range(256)), "▁", *letters]
  tokens += ["▁" + c for c in letters]
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={t: i for i, t in enumerate(tokens)},
      merges=[("▁", c) for c in letters],
      unk_token="<unk>",
      byte_fallback=True,
      fuse_unk=True,
    )
  )
  if scheme == "prepend":
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
  else:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme=scheme, split=False
    )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
    ]
  )
  backend.add_special_tokens(
    [tokenizers.AddedToken(t, special=True, normalized=False) for t in special]
  )
  backend.post_processor = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
  )
  backend.save(str(folder / "tokenizer.json"))
  entries = {"bos_token": "<s>", "eos_token": "</s>", **config}
  (folder / "tokenizer_config.json").write_text(json.dumps(entries))
  return folder


def tiny_gguf_vocabulary(path: Path, *, pre="smollm", kind="gpt2") -> Path:
  """Writes a GGUF that holds the vocabulary of tiny_tokenizer_json only."""
  backend = _backend()
  vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
  merges = json.loads(backend.to_str())["model"]["merges"]
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model(kind)
  writer.add_tokenizer_pre(pre)
  writer.add_token_list([token for token, _ in vocabulary])
  writer.add_token_types([3 if t in SPECIAL else 1 for t, _ in vocabulary])
  writer.add_token_merges([" ".join(pair) for pair in merges])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_chat_template("{{ messages[0]['content'] }}")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
