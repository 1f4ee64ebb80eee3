"""Packaging of rlhf_jax: floors, not pins; optional parts are extras.

The floors are those of one environment that passes (tests.proofs.floors).
configs/ stands beside the package; a wheel has a copy of it inside.
"""

import tomllib
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

MATH = ["sympy>=1.12"]
LABEL = ["starlette>=0.40", "uvicorn>=0.30"]
HUB = ["huggingface_hub>=0.36.2"]
EVAL = ["lm-eval>=0.4.13"]
WANDB = ["wandb>=0.21"]
MLFLOW = ["mlflow-skinny>=3.4"]
NOTEBOOKS = ["ipykernel>=6.29", "jupytext>=1.16", "nbclient>=0.10", *LABEL]
DOCS = ["mkdocs-material>=9.6"]
EMBEDDINGS = ["onnxruntime>=1.20"]
ROOT = Path(__file__).parent


def urls() -> dict[str, str]:
  """Returns the address of pyproject.toml, none while it is a placeholder."""
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  address = settings["tool"]["rlhf_jax"]["repository"]
  return {} if "/OWNER/" in address else {"Repository": address}


class WithConfigs(build_py):
  """Copies configs/ into the package that is built."""

  def run(self):
    super().run()
    if self.editable_mode:  # it is found beside the package
      return
    for source in sorted((ROOT / "configs").glob("**/*.py")):
      target = Path(self.build_lib, "rlhf_jax", source.relative_to(ROOT))
      self.mkpath(str(target.parent))
      self.copy_file(str(source), str(target))


setuptools.setup(
  name="rlhf_jax",
  version="0.1.0",
  description="RLHF for JAX and TPU pods: SFT, reward models and PPO as pure "
  "update functions over sharded pytrees.",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  project_urls=urls(),
  # Named, so that an editable install is a line of sys.path and not a finder:
  # to Python started beside a clone that is called rlhf_jax, a finder would
  # come too late, and rlhf_jax.runs be the clone's folder runs/.
  package_dir={"": "."},
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["rlhf_jax", "rlhf_jax.*"]),
  package_data={
    "rlhf_jax": [
      "data/*.jsonl",
      "evaluation/*.html",
      "dashboard/*.html",
      "dashboard/*.css",
      "dashboard/*.js",
      "rewards/ai/*.txt",
      "labelling/*.html",
      "labelling/*.css",
      "labelling/*.js",
      "py.typed",
    ]
  },
  cmdclass={"build_py": WithConfigs},
  entry_points={"console_scripts": ["rlhf-jax=rlhf_jax.__main__:script"]},
  install_requires=[
    "absl-py>=2.0",
    "etils[epath]>=1.9.1",
    "flax>=0.11.2",
    "gguf>=0.17.1",
    "grain>=0.2.10",
    "jax>=0.7.2",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.12",
    "pyarrow>=18.0",
    "safetensors>=0.4.3",
    "sentencepiece>=0.2.3",
    "tensorflow-datasets>=4.9.10",
    "tensorboardX>=2.6.2.2",
    "tokenizers>=0.20",
    "vaderSentiment>=3.3.2",
  ],
  extras_require={
    "cuda": ["jax[cuda12]>=0.7.2"],
    "docs": DOCS,
    "embeddings": EMBEDDINGS,
    "eval": EVAL,
    "hub": HUB,
    "label": LABEL,
    "math": MATH,
    "mlflow": MLFLOW,
    "notebooks": NOTEBOOKS,
    "tpu": ["jax[tpu]>=0.7.2", "gcsfs>=2024.2"],
    "wandb": WANDB,
    "test": [
      "pytest>=8.0",
      "pytest-xdist>=3.8",
      "ruff>=0.6",
      "build>=1.2.1",
      "httpx>=0.27",
      "playwright>=1.49",
      *EMBEDDINGS,
      *HUB,
      *LABEL,
      *MATH,
      *NOTEBOOKS,
    ],
  },
)
