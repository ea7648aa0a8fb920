"""Trainers of diffusion models and of generative adversarial networks."""

from __future__ import annotations

import pickle

import torch

from tests.trainers.files import (
    ADAM,
    Files,
    Point,
    Safe,
    Trainer,
    average,
    names,
    other_model,
    weights,
)

CONFIG = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.33.0"}


def _guided(point: Point) -> Files:
    return {
        f"model{point.at:06d}.pt": weights(point),
        f"ema_0.9999_{point.at:06d}.pt": average(point),
        f"opt{point.at:06d}.pt": ADAM,
    }


def _k_diffusion(point: Point) -> dict[str, object]:
    model = {"model": weights(point, "inner_model."), "model_ema": average(point, "inner_model.")}
    return {"config": {}, **model, "opt": ADAM, "sched": {}, "epoch": 0, "step": point.at, "ema_stats": {"loss": 0.1}}


def _lucidrains(point: Point) -> dict[str, object]:
    counters = {"initted": torch.tensor(True), "step": torch.tensor(1000 * point.at)}
    ema = {**counters, **weights(point, "online_model."), **average(point, "ema_model.")}
    return {"step": 1000 * point.at, "model": weights(point), "opt": ADAM, "ema": ema, "scaler": None, "version": "2"}


def _edm2(point: Point) -> dict[str, object]:
    state = {"cur_nimg": point.at * 1000, "total_elapsed_time": 1.5}
    ema = {"stds": [0.05, 0.1], "emas": [average(point), average(point)]}
    return {"state": state, "net": weights(point), "loss_fn": {"P_mean": -0.4}, "optimizer": ADAM, "ema": ema}


def _stable_audio(point: Point) -> dict[str, object]:
    counters = {"diffusion_ema.initted": torch.tensor([1.0]), "diffusion_ema.step": torch.tensor([point.at])}
    averaged = average(point, "diffusion_ema.ema_model.")
    state = {**weights(point, "diffusion.model."), **averaged, **counters}
    return {"epoch": 0, "global_step": point.at, "state_dict": state, "loops": {}, "callbacks": {}}


def _diffusers(point: Point) -> Files:
    folder = f"checkpoint-{point.at}"
    return {
        f"{folder}/unet/diffusion_pytorch_model.safetensors": weights(point),
        f"{folder}/unet/config.json": CONFIG,
        f"{folder}/unet_ema/diffusion_pytorch_model.safetensors": average(point),
        f"{folder}/unet_ema/config.json": CONFIG,
        f"{folder}/optimizer.bin": ADAM,
        f"{folder}/scheduler.bin": {"last_epoch": 1},
        f"{folder}/random_states_0.pkl": b"rng",
    }


def _kohya(point: Point, *, epoch: int) -> Safe:
    return Safe(
        weights(point), {"ss_epoch": str(epoch), "ss_steps": str(90 * epoch), "ss_network_module": "lycoris.kohya"}
    )


