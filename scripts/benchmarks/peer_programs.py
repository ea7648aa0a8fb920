"""What users run instead of ema-avg, as Python programs for the environment of the peers.

Each averages the files that it is given and writes one output. The peers' own code does the work; what surrounds it is
what their users write.
"""

_MODULE = """
import os, sys, torch
from safetensors.torch import load_file, save_file
out, decay, first, *rest = sys.argv[1:]
class Model(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(value, requires_grad=False))
    def load(self, path):
        self.load_state_dict({name.replace(".", "/"): value for name, value in load_file(path).items()})
model = Model(load_file(first))
def save(averaged):
    save_file({name.replace("/", "."): value for name, value in averaged.state_dict().items()}, out)
"""
SWA_UTILS = f"""{_MODULE}
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(float(decay)))
averaged.update_parameters(model)  # the first call copies
for path in rest:
    model.load(path)
    averaged.update_parameters(model)
save(averaged.module)
"""
EMA_PYTORCH = f"""{_MODULE}
from ema_pytorch import EMA
settings = dict(beta=float(decay), min_value=float(decay), update_after_step=-1, update_every=1)
averaged = EMA(model, include_online_model=False, **settings)
averaged.update()  # the first call copies
for path in rest:
    model.load(path)
    averaged.update()
save(averaged.ema_model)
"""
SD_MECHA = """
import sys, sd_mecha, torch
from safetensors import safe_open
out, decay, first, *rest = sys.argv[1:]
with safe_open(first, "pt") as file:
    dtype = file.get_tensor(next(iter(file.keys()))).dtype
recipe = sd_mecha.model(first)
for path in rest:
    recipe = sd_mecha.weighted_sum(recipe, sd_mecha.model(path), alpha=1 - float(decay))
sd_mecha.merge(recipe, output=out, output_dtype=dtype)
"""
TIMM = """
import importlib.util, runpy, sys, types
script, *arguments = sys.argv[1:]
timm, models = types.ModuleType("timm"), types.ModuleType("timm.models")
timm.__path__ = list(importlib.util.find_spec("timm").submodule_search_locations)
models.__path__ = [timm.__path__[0] + "/models"]
sys.modules |= {"timm": timm, "timm.models": models}
from timm.models._helpers import load_state_dict
models.load_state_dict = load_state_dict
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""
"""Without timm's networks, whose torchvision does not load beside a torch for CPUs alone."""
FAIRSEQ = """
import runpy, sys, types
class PathManager:
    open = staticmethod(open)
sys.modules["fairseq"] = types.ModuleType("fairseq")
sys.modules["fairseq.file_io"] = types.ModuleType("fairseq.file_io")
sys.modules["fairseq.file_io"].PathManager = PathManager
script, out, *paths = sys.argv[1:]
sys.argv = [script, "--output", out, "--inputs", *paths]
runpy.run_path(script, run_name="__main__")
"""
"""With Python's ``open`` in the place of fairseq's, so that fairseq itself is not needed."""
ICEFALL = """
import runpy, sys, types
from pathlib import Path
import torch
for name in ("lhotse", "lhotse.dataset", "lhotse.dataset.sampling", "lhotse.dataset.sampling.base"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["lhotse.dataset.sampling.base"].CutSampler = object
script, out, *paths = sys.argv[1:]
average = runpy.run_path(script)["average_checkpoints"]
torch.save({"model": average([Path(path) for path in paths])}, out)
"""
"""``average_checkpoints`` of ``icefall/checkpoint.py``, saved as its ``generate_averaged_model.py`` scripts do; lhotse,
which names a type there, is not needed.
"""
IMPORTS = """
import sys
from importlib.metadata import version
__import__(sys.argv[1])
print(version(sys.argv[2]))
"""
"""Fails, with the reason as its last line, where a module cannot be imported."""
