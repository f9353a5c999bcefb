"""The main job: a small GPT trained on real text, with any residual connection, alone or side by side with others."""

from hyperconn.lab.contest import Comparison
from hyperconn.lab.contestants import Contestant, contestants
from hyperconn.lab.data import Corpus, load_corpus
from hyperconn.lab.model import GPT
from hyperconn.lab.run import Run
from hyperconn.lab.settings import LabConfig, ModelConfig
from hyperconn.lab.training import train

__all__ = [
    "GPT",
    "Comparison",
    "Contestant",
    "Corpus",
    "LabConfig",
    "ModelConfig",
    "Run",
    "contestants",
    "load_corpus",
    "train",
]
