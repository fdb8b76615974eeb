"""Runs a network of timm's, by a Python that has torch and timm: the other side of a comparison.

    run_timm.py SETTINGS IMAGES LOGITS --load=FILE or --save=FILE

SETTINGS are those of a model as JSON, ``model`` is its name, and ``activation`` "gelu_tanh" where
that is to be in place of the exact one. IMAGES are ``[N, H, W, C]`` in ``.npy``, and so are the
``[N, K]`` LOGITS. ``--save`` writes random parameters.
"""

import argparse
import functools
import importlib.util
import json
import sys
from unittest.mock import MagicMock

import numpy as np
import safetensors.torch
import torch

if importlib.util.find_spec("torchvision") is None:
    # timm imports it, and these models never call it.
    for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = MagicMock()
    for name in (".datasets", ".datasets.folder", ".models", ".models.feature_extraction"):
        sys.modules[f"torchvision{name}"] = MagicMock()

import timm
from timm.models.nfnet import GammaAct


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("images")
    parser.add_argument("logits")
    parser.add_argument("--load")
    parser.add_argument("--save")
    arguments = parser.parse_args()
    activation = arguments.settings.pop("activation")
    torch.manual_seed(0)
    model = timm.create_model(arguments.settings.pop("model"), **arguments.settings).eval()
    for module in model.modules():
        if isinstance(module, GammaAct) and activation == "gelu_tanh":
            gelu = functools.partial(torch.nn.functional.gelu, approximate="tanh")
            module.act_fn = lambda x, inplace, gelu=gelu: gelu(x)
    if arguments.load:
        model.load_state_dict(safetensors.torch.load_file(arguments.load))
    else:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "gain" in name or "bias" in name:  # Some start at zero, which would hide much.
                    parameter += 0.2 * torch.randn(parameter.shape)
                if "head" in name:
                    parameter += 0.05 * torch.randn(parameter.shape)
    images = torch.from_numpy(np.load(arguments.images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.save(arguments.logits, model(images).numpy())
    if arguments.save:
        torch.save(model.state_dict(), arguments.save)


if __name__ == "__main__":
    main()
