"""What every test stands on: no network, one thread."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

import torch

torch.set_num_threads(1)
