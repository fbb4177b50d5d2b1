"""Training of adder networks: what the scripts in ``recipes/`` are made of (``pip install adder_zoo[recipes]``).

A recipe is a dataclass of settings, a function that makes the data, and a few calls::

    config = parse_settings(Config, __doc__)       settings.py    flags over a YAML file over defaults
    accelerator = make_accelerator(config)         launch.py      device, processes, precision
    run = Run(config, accelerator)                 run.py         the folder: checkpoints, log, results
    model, teacher = create_networks(...)          networks.py    from timm's registry
    images = Data(...)                             data.py        images whose augmentation can be repeated
    train(config, accelerator, run, images, model, teacher)       loop.py

``objectives.py`` has what is minimised, ``schedule.py`` optimizer and learning rate, ``loaders.py`` the batches,
``evaluate.py`` the measurement. A run that is stopped anywhere goes on to the same weights, bit by bit on a CPU.
"""

try:
    import accelerate  # noqa: F401
    import psutil  # noqa: F401
    import tqdm  # noqa: F401
except ImportError as error:
    raise ImportError(f"adder_zoo.training needs {error.name}: pip install 'adder_zoo[recipes]'") from error

from .data import Data
from .launch import make_accelerator
from .loop import train
from .networks import create_network, create_networks, resolve_model_name
from .run import Run
from .settings import RecipeError, Settings, exit_with_message, option, parse_settings

__all__ = [
    "Data",
    "RecipeError",
    "Run",
    "Settings",
    "create_network",
    "create_networks",
    "exit_with_message",
    "make_accelerator",
    "option",
    "parse_settings",
    "resolve_model_name",
    "train",
]
