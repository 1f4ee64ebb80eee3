"""Packaging of rlhf_jax: floors, not pins; optional parts are extras.

The floors are those of one environment that passes (tests.proofs.floors).
"""

from pathlib import Path

import setuptools

TFDS = ["tensorflow-datasets>=4.9.10"]
MATH = ["sympy>=1.12"]
HUB = ["huggingface_hub>=0.36.2"]
WANDB = ["wandb>=0.21"]
MLFLOW = ["mlflow-skinny>=3.4"]

setuptools.setup(
  name="rlhf_jax",
  version="0.1.0",
  description="RLHF for JAX and TPU pods: SFT, reward models and PPO as pure "
  "update functions over sharded pytrees.",
  long_description=Path(__file__).with_name("README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["rlhf_jax", "rlhf_jax.*"]),
  package_data={
    "rlhf_jax": [
      "evaluation/*.html",
      "dashboard/*.html",
      "dashboard/*.css",
      "dashboard/*.js",
    ]
  },
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
    "safetensors>=0.4.3",
    "sentencepiece>=0.2.3",
    "tensorboardX>=2.6.2.2",
    "tokenizers>=0.20",
    "vaderSentiment>=3.3.2",
  ],
  extras_require={
    "cuda": ["jax[cuda12]>=0.7.2"],
    "hub": HUB,
    "math": MATH,
    "mlflow": MLFLOW,
    "tfds": TFDS,
    "tpu": ["jax[tpu]>=0.7.2", "gcsfs>=2024.2"],
    "wandb": WANDB,
    "test": [
      "pytest>=8.0",
      "pytest-xdist>=3.8",
      "ruff>=0.6",
      *HUB,
      *MATH,
      *TFDS,
    ],
  },
)
