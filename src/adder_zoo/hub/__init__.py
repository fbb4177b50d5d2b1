"""The Hugging Face Hub: saving a network, pushing it, fetching it. Nothing else in the package talks to the Hub.

    save.py       a network as timm's model.safetensors and config.json
    download.py   one file, its checksum verified; the models load their weights by it, and it knows nothing of them
    push.py       one commit with weights, config.json, card, results.json, settings, log and plots
    cards.py      the card, rendered by card.md; index.py an organisation's page; merge.py what people wrote around it
    records.py    the files of a run, and its twin
    kernel_project.py  the Triton kernels as Hugging Face's ``kernels`` wants them

Only safetensors go up and come down. No message holds a token.
"""

from .errors import HubError
from .push import Push, models_of, push_folder, push_space, push_to_hub, repositories_of
from .save import save_pretrained

__all__ = [
    "HubError",
    "Push",
    "models_of",
    "push_folder",
    "push_space",
    "push_to_hub",
    "repositories_of",
    "save_pretrained",
]
