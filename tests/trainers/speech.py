"""Trainers of speech recognition and synthesis."""

from __future__ import annotations

import torch

from tests.trainers.files import ADAM, Files, Link, Point, Trainer, average, other_model, weights


def _icefall(point: Point) -> dict[str, object]:
    state = {"model": weights(point), "model_avg": average(point), "optimizer": ADAM, "scheduler": {}, "sampler": {}}
    return {**state, "batch_idx_train": point.at, "cur_epoch": 1 + point.at // 3000, "best_valid_loss": float("inf")}


def _lightning(point: Point) -> dict[str, object]:
    loops: dict[str, object] = {"fit_loop": {"state_dict": {}}}
    return {
        "epoch": point.at,
        "global_step": 90 * point.at,
        "state_dict": weights(point),
        "loops": loops,
        "callbacks": {},
    }


def _speechbrain(point: Point) -> Files:
    days = ("2024-02-28+23-59-59+00", "2024-02-29+00-10-07+00", "2024-03-01+09-00-00+00", "2024-10-01+00-00-00+00")
    folder = f"save/CKPT+{days[point.number - 1]}"
    return {
        f"{folder}/model.ckpt": weights(point),
        f"{folder}/optimizer.ckpt": ADAM,
        f"{folder}/counter.ckpt": str(point.at),
        f"{folder}/brain.ckpt": "step: 1",
        f"{folder}/CKPT.yaml": f"end-of-epoch: true\nunixtime: {1.7e9 + point.number}",
    }


def _coqui(point: Point) -> dict[str, object]:
    return {"config": {}, "model": weights(point), "optimizer": ADAM, "scaler": None, "step": point.at, "epoch": 3}


def _vits(point: Point, epoch: int) -> dict[str, object]:
    return {"model": weights(point), "iteration": epoch, "optimizer": ADAM, "learning_rate": 2e-4}


def _critic(point: Point, epoch: int) -> dict[str, object]:
    return {"model": other_model(point), "iteration": epoch, "optimizer": ADAM, "learning_rate": 2e-4}


def _f5(point: Point) -> dict[str, object]:
    ema = {**average(point, "ema_model."), "initted": torch.tensor(True), "step": torch.tensor(point.at)}
    states = {"model_state_dict": weights(point), "ema_model_state_dict": ema, "optimizer_state_dict": ADAM}
    return {**states, "scheduler_state_dict": {"last_epoch": 1}, "update": point.at}


def _rvc(point: Point) -> dict[str, object]:
    return {"weight": weights(point), "config": [1025, 32, 192], "info": f"{point.at}epoch", "sr": "40k", "f0": 1}


def _tacotron(point: Point) -> dict[str, object]:
    rng = torch.ones(1, 8, dtype=torch.uint8)
    return {
        "epoch": point.at,
        "random_rng_states_all": rng,
        "config": {},
        "state_dict": weights(point),
        "optimizer": ADAM,
    }


SPEECH = {
    "icefall": Trainer(
        source="k2-fsa/icefall icefall/checkpoint.py, egs/librispeech/ASR/zipformer/train.py save_checkpoint",
        at=(3000, 4000, 6000, 8000, 9000, 12000, 30000),
        save=lambda p: {f"epoch-{p.at // 3000}.pt" if p.at % 3000 == 0 else f"checkpoint-{p.at}.pt": _icefall(p)},
        beside=lambda ps: {
            "best-train-loss.pt": _icefall(ps[-1]),
            "best-valid-loss.pt": _icefall(ps[2]),
            "epoch-10-avg-2.pt": {"model": average(ps[-1])},
        },
        skipped=("best-train-loss.pt", "best-valid-loss.pt", "epoch-10-avg-2.pt"),
        key="model",
    ),
    "ESPnet": Trainer(
        source="espnet/espnet espnet2/train/trainer.py, espnet2/main_funcs/average_nbest_models.py",
        save=lambda p: {f"{p.at}epoch.pth": weights(p)},
        beside=lambda ps: {
            "checkpoint.pth": {"model": weights(ps[-1]), "reporter": {"epoch": 11}, "optimizers": [ADAM]},
            "valid.acc.ave_3best.pth": average(ps[-1]),
            "valid.acc.ave.pth": Link("valid.acc.ave_3best.pth"),
            "valid.acc.best.pth": Link("9epoch.pth"),
            "latest.pth": Link("11epoch.pth"),
        },
        skipped=("checkpoint.pth", "valid.acc.ave_3best.pth", "valid.acc.ave.pth", "valid.acc.best.pth", "latest.pth"),
    ),
    "WeNet": Trainer(
        source="wenet-e2e/wenet wenet/bin/train.py, wenet/utils/train_utils.py save_model",
        save=lambda p: {f"epoch_{p.at}.pt": weights(p), f"epoch_{p.at}.yaml": f"epoch: {p.at}"},
        beside=lambda ps: {
            "init.pt": weights(Point(number=0, at=0)),
            "avg_3.pt": average(ps[-1]),
            "final.pt": Link("11.pt"),  # that trainer's link to the last epoch leads nowhere
        },
        skipped=("init.pt", "avg_3.pt", "final.pt"),
    ),
    "WeNet, older": Trainer(
        source="wenet-e2e/wenet v2.2 wenet/bin/train.py",
        save=lambda p: {f"{p.at}.pt": weights(p), f"{p.at}.yaml": f"epoch: {p.at}"},
        beside=lambda ps: {
            "init.pt": weights(Point(number=0, at=0)),
            "avg3.pt": average(ps[-1]),
            "final.pt": Link("11.pt"),
        },
        skipped=("init.pt", "avg3.pt", "final.pt"),
    ),
    "SpeechBrain": Trainer(
        source="speechbrain/speechbrain speechbrain/utils/checkpoints.py Checkpointer",
        save=_speechbrain,
        paths=("save/CKPT+*/model.ckpt",),
    ),
    "NeMo": Trainer(
        source="NVIDIA/NeMo nemo/utils/callbacks/nemo_model_checkpoint.py",
        save=lambda p: {f"asr--val_wer=0.{99 - p.at}12-epoch={p.at}.ckpt": _lightning(p)},
        beside=lambda ps: {
            "asr--val_wer=0.8812-epoch=11-last.ckpt": _lightning(ps[-1]),
            "asr--val_wer=0.8812-epoch=11-EMA.ckpt": {**_lightning(ps[-1]), "state_dict": average(ps[-1])},
            "asr.nemo": b"ustar",
        },
        skipped=("asr--val_wer=0.8812-epoch=11-last.ckpt", "asr--val_wer=0.8812-epoch=11-EMA.ckpt"),
        key="state_dict",
    ),
    "NVIDIA Tacotron2": Trainer(
        source="NVIDIA/DeepLearningExamples PyTorch/SpeechSynthesis/Tacotron2/train.py save_checkpoint",
        save=lambda p: {f"checkpoint_Tacotron2_{p.at}.pt": _tacotron(p)},
        beside=lambda _: {"checkpoint_Tacotron2_last.pt": Link("checkpoint_Tacotron2_11.pt")},
        skipped=("checkpoint_Tacotron2_last.pt",),
        key="state_dict",
    ),
    "Coqui TTS": Trainer(
        source="coqui-ai/Trainer trainer/io.py save_checkpoint, save_best_model",
        at=(8000, 9000, 10000, 11000),
        save=lambda p: {f"checkpoint_{p.at}.pth": _coqui(p)},
        beside=lambda ps: {"best_model.pth": _coqui(ps[1]), "best_model_9000.pth": _coqui(ps[1])},
        skipped=("best_model.pth", "best_model_9000.pth"),
        key="model",
    ),
    "VITS, the generator": Trainer(
        source="jaywalnut310/vits train.py, utils.py save_checkpoint: iteration is the epoch",
        at=(8000, 9000, 10000, 11000),
        save=lambda p: {f"G_{p.at}.pth": _vits(p, p.at // 5000), f"D_{p.at}.pth": _critic(p, p.at // 5000)},
        paths=("G_*.pth",),
        key="model",
    ),
    "VITS": Trainer(
        source="jaywalnut310/vits train.py",
        at=(8000, 9000, 10000, 11000),
        save=lambda p: {f"G_{p.at}.pth": _vits(p, p.at // 5000), f"D_{p.at}.pth": _critic(p, p.at // 5000)},
        refused=(r"G_\*\.pth", r"D_\*\.pth"),
    ),
    "so-vits-svc": Trainer(
        source="svc-develop-team/so-vits-svc train.py, utils.py save_checkpoint: iteration is the epoch",
        at=(800, 1600, 2400, 10400),
        save=lambda p: {f"logs/44k/G_{p.at}.pth": _vits(p, p.at // 100), f"logs/44k/D_{p.at}.pth": _critic(p, 9)},
        paths=("logs/44k/G_*.pth",),
        key="model",
    ),
    "F5-TTS": Trainer(
        source="SWivid/F5-TTS src/f5_tts/model/trainer.py save_checkpoint",
        at=(8000, 9000, 10000),
        save=lambda p: {f"model_{p.at}.pt": _f5(p)},
        beside=lambda ps: {
            "model_last.pt": _f5(ps[-1]),
            "pretrained_model_1200000.pt": {"ema_model_state_dict": average(Point(number=1, at=0), "ema_model.")},
        },
        skipped=("model_last.pt", "pretrained_model_1200000.pt"),
        key="model_state_dict",
    ),
    "RVC": Trainer(
        source="RVC-Project/Retrieval-based-Voice-Conversion-WebUI train/process_ckpt.py savee",
        save=lambda p: {f"weights/voice_e{p.at}_s{p.at * 200}.pth": _rvc(p)},
        paths=("weights",),
        key="weight",
    ),
    "GPT-SoVITS": Trainer(
        source="RVC-Boss/GPT-SoVITS GPT_SoVITS/s2_train.py, GPT_SoVITS/process_ckpt.py savee",
        save=lambda p: {f"SoVITS_weights/me_e{p.at}_s{p.at * 34}.pth": _rvc(p)},
        paths=("SoVITS_weights",),
        key="weight",
    ),
    "DL-Art-School (TorToiSe)": Trainer(
        source="neonbjb/DL-Art-School codes/trainer/base_model.py save_network, save_training_state",
        at=(500, 1000, 1500),
        save=lambda p: {
            f"models/{p.at}_gpt.pth": weights(p),
            f"models/{p.at}_gpt_ema.pth": average(p),
            f"training_state/{p.at}.state": {"iter": p.at, "optimizers": [ADAM]},
        },
        paths=("models",),
        skipped=("models/500_gpt_ema.pth", "models/1000_gpt_ema.pth", "models/1500_gpt_ema.pth"),
    ),
}