STABLE_AUDIO = names("diffusion.model.") | names("diffusion_ema.ema_model.")
STEPS = (500, 1000, 1500)
GENERATIVE = {
    "guided-diffusion": Trainer(
        source="openai/guided-diffusion guided_diffusion/train_util.py TrainLoop.save",
        at=(10000, 20000, 30000),
        save=_guided,
        skipped=tuple(f"{kind}0{n}0000.pt" for kind in ("ema_0.9999_", "opt") for n in (1, 2, 3)),
    ),
    "k-diffusion": Trainer(
        source="crowsonkb/k-diffusion train.py save",
        at=(10000, 20000, 100000),
        save=lambda p: {f"model_{p.at:08}.pth": _k_diffusion(p)},
        key="model",
        names=names("inner_model."),
    ),
    "DiT": Trainer(
        source="facebookresearch/DiT train.py",
        at=(50000, 100000, 150000),
        save=lambda p: {
            f"checkpoints/{p.at:07d}.pt": {"model": weights(p), "ema": average(p), "opt": ADAM, "args": {}}
        },
        paths=("checkpoints",),
        key="model",
    ),
    "denoising-diffusion-pytorch": Trainer(
        source="lucidrains/denoising-diffusion-pytorch denoising_diffusion_pytorch.py Trainer.save, by milestone",
        save=lambda p: {f"results/model-{p.at}.pt": _lucidrains(p)},
        paths=("results",),
        key="model",
    ),
    "edm2": Trainer(
        source="NVlabs/edm2 training/training_loop.py, torch_utils/distributed.py CheckpointIO.save",
        at=(512, 1024, 1536),
        save=lambda p: {
            f"training-state-{p.at:07d}.pt": _edm2(p),
            f"network-snapshot-{p.at:07d}-0.050.pkl": b"pickle",
            f"network-snapshot-{p.at:07d}-0.100.pkl": b"pickle",
        },
        key="net",
        allowed=("ema",),
    ),
    "stable-audio-tools": Trainer(
        source="Stability-AI/stable-audio-tools stable_audio_tools/training/diffusion.py, Lightning's ModelCheckpoint",
        at=(8000, 9000, 10000),
        save=lambda p: {f"epoch=0-step={p.at}.ckpt": _stable_audio(p)},
        key="state_dict",
        names=STABLE_AUDIO | {"diffusion_ema.initted", "diffusion_ema.step"},
    ),
    "diffusers": Trainer(
        source="huggingface/diffusers examples/text_to_image/train_text_to_image.py save_model_hook",
        at=STEPS,
        save=_diffusers,
        paths=("checkpoint-*/unet",),
    ),
    "kohya sd-scripts, fine-tune": Trainer(
        source="kohya-ss/sd-scripts library/train_util.py EPOCH_FILE_NAME, fine_tune.py",
        save=lambda p: {f"mine-{p.at:06d}.safetensors": Safe(weights(p), {"modelspec.title": "mine"})},
        beside=lambda _: {"mine.safetensors": Safe(weights(Point(number=5, at=12)), {"modelspec.title": "mine"})},
        skipped=("mine.safetensors",),
    ),
    "kohya sd-scripts, with the epoch inside": Trainer(
        source="kohya-ss/sd-scripts train_network.py save_model: ss_epoch, ss_steps",
        save=lambda p: {f"mine-{p.at:06d}.safetensors": _kohya(p, epoch=p.at)},
        beside=lambda _: {"mine.safetensors": _kohya(Point(number=5, at=12), epoch=12)},
        last=("mine.safetensors",),
    ),
    "kohya sd-scripts, by step": Trainer(
        source="kohya-ss/sd-scripts library/train_util.py STEP_FILE_NAME",
        at=STEPS,
        save=lambda p: {f"mine-step{p.at:08d}.safetensors": Safe(weights(p), {"modelspec.title": "mine"})},
    ),
    "BasicSR": Trainer(
        source="XPixelGroup/BasicSR basicsr/models/base_model.py save_network, save_training_state",
        at=(5000, 10000, 15000),
        save=lambda p: {
            f"models/net_g_{p.at}.pth": {"params": weights(p), "params_ema": average(p)},
            f"training_states/{p.at}.state": {"epoch": 1, "iter": p.at, "optimizers": [ADAM]},
        },
        beside=lambda ps: {"models/net_g_latest.pth": {"params": weights(ps[-1]), "params_ema": average(ps[-1])}},
        paths=("models",),
        skipped=("models/net_g_latest.pth",),
        key="params",
    ),
    "ESRGAN, the generator": Trainer(
        source="XPixelGroup/BasicSR basicsr/models/srgan_model.py save",
        at=(5000, 10000, 15000),
        save=lambda p: {
            f"models/net_g_{p.at}.pth": {"params": weights(p)},
            f"models/net_d_{p.at}.pth": {"params": other_model(p)},
        },
        paths=("models/net_g_*.pth",),
        key="params",
    ),
    "ESRGAN": Trainer(
        source="XPixelGroup/BasicSR basicsr/models/srgan_model.py save",
        at=(5000, 10000, 15000),
        save=lambda p: {
            f"models/net_g_{p.at}.pth": {"params": weights(p)},
            f"models/net_d_{p.at}.pth": {"params": other_model(p)},
        },
        paths=("models",),
        refused=(r"net_g_\*\.pth", r"net_d_\*\.pth"),
    ),
    "StyleGAN": Trainer(
        source="NVlabs/stylegan3 training/training_loop.py: a pickle of modules with their source code",
        at=(200, 400),
        save=lambda p: {f"network-snapshot-{p.at:06d}.pkl": pickle.dumps({"G_ema": weights(p)})},
        paths=("*.pkl",),
        refused=("pickle",),
    ),
}
