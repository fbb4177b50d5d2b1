"""The Hugging Face Hub: saving a network, pushing it, fetching it. Nothing else in the package talks to the Hub.

    save.py       a network as timm's model.safetensors and config.json
    download.py   one file, its checksum verified; the models load their weights by it, and it knows nothing of them
    push.py       one commit with weights, config.json, card, notebook, results, settings, log and plots
    cards.py      the card, rendered by card.md; index.py an organisation's page; merge.py what people wrote around it
    snippets.py   the code that card and notebook.py show; evaluation.py results in the Hub's two forms
    records.py    the files of a run, and its twin; collection.py all networks of an organisation on one page
    kernel_project.py  the Triton kernels as Hugging Face's ``kernels`` wants them

Only safetensors go up and come down. No message holds a token.
"""

from .collection import collect
from .errors import HubError
from .push import Push, models_of, push_folder, push_space, push_to_hub, repositories_of
from .save import save_pretrained

__all__ = [
    "HubError",
    "Push",
    "collect",
    "models_of",
    "push_folder",
    "push_space",
    "push_to_hub",
    "repositories_of",
    "save_pretrained",
]
