"""The main job: a small GPT trained on real text, with any residual connection, alone or side by side with others."""

from hyperconn.lab.contest import Contestant, contestants, train_side_by_side
from hyperconn.lab.data import Corpus, load_corpus
from hyperconn.lab.model import GPT
from hyperconn.lab.run import Run
from hyperconn.lab.settings import LabConfig, ModelConfig
from hyperconn.lab.training import train

__all__ = [
    "GPT",
    "Contestant",
    "Corpus",
    "LabConfig",
    "ModelConfig",
    "Run",
    "contestants",
    "load_corpus",
    "train",
    "train_side_by_side",
]
