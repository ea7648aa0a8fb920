"""Training libraries, and trainers of robots, molecules and proteins."""

from __future__ import annotations

import io
import zipfile

import torch

from tests.trainers.files import ADAM, Dcp, Files, Link, Point, Trainer, average, names, weights


def _lightning(point: Point) -> dict[str, object]:
    loops: dict[str, object] = {"fit_loop": {"state_dict": {}}}
    callbacks = {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5)}}
    counters = {"epoch": point.number, "global_step": point.at, "pytorch-lightning_version": "2.6.0"}
    return {
        **counters,
        "state_dict": weights(point, "model."),
        "loops": loops,
        "callbacks": callbacks,
        "optimizer_states": [ADAM],
    }


def _lightning_deepspeed(point: Point) -> Files:
    folder = f"epoch={point.number}-step={point.at}.ckpt"
    module = weights(point, "_forward_module.")
    state = {
        "module": module,
        "global_steps": point.at,
        "global_step": point.at,
        "epoch": point.number,
        "ds_version": "0.17",
    }
    return {
        f"{folder}/checkpoint/mp_rank_00_model_states.pt": state,
        f"{folder}/checkpoint/zero_pp_rank_0_mp_rank_00_optim_states.pt": {"optimizer_state_dict": ADAM},
        f"{folder}/latest": "checkpoint",
        f"{folder}/zero_to_fp32.py": "#!/usr/bin/env python",
    }


def _fsdp(point: Point) -> Files:
    folder = f"epoch={point.number}-step={point.at}.ckpt"
    return {
        folder: Dcp({"model": weights(point)}),
        f"{folder}/meta.pt": {"epoch": point.number, "global_step": point.at},
    }


def _lerobot(point: Point) -> Files:
    folder = f"checkpoints/{point.at:06d}"
    return {
        f"{folder}/pretrained_model/model.safetensors": weights(point),
        f"{folder}/pretrained_model/config.json": {"type": "act"},
        f"{folder}/pretrained_model/train_config.json": {"steps": 15000},
        f"{folder}/training_state/optimizer_state.safetensors": {"state.0.exp_avg": torch.ones(32, 16)},
        f"{folder}/training_state/training_step.json": {"step": point.at},
    }


def _stable_baselines() -> bytes:
    policy, packed = io.BytesIO(), io.BytesIO()
    torch.save({"action_net.weight": torch.ones(2, 2)}, policy)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data", "{}")
        archive.writestr("policy.pth", policy.getvalue())
        archive.writestr("_stable_baselines3_version", "2.3.0")
    return packed.getvalue()


