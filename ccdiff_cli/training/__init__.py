"""``ccdiff train``: from a recipe and a prepared set to a generator folder, whatever the method.

    train(load_recipe("tiny"), "runs/prepared", "runs/generator")
    plan(load_recipe("tiny"), "runs/prepared")          # what it would do

``options`` says what can be asked for, ``run`` holds the order of a training, ``parts`` what a generator is made of, ``denoiser`` items,
cached features and batches, ``loop`` the gradient steps and their resumption, ``costs`` what it takes in memory.  What is particular to a
method stands in ``methods``.
"""

from typing import TYPE_CHECKING

from ..lazy import offered
from .options import TrainOptions

if TYPE_CHECKING:
    from .run import plan, save_generator, train
else:
    __getattr__ = offered(__name__, run="plan save_generator train")

__all__ = ["TrainOptions", "plan", "save_generator", "train"]