STEPS = (500, 1000, 1500)
LIBRARIES = {
    "Lightning": Trainer(
        source="Lightning-AI/pytorch-lightning src/lightning/pytorch/callbacks/model_checkpoint.py",
        at=STEPS,
        save=lambda p: {f"checkpoints/epoch={p.number}-step={p.at}.ckpt": _lightning(p)},
        beside=lambda ps: {"checkpoints/last.ckpt": _lightning(ps[-1]), "hparams.yaml": "{}"},
        paths=("checkpoints",),
        skipped=("checkpoints/last.ckpt",),
        key="state_dict",
        names=names("model."),
    ),
    "Lightning with DeepSpeed": Trainer(
        source="Lightning-AI/pytorch-lightning src/lightning/pytorch/strategies/deepspeed.py save_checkpoint",
        at=STEPS,
        save=_lightning_deepspeed,
        key="module",
    ),
    "Lightning with FSDP": Trainer(
        source="Lightning-AI/pytorch-lightning src/lightning/pytorch/strategies/fsdp.py save_checkpoint",
        at=STEPS,
        save=_fsdp,
        key="model",
    ),
    "GraphGym": Trainer(
        source="snap-stanford/GraphGym graphgym/checkpoint.py save_ckpt, as in torch_geometric.graphgym",
        save=lambda p: {
            f"ckpt/{p.at}.ckpt": {"model_state": weights(p), "optimizer_state": ADAM, "scheduler_state": {}}
        },
        paths=("ckpt",),
        key="model_state",
    ),
    "catalyst": Trainer(
        source="catalyst-team/catalyst catalyst/callbacks/checkpoint.py CheckpointCallback",
        save=lambda p: {f"checkpoints/model.{p.at:04d}.pth": weights(p)},
        beside=lambda ps: {"checkpoints/model.last.pth": weights(ps[-1]), "checkpoints/model.best.pth": weights(ps[1])},
        paths=("checkpoints",),
        skipped=("checkpoints/model.last.pth", "checkpoints/model.best.pth"),
    ),
    "ignite": Trainer(
        source="pytorch/ignite ignite/handlers/checkpoint.py Checkpoint",
        at=(8000, 9000, 10000),
        save=lambda p: {
            f"checkpoint_{p.at}.pt": {"model": weights(p), "optimizer": ADAM, "trainer": {"iteration": p.at}}
        },
        key="model",
    ),
    "ignite, the best ones": Trainer(
        source="pytorch/ignite ignite/handlers/checkpoint.py Checkpoint with score_name",
        at=(8, 9, 10),
        save=lambda p: {f"best_model_{p.at}_accuracy=0.7{20 - p.at}.pt": weights(p)},
    ),
    "skorch": Trainer(
        source="skorch-dev/skorch skorch/callbacks/training.py Checkpoint, f_params='params_{last_epoch[epoch]}.pt'",
        save=lambda p: {f"params_{p.at}.pt": weights(p)},
        beside=lambda ps: {
            "optimizer.pt": ADAM,
            "criterion.pt": {},
            "history.json": {},
            "train_end_params.pt": weights(ps[-1]),
            "train_end_optimizer.pt": ADAM,
        },
        skipped=("optimizer.pt", "criterion.pt", "train_end_params.pt", "train_end_optimizer.pt"),
    ),
    "fastai": Trainer(
        source="fastai/fastai fastai/callback/tracker.py SaveModelCallback(every_epoch=True), learner.py save_model",
        save=lambda p: {f"models/model_{p.at}.pth": {"model": weights(p), "opt": ADAM}},
        beside=lambda ps: {"models/model.pth": {"model": weights(ps[1]), "opt": ADAM}},
        paths=("models",),
        skipped=("models/model.pth",),
        key="model",
    ),
    "MACE": Trainer(
        source="ACEsuit/mace mace/tools/checkpoint.py CheckpointIO",
        at=(48, 50, 98, 100),
        save=lambda p: {f"MACE_run-123_epoch-{p.at}.pt": {"model": weights(p), "optimizer": ADAM, "lr_scheduler": {}}},
        beside=lambda ps: {"MACE_run-123_epoch-120_swa.pt": {"model": average(ps[-1]), "optimizer": ADAM}},
        skipped=("MACE_run-123_epoch-120_swa.pt",),
        key="model",
    ),
    "OpenFold": Trainer(
        source="aqlaboratory/openfold train_openfold.py on_save_checkpoint",
        at=STEPS,
        save=lambda p: {f"{p.number}-{p.at}.ckpt": {**_lightning(p), "ema": {"params": average(p), "decay": 0.999}}},
        key="state_dict",
        names=names("model."),
    ),
    "lerobot": Trainer(
        source="huggingface/lerobot src/lerobot/common/train_utils.py save_checkpoint, update_last_checkpoint",
        at=(5000, 10000, 15000),
        save=_lerobot,
        beside=lambda _: {"checkpoints/last": Link("015000")},
        paths=("checkpoints",),
    ),
    "lerobot, by a pattern": Trainer(
        source="huggingface/lerobot src/lerobot/common/train_utils.py save_checkpoint, update_last_checkpoint",
        at=(5000, 10000, 15000),
        save=_lerobot,
        beside=lambda _: {"checkpoints/last": Link("015000")},
        paths=("checkpoints/*/pretrained_model",),
    ),
    "nerfstudio": Trainer(
        source="nerfstudio-project/nerfstudio nerfstudio/engine/trainer.py save_checkpoint",
        at=(2000, 10000, 29999),
        save=lambda p: {
            f"nerfstudio_models/step-{p.at:09d}.ckpt": {
                "step": p.at,
                "pipeline": weights(p, "_model."),
                "optimizers": {"fields": ADAM},
                "schedulers": {"fields": {}},
                "scalers": {"scale": 65536.0},
            }
        },
        paths=("nerfstudio_models",),
        key="pipeline",
        names=names("_model."),
    ),
    "rsl_rl": Trainer(
        source="leggedrobotics/rsl_rl rsl_rl/runners/on_policy_runner.py save",
        at=(0, 50, 100),
        save=lambda p: {
            f"model_{p.at}.pt": {"model_state_dict": weights(p), "optimizer_state_dict": ADAM, "iter": p.at}
        },
        key="model_state_dict",
    ),
    "Keras": Trainer(
        source="keras-team/keras keras/src/callbacks/model_checkpoint.py ModelCheckpoint",
        at=(8, 9),
        save=lambda p: {f"{p.at:02d}.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(100)},
        paths=("*.weights.h5",),
        refused=("HDF5",),
    ),
    "Stable-Baselines3": Trainer(
        source="DLR-RM/stable-baselines3 stable_baselines3/common/callbacks.py CheckpointCallback",
        at=(1000, 2000),
        save=lambda p: {f"rl_model_{p.at}_steps.zip": _stable_baselines()},
        paths=("*.zip",),
        refused=("stable-baselines|policy.pth",),
    ),
}
